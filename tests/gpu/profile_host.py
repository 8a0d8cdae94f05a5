"""Where the host's time for a step of decodes goes: `python tests/gpu/profile_host.py [LAYERS [ROWS]]`.

The pipeline runs in this process, on one GPU, with dummy weights of Qwen3-8B's width. First the time of each launch,
then the functions of a profile of as many.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from run_on_gpu import COMMON, MODELS  # type: ignore[import-not-found]  # beside this script

from penstock.actors.in_process import start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import Sampling, StepPlan, ints
from penstock.scheduler.scheduler import Scheduler

NUM_STEPS, NUM_BLOCKS = 300, 8192


def main() -> None:
    num_layers, rows = (int(each) for each in (*sys.argv[1:], *("9", "64")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(COMMON | MODELS["8b"] | {"num_hidden_layers": num_layers}))
        config = EngineConfig(model=folder, load_format="dummy", device="cuda", max_num_seqs=rows, max_model_len=4096)
        model_config = read_model_config(folder)
        scheduler = Scheduler(scheduler_config(config, model_config, NUM_BLOCKS))
        driver = start_in_process(config, model_config, scheduler, NUM_BLOCKS)
    rng, profile, spent_s = np.random.default_rng(0), cProfile.Profile(), list[float]()
    for i in range(rows):
        prompt = ints(rng.integers(3, 30000, 400).tolist())
        scheduler.add_request(NewRequest(str(i), prompt, 2 * NUM_STEPS + 200, Sampling(), ignore_eos=True))
    submit = driver.ranks[0].submit

    def timed(plan: StepPlan) -> None:
        start_s = time.perf_counter()
        submit(plan)
        spent_s.append(time.perf_counter() - start_s)

    def profiled(plan: StepPlan) -> None:
        profile.runcall(submit, plan)

    for use, count in ((submit, 100), (timed, NUM_STEPS), (profiled, NUM_STEPS)):
        setattr(driver.ranks[0], "submit", use)  # noqa: B010
        for _ in range(count):
            driver.publish()
            driver.retire()
            driver.scheduler.take_events()
    driver.close()
    p50, p99 = np.percentile(spent_s, (50, 99)) * 1e3
    device_ms = driver.ranks[0].timeline.totals.busy_ns / driver.num_steps / 1e6
    print(f"{num_layers} layers, {rows} rows: host {p50:.3f} ms median, {p99:.3f} p99; device {device_ms:.2f} ms mean")
    pstats.Stats(profile).sort_stats("tottime").print_stats(38)


if __name__ == "__main__":
    main()
