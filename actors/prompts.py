"""What users call a prompt, made into token ids and checked before anything is submitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from ..errors import RequestError
from .outputs import RequestOutput
from .tokenizer import TextError, Tokenizer


class PromptDict(TypedDict, total=False):
    """A prompt that names its form; one of the two keys."""

    prompt: str
    prompt_token_ids: list[int]


Prompt = str | Sequence[int] | PromptDict


class PromptError(RequestError):
    """One prompt of a batch can't be served; `index` is its place, `outputs` what the others gave, if they ran."""

    def __init__(
        self, index: int, message: str, outputs: Sequence[RequestOutput] = (), field: str | None = None
    ) -> None:
        super().__init__(f"prompt {index}: {message}", field)
        self.index = index
        self.reason = message
        self.outputs = list(outputs)


class ContextLengthError(PromptError):
    """A prompt is too long, by itself or with the tokens that are to follow it."""


@dataclass(slots=True)
class Encoded:
    """A prompt as the engine takes it."""

    text: str | None  # None when it came as ids
    token_ids: list[int]


@dataclass(slots=True, frozen=True)
class Limits:
    """What a prompt is held against, known to the client so that it can answer at once."""

    vocab_size: int
    max_model_len: int  # tokens, prompt and output together
    cache_tokens: int  # that the KV cache holds

    def room(self, num_prompt_tokens: int) -> int:
        """Most tokens that can follow a prompt."""
        return min(self.max_model_len, self.cache_tokens) - num_prompt_tokens


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several. A list of integers is one prompt."""
    if isinstance(prompts, (str, dict)):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise RequestError(
            f"prompts are a string, token ids, a dict, or several of these; not {type(prompts).__name__}"
        )
    items = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]  # type: ignore[list-item]
    return items  # type: ignore[return-value]


def encode(prompts: Sequence[Prompt], tokenizer: Tokenizer | None, add_special_tokens: bool = True) -> list[Encoded]:
    """Token ids of every prompt, texts in one batch; raises PromptError for what is no prompt."""
    texts = {index: prompt for index, prompt in enumerate(map(_plain, prompts)) if isinstance(prompt, str)}
    if texts and tokenizer is None:
        first = min(texts)
        raise PromptError(first, "is text, but there is no tokenizer (skip_tokenizer_init); give token ids")
    try:
        ids = tokenizer.encode(list(texts.values()), add_special_tokens) if tokenizer is not None else []
    except TextError as error:
        raise PromptError(list(texts)[error.index], error.reason) from None
    encoded = {index: Encoded(texts[index], token_ids) for index, token_ids in zip(texts, ids, strict=True)}
    return [encoded.get(index) or _from_ids(index, prompt) for index, prompt in enumerate(prompts)]


def _plain(prompt: Prompt) -> Prompt:
    """The text of a dict that brings text alone; everything else as it is."""
    if isinstance(prompt, dict) and "prompt_token_ids" not in prompt:
        return prompt.get("prompt", prompt)
    return prompt


def _from_ids(index: int, prompt: Prompt) -> Encoded:
    if isinstance(prompt, dict):
        if "prompt_token_ids" not in prompt:
            raise PromptError(index, f"has the keys {sorted(prompt)}; it needs a text 'prompt' or 'prompt_token_ids'")
        return Encoded(prompt.get("prompt"), _integers(index, prompt["prompt_token_ids"]))
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        return Encoded(None, _integers(index, prompt))
    raise PromptError(index, f"is a {type(prompt).__name__}; it may be a string, token ids or a dict")


def _integers(index: int, ids: Sequence[int]) -> list[int]:
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise PromptError(index, f"has {ids!r} for token ids; they are a list of integers")
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise PromptError(index, f"holds {token_id!r}, which is no token id")
    return list(ids)


def check_prompt(index: int, token_ids: Sequence[int], max_tokens: int, limits: Limits) -> None:
    """Raises PromptError where a prompt can't be served; the scheduler holds requests against the same limits."""
    size, longest = len(token_ids), limits.max_model_len
    if size == 0:
        raise PromptError(index, "is empty; it needs at least 1 token")
    if size >= longest:
        most = f"the maximum context length is {longest} tokens (max_model_len), of which a prompt may be {longest - 1}"
        raise ContextLengthError(index, f"has {size} tokens; {most}")
    if (bad := min(token_ids)) < 0 or (bad := max(token_ids)) >= limits.vocab_size:
        raise PromptError(index, f"holds the token id {bad}; ids go from 0 to {limits.vocab_size - 1}")
    needed = min(size + max_tokens, longest)
    if needed > limits.cache_tokens:
        parts = f"{size} of the prompt, max_tokens {max_tokens}"
        most = (
            f"the cache holds {limits.cache_tokens}, and so the maximum context length is {limits.cache_tokens} tokens"
        )
        raise ContextLengthError(index, f"needs {needed} tokens of cache ({parts}); {most}")
