"""A line for each request, that no client can forge."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from penstock.actors.serving.metrics import FinishedRequest
from penstock.actors.serving.request_log import log_request

RECORD = FinishedRequest("cmpl-1f", "/v1/completions", 10, 4, 8, "stop", 0.2, 0.0304, 0.413, 200)


def line_of(record: FinishedRequest, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="penstock.requests"):
        log_request(record)
    (message,) = caplog.messages
    return message


def test_the_line_has_every_figure(caplog: pytest.LogCaptureFixture) -> None:
    assert line_of(RECORD, caplog) == (
        "request_id=cmpl-1f endpoint=/v1/completions status=200 finish_reason=stop prompt_tokens=10 cached_tokens=4 "
        "output_tokens=8 ttft_ms=200.0 tpot_ms=30.4 e2e_ms=413.0"
    )
    assert " ttft_ms=- tpot_ms=- " in line_of(replace(RECORD, ttft_s=None, tpot_s=None), caplog)


@pytest.mark.parametrize(
    "request_id",
    ["a\nrequest_id=b", "a status=500", "\x1b[2J", "a\u2028b", "a\r\x85b", "%s%(name)s", "\ud800", "ü" * 999],
)
def test_a_clients_id_stays_one_short_word_of_ascii(request_id: str, caplog: pytest.LogCaptureFixture) -> None:
    line = line_of(replace(RECORD, request_id=request_id), caplog)
    word, rest = line.removeprefix("request_id=").split(" ", 1)
    assert rest == line_of(RECORD, caplog).split(" ", 1)[1]
    assert word.isascii()
    assert word.isprintable()
    assert "=" not in word
    assert len(word) < 64 * 10


def test_different_ids_are_told_apart_unless_they_are_very_long(caplog: pytest.LogCaptureFixture) -> None:
    ids = ["a", "a ", "a%20;", "a\n", "ab", "b" * 64, "b" * 65]
    assert len({line_of(replace(RECORD, request_id=each), caplog) for each in ids}) == len(ids)
