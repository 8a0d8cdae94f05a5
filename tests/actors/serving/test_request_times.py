"""What a replica's metrics count as a request's time to its first token: all that its client waits for here."""

from __future__ import annotations

import asyncio
import re
import time

from .served import CHAT, HELLO, Served

WAIT_S = 0.05


def seconds(served: Served, name: str) -> float:
    found = re.search(rf"^penstock_{name}_seconds_sum\{{.*\}} (\S+)$", served.service.metrics.render(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_the_wait_for_a_grammar_counts() -> None:
    served = Served()

    async def check(spec: str) -> None:
        await asyncio.sleep(WAIT_S)  # the time is the test's input

    served.service._check_grammar = check
    served.ask(CHAT, messages=HELLO, response_format={"type": "json_object"})
    assert WAIT_S <= seconds(served, "time_to_first_token") <= seconds(served, "e2e_request_latency")


def test_the_wait_for_a_turn_of_the_event_loop_counts() -> None:
    served = Served()

    async def ask() -> None:
        asking = asyncio.create_task(served.post(CHAT, messages=HELLO, stream=True))
        while not served.engine.requests:
            await asyncio.sleep(0)
        time.sleep(WAIT_S)  # something holds the loop after the engine has answered
        await asking

    asyncio.run(ask())
    assert seconds(served, "time_to_first_token") >= WAIT_S
