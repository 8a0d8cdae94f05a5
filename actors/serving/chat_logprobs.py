"""Log-probabilities of a message's tokens, in the chat API's form, and as numbers that JSON has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..outputs import PositionLogprobs
from ..tokenizer import Tokenizer

_LEAST = -9999.0  # what other servers say of a token that can't come


def finite(logprob: float) -> float:
    """JSON knows no infinity, and no number that is none."""
    return logprob if _LEAST < logprob < math.inf else _LEAST


def chat_logprobs(
    tables: Sequence[PositionLogprobs], token_ids: Sequence[int], tokenizer: Tokenizer, num_likeliest: int
) -> dict[str, Any]:
    """An entry for each token of an output, with so many in its place."""
    entries = []
    for table, token_id in zip(tables, token_ids, strict=True):
        likeliest = sorted(table.items(), key=lambda item: -item[1].logprob)[:num_likeliest]
        entry = _token(tokenizer, token_id, table[token_id].logprob)
        entries.append(entry | {"top_logprobs": [_token(tokenizer, other, each.logprob) for other, each in likeliest]})
    return {"content": entries}


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    said = tokenizer.piece_bytes(token_id)
    return {"token": tokenizer.piece(token_id), "logprob": finite(logprob), "bytes": list(said)}
