"""Requests whose grammar is not compiled yet wait here, outside the scheduler, which never learns of grammars.

A spec that is new goes to every rank of the last stage, on the way that plans take; each compiles it on a thread of its
own and says whether it could. The request is handed on when all have; what is known passes at once. So the pipeline
never waits for a compiler, except for a spec that a rank has forgotten meanwhile, which it compiles again as it comes.
Everything is bounded: specs under way, requests that wait, how long each waits, verdicts that are remembered.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from ..configs.structured import LIMITS, split_spec
from ..errors import EngineDeadError
from ..scheduler.messages import NewRequest
from .liveness import ObserverClock
from .wire import Kind, decode_compiled, encode_grammar, frame
from .worker_port import WorkerPort

MAX_UNDER_WAY = 8  # specs sent and not answered by all
MAX_WAITING = 1024  # requests
MAX_VERDICTS = 4096
COMPILE_TIMEOUT_S = 30.0

_Key = tuple[str, str]


@dataclass(slots=True)
class _Compilation:
    """A spec, from the first request that names it until every rank has answered."""

    spec: str
    number: int
    owed: int  # answers
    is_sent: bool = False
    problem: str | None = None
    waiting: dict[_Key, tuple[NewRequest, float]] = field(default_factory=dict)  # and since when


class GrammarDesk:
    """For the engine's thread alone."""

    def __init__(
        self,
        workers: Sequence[WorkerPort],
        clock: ObserverClock,
        add: Callable[[NewRequest], None],
        refuse: Callable[[NewRequest, str], None],
    ) -> None:
        """`add` takes requests that may be scheduled; `refuse` answers one with an error."""
        last = max(worker.name.stage_idx for worker in workers)
        self._workers = [worker for worker in workers if worker.name.stage_idx == last]
        self._clock = clock
        self._add = add
        self._refuse = refuse
        self._numbers = itertools.count()
        self._compilations: dict[str, _Compilation] = {}  # by spec, oldest first
        self._by_number: dict[int, _Compilation] = {}
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()  # by the spec's hash: the problem

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return sum(len(each.waiting) for each in self._compilations.values())

    def submit(self, request: NewRequest) -> None:
        """Hands the request on, refuses it, or keeps it until its grammar is compiled."""
        spec = request.sampling.grammar
        if self._compilations and self._find(request.key) is not None:
            self._refuse(request, f"request id {request.request_id!r} of {request.client_id!r} is already in use")
        elif not spec:
            self._add(request)
        elif len(spec) > LIMITS.max_bytes + 16:
            self._refuse(request, f"the grammar has {len(spec)} characters; {LIMITS.max_bytes} bytes are allowed")
        elif (key := _hash(spec)) in self._verdicts:
            self._verdicts.move_to_end(key)
            self._settle(request, self._verdicts[key])
        elif self.num_waiting >= MAX_WAITING:
            self._refuse(request, f"{MAX_WAITING} requests wait for their grammars to be compiled: try again later")
        else:
            self._keep(spec, request)

    def forget(self, client_id: str, request_id: str) -> bool:
        """Drops a request that waits; whether it did."""
        compilation = self._find((client_id, request_id))
        if compilation is None:
            return False
        del compilation.waiting[client_id, request_id]
        return True

    def forget_client(self, client_id: str) -> None:
        """Drops all requests of a client that is gone."""
        for compilation in self._compilations.values():
            for key in [key for key in compilation.waiting if key[0] == client_id]:
                del compilation.waiting[key]

    def take(self, body: memoryview) -> None:
        """A rank's answer; the last one settles the requests that waited for it."""
        number, problem = decode_compiled(body)
        compilation = self._by_number[number]
        compilation.problem = compilation.problem or problem
        compilation.owed -= 1
        if compilation.owed:
            return
        del self._by_number[number]
        del self._compilations[compilation.spec]
        self._verdicts[_hash(compilation.spec)] = compilation.problem
        while len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        for request, _ in compilation.waiting.values():
            self._settle(request, compilation.problem)
        self._send_more()

    def tick(self) -> None:
        """Refuses what has waited too long; the rank may still be at it."""
        for compilation in list(self._compilations.values()):
            for key, (request, since) in list(compilation.waiting.items()):
                if self._clock.now - since > COMPILE_TIMEOUT_S:
                    del compilation.waiting[key]
                    kind = split_spec(compilation.spec)[0]
                    self._refuse(request, f"the {kind} was not compiled within {COMPILE_TIMEOUT_S:.0f} s")

    def fail(self, message: str) -> None:
        """Answers everything that waits."""
        for compilation in self._compilations.values():
            for request, _ in compilation.waiting.values():
                self._refuse(request, message)
            compilation.waiting.clear()

    def _settle(self, request: NewRequest, problem: str | None) -> None:
        if problem is None:
            self._add(request)
        else:
            self._refuse(request, problem)

    def _find(self, key: _Key) -> _Compilation | None:
        return next((each for each in self._compilations.values() if key in each.waiting), None)

    def _keep(self, spec: str, request: NewRequest) -> None:
        if spec not in self._compilations:
            self._compilations[spec] = _Compilation(spec, next(self._numbers), len(self._workers))
        self._compilations[spec].waiting[request.key] = (request, self._clock.now)
        self._send_more()

    def _send_more(self) -> None:
        """Sends the oldest specs, as many as may be under way; what nobody waits for any more is left out."""
        for compilation in list(self._compilations.values()):
            if compilation.is_sent:
                continue
            if not compilation.waiting:
                del self._compilations[compilation.spec]
            elif len(self._by_number) < MAX_UNDER_WAY:
                self._send(compilation)

    def _send(self, compilation: _Compilation) -> None:
        compilation.is_sent = True
        self._by_number[compilation.number] = compilation
        data = frame(Kind.GRAMMAR, encode_grammar(compilation.number, compilation.spec))
        for worker in self._workers:
            if not worker.plans.send(data):
                raise EngineDeadError(f"{worker.name} takes no grammars: its queue is full")


def _hash(spec: str) -> bytes:
    return blake2b(spec.encode(errors="surrogatepass"), digest_size=16).digest()
