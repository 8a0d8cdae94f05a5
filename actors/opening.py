"""What both faces do with an engine's handle: open a desk, find the defaults, name a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..configs.model_config import ModelConfig
from ..configs.sampling import SamplingParams
from ..errors import EngineDeadError, PenstockError
from ..scheduler.messages import NewRequest
from .answer import Answer
from .frontdesk import Frontdesk
from .outputs import RequestOutput
from .params import to_new_request
from .prompts import PromptError
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .engine import EngineHandle


def open_desk(handle: EngineHandle, tokenizer: Tokenizer | None) -> Frontdesk:
    """A client of the engine and what makes its requests."""
    limits = handle.limits
    eos_token_ids = handle.model_config.ending_ids(None if tokenizer is None else tokenizer.eos_token_id)

    def make_request(request_id: str, token_ids: Sequence[int], params: SamplingParams, index: int) -> NewRequest:
        return to_new_request(request_id, token_ids, params, index, eos_token_ids=eos_token_ids, limits=limits)

    return Frontdesk(handle.client(), make_request, limits, tokenizer)


def default_sampling_params(model_config: ModelConfig) -> SamplingParams:
    """The defaults, with what the model's generation_config.json recommends."""
    recommended = asdict(model_config.generation_defaults)
    return SamplingParams(**{name: value for name, value in recommended.items() if value is not None})


def failure_of(desk: Frontdesk, answer: Answer, outputs: Sequence[RequestOutput] = ()) -> PenstockError | None:
    """The exception that an answer with an error is to its caller; None for one without."""
    if (error := answer.error) is None:
        return None
    if desk.client.is_dead:
        return EngineDeadError(error)
    return PromptError(answer.index, error, outputs)
