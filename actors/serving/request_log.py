"""One line in the log for each request that was served: its figures, and nothing of what was said."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .metrics import FinishedRequest

log = logging.getLogger("penstock.requests")

MAX_WORD_CHARS = 64
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/")


def log_request(record: FinishedRequest) -> None:
    """Writes the line, at level INFO."""
    if log.isEnabledFor(logging.INFO):
        log.info("%s", _line(record))


def _line(record: FinishedRequest) -> str:
    fields = {
        "request_id": _word(record.request_id),
        "endpoint": _word(record.endpoint),
        "status": str(record.status),
        "finish_reason": _word(record.finish_reason),
        "prompt_tokens": str(record.num_prompt_tokens),
        "cached_tokens": str(record.num_cached_tokens),
        "output_tokens": str(record.num_output_tokens),
        "ttft_ms": _ms(record.ttft_s),
        "tpot_ms": _ms(record.tpot_s),
        "e2e_ms": _ms(record.e2e_s),
    }
    return " ".join(f"{key}={value}" for key, value in fields.items())


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _word(text: str) -> str:
    """A client's words as one word of bounded length: it ends neither line nor field, and commands no terminal."""
    word = "".join(char if char in _PLAIN else f"%{ord(char):x};" for char in text[:MAX_WORD_CHARS])
    return word + "..." if len(text) > MAX_WORD_CHARS else word
