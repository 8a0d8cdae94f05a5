"""Which cluster an engine runs in is decided by our rules, and said."""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray

from penstock.actors import cluster as module
from penstock.actors.cluster import Cluster, ensure_ray
from penstock.actors.engine import _end, start_engine
from penstock.configs.engine import EngineConfig
from penstock.errors import ClusterError, ConfigError


class FakeRay:
    """Notes how Ray was initialised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", self.init)
        monkeypatch.setattr(module, "total_resources", lambda: {"CPU": 8.0})
        monkeypatch.setattr(module, "_address", lambda: "10.0.0.1:6379")
        self.probed: list[str] = []

    def init(self, **kwargs: Any) -> FakeRay:
        self.calls.append(kwargs)
        self.address_info = {"session_dir": "session", "gcs_address": "10.0.0.1:6379"}
        return self


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return FakeRay(monkeypatch)


def test_without_an_address_a_new_cluster_is_started_and_owned(fake_ray: FakeRay) -> None:
    cluster = ensure_ray(None, num_workers=64)
    assert (fake_ray.calls[0]["address"], fake_ray.calls[0]["num_cpus"]) == ("local", 64)
    assert cluster.started_here
    assert cluster.description == "started a local Ray cluster (8 CPUs)"


def test_what_needs_a_cluster_of_ours_is_given_up_once_that_has_ended() -> None:
    done, forever = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as gcs:
        cluster = Cluster("ours", "session", f"127.0.0.1:{gcs.getsockname()[1]}")
        cluster.attempt(done.set)
    assert done.is_set()
    cluster.attempt(forever.wait)  # returns
    forever.set()


def test_an_engine_is_not_waited_for_where_its_cluster_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gcs:
        ended = Cluster("ours", "session", f"127.0.0.1:{gcs.getsockname()[1]}")
    for name in ("wait", "get", "kill"):
        monkeypatch.setattr(f"ray.{name}", lambda *arguments, **options: pytest.fail("asked the dead cluster"))
    _end(MagicMock(), "engine", None, ended)


def test_a_detached_engine_in_a_cluster_that_ends_with_us_is_refused(fake_ray: FakeRay, tiny_folder: str) -> None:
    with pytest.raises(ConfigError, match=r"detached is True, but .* ends with it; name a cluster"):
        start_engine(EngineConfig(model=tiny_folder, detached=True))
    assert not fake_ray.calls


@pytest.mark.parametrize(("given", "env"), [("auto", None), (None, "10.0.0.1:6379"), ("auto", "10.9.9.9:1")])
def test_an_address_is_joined_and_not_owned(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch, given: str | None, env: str | None
) -> None:
    if env is not None:
        monkeypatch.setenv("RAY_ADDRESS", env)
    monkeypatch.setattr(module, "_probe", fake_ray.probed.append)
    cluster = ensure_ray(given)
    assert fake_ray.probed == [given or env]
    assert fake_ray.calls[0]["address"] == (given or env)
    assert "num_cpus" not in fake_ray.calls[0]
    assert not cluster.started_here
    assert cluster.description == "joined the Ray cluster at 10.0.0.1:6379 (8 CPUs)"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "can't join a Ray cluster at '127.0.0.1:1': .*refused"),
        ("ray://head:10001", "Ray Client address"),
    ],
)
def test_an_address_where_no_cluster_listens_is_refused_at_once(fake_ray: FakeRay, address: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        ensure_ray(address)
    assert not fake_ray.calls


def test_the_cluster_that_this_process_is_in_is_used(fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    cluster = ensure_ray("auto")
    assert not fake_ray.calls
    assert cluster.description == "uses the Ray cluster that this process is in (8 CPUs)"


def test_a_handler_of_sigterm_is_kept_though_ray_takes_the_signal(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(number: int, frame: FrameType | None) -> None: ...

    def init(**kwargs: Any) -> FakeRay:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return fake_ray.init(**kwargs)

    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, mine)
    try:
        ensure_ray(None)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_joining_with_auto_where_no_cluster_runs_is_refused(fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterError, match="can't join a Ray cluster at 'auto': Could not find any running"):
        ensure_ray("auto")


@pytest.mark.parametrize(
    ("address", "mode", "hints"),
    [("10.0.0.1:6379", None, True), ("10.0.0.1:6379", "token", False), ("auto", None, False)],
)
def test_a_cluster_that_may_want_a_token_that_ray_has_not_sent_is_told(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch, address: str, mode: str | None, hints: bool
) -> None:
    def refuse(**kwargs: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(module, "_probe", lambda address: None)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ClusterError) as told:
        ensure_ray(address)
    assert ("RAY_AUTH_MODE=token" in str(told.value)) == hints
