"""Links carry tensors in order, between threads and between processes, and a dead peer is noticed."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from penstock.actors.engine_spec import StoreAddress
from penstock.actors.links import LinkClosedError, LinkRoom, ThreadLink, open_store
from penstock.actors.ports import RankPosition, open_ports
from penstock.model.stage import StagePorts
from penstock.scheduler.device import Link

HOST = "127.0.0.1"


def gloo_pair() -> tuple[Link, Link]:
    store = open_store(HOST)
    address = StoreAddress(HOST, store.port)
    with ThreadPoolExecutor(2) as pool:
        sending = pool.submit(lambda: LinkRoom(address, HOST, "cpu", 0, 20).sending("edge"))
        receiving = pool.submit(lambda: LinkRoom(address, HOST, "cpu", 0, 20).receiving("edge"))
        return sending.result(), receiving.result()


def thread_pair() -> tuple[ThreadLink, ThreadLink]:
    link = ThreadLink()
    return link, link


@pytest.mark.parametrize("pair", [gloo_pair, thread_pair])
def test_tensors_arrive_in_order_though_the_buffer_is_reused(pair: type) -> None:
    sender: Link
    sender, receiver = pair()
    buffer, received = torch.empty(3, 5, dtype=torch.bfloat16), torch.empty(3, 5, dtype=torch.bfloat16)

    def send() -> None:
        for value in range(20):
            buffer.fill_(value)
            sender.send(buffer)

    thread = threading.Thread(target=send)
    thread.start()
    for value in range(20):
        receiver.receive(received)
        assert (received == value).all()
    thread.join()


def test_a_closed_thread_link_raises_on_both_ends() -> None:
    link = ThreadLink()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(link.receive, torch.empty(1))
        link.close()
        with pytest.raises(LinkClosedError):
            waiting.result(timeout=5)
    with pytest.raises(LinkClosedError):
        link.send(torch.empty(1))
    with pytest.raises(LinkClosedError):
        link.receive(torch.empty(1))


def test_a_buffer_of_another_shape_is_refused() -> None:
    link = ThreadLink()
    link.send(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\) for torch.float32 \(3, 2\)"):
        link.receive(torch.empty(3, 2))


@pytest.mark.parametrize(("num_stages", "tp_size"), [(1, 1), (1, 2), (2, 1), (4, 1), (3, 2)])
def test_every_rank_gets_the_links_of_its_place(num_stages: int, tp_size: int) -> None:
    store = open_store(HOST)
    address = StoreAddress(HOST, store.port)
    positions = [RankPosition(k, r, num_stages, tp_size) for k in range(num_stages) for r in range(tp_size)]
    with ThreadPoolExecutor(len(positions)) as pool:
        made = list(pool.map(lambda p: open_ports(LinkRoom(address, HOST, "cpu", 0, 20), p), positions))
    ports = {(p.stage_idx, p.tp_rank): each for p, each in zip(positions, made, strict=True)}
    for rank in range(tp_size):
        for stage in range(num_stages - 1):
            assert crosses(ports[stage, rank].downstream, ports[stage + 1, rank].upstream, 10 * stage + rank)
        first, last = ports[0, rank], ports[num_stages - 1, rank]
        assert first.upstream is None
        assert last.downstream is None
        if num_stages > 1:
            assert crosses(last.token_send, first.token_receive, 100 + rank)
        else:
            assert (first.token_send, first.token_receive) == (None, None)
    if tp_size > 1:
        assert sums_over_ranks([ports[0, rank] for rank in range(tp_size)]) == [3.0, 3.0]


def crosses(sender: Link | None, receiver: Link | None, value: int) -> bool:
    assert sender is not None
    assert receiver is not None
    received = torch.empty(1)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(sender.send, torch.tensor([float(value)]))
        receiver.receive(received)
        sent.result()
    return received.item() == value


def sums_over_ranks(ranks: list[StagePorts]) -> list[float]:
    def reduce(item: tuple[int, StagePorts]) -> float:
        return float(item[1].tensor_parallel.all_reduce(torch.tensor([item[0] + 1.0])).item())

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(reduce, enumerate(ranks)))


HOLD_AN_END = f"""
import sys, torch
from penstock.actors.engine_spec import StoreAddress
from penstock.actors.links import LinkRoom
link = LinkRoom(StoreAddress({HOST!r}, int(sys.argv[1])), {HOST!r}, "cpu", 0, 20).sending("edge")
link.send(torch.ones(1))
sys.stdin.read()
"""


def test_a_killed_peer_ends_a_receive_that_waits() -> None:
    store = open_store(HOST)
    command = [sys.executable, "-c", HOLD_AN_END, str(store.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process, ThreadPoolExecutor(1) as pool:
        link = LinkRoom(StoreAddress(HOST, store.port), HOST, "cpu", 0, 20).receiving("edge")
        link.receive(torch.empty(1))
        waiting = pool.submit(link.receive, torch.empty(1))
        process.kill()
        with pytest.raises(RuntimeError, match=r"closed by peer|reset by peer"):
            waiting.result(timeout=5)


def test_a_peer_that_never_comes_is_not_waited_for_for_ever() -> None:
    store = open_store(HOST)
    with pytest.raises(RuntimeError, match="timeout"):
        LinkRoom(StoreAddress(HOST, store.port), HOST, "cpu", 0, 0.2).sending("edge")


def test_the_next_epoch_makes_new_links_beside_the_old_ones() -> None:
    store = open_store(HOST)
    address = StoreAddress(HOST, store.port)

    def link(epoch: int, sends: bool) -> Link:
        room = LinkRoom(address, HOST, "cpu", epoch, 20)
        return room.sending("edge") if sends else room.receiving("edge")

    with ThreadPoolExecutor(4) as pool:
        ends = {(e, s): pool.submit(link, e, s) for e in (0, 1) for s in (True, False)}
    for epoch in (0, 1):
        assert crosses(ends[epoch, True].result(), ends[epoch, False].result(), epoch)
