"""Whether a request that came over a socket is one: its fields of their types, its numbers within what stages hold.

`SamplingParams` keeps our own clients within these bounds. A client that isn't ours must not be able to end the engine,
so what the scheduler and the stages take for granted is checked before they see it. Whether a request can be served is
not asked here: the scheduler answers that to the request alone.
"""

from __future__ import annotations

from dataclasses import fields
from math import isfinite

from ..configs.sampling import MAX_LOGPROBS
from ..scheduler.messages import NewRequest
from ..scheduler.plan import GREEDY, Sampling

_DEFAULTS = [(each.name, getattr(GREEDY, each.name)) for each in fields(Sampling)]


def check_request(request: NewRequest) -> None:
    """Raises ValueError, with name and value, for what no client of ours sends."""
    sampling = request.sampling
    for name, default in _DEFAULTS:
        if not _is_like(default, value := getattr(sampling, name)):
            raise ValueError(f"{name} is {value!r:.100}")
    for token_id in (*request.stop_token_ids, *request.eos_token_ids, *sampling.stop_token_ids):
        if not isinstance(token_id, int):
            raise ValueError(f"{token_id!r:.100} is no token id")
    for token_id, bias in sampling.logit_bias:
        if not isfinite(bias):
            raise ValueError(f"the bias of token {token_id} is {bias}")
    for count in (sampling.num_logprobs, sampling.num_prompt_logprobs):
        if not -1 <= count <= MAX_LOGPROBS:
            raise ValueError(f"{count} log-probabilities are asked for; at most {MAX_LOGPROBS} are told")


def _is_like(default: object, value: object) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and isfinite(value)
    return isinstance(value, type(default))
