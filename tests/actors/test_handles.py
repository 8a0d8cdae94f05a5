"""Handles from other processes, each a Ray job of its own: many on one engine, and one process that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.actors.llm import LLM
from penstock.configs.sampling import SamplingParams

from .rig import eventually

NUM_TOKENS = 300


@contextmanager
def handles(name: str, address: str, num_handles: int, max_tokens: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "penstock.tests.actors.handles", name, str(num_handles), str(max_tokens)]
    env = os.environ | {"RAY_ADDRESS": address}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield process


def test_many_handles_share_an_engine_and_a_killed_process_takes_its_own_requests_along(ray_cluster: str) -> None:
    with LLM("demo", pipeline_parallel_size=2, max_num_seqs=40, num_kv_blocks=2000) as llm:
        params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        expected = llm.generate("Count from 1 to 300.", params)[0].outputs[0].token_ids
        with (
            handles(llm.name, ray_cluster, 4, 0) as killed,
            handles(llm.name, ray_cluster, 8, NUM_TOKENS) as one,
            handles(llm.name, ray_cluster, 8, NUM_TOKENS) as other,
        ):
            assert killed.stdout is not None
            assert killed.stdout.readline() == "begun\n"
            killed.kill()
            for process in (one, other):
                said, _ = process.communicate()
                assert [json.loads(line) for line in said.splitlines()] == [[expected] * 8, [llm.name] * 8]

        def has_forgotten() -> bool:
            stats = llm.stats()
            figures = stats["scheduler"]
            held = [figures[name] for name in ("running", "waiting", "held_blocks")]
            return bool(stats["num_clients"] == 1 and held == [0, 0, 0])

        eventually(has_forgotten)
        assert llm.stats()["scheduler"]["free_blocks"] == 2000
        assert llm.stats()["scheduler"]["num_finished"]["length"] == 1 + 16, "the killed process's didn't run on"
