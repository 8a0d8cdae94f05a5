"""The formats of tool calls that the chat endpoint reads, by name; another is a file of its own and an entry here."""

from __future__ import annotations

from collections.abc import Callable

from ...configs.problems import unknown_name
from ...errors import ConfigError
from .chat_delta import ToolParser
from .hermes import HermesParser

TOOL_PARSERS: dict[str, Callable[[], ToolParser]] = {"hermes": HermesParser, "qwen": HermesParser}


def tool_parser(name: str) -> ToolParser:
    """A parser for one message."""
    if name not in TOOL_PARSERS:
        raise ConfigError(unknown_name(name, TOOL_PARSERS, "tool parser"))
    return TOOL_PARSERS[name]()
