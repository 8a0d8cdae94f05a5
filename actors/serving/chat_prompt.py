"""A conversation over HTTP as a prompt, and what the model's chat template is told beside it."""

from __future__ import annotations

from typing import Any

from ..prompts import PromptDict
from ..tokenizer import Tokenizer
from .chat_protocol import ChatRequest
from .errors import refused

_OURS = {"messages", "conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message"}
_OURS |= {"tools", "documents", "padding", "truncation", "max_length", "return_tensors", "return_dict"}


def chat_prompt(body: ChatRequest, tokenizer: Tokenizer, wants_thinking: bool) -> PromptDict:
    """The conversation as text and token ids; raises RequestError for messages that the template can't take."""
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    text = tokenizer.chat_prompt(messages, **_options(body, wants_thinking))
    (ids,) = tokenizer.encode([text], add_special_tokens=bool(body.add_special_tokens))
    return {"prompt": text, "prompt_token_ids": ids}


def _options(body: ChatRequest, wants_thinking: bool) -> dict[str, Any]:
    given = dict(body.chat_template_kwargs or {})
    if clash := _OURS & given.keys():
        raise refused(f"chat_template_kwargs may not hold {sorted(clash)[0]!r}", "chat_template_kwargs")
    options: dict[str, Any] = {"add_generation_prompt": body.add_generation_prompt is not False}
    if body.continue_final_message:
        options |= {"add_generation_prompt": False, "continue_final_message": True}
    if body.tools and body.tool_choice != "none":
        options["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools]
    if not wants_thinking:
        options["enable_thinking"] = False
    return options | given
