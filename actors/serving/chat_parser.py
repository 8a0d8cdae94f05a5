"""An answer's text to a chat message: reasoning is split off first, tool calls are looked for in what remains."""

from __future__ import annotations

from .chat_delta import ChatDelta, PlainText, TextParser, ToolParser
from .reasoning import reasoning_parser
from .tool_parsers import tool_parser


class ChatParser:
    """Two parsers in a row; itself a ToolParser."""

    def __init__(self, reasoning: TextParser, tools: ToolParser) -> None:
        self._reasoning = reasoning
        self._tools = tools

    @property
    def reads_calls(self) -> bool:
        """Whether tool calls are looked for."""
        return not isinstance(self._tools, PlainText)

    @property
    def num_calls(self) -> int:
        """Complete tool calls so far."""
        return self._tools.num_calls

    def feed(self, text: str) -> ChatDelta:
        """What a piece of the answer adds to the message."""
        split = self._reasoning.feed(text)
        rest = self._tools.feed(split.content)
        return ChatDelta(rest.content, split.reasoning, rest.tool_calls)

    def finish(self) -> ChatDelta:
        """What was held back."""
        split = self._reasoning.finish()
        last, end = self._tools.feed(split.content), self._tools.finish()
        return ChatDelta(last.content + end.content, split.reasoning, last.tool_calls + end.tool_calls)


def chat_parser(tool: str | None, reasoning: str | None, prompt: str) -> ChatParser:
    """For one message behind the prompt; None: no tool calls, or no reasoning, are looked for.

    Unknown names raise ConfigError.
    """
    return ChatParser(
        PlainText() if reasoning is None else reasoning_parser(reasoning, prompt),
        PlainText() if tool is None else tool_parser(tool),
    )
