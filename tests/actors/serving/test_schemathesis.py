"""Requests that schemathesis makes from the served OpenAPI document: no 500, no hang, answers as the document says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from pydantic_core import from_json
from schemathesis.checks import CHECKS, load_all_checks

from penstock.actors.serving.auth import Keys

from ..fake_engine import FakeEngine, scored_echo
from ..rig import eventually
from .live_server import LiveServer
from .served import Served

LIVE_TIMEOUT_S = 120.0  # the demo model may be asked for tens of thousands of tokens
KEY = {"Authorization": "Bearer one"}
QUIET: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
load_all_checks()
# A request may keep to the document and still be refused: the model's limits, and how fields agree, are not in it.
EXCLUDED = [CHECKS.get_one("positive_data_acceptance")]

document = schemathesis.openapi.from_asgi("/openapi.json", Served(FakeEngine(scored_echo), keys=Keys(["one"])).app)
open_document = Served().app.openapi()
live = schemathesis.openapi.from_dict(open_document)
statuses: Counter[int] = Counter()


@document.parametrize()
@settings(max_examples=20, derandomize=True, **QUIET)
def test_the_api_keeps_to_its_document(case: Any) -> None:
    response = case.call_and_validate(headers=KEY, excluded_checks=EXCLUDED)
    statuses[response.status_code] += 1


def test_enough_of_what_was_asked_was_served() -> None:
    assert statuses[200] > 20
    assert statuses[400] > 20


@pytest.mark.slow
@live.parametrize()
@settings(max_examples=300, **QUIET)
def test_a_real_server_keeps_to_the_document(case: Any, demo_server: LiveServer) -> None:
    url = f"http://127.0.0.1:{demo_server.port}"
    case.call_and_validate(base_url=url, excluded_checks=EXCLUDED, timeout=LIVE_TIMEOUT_S)


@pytest.mark.slow
def test_the_real_server_is_well_afterwards(demo_server: LiveServer) -> None:
    assert from_json(demo_server.get("/openapi.json")) == open_document
    assert demo_server.get("/health")
    eventually(lambda: demo_server.metrics()["requests_running"] == 0)
