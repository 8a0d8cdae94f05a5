"""A client in a process of its own: sends requests, says when the first token has come, reads to the end."""

from __future__ import annotations

import sys

from penstock.actors.engine import find_engine

from .rig import Answers, fake_output, request

NUM_REQUESTS = 8


def main(name: str) -> None:
    handle = find_engine(name)
    client, answers = handle.client(), Answers()
    for i in range(NUM_REQUESTS):
        client.submit(request(f"s{i}", max_tokens=400), answers)
    answers.wait_for_tokens("s0")
    print("begun", flush=True)
    answers.wait(NUM_REQUESTS, timeout_s=60)
    right = all(answers.tokens[f"s{i}"] == fake_output(5, 400) for i in range(NUM_REQUESTS))
    print("right" if right else f"wrong: {answers.ends}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
