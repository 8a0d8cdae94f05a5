"""All clients of an engine: takes their messages, hands out their events, forgets those that are gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import zmq

from ..scheduler.messages import NewRequest, TokenEvent
from .client_port import ClientPort
from .grammar_desk import GrammarDesk
from .liveness import ObserverClock
from .poll_set import PollSet
from .wire import Kind, decode_request, decode_text, unframe
from .worker_port import WorkerPort

if TYPE_CHECKING:
    from ..scheduler.scheduler import Scheduler

log = logging.getLogger(__name__)

MAX_FRAMES_PER_TURN = 256  # taken from one socket before the others have their turn
KEEPALIVE_S = 1.0
CLIENT_TIMEOUT_S = 10.0  # a client silent for so long has ended; its requests are aborted


class ClientDesk:
    """For the engine's thread alone."""

    def __init__(
        self, scheduler: Scheduler, polls: PollSet, clock: ObserverClock, workers: Sequence[WorkerPort]
    ) -> None:
        self.failure: str | None = None  # set: every request is answered with it
        self._scheduler = scheduler
        self._polls = polls
        self._clock = clock
        self._clients: dict[str, ClientPort] = {}
        self._next_keepalive = 0.0
        self.grammars = GrammarDesk(workers, clock, scheduler.add_request, self._refuse)

    @property
    def num_clients(self) -> int:
        """Clients that are attached."""
        return len(self._clients)

    def attach(self, client: ClientPort) -> None:
        """Takes over a client's sockets."""
        client.last_heard = self._clock.now
        self._clients[client.client_id] = client
        self._polls.watch(client.requests.zmq_socket, lambda: self._take(client))
        if (departure := client.requests.departure()) is not None:
            self._polls.watch(departure, lambda: self.detach(client.client_id))
        if self.failure is not None:
            client.say_failed(self.failure)

    def detach(self, client_id: str) -> None:
        """Aborts the client's requests and forgets it; unknown ids are fine."""
        client = self._clients.pop(client_id, None)
        if client is None:
            return
        self._polls.unwatch(client.requests.zmq_socket)
        self._polls.unwatch(client.requests.departure())
        self._polls.unwatch(client.events.zmq_socket)
        client.close()
        self.grammars.forget_client(client_id)
        if self.failure is None:
            self._scheduler.abort_client(client_id)

    def deliver(self, events: list[TokenEvent]) -> None:
        """Hands every client its events in one message, then helps those that are behind."""
        by_client: dict[str, list[TokenEvent]] = {}
        if self.grammars.has_users:
            for event in events:
                if event.finish_reason is not None:
                    self.grammars.finished((event.client_id, event.request_id))
        for event in events:
            by_client.setdefault(event.client_id, []).append(event)
        for client_id, batch in by_client.items():
            if client := self._clients.get(client_id):
                client.deliver(batch)

    def help_slow(self) -> None:
        """Sends on to clients that are behind; to be called when all events are delivered."""
        for client in self._clients.values():
            if client.is_behind:
                client.catch_up()
            if client.is_behind != self._polls.watches(client.events.zmq_socket):
                self._watch_for_room(client)

    def tick(self) -> None:
        """Keeps clients alive, and drops those that are silent."""
        now = self._clock.now
        self.grammars.tick()
        for client in [c for c in self._clients.values() if now - c.last_heard > CLIENT_TIMEOUT_S]:
            log.warning("client %s has been silent for %.0f s: detached", client.client_id, CLIENT_TIMEOUT_S)
            self.detach(client.client_id)
        if now >= self._next_keepalive:
            self._next_keepalive = now + KEEPALIVE_S
            for client in self._clients.values():
                client.keep_alive()

    def fail(self, message: str) -> None:
        """Tells every client that the engine has ended, which ends its requests; later ones are answered with that."""
        self.failure = message
        self.grammars.forget_all()
        for client in self._clients.values():
            client.say_failed(message)

    def close(self) -> None:
        """Ends all clients' sockets."""
        for client in self._clients.values():
            client.close()

    def _take(self, client: ClientPort) -> None:
        client.last_heard = self._clock.now
        for data in client.requests.take(MAX_FRAMES_PER_TURN):
            try:
                self._take_message(client, *unframe(data))
            except (ValueError, TypeError, OverflowError) as error:  # no message of ours: its sender can't be served
                log.warning("client %s sent what can't be read, detached: %s", client.client_id, error)
                client.say_failed(f"the engine can't read a message of client {client.client_id}: {error}")
                self.detach(client.client_id)
            if client.client_id not in self._clients:
                return

    def _take_message(self, client: ClientPort, kind: Kind, body: memoryview) -> None:
        if kind is Kind.REQUEST:
            self._add(client, decode_request(body, client.client_id))
        elif kind is Kind.ABORT and self.failure is None:
            self._abort(client, decode_text(body))
        elif kind is Kind.BYE:
            self.detach(client.client_id)

    def _add(self, client: ClientPort, request: NewRequest) -> None:
        if self.failure is None:
            request.arrived_s = time.monotonic()
            self.grammars.submit(request)
        else:
            self._refuse(request, self.failure)

    def _abort(self, client: ClientPort, request_id: str) -> None:
        if self.grammars.forget(client.client_id, request_id):
            client.deliver([TokenEvent(client.client_id, request_id, 0, finish_reason="abort")])
        else:
            self._scheduler.abort(client.client_id, request_id)

    def _refuse(self, request: NewRequest, message: str) -> None:
        answer = TokenEvent(request.client_id, request.request_id, 0, finish_reason="error", error=message)
        self.deliver([answer])

    def _watch_for_room(self, client: ClientPort) -> None:
        """A client that is behind wakes the poll when its socket has room."""
        if client.is_behind:
            self._polls.watch(client.events.zmq_socket, lambda: None, zmq.POLLOUT)
        else:
            self._polls.unwatch(client.events.zmq_socket)
