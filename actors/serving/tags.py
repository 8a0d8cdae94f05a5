"""Tags in a growing text: where one begins or may begin, and the white space before it, which is layout."""

from __future__ import annotations


def find_tag(tag: str, text: str, at: int) -> int:
    """Where the tag begins at or behind `at`, or what may become one at the text's end, or else that end.

    A tag has its first character nowhere else, so what begins like one and is none hides none either.
    """
    found = text.find(tag, at)
    if found >= 0:
        return found
    found = text.rfind(tag[0], max(at, len(text) - len(tag) + 1))
    return found if found >= 0 and tag.startswith(text[found:]) else len(text)


class HeldSpace:
    """Passes text on, but for the white space at its end; holds it in pieces, so a long run costs no copies."""

    def __init__(self, chars: str | None = None) -> None:
        self._chars = chars  # which count as white space; None: all that Unicode says
        self._held: list[str] = []

    def push(self, text: str) -> str:
        """What can go on now that this text has come."""
        words = text.rstrip(self._chars)
        if not words:
            self._held.append(text)
            return ""
        before, self._held = self._held, [text[len(words) :]]
        return "".join([*before, words])

    def pop(self) -> str:
        """What is held, which is then held no more."""
        held, self._held = self._held, []
        return "".join(held)
