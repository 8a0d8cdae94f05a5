"""The asynchronous face of an engine: one async iterator for each request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ..configs.sampling import SamplingParams
from ..errors import RequestError
from .answer import Answer
from .frontdesk import Frontdesk
from .mailroom import Mailroom
from .opening import default_sampling_params, failure_of, open_desk
from .outputs import RequestOutput
from .prompts import Limits, Prompt
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .engine import EngineHandle
    from .engine_health import EngineHealth


class AsyncEngine:
    """A handle to a running engine, for any number of requests at once on one event loop."""

    def __init__(self, handle: EngineHandle, desk: Frontdesk) -> None:
        self._handle = handle
        self._desk = desk
        self._running: dict[str, Answer] = {}
        self._room: Mailroom | None = None

    @property
    def name(self) -> str:
        """The engine's name in the cluster."""
        return self._handle.name

    @property
    def default_sampling_params(self) -> SamplingParams:
        """What a request that says nothing is sampled with: the defaults, and what the model's folder recommends."""
        return default_sampling_params(self._handle.model_config)

    @property
    def limits(self) -> Limits:
        """What a prompt is held against."""
        return self._desk.limits

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer and chat template; None without one."""
        return self._desk.tokenizer

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncGenerator[RequestOutput]:
        """The answer so far, whenever tokens have come, until it is finished.

        A reader that falls behind gets fewer, longer steps. Leaving the iterator aborts the request. Raises
        RequestError for a request that can't be served, EngineDeadError when the engine ends first.
        """
        (answer,) = self.prepare([prompt], sampling_params)
        answer.request_id = request_id or answer.request_id
        async with aclosing(self.run([answer])) as steps:
            async for _ in steps:
                if (output := answer.next_output()) is not None:
                    yield output

    def prepare(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | None = None, add_special_tokens: bool = True
    ) -> list[Answer]:
        """The prompts as answers to come, for `run`; raises RequestError where one can't be served."""
        params = sampling_params or self.default_sampling_params
        return self._desk.prepare(prompts, params, add_special_tokens)

    async def run(self, answers: Sequence[Answer]) -> AsyncGenerator[list[Answer]]:
        """Submits the answers and yields those that have moved, each once, until all are finished.

        Leaving the iterator aborts what still runs. Raises RequestError for the first that the engine refuses,
        EngineDeadError when the engine ends.
        """
        for answer in answers:
            if answer.request_id in self._running:
                raise RequestError(f"request_id {answer.request_id!r} is running already; choose another, or none")
        desk, inbox = self._desk, self._mailroom().inbox()  # this desk to the end, whatever `rejoin` does meanwhile
        self._running |= {answer.request_id: answer for answer in answers}
        num_open = len(answers)
        try:
            for answer in answers:
                desk.submit(answer, inbox.post)
            while num_open:
                moved = {id(arrival.answer): desk.accept(arrival) for arrival in await inbox.take()}
                for answer in moved.values():
                    if (failure := failure_of(desk, answer)) is not None:
                        raise failure
                num_open = sum(not answer.finished for answer in answers)
                yield list(moved.values())
        finally:
            for answer in answers:
                self._running.pop(answer.request_id, None)
            desk.abort(answers)

    def abort(self, request_id: str) -> None:
        """Ends a request by the id of its outputs; its iterator gets a last output with finish_reason "abort"."""
        if (answer := self._running.get(request_id)) is not None:
            self._desk.abort([answer])

    def get_tokenizer(self) -> Any:
        """The model's `PreTrainedTokenizerFast`; None without one."""
        return self._desk.tokenizer.fast if self._desk.tokenizer is not None else None

    async def stats(self) -> dict[str, Any]:
        """The engine's figures, those of each stage under "stages"."""
        return await asyncio.to_thread(self._handle.stats)

    async def health(self) -> EngineHealth:
        """That the engine serves; raises EngineDeadError, within some 2 s, when it doesn't."""
        return await asyncio.to_thread(self._handle.health)

    @property
    def is_dead(self) -> bool:
        """Whether the engine has ended, or this handle was closed."""
        return self._desk.client.is_dead

    def rejoin(self) -> None:
        """Takes another client where this one has lost an engine that lives: one of them paused for too long.

        What the lost one owed has failed, and stays so. Raises EngineDeadError where the engine takes none.
        """
        lost, self._desk = self._desk, open_desk(self._handle, self._desk.tokenizer)
        lost.client.close()  # so that the engine ends what it may still run for it

    def close(self) -> None:
        """Leaves the engine, which goes on."""
        self._desk.client.close()

    def _mailroom(self) -> Mailroom:
        """The one of the loop that runs; inboxes of another loop keep theirs."""
        loop = asyncio.get_running_loop()
        if self._room is None or self._room.loop is not loop:
            self._room = Mailroom(loop)
        return self._room
