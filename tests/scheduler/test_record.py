"""The same inputs give the same plans, byte for byte; a record proves it of a run."""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from penstock.errors import ConfigError
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.cost import StepCost
from penstock.scheduler.plan import Sampling
from penstock.scheduler.record import Recorder, replay
from penstock.scheduler.scheduler import Scheduler

from .fake_pipeline import Pipeline

CONFIG = SchedulerConfig(
    num_stages=3,
    num_blocks=24,
    block_size=4,
    max_num_seqs=6,
    max_num_batched_tokens=16,
    max_model_len=60,
    vocab_size=50,
    max_unretired_plans=5,
    policy="token_throttling",
)


def random_run(scheduler: Scheduler, seed: int = 1) -> Pipeline:
    """A run with everything that changes plans: arrivals, stops, aborts, preemptions, shared prefixes."""
    rng = random.Random(seed)
    pipeline = Pipeline(scheduler.config, scheduler)
    for index in range(300):
        kind = rng.random()
        if kind < 0.12:
            prompt = [rng.randrange(2) for _ in range(rng.randint(1, 30))]
            sampling = Sampling(temperature=rng.random(), seed=rng.getrandbits(63), logit_bias=((3, 0.5),))
            pipeline.submit(prompt, rng.randint(0, 25), sampling=sampling, eos_token_ids=(1, 2), stop_token_ids=(9,))
        elif kind < 0.15 and pipeline.clients:
            pipeline.abort(rng.choice(list(pipeline.clients)))
        elif kind < 0.7:
            pipeline.schedule()
        elif pipeline.results:
            pipeline.retire()
        if index == 200:
            scheduler.abort_client("nobody")
    pipeline.run()
    return pipeline


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "run.record"
    with path.open("wb") as file:
        random_run(Recorder(Scheduler(CONFIG), file))
    return path


def test_the_same_inputs_give_the_same_plan_bytes() -> None:
    runs = [random_run(Scheduler(CONFIG)) for _ in range(2)]
    assert runs[0].plan_bytes == runs[1].plan_bytes
    assert runs[0].scheduler.stats().num_preemptions > 0


def test_the_plans_do_not_depend_on_the_hash_seed_of_the_process(record: Path) -> None:
    code = f"from penstock.scheduler.record import replay; print(replay({str(record)!r}).difference)"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "None", done.stderr


def test_a_recorded_run_replays_with_every_byte_the_same(record: Path) -> None:
    report = replay(record)
    assert report.difference is None
    assert report.num_plans > 100
    assert report.num_plan_bytes > 10 * report.num_plans


def test_a_run_whose_steps_have_a_cost_replays_with_it_and_not_without(tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    costly = replace(CONFIG, step_cost=StepCost(1e-5, 4.0, 1 / 3 * 1e-5, 1e-4), max_decode_slowdown=1.1)
    with path.open("wb") as file:
        random_run(Recorder(Scheduler(costly), file))
    assert replay(path).difference is None
    records = list(msgpack.Unpacker(io.BytesIO(path.read_bytes()), raw=False))
    assert records[0][2]["step_cost"]["per_context_s"] == 1 / 3 * 1e-5
    records[0][2]["step_cost"] = None
    path.write_bytes(b"".join(msgpack.packb(x) for x in records))
    assert replay(path).difference is not None


def test_the_first_difference_is_named_with_step_and_field(record: Path) -> None:
    records = list(msgpack.Unpacker(io.BytesIO(record.read_bytes()), raw=False))
    records[0][2]["max_num_batched_tokens"] = 15
    record.write_bytes(b"".join(msgpack.packb(x) for x in records))
    difference = replay(record).difference
    assert difference is not None
    assert re.fullmatch(r"plan \d+: num_tokens was .*, replayed .*", difference)


def test_a_run_that_was_cut_off_replays_as_far_as_it_goes(record: Path) -> None:
    record.write_bytes(record.read_bytes()[:-7])
    report = replay(record)
    assert report.difference is None
    assert report.num_plans > 100


@pytest.mark.parametrize(
    "content", [b"", b"hello", msgpack.packb(["penstock record", 99, {}]), msgpack.packb({"a": 1})]
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="record"):
        replay(path)


@pytest.mark.parametrize(
    ("at", "damaged"),
    [
        (0, ["penstock record", 3, {"num_stage": 3}]),
        (0, ["penstock record", 3, 7]),
        (1, 7),
        (1, []),
        (1, ["start"]),
        (1, ["add", "client"]),
        (1, ["add", "client", "a", b"123", 5, [], [], [], False]),
        (1, ["abort", "client"]),
        (1, ["abort_client", ["client"]]),
        (1, ["schedule", 7]),
        (1, ["schedule", b"plan"]),
        (1, ["update", b"result"]),
        (1, ["fail_all", None]),
    ],
)
def test_damage_is_named_as_such_wherever_it_is(record: Path, at: int, damaged: object) -> None:
    records = list(msgpack.Unpacker(io.BytesIO(record.read_bytes()), raw=False))
    records[at] = damaged
    record.write_bytes(b"".join(msgpack.packb(x) for x in records))
    with pytest.raises(ConfigError, match=f"is damaged: {'call 1' if at else 'its settings'}: "):
        replay(record)


def test_what_the_scheduler_itself_raises_is_no_damage(record: Path) -> None:
    records = list(msgpack.Unpacker(io.BytesIO(record.read_bytes()), raw=False))
    update = next(each for each in records if each[0] == "update")
    record.write_bytes(b"".join(msgpack.packb(x) for x in [records[0], update]))
    with pytest.raises(AssertionError, match="the result of step 0 came"):
        replay(record)


def test_failure_and_client_aborts_are_recorded_too(tmp_path: Path) -> None:
    path = tmp_path / "run.record"
    with path.open("wb") as file:
        pipeline = Pipeline(CONFIG, Recorder(Scheduler(replace(CONFIG, num_stages=1)), file))
        pipeline.submit([1, 2, 3], 5, name="a", client_id="gone")
        pipeline.schedule()
        pipeline.scheduler.abort_client("gone")
        pipeline.submit([1, 2, 3], 5, name="b")
        pipeline.schedule()
        pipeline.scheduler.fail_all("over")
        pipeline.submit([1, 2, 3], 5, name="c")
        pipeline.collect()
        pipeline.run()
    assert replay(path).difference is None
