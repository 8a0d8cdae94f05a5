"""Log-probabilities of the tokens that a message's text is of: those of reasoning, calls and tags are left out.

The answer's text is read in pieces that each end where a token does, and what a parser gives out as content is looked
up in what has been read since: a parser holds text back and drops some, but never says what isn't there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Protocol

from ..detokenizer import Detokenizer
from ..outputs import CompletionOutput
from ..tokenizer import Tokenizer
from .chat_logprobs import chat_logprobs
from .chat_protocol import TokenLogprob
from .completion_logprobs import TextOffsets


class Scores(Protocol):
    """Follows one answer."""

    def pieces(self, output: CompletionOutput) -> Iterator[str]:
        """The text that has come, piece by piece."""

    def read(self, piece: str) -> None:
        """That a parser is given this piece now."""

    def of(self, content: str) -> list[TokenLogprob]:
        """The entries of what the parser says now."""

    def pass_by(self) -> None:
        """That of what has been read nothing more can become content."""


class NoScores:
    """Stands in where nobody has asked for any."""

    def pieces(self, output: CompletionOutput) -> Iterator[str]:
        """All at once."""
        yield output.text

    def read(self, piece: str) -> None:
        """Nothing to note."""

    def of(self, content: str) -> list[TokenLogprob]:
        """None."""
        return []

    def pass_by(self) -> None:
        """Nothing to forget."""


class TextScores:
    """For one answer behind a prompt."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skips_special: bool, num_likeliest: int
    ) -> None:
        self._tokenizer = tokenizer
        self._offsets = TextOffsets(Detokenizer(tokenizer, prompt_token_ids, skips_special), 0)
        self._num_likeliest = num_likeliest
        self._tokens: list[tuple[int, TokenLogprob]] = []  # each with the place where its text begins
        self._next = 0  # of these: the first that is neither given out nor passed by
        self._num_taken = 0  # characters that have come
        self._text = ""  # read, and neither given out nor passed by
        self._start = 0  # where that begins

    def pieces(self, output: CompletionOutput) -> Iterator[str]:
        """A piece for each token, or for several that share a character."""
        tables = output.logprobs or []
        count = min(len(tables), len(output.token_ids))
        scored = chat_logprobs(tables[:count], output.token_ids[:count], self._tokenizer, self._num_likeliest)
        entries = map(TokenLogprob.model_validate, scored["content"])
        self._tokens += zip(self._offsets.take(output.token_ids[:count]), entries, strict=True)
        start, end = self._num_taken, self._num_taken + len(output.text)
        self._num_taken = end
        unread = takewhile(lambda place: place > start, (place for place, _ in reversed(self._tokens)))
        for begin, behind in pairwise([start, *sorted({place for place in unread if place < end}), end]):
            yield output.text[begin - start : behind - start]

    def read(self, piece: str) -> None:
        """Takes it to what content is looked up in."""
        self._text += piece

    def of(self, content: str) -> list[TokenLogprob]:
        """The entries of the tokens that have a share in it."""
        if not content:
            return []
        at = 0 if self._text.startswith(content) else max(self._text.rfind(content), 0)  # behind what was dropped
        begin, end = self._start + at, self._start + min(at + len(content), len(self._text))
        self._text, self._start = self._text[end - self._start :], end
        return [entry for place, behind, entry in self._take(end) if max(behind, place + 1) > begin]

    def pass_by(self) -> None:
        """Forgets it, so that long reasoning isn't looked through again and again."""
        self._start += len(self._text)
        self._text = ""
        self._take(self._start)

    def _take(self, end: int) -> list[tuple[int, int, TokenLogprob]]:
        """The next tokens that begin before `end`: where each begins, where the one behind it does, its entry."""
        taken = []
        while self._next < len(self._tokens) and self._tokens[self._next][0] < end:
            place, entry = self._tokens[self._next]
            self._next += 1
            taken.append((place, self._tokens[self._next][0] if self._next < len(self._tokens) else end, entry))
        return taken
