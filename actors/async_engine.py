"""The asynchronous face of an engine: one async iterator for each request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..configs.sampling import SamplingParams
from ..errors import RequestError
from .answer import Answer
from .frontdesk import Arrival, Frontdesk
from .opening import default_sampling_params, failure_of
from .outputs import RequestOutput
from .prompts import Prompt

if TYPE_CHECKING:
    from .engine import EngineHandle
    from .engine_health import EngineHealth


class AsyncEngine:
    """A handle to a running engine, for any number of requests at once on one event loop."""

    def __init__(self, handle: EngineHandle, desk: Frontdesk) -> None:
        self._handle = handle
        self._desk = desk
        self._running: dict[str, Answer] = {}

    @property
    def name(self) -> str:
        """The engine's name in the cluster."""
        return self._handle.name

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncGenerator[RequestOutput]:
        """The answer so far, whenever tokens have come, until it is finished.

        A reader that falls behind gets fewer, longer steps. Leaving the iterator aborts the request. Raises
        RequestError for a request that can't be served, EngineDeadError when the engine ends first.
        """
        params = sampling_params or default_sampling_params(self._handle.model_config)
        (answer,) = self._desk.prepare([prompt], params)
        name = request_id or answer.request_id
        if name in self._running:
            raise RequestError(f"request_id {name!r} is running already; choose another, or none")
        answer.request_id = name
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Arrival]()
        self._running[name] = answer
        self._desk.submit(answer, lambda arrival: _post(loop, inbox, arrival))
        try:
            while not answer.finished:
                self._desk.accept(await inbox.get())
                while not inbox.empty():
                    self._desk.accept(inbox.get_nowait())
                if (failure := failure_of(self._desk, answer)) is not None:
                    raise failure
                if (output := answer.next_output()) is not None:
                    yield output
        finally:
            self._running.pop(name, None)
            self._desk.abort([answer])

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

    def close(self) -> None:
        """Leaves the engine, which goes on."""
        self._desk.client.close()


def _post(loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[Arrival], arrival: Arrival) -> None:
    """Hands an event to the loop; a loop that has ended has no reader for it."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(inbox.put_nowait, arrival)
