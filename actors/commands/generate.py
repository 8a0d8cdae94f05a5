"""`penstock generate`: prompts of the command line, a file of prompts, or the demo model's held-out questions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...configs.engine import EngineConfig
from ...configs.load import load_config
from ...configs.sampling import SamplingParams
from ...errors import ConfigError
from ...model.demo.questions import Question, sample
from ..llm import LLM
from ..outputs import RequestOutput
from ..progress import Progress
from ..prompts import Prompt
from .batch import Batch, answer_file
from .flags import Parser, add_sampling, add_settings, count, engine_config, sampling_params
from .live import MAX_LINES, view_of
from .report import Report

_SAMPLING = {"temperature": 0.0, "max_tokens": 128}  # what a command line that says nothing means


def run(arguments: Sequence[str]) -> int:
    """The command's exit status."""
    parsed = _parser().parse(arguments)
    config = engine_config(parsed)
    params = sampling_params(parsed, **_SAMPLING)
    if (parsed.input is None) != (parsed.output is None):
        raise ConfigError("--input and --output go together")
    if parsed.input is not None and parsed.prompt:
        raise ConfigError("--prompt and --input don't go together")
    if parsed.input is not None:
        batch = Batch(parsed.input, parsed.output, parsed.model, parsed.chat, params)
        if (figures := answer_file(batch, config)) is not None:
            _say(*figures)
    elif parsed.prompt:
        _answer_prompts(config, params, parsed)
    elif config.model == load_config("demo").model:
        _answer_questions(config, params, parsed)
    else:
        raise ConfigError("give --prompt TEXT, or --input and --output; only the demo model brings its own questions")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="penstock generate", description=__doc__, usage="%(prog)s [MODEL] [options]")
    what = parser.add_argument_group("prompts")
    what.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be given more than once")
    what.add_argument("--chat", action="store_true", help="put each prompt into the chat template, as a user's message")
    what.add_argument("--input", type=Path, metavar="FILE", help="prompts, a JSON object on each line")
    what.add_argument("--output", type=Path, metavar="FILE", help="answers, in order; a run that was cut off goes on")
    what.add_argument("--num-questions", type=count, default=32, metavar="N", help="of the demo model's (default 32)")
    add_settings(parser)
    add_sampling(parser, **_SAMPLING)
    return parser


def _answer_prompts(config: EngineConfig, params: SamplingParams, parsed: argparse.Namespace) -> None:
    with LLM.from_config(config) as llm:
        prompts: list[Prompt] = list(parsed.prompt)
        if parsed.chat:
            prompts = llm.chat_prompts([[{"role": "user", "content": text}] for text in parsed.prompt])
        report = _show(llm, parsed.prompt, prompts, params)
        _say(report, llm.stats())


def _answer_questions(config: EngineConfig, params: SamplingParams, parsed: argparse.Namespace) -> None:
    questions = sample(parsed.num_questions, config.seed)
    with LLM.from_config(config) as llm:
        prompts = llm.chat_prompts([[{"role": "user", "content": question.text}] for question in questions])
        marks = _Marks(questions)
        report = _show(llm, [question.text for question in questions], prompts, params, marks)
        _say(report, llm.stats(), {"right answers": f"{marks.num_right} of {len(questions)}"})


class _Marks:
    """Says of every answer whether it is the right one."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self.num_right = 0

    def mark(self, index: int, text: str) -> str:
        """The text, with the right answer behind a wrong one."""
        right = self._questions[index].answer
        self.num_right += text == right
        return text if text == right else f"{text} (right: {right})"


def _show(
    llm: LLM, labels: Sequence[str], prompts: list[Prompt], params: SamplingParams, marks: _Marks | None = None
) -> Report:
    """Runs the prompts: their answers as they come, and a progress bar where there are many."""
    view, report = view_of(labels), Report()
    with Progress(len(prompts), enabled=len(prompts) > MAX_LINES) as progress:
        for index, output in llm.stream(prompts, params):
            text = _text(output)
            if output.finished:
                report.add(output)
                progress.advance(output.num_generated_tokens)
                text = marks.mark(index, text) if marks else text
            if output.finished or len(output.outputs) == 1:
                view.update(index, text, output.finished)
    view.close()
    return report


def _text(output: RequestOutput) -> str:
    return " | ".join(completion.text for completion in output.outputs)


def _say(report: Report, stats: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> None:
    """The table: beside the answers on a terminal, out of their way in a pipe."""
    print(f"\n{report.table(stats, extra)}", file=sys.stdout if sys.stdout.isatty() else sys.stderr)
