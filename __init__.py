"""Penstock serves large language models over a pipeline of GPUs and keeps every stage fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actors.llm import LLM as LLM
    from .actors.llm import connect as connect
    from .configs.sampling import SamplingParams as SamplingParams

_LAZY = {"LLM": ".actors.llm", "connect": ".actors.llm", "SamplingParams": ".configs.sampling"}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads the public names on first use: importing `penstock` alone loads neither torch nor Ray."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name], __name__), name)
