"""When a request ends: eos, stop token ids, and the limits of its length. Stop strings are the client's."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from .messages import FinishReason


@dataclass(slots=True, frozen=True)
class StopRule:
    """What ends a request besides its length."""

    eos_token_ids: tuple[int, ...] = ()  # empty under `ignore_eos`
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0  # fewer output tokens than this never end at a token id


@dataclass(slots=True, frozen=True)
class Ending:
    """Why a request has ended."""

    reason: FinishReason
    stop_reason: int | None = None  # the stop token id, not for eos


def ending(rule: StopRule, token_id: int, num_output: int, reached_limit: bool) -> Ending | None:
    """How the newest token ends its request, if it does; `num_output` counts it.

    A stop goes before a limit met by the same token, eos before a stop token id, as in vLLM.
    """
    if num_output >= rule.min_tokens:
        if token_id in rule.eos_token_ids:
            return Ending("stop")
        if token_id in rule.stop_token_ids:
            return Ending("stop", token_id)
    return Ending("length") if reached_limit else None


class StopIds:
    """Every id that may end some live request, counted, so that one set operation clears a whole step."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    @property
    def ids(self) -> AbstractSet[int]:
        return self._counts.keys()

    def add(self, rule: StopRule) -> None:
        """Counts a live request's ids."""
        for token_id in (*rule.eos_token_ids, *rule.stop_token_ids):
            self._counts[token_id] = self._counts.get(token_id, 0) + 1

    def remove(self, rule: StopRule) -> None:
        """Uncounts them at its end."""
        for token_id in (*rule.eos_token_ids, *rule.stop_token_ids):
            self._counts[token_id] -= 1
            if not self._counts[token_id]:
                del self._counts[token_id]

    def any_in(self, token_ids: list[int]) -> bool:
        """Whether one of the tokens may end a request."""
        return not self._counts.keys().isdisjoint(token_ids)
