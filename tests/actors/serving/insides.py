"""What no endpoint tells of a running server: its scheduler's own check, and what a replica's process still holds.

Serve freezes the objects of a replica's start (`gc.freeze`); what is seen here is what requests have brought since.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from penstock.actors.answer import Answer

from .live_server import LiveServer


class Insides:
    """A look into a server's actors, from within its Ray cluster."""

    def __init__(self) -> None:
        self._replica, self._scheduler = _actor("SERVE_REPLICA::"), _actor("penstock-")

    def check(self) -> int:
        """Asserts the scheduler's invariants, between two turns of its loop; how many requests are unfinished."""
        return int(ray.get(self._scheduler.__ray_call__.remote(_check)))

    def tasks(self) -> list[str]:
        """The replica's tasks that requests began, by what they run; Serve's own are left out."""
        return list(ray.get(self._replica.__ray_call__.remote(_tasks)))

    def num_answers(self) -> int:
        """Requests that the replica's process knows of."""
        return int(ray.get(self._replica.__ray_call__.remote(_num_answers)))


@contextmanager
def insides(server: LiveServer) -> Iterator[Insides]:
    """Joins the server's cluster for a while."""
    ray.init(address=server.address(), log_to_driver=False)
    try:
        yield Insides()
    finally:
        ray.shutdown()


def _actor(prefix: str) -> Any:
    actors = ray.util.list_named_actors(all_namespaces=True)
    (found,) = [actor for actor in actors if actor["name"].startswith(prefix)]
    return ray.get_actor(found["name"], found["namespace"])


def _check(actor: Any) -> int:
    scheduler = actor._loop.scheduler
    actor._loop.call(scheduler.check)
    return int(scheduler.num_unfinished)


def _tasks(replica: Any) -> list[str]:
    tasks = [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()]
    coroutines: list[Any] = [task.get_coro() for task in tasks]
    frames = [(each, each.cr_frame) for each in coroutines]  # None of one that another thread's loop has just ended
    modules = [(frame.f_globals["__name__"], each.__qualname__) for each, frame in frames if frame is not None]
    return [name for module, name in modules if module.partition(".")[0] in ("penstock", "uvicorn", "fastapi")]


def _num_answers(replica: Any) -> int:
    gc.collect()
    return sum(isinstance(each, Answer) for each in gc.get_objects())
