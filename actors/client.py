"""The low-level client of an engine: sends requests and aborts, and brings token events to whoever asked.

One thread receives. Every request that was taken gets its final event: from the engine, or, when the engine ends or
falls silent, from here.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ..errors import EngineDeadError, RequestError
from ..scheduler.messages import NewRequest, TokenEvent
from .client_port import MAX_EVENT_FRAMES, MAX_REQUEST_FRAMES
from .cluster import this_place
from .engine_spec import ClientAdmission, ClientOffer, EngineInfo
from .liveness import ObserverClock
from .poll_set import PollSet
from .ray_errors import first_line
from .sockets import Sockets
from .wire import Kind, decode_events, decode_text, encode_request, encode_text, frame, unframe

log = logging.getLogger(__name__)

OnEvent = Callable[[TokenEvent], None]
KEEPALIVE_S = 1.0
ENGINE_TIMEOUT_S = 5.0  # an engine silent for so long has died
ATTACH_TIMEOUT_S = 30.0
FORKED = "this process was forked from the one that has joined it; start processes by spawn, and connect there"
_TICK_S = 0.25
_MAX_FRAMES_PER_TURN = 64


class EngineClient:
    """One client; threads may share it. `on_event` callbacks run on its receiving thread and must be short."""

    def __init__(self, actor: Any, info: EngineInfo) -> None:
        """Attaches to the engine. Raises EngineDeadError when it doesn't answer."""
        place = this_place()
        self._engine_name = info.spec.name
        self._sockets = Sockets(place.node, place.host, info.spec.config.transport)
        self._events = self._sockets.receiver(info.peer, MAX_EVENT_FRAMES)
        admission = self._ask_for_admission(actor)
        self.client_id = admission.client_id
        self._requests = self._sockets.sender(admission.requests, MAX_REQUEST_FRAMES)
        self._open: dict[str, OnEvent] = {}
        self._unsaid: list[str] = []  # aborts that the queue did not take
        self._failure: str | None = None
        self._lock = threading.Lock()  # of _open and _failure
        self._closing = False
        self._pid = os.getpid()
        self._clock = ObserverClock(time.monotonic)
        self._last_heard = self._next_keepalive = 0.0
        self._polls = PollSet()
        self._polls.watch(self._events.zmq_socket, self._take)
        if (departure := self._events.departure()) is not None:
            self._polls.watch(departure, self._notice_departure)
        self._thread = threading.Thread(target=self._run, name="engine-client", daemon=True)
        self._thread.start()

    @property
    def is_dead(self) -> bool:
        """Whether the engine has ended, or this client was closed."""
        return self._failure is not None

    def submit(self, request: NewRequest, on_event: OnEvent) -> None:
        """Sends a request; its events come to `on_event`, the last one with a finish reason.

        Raises EngineDeadError when the engine has ended, RequestError for an id in use, or when too many messages wait
        to be sent.
        """
        if os.getpid() != self._pid:
            raise EngineDeadError(f"engine {self._engine_name!r}: {FORKED}")
        data = frame(Kind.REQUEST, encode_request(request))
        with self._lock:
            if self._failure is not None:
                raise EngineDeadError(self._failure)
            if request.request_id in self._open:
                raise RequestError(f"request id {request.request_id!r} is already in use")
            self._open[request.request_id] = on_event
            if not self._requests.send(data):
                del self._open[request.request_id]
                raise RequestError(f"the engine's queue is full: {MAX_REQUEST_FRAMES} messages wait to be sent")

    def abort(self, request_id: str) -> None:
        """Asks for the end of a request, which answers with an event "abort"; finished and unknown ones are fine.

        Never raises: what a full queue doesn't take is said again a moment later.
        """
        with self._lock:
            if request_id in self._open and not self._requests.send(frame(Kind.ABORT, encode_text(request_id))):
                self._unsaid.append(request_id)

    def close(self) -> None:
        """Leaves the engine, which aborts this client's requests; those still open are answered here."""
        if self._closing or os.getpid() != self._pid:  # a fork's copy has no part in it
            return
        self._closing = True
        self._polls.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    def _ask_for_admission(self, actor: Any) -> ClientAdmission:
        offer = ClientOffer(self._sockets.peer, self._events.address)
        try:
            admission: ClientAdmission = ray.get(actor.attach.remote(offer), timeout=ATTACH_TIMEOUT_S)
        except (RayActorError, RayTaskError, TimeoutError) as error:
            self._sockets.close()
            raise EngineDeadError(f"engine {self._engine_name!r} doesn't take clients: {first_line(error)}") from None
        return admission

    def _run(self) -> None:
        try:
            while not self._closing:
                self._polls.poll(_TICK_S)
                self._tick(self._clock.tick())
        finally:
            self._fail("the client was closed")
            self._requests.send(frame(Kind.BYE))
            self._shut()

    def _tick(self, now: float) -> None:
        if now - self._last_heard > ENGINE_TIMEOUT_S:
            silence_s = now - self._last_heard
            self._fail(f"engine {self._engine_name!r} has been silent for {silence_s:.1f} s: it is dead or hung")
        unsaid, self._unsaid = self._unsaid, []
        for request_id in unsaid:
            self.abort(request_id)
        if now >= self._next_keepalive:
            self._next_keepalive = now + KEEPALIVE_S
            self._requests.send(frame(Kind.KEEPALIVE))

    def _take(self) -> None:
        self._last_heard = self._clock.now
        for data in self._events.take(_MAX_FRAMES_PER_TURN):
            kind, body = unframe(data)
            if kind is Kind.EVENTS:
                for event in decode_events(body, self.client_id):
                    self._hand_on(event)
            elif kind is Kind.FAILED:
                self._fail(decode_text(body))
                self._requests.send(frame(Kind.BYE))

    def _notice_departure(self) -> None:
        """The engine's end, behind everything that it said."""
        self._polls.unwatch(self._events.departure())
        while self._events.wait(0):
            self._take()
        self._fail(f"engine {self._engine_name!r} has died: its connection is broken")

    def _hand_on(self, event: TokenEvent) -> None:
        with self._lock:
            if event.finish_reason is None:
                on_event = self._open.get(event.request_id)
            else:
                on_event = self._open.pop(event.request_id, None)
        if on_event is not None:
            _call(on_event, event)

    def _fail(self, message: str) -> None:
        """Answers every open request; the first message stays."""
        with self._lock:
            self._failure = self._failure or message
            still_open, self._open = self._open, {}
        for request_id, on_event in still_open.items():
            event = TokenEvent(self.client_id, request_id, 0, finish_reason="error", error=message)
            _call(on_event, event)

    def _shut(self) -> None:
        self._requests.close(linger_ms=200)  # for the farewell alone
        self._polls.close()
        self._sockets.close()


def _call(on_event: OnEvent, event: TokenEvent) -> None:
    try:
        on_event(event)
    except Exception:  # a caller's mistake must not silence the other requests
        log.exception("the callback of request %s raised", event.request_id)
