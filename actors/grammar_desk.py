"""Requests whose grammar is not compiled yet wait here, outside the scheduler, which never learns of grammars.

A spec that is new goes to every rank of the last stage, on the way that plans take; each compiles it on a thread of its
own and says whether it could. The request is handed on when all have; what is known passes at once. The ranks keep a
grammar until they are told to forget it, which is when no request uses it and its bytes are needed for others. So the
pipeline never waits for a compiler. Everything is bounded: specs under way, requests that wait, how long each waits,
the bytes of grammars that are kept, the problems that are remembered.
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
from .wire import Kind, decode_compiled, encode_grammar, encode_text, frame
from .worker_port import WorkerPort

MAX_UNDER_WAY = 8  # specs sent and not answered by all
MAX_WAITING = 1024  # requests
MAX_PROBLEMS = 4096
MAX_KEPT_BYTES = 256 << 20  # of compiled grammars, on each rank
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
    num_bytes: int = 0  # on the rank where it takes most
    waiting: dict[_Key, tuple[NewRequest, float]] = field(default_factory=dict)  # and since when


@dataclass(slots=True)
class _Kept:
    """A grammar that the ranks hold."""

    num_bytes: int
    num_users: int = 0  # requests that are not finished


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
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # by spec, the one longest unused first
        self._num_bytes = 0  # of them all
        self._specs: dict[_Key, str] = {}  # of requests that were handed on and are not finished
        self._problems: OrderedDict[bytes, str] = OrderedDict()  # by the spec's hash

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return sum(len(each.waiting) for each in self._compilations.values())

    def submit(self, request: NewRequest) -> None:
        """Hands the request on, refuses it, or keeps it until its grammar is compiled."""
        spec = request.sampling.grammar
        if request.key in self._specs or (self._compilations and self._find(request.key) is not None):
            self._refuse(request, f"request id {request.request_id!r} of {request.client_id!r} is already in use")
        elif not spec:
            self._add(request)
        elif len(spec) > LIMITS.max_bytes + 16:
            self._refuse(request, f"the grammar has {len(spec)} characters; {LIMITS.max_bytes} bytes are allowed")
        elif spec in self._kept:
            self._hand_on(request)
        elif (problem := self._problems.get(_hash(spec))) is not None:
            self._refuse(request, problem)
        elif self.num_waiting >= MAX_WAITING:
            self._refuse(request, f"{MAX_WAITING} requests wait for their grammars to be compiled: try again later")
        else:
            self._keep(spec, request)

    @property
    def has_users(self) -> bool:
        """Whether a request that was handed on has a grammar."""
        return bool(self._specs)

    def finished(self, key: _Key) -> None:
        """A request has had its final event; those without a grammar are fine."""
        if (spec := self._specs.pop(key, None)) is not None:
            self._kept[spec].num_users -= 1

    def forget(self, client_id: str, request_id: str) -> bool:
        """Drops a request that waits; whether it did."""
        compilation = self._find((client_id, request_id))
        if compilation is None:
            return False
        del compilation.waiting[client_id, request_id]
        return True

    def forget_client(self, client_id: str) -> None:
        """Drops all requests of a client that is gone."""
        for key in [key for key in self._specs if key[0] == client_id]:
            self.finished(key)
        for compilation in self._compilations.values():
            for key in [key for key in compilation.waiting if key[0] == client_id]:
                del compilation.waiting[key]

    def take(self, body: memoryview) -> None:
        """A rank's answer; the last one settles the requests that waited for it."""
        number, problem, num_bytes = decode_compiled(body)
        compilation = self._by_number[number]
        compilation.problem = compilation.problem or problem
        compilation.num_bytes = max(compilation.num_bytes, num_bytes)
        compilation.owed -= 1
        if compilation.owed:
            return
        del self._by_number[number]
        del self._compilations[compilation.spec]
        self._settle(compilation)
        self._send_more()

    def tick(self) -> None:
        """Refuses what has waited too long; the rank may still be at it."""
        for compilation in list(self._compilations.values()):
            for key, (request, since) in list(compilation.waiting.items()):
                if self._clock.now - since > COMPILE_TIMEOUT_S:
                    del compilation.waiting[key]
                    kind = split_spec(compilation.spec)[0]
                    self._refuse(request, f"the {kind} was not compiled within {COMPILE_TIMEOUT_S:.0f} s")

    def forget_all(self) -> None:
        """Drops everything that waits: the engine has ended, and says so to the clients."""
        for compilation in self._compilations.values():
            compilation.waiting.clear()

    def _settle(self, compilation: _Compilation) -> None:
        """Keeps the grammar and hands its requests on, or remembers what is wrong with it and refuses them."""
        spec, problem, num_bytes = compilation.spec, compilation.problem, compilation.num_bytes
        requests = [request for request, _ in compilation.waiting.values()]
        if problem is not None:
            self._problems[_hash(spec)] = problem
            while len(self._problems) > MAX_PROBLEMS:
                self._problems.popitem(last=False)
        elif not self._make_room(num_bytes):
            problem = f"the grammar takes {num_bytes} bytes; {MAX_KEPT_BYTES} are kept, and others use them: try later"
        if problem is not None:
            self._tell_ranks(Kind.FORGET, encode_text(spec))  # some may have compiled it
            for request in requests:
                self._refuse(request, problem)
            return
        self._kept[spec] = _Kept(num_bytes)
        self._num_bytes += num_bytes
        for request in requests:
            self._hand_on(request)

    def _make_room(self, num_bytes: int) -> bool:
        """Lets the ranks forget what no request uses until so many bytes are free; whether they are."""
        for spec in [spec for spec, each in self._kept.items() if not each.num_users]:
            if self._num_bytes + num_bytes <= MAX_KEPT_BYTES:
                break
            self._num_bytes -= self._kept.pop(spec).num_bytes
            self._tell_ranks(Kind.FORGET, encode_text(spec))
        return self._num_bytes + num_bytes <= MAX_KEPT_BYTES

    def _hand_on(self, request: NewRequest) -> None:
        spec = request.sampling.grammar
        self._kept[spec].num_users += 1
        self._kept.move_to_end(spec)
        self._specs[request.key] = spec
        self._add(request)

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
        self._tell_ranks(Kind.GRAMMAR, encode_grammar(compilation.number, compilation.spec))

    def _tell_ranks(self, kind: Kind, body: bytes) -> None:
        data = frame(kind, body)
        for worker in self._workers:
            if not worker.plans.send(data):
                raise EngineDeadError(f"{worker.name} takes no grammars: its queue is full")


def _hash(spec: str) -> bytes:
    return blake2b(spec.encode(errors="surrogatepass"), digest_size=16).digest()
