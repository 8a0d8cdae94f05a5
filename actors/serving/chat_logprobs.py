"""Log-probabilities of a message's tokens, in the chat API's form, and as numbers that JSON has."""

from __future__ import annotations

import math
from typing import Any

from ..outputs import CompletionOutput
from ..tokenizer import Tokenizer

_LEAST = -9999.0  # what other servers say of a token that can't come


def finite(logprob: float) -> float:
    """JSON knows no infinity, and no number that is none."""
    return logprob if _LEAST < logprob < math.inf else _LEAST


def chat_logprobs(output: CompletionOutput, tokenizer: Tokenizer, num_likeliest: int) -> dict[str, Any] | None:
    """An entry for each token of the output, with so many in its place; None where none were asked for."""
    if output.logprobs is None:
        return None
    entries = []
    for table, token_id in zip(output.logprobs, output.token_ids, strict=True):
        likeliest = sorted(table.items(), key=lambda item: -item[1].logprob)[:num_likeliest]
        entry = _token(tokenizer, token_id, table[token_id].logprob)
        entries.append(entry | {"top_logprobs": [_token(tokenizer, other, each.logprob) for other, each in likeliest]})
    return {"content": entries}


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    said = tokenizer.piece_bytes(token_id)
    return {"token": tokenizer.piece(token_id), "logprob": finite(logprob), "bytes": list(said)}
