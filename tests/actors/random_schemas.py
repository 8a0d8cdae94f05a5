"""Random JSON schemas whose texts are bounded: strings, arrays and integers have limits, nesting ends."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

_NAMES = ("name", "id", "état", "a b", "x", "kind", 'say "hi"', "tags", "z9")
_PATTERNS = ("^[a-c]{1,4}$", "^(foo|ba[rz])$", "^[0-9]{2}-[0-9]{2}$")


def random_schema(seed: int) -> Schema:
    """An object, or now and then something else."""
    rng = random.Random(seed)
    return _object(rng, 3) if rng.random() < 0.8 else _schema(rng, 3)


def _schema(rng: random.Random, depth: int) -> Schema:
    flat = (_string, _string, _integer, _integer, _enum, _pattern, _simple)
    nested = (_object, _array, _any_of)
    if depth > 1 and rng.random() < 0.4:
        return rng.choice(nested)(rng, depth - 1)
    return rng.choice(flat)(rng)


def _string(rng: random.Random) -> Schema:
    low = rng.randint(0, 4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 6)}


def _integer(rng: random.Random) -> Schema:
    low = rng.randint(-2000, 2000)
    return {"type": "integer", "minimum": low, "maximum": low + rng.choice((0, 3, 50, 12345))}


def _enum(rng: random.Random) -> Schema:
    values = [*_NAMES, 1, -7, None, True, 2.5, "1"]
    return {"enum": rng.sample(values, rng.randint(1, 5))}


def _pattern(rng: random.Random) -> Schema:
    return {"type": "string", "pattern": rng.choice(_PATTERNS)}


def _simple(rng: random.Random) -> Schema:
    return rng.choice(({"type": "boolean"}, {"type": "null"}, {"const": rng.choice(_NAMES)}))


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(_NAMES, rng.randint(1, 5))
    properties = {name: _schema(rng, depth) for name in names}
    required = [name for name in names if rng.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(0, 2)
    return {"type": "array", "items": _schema(rng, depth), "minItems": low, "maxItems": low + rng.randint(0, 2)}


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(rng, depth) for _ in range(rng.randint(2, 3))]}
