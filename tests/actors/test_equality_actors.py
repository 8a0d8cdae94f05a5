"""Token for token what transformers gives, over real actors in one Ray cluster: pairwise-chosen cases.

Every pair of values of two factors (stages, ranks, async, prefix caching, cache size, model) stands in some case.
Requests arrive while others run, and two are aborted.
"""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.actors.engine import EngineHandle, start_engine
from penstock.configs.engine import EngineConfig
from penstock.scheduler.messages import NewRequest, TokenEvent
from penstock.scheduler.plan import ints

from ..model.tiny import TINY_MODELS, VOCAB_SIZE, write_tiny_model
from .reference import MAX_TOKENS, Outcome, Scenario, expected_tokens, scenario

FACTORS: dict[str, list[Any]] = {
    "stages": [1, 2, 3, 4],
    "model": ["llama3", "qwen3", "glm4", "mistral"],
    "ranks": [1, 2],
    "async_on": [True, False],
    "prefix_on": [True, False],
    "num_blocks": [15, 80],
}
WAIT_S = 60


def pairwise_cases() -> list[dict[str, Any]]:
    """Greedy pairwise cover: each case takes the combination with the most pairs that no case has yet."""
    names = list(FACTORS)
    everything = [dict(zip(names, values, strict=True)) for values in itertools.product(*FACTORS.values())]

    def pairs(case: dict[str, Any]) -> set[tuple[Any, ...]]:
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(names, 2)}

    missing, chosen = set().union(*map(pairs, everything)), []
    while missing:
        best = max(everything, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


CASES = pairwise_cases()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Scenario, list[list[int]]]]:
    torch.set_num_threads(1)
    found = {}
    for name in FACTORS["model"]:
        folder = tmp_path_factory.mktemp(name)
        model = write_tiny_model(folder, name)
        scene = scenario(len(name), VOCAB_SIZE)
        found[name] = (folder, scene, expected_tokens(model, scene.finished))
    return found


def play(engine: EngineHandle, scene: Scenario) -> Outcome:
    """Sends the first half at once, the others as events come; aborts the last ones when they have begun."""
    outcome, done, lock = Outcome(), threading.Event(), threading.Lock()
    client = engine.client()
    late = [i for i, arrival in enumerate(scene.arrivals) if arrival > 0]

    def send(i: int) -> None:
        client.submit(NewRequest(f"r{i}", ints(scene.prompts[i]), MAX_TOKENS, ignore_eos=True), on_event)

    def on_event(event: TokenEvent) -> None:
        with lock:
            tokens = outcome.tokens.setdefault(event.request_id, [])
            assert event.start == len(tokens)
            tokens += event.token_ids.tolist()
            if late:
                send(late.pop(0))
            if event.finish_reason:
                outcome.reasons[event.request_id] = event.finish_reason
            elif int(event.request_id[1:]) >= len(scene.finished):
                client.abort(event.request_id)
            if len(outcome.reasons) == len(scene.prompts):
                done.set()

    with lock:
        for i, arrival in enumerate(scene.arrivals):
            if arrival == 0:
                send(i)
    assert done.wait(WAIT_S), f"only {sorted(outcome.reasons)} were answered"
    client.close()
    return outcome


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_greedy_tokens_over_actors_equal_those_of_transformers(
    ray_cluster: str, models: dict[str, tuple[Path, Scenario, list[list[int]]]], case: dict[str, Any]
) -> None:
    folder, scene, expected = models[case["model"]]
    layers = TINY_MODELS[case["model"]].num_layers
    config = EngineConfig(
        model=str(folder),
        pipeline_parallel_size=case["stages"],
        tensor_parallel_size=case["ranks"],
        pipeline_layer_partition=[1.5, layers - 3, 1.5] if case["stages"] == 3 else None,
        async_scheduling=case["async_on"],
        enable_prefix_caching=case["prefix_on"],
        num_kv_blocks=case["num_blocks"],
        block_size=8,
        max_model_len=64,
        max_num_seqs=24,
        max_num_batched_tokens=16,
        device="cpu",
        num_threads=1,
    )
    with start_engine(config) as engine:
        outcome = play(engine, scene)
    for i, tokens in enumerate(expected):
        assert outcome.tokens[f"r{i}"] == tokens, f"prompt {i}"
        assert outcome.reasons[f"r{i}"] == "length"


def test_at_least_sixteen_pairwise_cases_were_run(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nequality over actors: {len(CASES)} pairwise cases")
    assert len(CASES) >= 16
