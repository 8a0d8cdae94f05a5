"""Every request that can't be served is answered at once with the value and the limit; the others go on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from penstock.errors import ConfigError
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import Sampling, ints
from penstock.scheduler.request import refusal
from penstock.scheduler.scheduler import Scheduler

from .fake_pipeline import Pipeline

CONFIG = SchedulerConfig(num_blocks=8, block_size=4, max_num_seqs=4, max_model_len=40, vocab_size=100)
GOOD = NewRequest("r", ints([1, 2, 3]), 5)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (replace(GOOD, prompt_token_ids=ints([])), ["0 tokens", "at least 1"]),
        (replace(GOOD, max_tokens=0), ["max_tokens is 0", "at least 1"]),
        (replace(GOOD, max_tokens=-3), ["max_tokens is -3"]),
        (replace(GOOD, prompt_token_ids=ints([1] * 40)), ["40 tokens", "max_model_len = 40"]),
        (replace(GOOD, max_tokens=30), ["3 + 30", "32"]),
        (replace(GOOD, prompt_token_ids=ints([1, 100])), ["token id 100", "0 to 99"]),
        (replace(GOOD, prompt_token_ids=ints([1, -1])), ["token id -1", "0 to 99"]),
        (replace(GOOD, prompt_token_ids=np.array([1, 1 << 40])), [str(1 << 40)]),
        (replace(GOOD, sampling=Sampling(min_tokens=1, stop_token_ids=(101,))), ["stop_token_ids", "101"]),
        (replace(GOOD, sampling=Sampling(logit_bias=((100, 1.0),))), ["logit_bias", "100"]),
    ],
)
def test_a_bad_request_is_refused_with_value_and_limit(bad: NewRequest, says: list[str]) -> None:
    scheduler = Scheduler(CONFIG)
    scheduler.add_request(GOOD)
    scheduler.add_request(replace(bad, request_id="bad"))
    (event,) = scheduler.take_events()
    assert (event.request_id, event.finish_reason) == ("bad", "error")
    assert event.error is not None
    for words in says:
        assert words in event.error
    assert scheduler.num_unfinished == 1


def test_max_tokens_beyond_the_model_is_capped_not_refused() -> None:
    config = replace(CONFIG, num_blocks=10)
    assert refusal(replace(GOOD, max_tokens=1000), config) is None
    pipeline = Pipeline(config)
    seen = pipeline.submit([1, 2, 3], 1000)
    pipeline.run()
    assert len(seen.output) == 37
    assert seen.finish_reason == "length"


def test_a_request_id_in_use_is_refused_and_its_owner_goes_on() -> None:
    scheduler = Scheduler(CONFIG)
    scheduler.add_request(GOOD)
    scheduler.add_request(GOOD)
    scheduler.add_request(replace(GOOD, client_id="another"))
    (event,) = scheduler.take_events()
    assert event.error is not None
    assert "'r'" in event.error
    assert scheduler.num_unfinished == 2


@pytest.mark.parametrize(
    "wrong", [{"num_stages": 0}, {"max_unretired_plans": 0}, {"kv_reserve": 1.0}, {"max_num_seqs": 1 << 17}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Scheduler(replace(CONFIG, **wrong))  # type: ignore[arg-type]
