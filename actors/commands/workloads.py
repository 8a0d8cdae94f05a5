"""Request mixes for measuring, the same on every run: prompts of random tokens, with arrival times and lengths."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import ConfigError

_SEED = 7
_RESERVED_IDS = 1000  # at either end of the vocabulary, where special tokens tend to be


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload."""

    arrival_s: float
    prompt_token_ids: list[int]
    max_tokens: int


Lengths = Callable[[random.Random], tuple[int, int]]  # of prompt and answer


def _lognormal(rng: random.Random, mean: float, sigma: float, limits: tuple[int, int]) -> int:
    drawn = int(rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma))
    return max(limits[0], min(limits[1], drawn))


WORKLOADS: dict[str, Lengths] = {
    "chat": lambda rng: (_lognormal(rng, 300, 1.0, (4, 2048)), _lognormal(rng, 250, 0.8, (4, 1024))),
    "decode": lambda rng: (128, 512),
    "prefill": lambda rng: (2048, 64),
}


def make_workload(name: str, num_requests: int, vocab_size: int, rate: float | None = None) -> list[Request]:
    """Requests of a named mix, all at once or at `rate` a second. Raises ConfigError where the vocabulary is small."""
    if vocab_size <= 2 * _RESERVED_IDS:
        raise ConfigError(f"the workloads need a vocabulary of more than {2 * _RESERVED_IDS} tokens, not {vocab_size}")
    rng = random.Random(f"{name}-{_SEED}")
    requests, arrival_s = [], 0.0
    for _ in range(num_requests):
        num_prompt, num_answer = WORKLOADS[name](rng)
        if rate:
            arrival_s += rng.expovariate(rate)
        tokens = [rng.randrange(_RESERVED_IDS, vocab_size - _RESERVED_IDS) for _ in range(num_prompt)]
        requests.append(Request(arrival_s, tokens, num_answer))
    return requests
