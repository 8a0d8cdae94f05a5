"""Where a step's hidden states go: over a link to the next stage, or through the head and the sampler."""

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
from .exchange import Exchange
from .launch import Launcher
from .logprobs import PromptLogprobs
from .ring import Ring
from .sampler import Sampled, Sampler
from .work import StepWork


class Sink(Protocol):
    """Where a step's hidden states go."""

    def prepare(self, work: StepWork) -> Sequence[Event]:
        """Host part; returns what the compute must wait for."""
        ...

    def compute(self, work: StepWork) -> None:
        """The sink's own share of the compute, if any: called on the compute lane, right behind the layers."""
        ...

    def send(self, work: StepWork, computed: Event) -> Event:
        """Enqueues what leaves the stage."""
        ...

    def result(self, work: StepWork) -> StepResult | None:
        """The step's answer, where this rank gives it."""
        ...


class LinkSink:
    """An earlier stage: hidden states to the next stage, from buffers used in turn."""

    def __init__(self, device: Device, link: Link, buffers: Ring) -> None:
        self._device = device
        self._link = link
        self._buffers = buffers

    def prepare(self, work: StepWork) -> Sequence[Event]:
        """Takes the next buffer; its last send must have completed."""
        work.outgoing, sent = self._buffers.take(work.inputs.total_tokens)
        return sent

    def compute(self, work: StepWork) -> None:
        """The layers' launcher has filled the buffer."""

    def send(self, work: StepWork, computed: Event) -> Event:
        """Enqueues the send behind the compute."""
        place = work.outgoing
        assert place is not None
        sent = self._device.enqueue(
            "send", lambda: self._link.send(place.buffer), [computed], cause="send_buffer", step=work.inputs.step
        )
        self._buffers.used(place, sent)
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
    exchange: Exchange
    link: Link | None  # None with one stage, where the launcher feeds the tokens back
    answers: bool

    def prepare(self, work: StepWork) -> Sequence[Event]:
        """The sampler's host part."""
        work.sampling = self.sampler.prepare(work.inputs, self.mirror)
        work.prompt = self.prompt_logprobs.prepare(work.inputs, self.mirror)
        ring, num_samples = self.exchange.sampled, len(work.inputs.sample_rows)
        if ring is None or not num_samples or not work.sampling.is_greedy:
            return ()
        work.tokens, sent = ring.take(num_samples)
        return sent

    def compute(self, work: StepWork) -> None:
        """The head and the sampler."""
        if work.prompt is not None:
            assert work.hidden is not None
            work.prompt_scores = self.prompt_logprobs.score(work.hidden, work.prompt, self.module.logits)
        if len(work.inputs.sample_rows):
            work.sampled = self._sample_rows(work)
        work.hidden = None

    def _sample_rows(self, work: StepWork) -> Sampled:
        sampling = work.sampling
        assert sampling is not None
        if sampling.is_greedy and self.launcher.greedy(work):
            place, host = work.tokens, self.exchange.host_sampled
            assert place is not None
            assert host is not None
            return Sampled(host[place.turn, : place.length])
        work.tokens = None
        rows = self.launcher.rows(work)
        if sampling.is_greedy:
            sampled = Sampled(self.module.likeliest(rows, self.sampler.largest))
        else:
            sampled = self.sampler.sample(self.module.logits(rows), sampling)
        self.launcher.feed_back(work, sampled.token_ids)
        return sampled

    def send(self, work: StepWork, computed: Event) -> Event:
        """Sends the tokens on their own link, and copies to the host what the answer needs and isn't there.

        The step retires without the send, which may wait for its receiver where tokens are under way that nobody asks
        for: its answer is what makes stage 0 go on.
        """
        link = self.link
        if link is not None and len(work.inputs.sample_rows):
            work.tokens_sent = self.device.enqueue(
                "token_send", lambda: link.send(_tokens(work)), [computed], cause="send_buffer", step=work.inputs.step
            )
            if work.tokens is not None and self.exchange.sampled is not None:
                self.exchange.sampled.used(work.tokens, work.tokens_sent)
        if not self.answers or (work.tokens is not None and work.prompt is None):
            return computed
        return self.device.enqueue("copy", lambda: self._copy(work), [computed], cause="copy", step=work.inputs.step)

    def _copy(self, work: StepWork) -> None:
        if work.sampled is not None and work.tokens is None:
            work.sampled = work.sampled.to_host()
        if work.prompt_scores is not None:
            work.prompt_scores = work.prompt_scores.to_host()

    def result(self, work: StepWork) -> StepResult | None:
        """Tokens and log-probabilities, from host memory. Raises what the tokens' send has raised."""
        if work.tokens_sent is not None and work.tokens_sent.done():
            work.tokens_sent.wait()
        if not self.answers:
            return None
        plan = work.inputs.plan
        return self.sampler.to_result(plan.step, plan.epoch, work.sampled, work.prompt_scores)


def _tokens(work: StepWork) -> Tensor:
    """The sampled tokens, for the lane that sends them: the step may have retired before that has."""
    if work.tokens is not None:
        return work.tokens.buffer
    assert work.sampled is not None
    tokens = work.sampled.token_ids
    if tokens.is_cuda:
        tokens.record_stream(torch.cuda.current_stream(tokens.device))
    return tokens
