"""The formats of tool calls that the chat endpoint knows, by name; another is a file of its own and an entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...configs.problems import unknown_name
from ...errors import ConfigError
from .chat_delta import ToolParser
from .hermes import HermesParser


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes a call, and what reads it."""

    parser: Callable[[], ToolParser]
    call: tuple[str, str]  # what stands around the arguments of a call; %s for the function's name as JSON


_HERMES = ToolFormat(HermesParser, ('<tool_call>\n{"name": %s, "arguments": ', "}\n</tool_call>"))
TOOL_FORMATS = {"hermes": _HERMES, "qwen": _HERMES}


def tool_parser(name: str) -> ToolParser:
    """A parser for one message."""
    if name not in TOOL_FORMATS:
        raise ConfigError(unknown_name(name, TOOL_FORMATS, "tool parser"))
    return TOOL_FORMATS[name].parser()
