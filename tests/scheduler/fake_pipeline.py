"""A pipeline without a model: plans in, tokens out, every token a function of the whole sequence before it.

The fake cache holds, for each position, a hash over the sequence up to there, written and read where the plans say. A
plan that reads a block too early, shares a wrong one, loses one or writes into one that others read is caught at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penstock.scheduler.codec import decode_plan, decode_result, encode_plan, encode_result
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.messages import NewRequest, TokenEvent
from penstock.scheduler.mirror import Mirror, StepInput
from penstock.scheduler.plan import Logprobs, Sampling, StepPlan, StepResult, ints, most_granted_blocks
from penstock.scheduler.scheduler import Scheduler

MASK = (1 << 64) - 1


def extend(prefix: int, token_id: int) -> int:
    """The hash of a sequence that is one token longer."""
    return ((prefix ^ (token_id + 1)) * 6364136223846793005 + 1442695040888963407) & MASK


def next_token(prefix: int, vocab_size: int) -> int:
    """What the fake model says after a sequence."""
    return (prefix >> 33) % vocab_size


@dataclass
class FakeStages:
    """All stages at once: applies plans as the mirror reads them."""

    config: SchedulerConfig
    mirror: Mirror = field(init=False)
    sequences: list[list[int]] = field(init=False)  # [slots] hashes up to each position that is written
    future: list[int] = field(init=False)  # [slots] the newest sampled token
    sampled_slots: list[int] = field(init=False)  # of the newest step
    most_granted: int = field(init=False)

    def __post_init__(self) -> None:
        size, num_slots = self.config.block_size, self.config.max_num_seqs
        width, tokens = -(-self.config.max_model_len // size), self.config.max_num_batched_tokens
        self.mirror = Mirror(num_slots, width, size)
        self.most_granted = most_granted_blocks(num_slots, width, tokens, size)
        self.cache = np.zeros(self.config.num_blocks * size, np.uint64)
        self.sequences = [[] for _ in range(num_slots)]
        self.future = [-1] * num_slots

    def run(self, plan: StepPlan) -> StepResult:
        """One step; its result."""
        for registration in plan.registrations:
            hashes = prefix_hashes(registration.token_ids[: registration.num_computed_tokens].tolist())
            self.sequences[registration.slot] = hashes
        self._read_before = self._blocks_in_use(set(plan.released.tolist()))
        assert len(plan.block_ids) <= self.most_granted, "a stage has no room for so many"
        inputs = self.mirror.apply(plan)
        sampled = set(inputs.sample_rows.tolist())
        self.sampled_slots = inputs.slots[inputs.sample_rows].tolist()
        tokens = [self._run_row(inputs, row, row in sampled) for row in range(inputs.num_rows)]
        result = StepResult(plan.step, ints([tokens[row] for row in inputs.sample_rows]), plan.epoch)
        for row in range(inputs.num_rows):
            self._score(inputs, row, row in sampled, tokens[row], result)
        return result

    def _run_row(self, inputs: StepInput, row: int, samples: bool) -> int:
        slot, start, end = int(inputs.slots[row]), int(inputs.starts[row]), int(inputs.seq_lens[row])
        hashes = self.sequences[slot]
        assert len(hashes) == start, f"slot {slot} is at {len(hashes)}, its row starts at {start}"
        self._check_reads(inputs, row, hashes)
        offset = int(inputs.query_starts[row])
        for token_id, cache_slot in zip(
            inputs.token_ids[offset : offset + end - start].tolist(),
            inputs.cache_slots[offset : offset + end - start].tolist(),
            strict=True,
        ):
            hashes.append(extend(hashes[-1] if hashes else 0, self.future[slot] if token_id < 0 else token_id))
            self._check_private(slot, cache_slot // self.config.block_size)
            self.cache[cache_slot] = hashes[-1]
        if samples:
            self.future[slot] = next_token(hashes[-1], self.config.vocab_size)
        return self.future[slot]

    def _check_reads(self, inputs: StepInput, row: int, hashes: list[int]) -> None:
        positions = np.arange(len(hashes))
        size = self.config.block_size
        found = self.cache[inputs.block_table[row][positions // size] * size + positions % size]
        assert found.tolist() == hashes, f"step {inputs.step}: slot {inputs.slots[row]} reads what it did not write"

    def _blocks_in_use(self, released: set[int]) -> dict[int, set[int]]:
        """Blocks with content, of every slot whose holder may still read them."""
        mirror = self.mirror
        lengths = -(-mirror.num_computed // self.config.block_size)
        taken = set(np.flatnonzero(mirror.generation >= 0).tolist()) - released
        slots = [slot for slot in taken if self.is_live(slot)]
        return {slot: set(mirror.block_table[slot, : lengths[slot]].tolist()) for slot in slots}

    def _check_private(self, slot: int, block: int) -> None:
        for other, blocks in self._read_before.items():
            assert other == slot or block not in blocks, f"{slot} writes into {other}'s block {block}"

    is_live: Callable[[int], bool] = field(default=lambda slot: False)

    def _score(self, inputs: StepInput, row: int, samples: bool, token: int, result: StepResult) -> None:
        slot, start, end = int(inputs.slots[row]), int(inputs.starts[row]), int(inputs.seq_lens[row])
        sampling = self.mirror.sampling[slot]
        known = self.mirror.token_ids[slot]
        if samples and sampling.num_logprobs >= 0:
            result.logprobs.append(fake_logprobs(row, end, [token]))
        num_prompt = int(self.mirror.num_prompt[slot])
        if sampling.num_prompt_logprobs >= 0 and start + 1 < num_prompt:
            assert known is not None
            scored = known[start + 1 : min(end + 1, num_prompt)].tolist()
            result.prompt_logprobs.append(fake_logprobs(row, start + 1, scored))


def fake_logprobs(row: int, start: int, token_ids: Sequence[int]) -> Logprobs:
    """Log-probabilities whose values are the positions."""
    count = len(token_ids)
    return Logprobs(
        row=row,
        start=start,
        token_ids=ints(token_ids),
        values=np.arange(start, start + count, dtype=np.float32),
        ranks=ints([1] * count),
        top_ids=np.zeros((count, 0), np.int32),
        top_values=np.zeros((count, 0), np.float32),
    )


def prefix_hashes(token_ids: Sequence[int]) -> list[int]:
    """The hash up to each position."""
    hashes: list[int] = []
    for token_id in token_ids:
        hashes.append(extend(hashes[-1] if hashes else 0, token_id))
    return hashes


def expected_output(request: NewRequest, config: SchedulerConfig) -> tuple[list[int], str, int | None]:
    """Output tokens, finish reason and stop reason, computed directly."""
    prompt = request.prompt_token_ids.tolist()
    prefix = prefix_hashes(prompt)[-1]
    output: list[int] = []
    while True:
        token_id = next_token(prefix, config.vocab_size)
        prefix = extend(prefix, token_id)
        output.append(token_id)
        if len(output) >= request.sampling.min_tokens:
            if token_id in request.eos_token_ids and not request.ignore_eos:
                return output, "stop", None
            if token_id in request.stop_token_ids:
                return output, "stop", token_id
        if len(output) == request.max_tokens or len(prompt) + len(output) == config.max_model_len:
            return output, "length", None


@dataclass
class Seen:
    """What a client has seen of its request."""

    request: NewRequest
    output: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    num_cached_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | None = None
    error: str | None = None

    def take(self, event: TokenEvent) -> None:
        assert self.finish_reason is None, f"{event} after the end"
        assert event.start == len(self.output), f"{event} after {len(self.output)} tokens"
        assert len(event.token_ids) or event.finish_reason, f"{event} says nothing"
        self.output += event.token_ids.tolist()
        self.logprobs += event.logprobs
        self.prompt_logprobs += event.prompt_logprobs
        self.num_cached_tokens = event.num_cached_tokens
        self.finish_reason, self.stop_reason, self.error = event.finish_reason, event.stop_reason, event.error


class Pipeline:
    """A scheduler, fake stages, and a client that checks every answer; `check()` after every call."""

    def __init__(self, config: SchedulerConfig, scheduler: Scheduler | None = None) -> None:
        self.config = config
        self.scheduler = scheduler or Scheduler(config)
        self.stages = FakeStages(config, is_live=self._is_live)
        self.results: deque[bytes] = deque()
        self.plans: list[StepPlan] = []
        self.plan_bytes: list[bytes] = []
        self.clients: dict[str, Seen] = {}
        self.num_sampled: Counter[str] = Counter()  # tokens that the stages sampled for each request

    def _is_live(self, slot: int) -> bool:
        return bool(self.scheduler._life.table.requests[slot].blocks)

    def submit(self, prompt: Sequence[int], max_tokens: int = 8, name: str = "", **fields: Any) -> Seen:
        """A new request; its name is its number unless given."""
        name = name or str(len(self.clients))
        sampling = fields.pop("sampling", Sampling())
        request = NewRequest(name, ints(prompt), max_tokens, sampling, **fields)
        self.clients[name] = Seen(request)
        self.scheduler.add_request(request)
        self.collect()
        return self.clients[name]

    def abort(self, name: str) -> None:
        self.scheduler.abort("", name)
        self.collect()

    def schedule(self) -> StepPlan | None:
        """One plan, run at once by the stages; its result waits."""
        plan = self.scheduler.schedule()
        self.scheduler.check()
        if plan is not None:
            data = encode_plan(plan)
            self.plans.append(plan)
            self.plan_bytes.append(data)
            self.results.append(encode_result(self.stages.run(decode_plan(data))))
            self._check_kept_tokens(plan)
        return plan

    def _check_kept_tokens(self, plan: StepPlan) -> None:
        """Whoever registers again knows every token that was sampled for it before: none is lost or sampled twice."""
        names = [request.request_id for request in self.scheduler._life.table.requests]
        for r in plan.registrations:
            num_generated = len(r.token_ids) - r.num_prompt_tokens
            assert num_generated == self.num_sampled[names[r.slot]], f"{names[r.slot]} resumes with {num_generated}"
        self.num_sampled.update(names[slot] for slot in self.stages.sampled_slots)

    def retire(self) -> None:
        """The oldest result reaches the scheduler."""
        self.scheduler.update(decode_result(self.results.popleft()))
        self.collect()

    def collect(self) -> None:
        self.scheduler.check()
        for event in self.scheduler.take_events():
            self.clients[event.request_id].take(event)

    def step(self) -> bool:
        """A plan if there can be one, else the oldest result; whether there was either."""
        if self.schedule() is not None:
            return True
        if not self.results:
            return False
        self.retire()
        return True

    def run(self, max_steps: int = 100_000) -> None:
        """Until every request is answered and every result is in."""
        while max_steps and self.step():
            max_steps -= 1
        assert not self.scheduler.num_unfinished, f"{self.scheduler.num_unfinished} requests hang"
        self.check_answers()

    def check_answers(self) -> None:
        """Every request that was not aborted or refused got exactly what a direct computation gives."""
        for seen in self.clients.values():
            assert seen.finish_reason is not None, f"{seen.request.request_id} was never answered"
            if seen.finish_reason == "error":
                continue
            output, reason, stop_reason = expected_output(seen.request, self.config)
            if seen.finish_reason == "abort":
                assert seen.output == output[: len(seen.output)]
            else:
                assert (seen.output, seen.finish_reason, seen.stop_reason) == (output, reason, stop_reason)
                self._check_logprobs(seen)

    def _check_logprobs(self, seen: Seen) -> None:
        prompt = seen.request.prompt_token_ids.tolist()
        if seen.request.sampling.num_logprobs >= 0:
            assert [x.start for x in seen.logprobs] == [len(prompt) + i for i in range(len(seen.output))]
            assert [x.token_ids.tolist() for x in seen.logprobs] == [[token] for token in seen.output]
        if seen.request.sampling.num_prompt_logprobs >= 0:
            assert [value for x in seen.prompt_logprobs for value in x.values] == list(range(1, len(prompt)))
            assert [token for x in seen.prompt_logprobs for token in x.token_ids] == prompt[1:]
