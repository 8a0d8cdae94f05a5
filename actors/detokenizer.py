"""Token ids to text while they arrive: never half a character, and stop strings found across tokens' borders.

A tokenizer's decoder looks at neighbours (bytes that form one character, a space that only an inner token has), so
tokens are decoded behind their predecessors, and the text is what those gained; the method of Hugging Face's
text-generation-inference. Bytes that can't become a character come out as replacement marks.
"""

from __future__ import annotations

from collections.abc import Sequence

from .tokenizer import Decoder

REPLACEMENT = "\ufffd"
_MAX_OPEN_TOKENS = 3  # a character has at most 4 bytes: no more tokens than this can still wait for its end
_CONTEXT_TOKENS = 6  # predecessors that are decoded again


class Detokenizer:
    """The text of one growing sequence."""

    def __init__(self, decoder: Decoder, prompt_token_ids: Sequence[int], skip_special_tokens: bool = True) -> None:
        self._decoder = decoder
        self._skip = skip_special_tokens
        self._context = list(prompt_token_ids[-_CONTEXT_TOKENS:])
        self._kept = self._decode(self._context)
        self._pending: list[int] = []  # tokens behind the context, whose text is not out yet

    def append(self, token_ids: Sequence[int]) -> str:
        """The characters that these tokens complete; bytes that may still become a character wait."""
        self._pending.extend(token_ids)
        end = len(self._pending)
        for num_open in range(min(_MAX_OPEN_TOKENS + 1, end)):
            text = self._decode(self._context + self._pending[: end - num_open])
            if not text.endswith(REPLACEMENT):
                return self._settle(end - num_open, text)
        if end > _MAX_OPEN_TOKENS:  # no character ends here, so none that began before can end any more
            end -= _MAX_OPEN_TOKENS
            return self._settle(end, self._decode(self._context + self._pending[:end]))
        return ""

    def finish(self) -> str:
        """What waited: bytes that can't become a character any more, as replacement marks."""
        return self._settle(len(self._pending), self._decode(self._context + self._pending))

    def _settle(self, num_tokens: int, text: str) -> str:
        """Gives out the text of the first pending tokens; `text` is theirs behind the context's."""
        settled, self._pending = self._pending[:num_tokens], self._pending[num_tokens:]
        # A wrong byte changes how a byte-fallback decoder reads the right ones before it.
        new = text[len(self._kept) :] if text.startswith(self._kept) else self._decode(settled)
        self._move_context(self._context + settled, text)
        return new

    def _move_context(self, ids: list[int], text: str) -> None:
        """Keeps the last tokens: whole characters, and not nothing, or a decoder would strip the next one's space."""
        for num_tokens in range(_CONTEXT_TOKENS, _CONTEXT_TOKENS + _MAX_OPEN_TOKENS + 1):
            self._context = ids[-num_tokens:]
            self._kept = self._decode(self._context)
            if self._kept and (text.endswith(REPLACEMENT) or not self._kept.startswith(REPLACEMENT)):
                return
        self._context, self._kept = ids, text

    def _decode(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(ids, skip_special_tokens=self._skip)


def find_stop(text: str, num_new: int, stops: Sequence[str]) -> tuple[int, str] | None:
    """The earliest stop string that ends within the last `num_new` characters: where it begins, and which it is.

    Of two that begin at one place the longer wins: it is the more specific one.
    """
    found: tuple[int, str] | None = None
    for stop in stops:
        at = text.find(stop, max(0, len(text) - num_new - len(stop) + 1))
        if at >= 0 and (found is None or (at, -len(stop)) < (found[0], -len(found[1]))):
            found = (at, stop)
    return found


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may turn out to begin a stop string."""
    longest = max((len(stop) for stop in stops), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
