"""How many tokens a request took."""

from __future__ import annotations

from collections.abc import Sequence

from ..answer import Answer
from .completion_protocol import PromptTokensDetails, Usage


def usage_of(answers: Sequence[Answer]) -> Usage:
    """The sum over a request's prompts; a prompt counts once, whatever its n."""
    prompt = sum(len(answer.prompt.token_ids) for answer in answers)
    generated = sum(len(completion.token_ids) for answer in answers for completion in answer.completions)
    cached = sum(answer.num_cached_tokens for answer in answers)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=generated,
        total_tokens=prompt + generated,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )
