"""What an engine answers when it is asked whether it lives."""

from __future__ import annotations

from dataclasses import dataclass

HEALTH_TIMEOUT_S = 2.0  # an engine that has not answered by then counts as dead
LOOP_TIMEOUT_S = 1.5  # of these, for its loop, so that a loop that hangs is told apart from an actor that does


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """The answer of an engine that serves; one that doesn't raises EngineDeadError instead."""

    num_steps: int  # published so far
    num_unfinished: int  # requests without their final event
    longest_silence_s: float  # since the heartbeat of whichever worker was heard last; below `stage_timeout_s`
