"""A socket never blocks, never drops, leaves no file, and over TCP lets in one key only."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock.actors import sockets as module
from penstock.actors.sockets import Address, Peer, Receiver, Sender, Sockets
from penstock.actors.wire import Kind, frame
from penstock.errors import ClusterError

TEXT = frame(Kind.PLAN, b"plan")


class Ends:
    """Processes' sockets that are closed when the test ends."""

    def __init__(self) -> None:
        self.rooms: list[Sockets] = []
        self.ends: list[Sender | Receiver] = []

    def room(self, node: str = "here", transport: module.Transport = "auto", host: str = "127.0.0.1") -> Sockets:
        self.rooms.append(Sockets(node, host, transport))
        return self.rooms[-1]

    def pair(self, receiving: Sockets, sending: Sockets, max_messages: int = 8) -> tuple[Sender, Receiver]:
        receiver = receiving.receiver(sending.peer, max_messages)
        sender = sending.sender(receiver.address, max_messages)
        self.ends += [sender, receiver]
        return sender, receiver


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    for end in made.ends:
        end.close()
    for room in made.rooms:
        room.close()


def folder_of(address: Address) -> Path:
    return Path(address.endpoint.removeprefix("ipc://")).parent


def test_an_ipc_folder_is_private_and_goes_when_both_ends_are_connected(ends: Ends) -> None:
    room = ends.room()
    receiver = room.receiver(room.peer, 8)
    ends.ends.append(receiver)
    folder = folder_of(receiver.address)
    assert folder.stat().st_mode & 0o777 == 0o700
    sender = room.sender(receiver.address, 8)
    ends.ends.append(sender)
    assert receiver.wait_connected(5)
    assert not folder.exists()
    assert sender.send(TEXT)
    assert receiver.wait(5)
    assert receiver.take(9) == [TEXT]


def test_a_receiver_that_nobody_reached_removes_its_folder(ends: Ends) -> None:
    room = ends.room()
    receiver = room.receiver(room.peer, 8)
    receiver.close()
    assert not folder_of(receiver.address).exists()


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_full_pair_refuses_at_once_and_drops_nothing(ends: Ends, transport: module.Transport) -> None:
    a, b = ends.room(transport=transport), ends.room(transport=transport)
    sender, receiver = ends.pair(a, b)
    assert receiver.wait_connected(5)
    payload = bytes(1 << 16)
    num_taken = 0
    while sender.send(frame(Kind.PLAN, num_taken.to_bytes(4, "big") + payload)):
        num_taken += 1
        assert num_taken < 2000, "the pair is not bounded"
    received: list[int] = []
    while len(received) < num_taken and receiver.wait(5):
        received += [int.from_bytes(data[1:5], "big") for data in receiver.take(100)]
    assert received == list(range(num_taken))


def test_sending_to_a_peer_that_is_gone_never_blocks(ends: Ends) -> None:
    sender, receiver = ends.pair(ends.room(), ends.room())
    assert receiver.wait_connected(5)
    receiver.close()
    assert sum(sender.send(TEXT) for _ in range(1000)) < 1000
    sender.close()
    assert not sender.send(TEXT)


def test_another_node_is_reached_over_tcp_with_curve(ends: Ends) -> None:
    a, b = ends.room("node a"), ends.room("node b")
    sender, receiver = ends.pair(a, b)
    assert receiver.address.endpoint.startswith("tcp://127.0.0.1:")
    assert receiver.address.server_key == a.peer.public_key
    assert receiver.wait_connected(5)
    sender.send(TEXT)
    assert receiver.wait(5)
    assert receiver.take(9) == [TEXT]


def test_a_stranger_with_another_key_gets_nothing_through(ends: Ends) -> None:
    a, friend, stranger = ends.room("a"), ends.room("b"), ends.room("c")
    receiver = a.receiver(friend.peer, 8)
    intruder = stranger.sender(receiver.address, 8)
    ends.ends += [receiver, intruder]
    intruder.send(TEXT)
    assert not receiver.wait(0.5)
    ends.ends.append(friend.sender(receiver.address, 8))
    assert receiver.wait_connected(5)


def test_a_plain_sender_gets_nothing_through_a_curve_socket(ends: Ends) -> None:
    a, b = ends.room("a"), ends.room("b")
    receiver = a.receiver(b.peer, 8)
    plain = b.sender(Address(receiver.address.endpoint), 8)
    ends.ends += [receiver, plain]
    plain.send(TEXT)
    assert not receiver.wait(0.5)


def test_each_receiver_lets_in_its_own_peer_only(ends: Ends) -> None:
    a, b, c = ends.room("a"), ends.room("b"), ends.room("c")
    for_b, for_c = a.receiver(b.peer, 8), a.receiver(c.peer, 8)
    swapped = [b.sender(for_c.address, 8), c.sender(for_b.address, 8)]
    ends.ends += [for_b, for_c, *swapped]
    assert not for_b.wait(0.3)
    assert not for_c.wait(0.3)


def test_ipc_between_nodes_is_refused(ends: Ends) -> None:
    with pytest.raises(ClusterError, match="'ipc' can't join node here and node there"):
        ends.room(transport="ipc").receiver(Peer("there", "127.0.0.1", b""), 8)


def test_a_long_temporary_folder_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    folder = module.ipc_folder()
    assert len(f"{folder}/s") <= module.MAX_IPC_PATH_BYTES
    os.rmdir(folder)


def test_a_folder_that_a_killed_process_left_is_swept_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    old, new = Path(module.ipc_folder()), Path(module.ipc_folder())
    (old / "s").touch()
    others = [tmp_path / "ps-lite-data", tmp_path / "penstock-ipc-1-mine"]
    for other in others:
        other.mkdir()
        (other / "weights.bin").touch()
    for folder in (old, *others):
        os.utime(folder, (0, 0))
    assert Path(module.ipc_folder()).parent == tmp_path
    assert not old.exists()
    assert new.exists()
    assert all((other / "weights.bin").exists() for other in others)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_a_pair_joins_over_ipv6(ends: Ends) -> None:
    _, receiver = ends.pair(ends.room("a", host="::1"), ends.room("b", host="::1"))
    assert receiver.wait(5)


def test_peers_of_other_nodes_are_let_in_from_several_threads(ends: Ends) -> None:
    room, peers = ends.room("a"), [ends.room(f"b{i}").peer for i in range(4)]
    with ThreadPoolExecutor(len(peers)) as pool:
        receivers = list(pool.map(lambda peer: room.receiver(peer, 8), peers))
    ends.ends += receivers
    assert len({receiver.address.endpoint for receiver in receivers}) == len(peers)
