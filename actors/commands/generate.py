"""`penstock generate`: prompts of the command line, a file of prompts, or the demo model's held-out questions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...configs.engine import EngineConfig
from ...configs.load import load_config
from ...configs.sampling import SamplingParams
from ...errors import ConfigError, RequestError
from ...model.demo.questions import Question, sample
from ..llm import LLM
from ..progress import Progress
from ..prompts import Prompt
from .files import AnswerFile, Item, read_items
from .flags import Parser, add_sampling, add_settings, engine_config, sampling_params
from .live import MAX_LINES, Lines
from .report import Report

MAX_TOKENS = 128


def run(arguments: Sequence[str]) -> int:
    """The command's exit status."""
    parsed = _parser().parse(arguments)
    config = engine_config(parsed)
    params = sampling_params(parsed, temperature=0.0, max_tokens=MAX_TOKENS)
    if (parsed.input is None) != (parsed.output is None):
        raise ConfigError("--input and --output go together")
    if parsed.input is not None:
        if parsed.prompt:
            raise ConfigError("--prompt and --input don't go together")
        return _answer_file(config, params, parsed)
    if parsed.prompt:
        return _answer_prompts(config, params, parsed)
    if config.model != load_config("demo").model:
        raise ConfigError("give --prompt TEXT, or --input and --output; only the demo model brings its own questions")
    return _answer_questions(config, params, parsed)


def _parser() -> Parser:
    parser = Parser(prog="penstock generate", description=__doc__, usage="%(prog)s [MODEL] [options]")
    what = parser.add_argument_group("prompts")
    what.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be given more than once")
    what.add_argument("--chat", action="store_true", help="put each prompt into the chat template, as a user's message")
    what.add_argument("--input", type=Path, metavar="FILE", help="prompts, a JSON object on each line")
    what.add_argument("--output", type=Path, metavar="FILE", help="answers, in order; a cut-off run goes on")
    what.add_argument("--num-questions", type=int, default=32, metavar="N", help="of the demo model's (default 32)")
    add_settings(parser)
    add_sampling(parser)
    return parser


def _answer_prompts(config: EngineConfig, params: SamplingParams, parsed: argparse.Namespace) -> int:
    prompts: list[Prompt] = list(parsed.prompt)
    with LLM.from_config(config) as llm:
        if parsed.chat:
            prompts = llm.chat_prompts([[{"role": "user", "content": text}] for text in parsed.prompt])
        report = _show(llm, parsed.prompt, prompts, params)
        _finish(llm, report)
    return 0


def _answer_questions(config: EngineConfig, params: SamplingParams, parsed: argparse.Namespace) -> int:
    questions = sample(parsed.num_questions, config.seed)
    with LLM.from_config(config) as llm:
        prompts = llm.chat_prompts([[{"role": "user", "content": question.text}] for question in questions])
        marks = _Marks(questions)
        report = _show(llm, [question.text for question in questions], prompts, params, marks)
        _finish(llm, report, {"right answers": f"{marks.num_right}"})
    return 0


class _Marks:
    """Says of every answer whether it is the right one."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self.num_right = 0

    def __call__(self, index: int, text: str) -> str:
        right = self._questions[index].answer
        self.num_right += text == right
        return text if text == right else f"{text}   (right: {right})"


def _show(
    llm: LLM, labels: Sequence[str], prompts: list[Prompt], params: SamplingParams, marks: _Marks | None = None
) -> Report:
    """Runs the prompts: their answers as they come, or a progress bar for many on a terminal."""
    lines, report = Lines(labels), Report()
    many = len(prompts) > MAX_LINES
    with Progress(len(prompts), enabled=many) as progress:
        for index, output in llm.stream(prompts, params):
            text = output.outputs[0].text if params.n == 1 else " | ".join(each.text for each in output.outputs)
            if output.finished:
                report.add(output)
                progress.advance(output.num_generated_tokens)
                text = marks(index, text) if marks else text
                lines.finish(index, text)
            else:
                lines.update(index, text)
    lines.close()
    return report


def _answer_file(config: EngineConfig, params: SamplingParams, parsed: argparse.Namespace) -> int:
    def items() -> Iterator[Item]:
        return read_items(parsed.input, params, f"{parsed.model} {parsed.chat}")

    total = sum(1 for _ in items())
    answers = AnswerFile(parsed.output)
    try:
        if (done := answers.resume(items())) > 0:
            print(f"{parsed.output} holds {done} of {total} answers; going on behind them", file=sys.stderr)
        if done < total:
            with LLM.from_config(config) as llm:
                _finish(llm, _write(llm, islice(items(), done, None), answers, parsed.chat, total - done))
    finally:
        answers.close()
    print(f"{answers.num_written} of {total} answers are in {parsed.output}", file=sys.stderr)
    return 0


def _write(llm: LLM, items: Iterator[Item], answers: AnswerFile, chat: bool, total: int) -> Report:
    running: list[Item] = []

    def requests() -> Iterator[tuple[Prompt | RequestError, SamplingParams]]:
        for item in items:
            running.append(item)
            yield _prompt(llm, item, chat), item.params

    report = Report()
    with Progress(total) as progress:
        for index, output in llm.complete(requests(), max_open=2 * llm.max_num_seqs):
            answers.put(running[index], output)
            report.add(output)
            progress.advance(output.num_generated_tokens)
    return report


def _prompt(llm: LLM, item: Item, chat: bool) -> Prompt | RequestError:
    """A line's prompt, or why it is none."""
    try:
        return _as_prompt(llm, item.fields, chat)
    except RequestError as error:
        return error


def _as_prompt(llm: LLM, fields: dict[str, Any], chat: bool) -> Prompt:
    if "messages" in fields:
        return llm.chat_prompts(fields["messages"])[0]
    if "prompt" in fields and chat:
        return llm.chat_prompts([{"role": "user", "content": fields["prompt"]}])[0]
    return {key: fields[key] for key in ("prompt", "prompt_token_ids") if key in fields}  # type: ignore[return-value]


def _finish(llm: LLM, report: Report, extra: dict[str, str] | None = None) -> None:
    print(f"\n{report.table(llm.stats(), extra)}", file=sys.stderr if not sys.stdout.isatty() else sys.stdout)
