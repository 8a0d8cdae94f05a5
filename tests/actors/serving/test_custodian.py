"""An application goes when its driver has, and nothing else does: Serve with applications that have no engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray import serve

from penstock.actors.custodian import Custody
from penstock.errors import ClusterError

from ..rig import eventually


@pytest.fixture(autouse=True)
def _nothing_runs(ray_cluster: str) -> Iterator[None]:
    yield
    serve.shutdown()  # type: ignore[no-untyped-call]


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Nothing:
    """An application's only deployment."""


def deploy(app_name: str) -> Custody:
    """As a server does."""
    custody = Custody(app_name, end_timeout_s=60.0)
    serve.start(proxy_location="Disabled")
    serve.run(Nothing.bind(), name=app_name, route_prefix=None)  # type: ignore[attr-defined]
    return custody


def there() -> set[str]:
    """The applications with a custodian, and those with a replica."""
    names = {str(actor["name"]) for actor in ray.util.list_named_actors(all_namespaces=True)}
    return {name.partition("#")[0] for name in names if name.startswith(("custodian-", "SERVE_REPLICA"))}


def serve_runs() -> bool:
    return any(actor["namespace"] == "serve" for actor in ray.util.list_named_actors(all_namespaces=True))


def test_an_application_ends_with_its_driver_and_serve_with_the_last_one() -> None:
    one = deploy("one")
    with pytest.raises(ClusterError, match="an application named 'one' is served already"):
        Custody("one", end_timeout_s=1.0)
    other = deploy("other")
    ray.kill(one.lease)  # as at its driver's end
    eventually(lambda: there() == {"custodian-other", "SERVE_REPLICA::other"}, timeout_s=60)
    other.end()
    assert not there()
    assert not serve_runs()


def test_serve_stays_where_it_ran_before() -> None:
    serve.start(proxy_location="Disabled")
    deploy("one").end()
    assert not there()
    assert serve_runs()


def test_where_serve_never_started_there_is_nothing_to_take_away() -> None:
    Custody("one", end_timeout_s=60.0).end()
    assert not there()
    assert not serve_runs()
