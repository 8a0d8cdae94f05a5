"""Bounded, never-blocking ZeroMQ pairs between the actors: one PUSH and one PULL for each peer and direction.

The receiver binds and the sender connects. On one node a pair uses `ipc://` in a folder of mode 0700, and the folder is
removed as soon as the sender's first frame (HELLO) shows that both ends are connected, so that a process killed later
leaves no file. Across nodes it uses `tcp://` with CURVE: the receiver lets in exactly the one key it was told of.
Nothing reconnects: a broken pair is a dead peer. Over ipc, where nobody else can connect, the receiver is told at once;
over tcp, and of a peer that hangs, heartbeats decide.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zmq
from zmq.auth.thread import ThreadAuthenticator

from ..errors import ClusterError
from .wire import Kind, frame

Transport = Literal["auto", "ipc", "tcp"]
MAX_IPC_PATH_BYTES = 107
_STALE_S = 600.0
_IPC_PREFIX = "penstock-ipc-"
_HELLO = frame(Kind.HELLO)


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a process is, and who it is."""

    node: str  # node id and user: processes that agree in it can share ipc
    host: str  # the address at which other nodes reach it
    public_key: bytes  # CURVE, Z85


@dataclass(frozen=True, slots=True)
class Address:
    """Where a receiver listens."""

    endpoint: str
    server_key: bytes | None = None  # CURVE, Z85; none over ipc


class Sender:
    """The sending end of a pair. Threads may share it."""

    def __init__(self, zmq_socket: zmq.Socket[bytes], context_key: tuple[bytes, bytes], address: Address) -> None:
        self.zmq_socket = zmq_socket
        if address.server_key is not None:
            zmq_socket.curve_publickey, zmq_socket.curve_secretkey = context_key
            zmq_socket.curve_serverkey = address.server_key
        zmq_socket.ipv6 = "[" in address.endpoint
        zmq_socket.connect(address.endpoint)
        self._lock = threading.Lock()
        self.send(_HELLO)

    def send(self, data: bytes) -> bool:
        """Hands one frame to the pair; False when its queue is full or the pair is closed. Never waits."""
        with self._lock:
            try:
                self.zmq_socket.send(data, zmq.NOBLOCK)
            except zmq.Again:
                return False
            except zmq.ZMQError:
                if self.zmq_socket.closed:
                    return False
                raise
            return True

    def close(self, linger_ms: int = 0) -> None:
        """Ends the pair; what is queued is dropped, unless it leaves within `linger_ms`."""
        with self._lock:
            if not self.zmq_socket.closed:
                self.zmq_socket.close(linger=linger_ms)


class Receiver:
    """The receiving end of a pair, for one thread."""

    def __init__(self, zmq_socket: zmq.Socket[bytes], address: Address, folder: str | None) -> None:
        self.zmq_socket = zmq_socket
        self.address = address
        self.connected = False  # whether the sender's HELLO has arrived
        self._folder = folder
        self._departure: zmq.Socket[bytes] | None = None

    def departure(self) -> zmq.Socket[bytes] | None:
        """A socket that becomes readable when the sender has gone, behind its last frame; None over tcp."""
        if self._departure is None and self.address.server_key is None:
            self._departure = self.zmq_socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        return self._departure

    def take(self, max_frames: int) -> list[bytes]:
        """The frames that are here, at most so many. Never waits."""
        frames: list[bytes] = []
        try:
            while len(frames) < max_frames:
                data = self.zmq_socket.recv(zmq.NOBLOCK)
                if data == _HELLO:
                    self._greet()
                else:
                    frames.append(data)
        except zmq.Again:
            pass
        return frames

    def wait(self, timeout_s: float) -> bool:
        """Whether a frame is here within the time."""
        return bool(self.zmq_socket.poll(int(timeout_s * 1000), zmq.POLLIN))

    def wait_connected(self, timeout_s: float) -> bool:
        """Whether the sender's greeting, its first frame, arrives within the time."""
        if not self.connected and self.wait(timeout_s) and self.zmq_socket.recv(zmq.NOBLOCK) == _HELLO:
            self._greet()
        return self.connected

    def close(self) -> None:
        """Ends the pair and removes its folder, if it is still there."""
        if self._departure is not None and not self.zmq_socket.closed:
            self.zmq_socket.disable_monitor()
            self._departure.close(linger=0)
        self.zmq_socket.close(linger=0)
        self._remove_folder()

    def _greet(self) -> None:
        self.connected = True
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class Sockets:
    """A process's sockets: its context, its key pair, and the keys that may speak to it."""

    def __init__(self, node: str, host: str, transport: Transport = "auto") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._public_key, self._secret_key = zmq.curve_keypair()
        self._transport = transport
        self._gate: _Gate | None = None
        self._gate_lock = threading.Lock()  # clients attach on several threads
        self._ends: weakref.WeakSet[Sender | Receiver] = weakref.WeakSet()
        self.peer = Peer(node, host, self._public_key)

    def receiver(self, sender: Peer, max_messages: int) -> Receiver:
        """A bound receiver for this one sender; at most `max_messages` wait in it."""
        receiver_socket = self._socket(zmq.PULL, max_messages)
        if self._uses_ipc(sender):
            folder = ipc_folder()
            endpoint = f"ipc://{folder}/s"
            receiver_socket.bind(endpoint)
            receiver = Receiver(receiver_socket, Address(endpoint), folder)
        else:
            receiver = Receiver(receiver_socket, self._bind_curve(receiver_socket, sender), None)
        self._ends.add(receiver)
        return receiver

    def sender(self, address: Address, max_messages: int) -> Sender:
        """A sender connected to this address; at most `max_messages` wait in it."""
        sender = Sender(self._socket(zmq.PUSH, max_messages), (self._public_key, self._secret_key), address)
        self._ends.add(sender)
        return sender

    def close(self) -> None:
        """Closes every sender and receiver that still is open, and ends the context. No thread may use them."""
        for end in self._ends:
            end.close()
        if self._gate is not None:
            self._gate.close()
        self._context.term()

    def _uses_ipc(self, other: Peer) -> bool:
        same_node = other.node == self.peer.node
        if self._transport == "ipc" and not same_node:
            raise ClusterError(f"transport 'ipc' can't join node {self.peer.node} and node {other.node}")
        return same_node and self._transport != "tcp"

    def _bind_curve(self, zmq_socket: zmq.Socket[bytes], sender: Peer) -> Address:
        with self._gate_lock:
            self._gate = self._gate or _Gate(self._context)
            zmq_socket.zap_domain = self._gate.admit(sender.public_key)
        zmq_socket.curve_server = True
        zmq_socket.curve_secretkey = self._secret_key
        zmq_socket.ipv6 = ":" in self.peer.host
        host = f"[{self.peer.host}]" if ":" in self.peer.host else self.peer.host
        port = zmq_socket.bind_to_random_port(f"tcp://{host}")
        return Address(f"tcp://{host}:{port}", self._public_key)

    def _socket(self, kind: int, max_messages: int) -> zmq.Socket[bytes]:
        new_socket: zmq.Socket[bytes] = self._context.socket(kind)
        new_socket.linger = 0
        new_socket.sndhwm = new_socket.rcvhwm = max_messages
        new_socket.reconnect_ivl = -1
        return new_socket


class _Gate:
    """Answers libzmq's authentication requests: a socket's domain is the one key that it lets in."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._keys: dict[str, bytes] = {}
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()

    def admit(self, public_key: bytes) -> bytes:
        """The domain of a socket that lets in this key only."""
        domain = f"pair{len(self._keys)}"
        self._keys[domain] = public_key
        self._authenticator.configure_curve_callback(domain=domain, credentials_provider=self)
        return domain.encode()

    def callback(self, domain: str, public_key: bytes) -> bool:
        """Whether this key may enter this domain; called on the authenticator's thread."""
        return self._keys.get(domain) == public_key

    def close(self) -> None:
        self._authenticator.stop()


class Waker:
    """Ends another thread's poll: `wake` from any thread, `fileno` in the poller."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self._there.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._here.fileno()

    def wake(self) -> None:
        """Makes the descriptor readable; a full buffer already is."""
        with suppress(OSError):
            self._there.send(b".")

    def clear(self) -> None:
        """Takes what is there."""
        with suppress(OSError):
            self._here.recv(4096)

    def close(self) -> None:
        self._here.close()
        self._there.close()


def ipc_folder() -> str:
    """A new folder of mode 0700 whose socket paths are short enough. Raises ClusterError when none is.

    Removes what was left by processes that were killed in the moment between binding and greeting.
    """
    candidates = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]
    for parent in candidates:
        if parent and _is_short(parent) and os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
            _sweep(parent)
            return tempfile.mkdtemp(prefix=f"{_IPC_PREFIX}{os.getpid()}-", dir=parent)
    tried = ", ".join(str(parent) for parent in candidates if parent)
    raise ClusterError(f"no writable folder for ipc sockets with paths up to {MAX_IPC_PATH_BYTES} bytes among: {tried}")


def _is_short(parent: str) -> bool:
    return len(os.fsencode(parent)) + len(f"/{_IPC_PREFIX}4194304-12345678/s") <= MAX_IPC_PATH_BYTES


def _sweep(parent: str) -> None:
    """A folder is needed for seconds; one that is minutes old has no owner any more. Takes nothing but a socket."""
    for folder in Path(parent).glob(f"{_IPC_PREFIX}*-*"):
        with suppress(OSError):  # gone already, or holds what is not ours
            status = folder.stat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > _STALE_S:
                (folder / "s").unlink(missing_ok=True)
                folder.rmdir()
