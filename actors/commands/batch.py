"""A file of prompts, answered into a file: any number of them, as many at once as keep the engine full."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...configs.engine import EngineConfig
from ...configs.sampling import SamplingParams
from ...errors import RequestError
from ..llm import LLM
from ..progress import Progress
from ..prompts import Prompt
from .files import AnswerFile, Item, read_items, rereadable
from .report import Report


@dataclass(slots=True, frozen=True)
class Batch:
    """What a run over a file depends on; the answers' digests cover it."""

    input: Path  # as the user calls it
    output: Path
    model: str  # as the user calls it
    chat: bool
    params: SamplingParams
    source: Path | None = None  # where the input can be read again, if not at its own place

    def items(self) -> Iterator[Item]:
        """The prompts, from the first on."""
        return read_items(self.source or self.input, self.params, f"{self.model} {self.chat}", self.input)


def answer_file(batch: Batch, config: EngineConfig) -> tuple[Report, dict[str, Any]] | None:
    """Answers what is not yet answered; the figures of it and of the engine, None when nothing was left to do."""
    with rereadable(batch.input) as source:
        return _answer_rest(replace(batch, source=source), config)


def _answer_rest(batch: Batch, config: EngineConfig) -> tuple[Report, dict[str, Any]] | None:
    total = sum(1 for _ in batch.items())
    answers = AnswerFile(batch.output)
    try:
        if (done := answers.resume(batch.items())) > 0:
            print(f"{batch.output} holds {done} of {total} answers already", file=sys.stderr)
        if done == total:
            return None
        with LLM.from_config(config) as llm:
            report = _write(llm, islice(batch.items(), done, None), answers, batch.chat, total - done)
            return report, llm.stats()
    finally:
        answers.close()
        print(f"{answers.num_written} of {total} answers are in {batch.output}", file=sys.stderr)


def _write(llm: LLM, items: Iterator[Item], answers: AnswerFile, chat: bool, total: int) -> Report:
    running: dict[int, Item] = {}

    def requests() -> Iterator[tuple[Prompt | RequestError, SamplingParams]]:
        for index, item in enumerate(items):
            running[index] = item
            yield _prompt(llm, item.fields, chat), item.params

    report = Report()
    with Progress(total) as progress:
        for index, output in llm.complete(requests(), max_open=2 * llm.max_num_seqs):
            answers.put(running.pop(index), output)
            report.add(output)
            progress.advance(output.num_generated_tokens)
    return report


def _prompt(llm: LLM, fields: dict[str, Any], chat: bool) -> Prompt | RequestError:
    """A line's prompt, or why it is none."""
    try:
        if "messages" in fields:
            return llm.chat_prompts([fields["messages"]])[0]
        if "prompt" in fields and chat:
            return llm.chat_prompts([[{"role": "user", "content": fields["prompt"]}]])[0]
    except RequestError as error:
        return error
    return {"prompt_token_ids": fields["prompt_token_ids"]} if "prompt_token_ids" in fields else fields["prompt"]
