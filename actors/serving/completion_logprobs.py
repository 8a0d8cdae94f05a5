"""Log-probabilities of a completion's tokens as the completions API's columns, each with the place of its text."""

from __future__ import annotations

from collections.abc import Sequence

from ..detokenizer import Detokenizer
from ..outputs import PositionLogprobs
from ..tokenizer import Tokenizer
from .chat_logprobs import finite
from .completion_protocol import CompletionLogprobs


class TextOffsets:
    """Where the text of each token of a growing completion begins, as the same decoder gives it out.

    A token within a character is where the character begins; one whose text is left out, where the next one's is.
    """

    def __init__(self, detokenizer: Detokenizer | None, start: int) -> None:
        self._detokenizer = detokenizer
        self._at = start

    def take(self, token_ids: Sequence[int]) -> list[int]:
        """The places of the next tokens; without a tokenizer, and so without text, all at the start."""
        return [self._next(token_id) for token_id in token_ids]

    def _next(self, token_id: int) -> int:
        begin = self._at
        if self._detokenizer is not None:
            self._at += len(self._detokenizer.append([token_id]))
        return begin


def echo_offsets(text: str, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The same for a prompt, whose text may say special tokens, or have had some added that it doesn't say."""
    says_special = tokenizer.decode(token_ids) != text
    detokenizer = Detokenizer(tokenizer, (), skip_special_tokens=not says_special)
    offsets, at = [], 0
    for token_id in token_ids:
        offsets.append(at)
        said = detokenizer.append([token_id])
        at += len(said) if text.startswith(said, at) else 0
    return offsets


def completion_logprobs(
    tables: Sequence[PositionLogprobs | None],
    token_ids: Sequence[int],
    offsets: Sequence[int],
    tokenizer: Tokenizer | None,
    names_likeliest: bool,
) -> CompletionLogprobs:
    """The columns of an entry for each token."""
    scores = [None if table is None else table[token_id] for table, token_id in zip(tables, token_ids, strict=True)]
    return CompletionLogprobs(
        tokens=[_name(token_id, tokenizer) for token_id in token_ids],
        token_logprobs=[None if score is None else finite(score.logprob) for score in scores],
        top_logprobs=[_named(table, tokenizer) for table in tables] if names_likeliest else None,
        text_offset=list(offsets),
    )


def _named(table: PositionLogprobs | None, tokenizer: Tokenizer | None) -> dict[str, float] | None:
    if table is None:
        return None
    named: dict[str, float] = {}
    for token_id, each in table.items():  # the scored token is the first, the others follow by rank
        named.setdefault(_name(token_id, tokenizer), finite(each.logprob))
    return named


def _name(token_id: int, tokenizer: Tokenizer | None) -> str:
    return str(token_id) if tokenizer is None else tokenizer.name(token_id)
