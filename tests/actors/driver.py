"""A program that starts an engine of fake stages, says where its processes are, and waits to be ended."""

from __future__ import annotations

import json
import sys

from penstock.actors.engine import start_engine
from penstock.configs.engine import EngineConfig

from .rig import Answers, request


def main(folder: str, settings: str) -> None:
    """`settings`: JSON of the engine's settings."""
    config = EngineConfig(
        model=folder, device="cpu", dtype="float32", max_num_seqs=16, pipeline_parallel_size=2, **json.loads(settings)
    )
    handle = start_engine(config, stage_builder="penstock.tests.actors.fake_stage:build")
    client, answers = handle.client(), Answers()
    client.submit(request("a", max_tokens=400), answers)
    answers.wait_for_tokens("a")
    print(json.dumps({"pids": handle.pids, "name": handle.name}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
