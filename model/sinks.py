"""Where a step's hidden states go: over a link to the next stage, or through the head and the sampler.

A send buffer is written again only when its send has completed, known by an event, never by a host wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..scheduler.device import Device, Event, Link
from ..scheduler.mirror import Mirror
from ..scheduler.plan import StepResult
from .decoder import StageModule
from .future_map import FutureMap
from .launch import Launcher
from .logprobs import PromptLogprobs
from .sampler import Sampled, Sampler, SamplingStep
from .work import StepWork


class Sink(Protocol):
    """Where a step's hidden states go."""

    def prepare(self, work: StepWork) -> Sequence[Event]:
        """Host part; returns what the compute must wait for."""
        ...

    def compute(self, work: StepWork, layers: Event) -> Event:
        """Enqueues the sink's own share of the compute behind the layers."""
        ...

    def send(self, work: StepWork, computed: Event) -> Event:
        """Enqueues what leaves the stage."""
        ...

    def result(self, work: StepWork) -> StepResult | None:
        """The step's answer, where this rank gives it."""
        ...


class LinkSink:
    """An earlier stage: hidden states to the next stage, from buffers used in turn."""

    def __init__(self, device: Device, link: Link, buffers: Tensor) -> None:
        self._device = device
        self._link = link
        self._buffers = buffers  # [NUM_LINK_BUFFERS, most tokens of a step, H]
        self._sent: list[Event | None] = [None] * len(buffers)
        self._num_sent = 0

    def prepare(self, work: StepWork) -> Sequence[Event]:
        """Takes the next buffer; its last send must have completed."""
        turn = self._num_sent % len(self._buffers)
        work.outgoing = self._buffers[turn, : work.inputs.total_tokens]
        last = self._sent[turn]
        return [] if last is None else [last]

    def compute(self, work: StepWork, layers: Event) -> Event:
        """Moves the hidden states into the buffer."""

        def store() -> None:
            assert work.outgoing is not None
            assert work.hidden is not None
            work.outgoing.copy_(work.hidden)
            work.hidden = None

        return self._device.enqueue("compute", store, [layers], cause="sample", step=work.inputs.step)

    def send(self, work: StepWork, computed: Event) -> Event:
        """Enqueues the send behind the compute."""
        buffer = work.outgoing
        sent = self._device.enqueue(
            "send", lambda: self._link.send(buffer), [computed], cause="send_buffer", step=work.inputs.step
        )
        self._sent[self._num_sent % len(self._buffers)] = sent
        self._num_sent += 1
        return sent

    def result(self, work: StepWork) -> StepResult | None:
        """The last stage answers."""
        return None


@dataclass(slots=True)
class SamplerSink:
    """The last stage: samples, sends the tokens to stage 0's FutureMap, and answers.

    Every rank of the stage samples (draws are counted, hence equal); each feeds its own rank of stage 0, one answers.
    """

    device: Device
    module: StageModule
    launcher: Launcher
    mirror: Mirror
    sampler: Sampler
    prompt_logprobs: PromptLogprobs
    future_map: FutureMap | None  # with one stage; otherwise:
    link: Link | None
    answers: bool

    def prepare(self, work: StepWork) -> Sequence[Event]:
        """The sampler's host part."""
        inputs, rows = work.inputs, work.inputs.sample_rows
        work.sampling = self.sampler.prepare(inputs, self.mirror)
        work.prompt = self.prompt_logprobs.prepare(inputs, self.mirror)
        work.sample_offsets = torch.from_numpy(inputs.query_starts[rows + 1] - 1).to(torch.int64)
        work.sample_slots = torch.from_numpy(inputs.slots[rows]).to(torch.int64)
        return []

    def compute(self, work: StepWork, layers: Event) -> Event:
        """Enqueues the head and the sampler, apart from the layers."""
        return self.device.enqueue(
            "compute", lambda: self._sample(work), [layers], cause="sample", step=work.inputs.step
        )

    @torch.inference_mode()
    def _sample(self, work: StepWork) -> None:
        hidden, sampling = work.hidden, work.sampling
        assert hidden is not None
        assert sampling is not None
        assert work.sample_offsets is not None
        if work.prompt is not None:
            work.prompt_scores = self.prompt_logprobs.score(hidden, work.prompt, self.module.logits)
        if len(work.sample_offsets):
            work.sampled = self._sample_rows(work, hidden, sampling)
            if self.future_map is not None:
                assert work.sample_slots is not None
                self.future_map.write(work.sample_slots, work.sampled.token_ids)
        work.hidden = None

    def _sample_rows(self, work: StepWork, hidden: Tensor, sampling: SamplingStep) -> Sampled:
        offsets = work.sample_offsets
        assert offsets is not None
        if not sampling.is_greedy:
            return self.sampler.sample(self.module.logits(hidden[offsets]), sampling)
        tokens = self.launcher.greedy(hidden, offsets)
        if tokens is not None:
            return Sampled(tokens)
        return self.sampler.sample(self.module.order(hidden[offsets]), sampling)

    def send(self, work: StepWork, computed: Event) -> Event:
        """Sends the tokens on their own link, and copies what the answer needs to the host."""
        last, link = computed, self.link
        if link is not None and len(work.inputs.sample_rows):
            last = self.device.enqueue(
                "token_send", lambda: link.send(_tokens(work)), [computed], cause="send_buffer", step=work.inputs.step
            )
        if not self.answers:
            return last
        return self.device.enqueue("copy", lambda: self._copy(work), [computed], cause="copy", step=work.inputs.step)

    def _copy(self, work: StepWork) -> None:
        if work.sampled is not None:
            work.sampled = work.sampled.to_host()
        if work.prompt_scores is not None:
            work.prompt_scores = work.prompt_scores.to_host()

    def result(self, work: StepWork) -> StepResult | None:
        """Tokens and log-probabilities, from host memory."""
        if not self.answers:
            return None
        plan = work.inputs.plan
        return self.sampler.to_result(plan.step, plan.epoch, work.sampled, work.prompt_scores)


def _tokens(work: StepWork) -> Tensor:
    """The sampled tokens, for the lane that sends them: the step may have retired before that has."""
    assert work.sampled is not None
    tokens = work.sampled.token_ids
    if tokens.is_cuda:
        tokens.record_stream(torch.cuda.current_stream(tokens.device))
    return tokens
