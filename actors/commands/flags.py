"""Command-line flags named like the settings, made from the settings themselves."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from types import NoneType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ...configs.engine import EngineConfig
from ...configs.load import load_config
from ...configs.problems import unknown_name
from ...configs.sampling import SamplingParams

_NOT_SAMPLED = {  # not flags
    *("seed", "output_kind", "logit_bias", "structured_outputs", "detokenize", "spaces_between_special_tokens"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint about an unknown flag names the nearest known one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments; exits with status 2 for wrong ones."""
        parsed, unknown = self.parse_known_args(arguments)
        for argument in unknown:
            if argument.startswith("--"):
                name = argument[2:].split("=")[0].replace("-", "_")
                if name in {action.dest for action in self._actions if not action.option_strings}:
                    self.error(f"{name.upper()} comes without a flag: {self.prog} {name.upper()}")
                known = {action.dest for action in self._actions if action.option_strings}
                self.error(unknown_name(name, known, "flag").replace("_", "-"))
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Says what is wrong in one line; the usage would be a page."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def count(text: str) -> int:
    """A flag's integer above 0."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 1 on")
    return int(text)


def add_flags(
    parser: Parser, title: str, settings: type[BaseModel], leave_out: Iterable[str] = (), **defaults: object
) -> None:
    """A flag for every field; one that is not given leaves no trace in the namespace.

    `defaults` are the command's own: only the help says them here.
    """
    group = parser.add_argument_group(title)
    for name, field in settings.model_fields.items():
        if name not in set(leave_out):
            value = defaults.get(name, field.default)
            default = "" if value is None else f" (default {value})"
            help_text = f"{field.description}{default}".replace("%", "%%")
            options = {"dest": name, "default": argparse.SUPPRESS, "help": help_text} | _kind(field)
            group.add_argument(f"--{name.replace('_', '-')}", **options)


def _kind(field: FieldInfo) -> dict[str, Any]:
    """How argparse reads a field; numbers stay text here, so that pydantic names the value and the limit."""
    types_ = _alternatives(field.annotation)
    if bool in types_:
        return {"action": argparse.BooleanOptionalAction}
    if list[str] in types_:
        return {"action": "append", "metavar": "TEXT"}
    read = _numbers if list[float] in types_ else str
    return {"type": _or_none(read) if NoneType in types_ else read, "metavar": _metavar(types_)}


def _metavar(types_: tuple[Any, ...]) -> str:
    if list[float] in types_:
        return "N,N,..."
    choices = [value for each in types_ if get_origin(each) is Literal for value in get_args(each)]
    if choices:
        return "{" + ",".join(choices) + "}"
    return "N" if int in types_ else "X" if float in types_ else "TEXT"


def _or_none(read: Callable[[str], object]) -> Callable[[str], object]:
    """Reads `None` as the help means it."""

    def read_or_none(text: str) -> object:
        return None if text == "None" else read(text)

    return read_or_none


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 5,4.5,2.5") from None


def add_settings(parser: Parser, default_model: str | None = "demo") -> None:
    """MODEL, which must be given where it has no default, and the engine's settings."""
    what = "a folder, a preset's name or a YAML file"
    if default_model is None:
        parser.add_argument("model", metavar="MODEL", help=what)
    else:
        parser.add_argument("model", nargs="?", default=default_model, help=f"{what} ({default_model})")
    add_flags(parser, "engine", EngineConfig, leave_out={"model"})


def add_sampling(parser: Parser, **defaults: object) -> None:
    """The sampling settings that a command line may hold; `--seed`, the engine's, seeds requests too."""
    add_flags(parser, "sampling", SamplingParams, leave_out=_NOT_SAMPLED, **defaults)


def engine_config(parsed: argparse.Namespace) -> EngineConfig:
    """The engine's settings among the arguments; raises ConfigError or ModelError."""
    given = {name: value for name, value in vars(parsed).items() if name in EngineConfig.model_fields}
    return load_config(**given)


def sampling_params(parsed: argparse.Namespace, **defaults: object) -> SamplingParams:
    """The sampling settings among the arguments, over these defaults; raises RequestError."""
    given = {name: value for name, value in vars(parsed).items() if name in SamplingParams.model_fields}
    return SamplingParams(**(defaults | given))
