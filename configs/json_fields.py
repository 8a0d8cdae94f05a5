"""Typed access to the fields of a JSON file; every complaint names the file, the field and the value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError


@dataclass(slots=True, frozen=True)
class Fields:
    """The object in a JSON file. A field that is null counts as absent."""

    source: str  # the file, for messages
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Reads the file. Raises ModelError when it isn't a JSON object."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} can't be read as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ModelError(f"{path} must hold a JSON object, it holds a {type(values).__name__}")
        return cls(str(path), values)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(name, "a whole number of at least 1")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, "a number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        return self.number(name) if self.has(name) else None

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id or a list of ids; empty when absent."""
        value = self.values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self.wrong(name, "a token id or a list of token ids")
        return tuple(ids)

    def inner(self, name: str) -> Fields:
        """The object in a field; an empty one when absent."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(f"{self.source} ({name})", value or {})

    def wrong(self, name: str, expected: str) -> ModelError:
        return ModelError(f"{self.source}: {name} is {self.values.get(name)!r}, but must be {expected}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self.source}: {name} is missing")
        return value
