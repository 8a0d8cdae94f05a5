"""The scanner against Python's own decoder, which sees the whole text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.actors.serving.json_scanner import JsonScanner, Scan

from .cuts import SIZES, pieces

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
NOISE = st.sampled_from([*"{}[]\",:\\/ \n\t\x00eE+-.019utfn'é", "\\u12", "NaN", "Infinity", "true", "1e5", '"a":'])


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def decoded_end(text: str) -> int | None:
    """Where the value at the text's beginning ends, says Python; None: there is none."""
    try:
        return json.JSONDecoder(parse_constant=refuse).raw_decode(text)[1]
    except ValueError:
        return None


def scanned_end(text: str, sizes: list[int]) -> int | None:
    scanner, at = JsonScanner(), 0
    for piece in pieces(text, sizes):
        taken = scanner.take(piece, 0)
        at += taken
        assert taken == len(piece) or scanner.status is not Scan.OPEN
    return at if scanner.status is Scan.DONE else None


@settings(deadline=None, max_examples=50)
@given(st.lists(VALUES, max_size=3), st.booleans(), st.sampled_from([None, 1]), SIZES)
def test_a_value_ends_where_it_ends(
    values: list[object], ascii_only: bool, indent: int | None, sizes: list[int]
) -> None:
    text = json.dumps(values, ensure_ascii=ascii_only, indent=indent)
    assert scanned_end(text + " ]x", sizes) == len(text)


@settings(deadline=None, max_examples=300)
@given(st.lists(VALUES, max_size=3), st.data(), SIZES)
def test_damaged_text_is_judged_as_python_does(values: list[object], data: st.DataObject, sizes: list[int]) -> None:
    text = json.dumps(values)
    at = data.draw(st.integers(1, len(text)))
    text = text[:at] + data.draw(NOISE) + text[at + data.draw(st.integers(0, 2)) :]
    assert scanned_end(text, sizes) == decoded_end(text)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from("[{"), st.lists(NOISE, max_size=12), SIZES)
def test_noise_is_judged_as_python_does(bracket: str, noise: list[str], sizes: list[int]) -> None:
    text = bracket + "".join(noise) + "]"
    assert scanned_end(text, sizes) == decoded_end(text)


@pytest.mark.parametrize(("text", "end"), [("12,", 2), ("-0.5e+3}", 7), ("0]", 1), ("true1", 4), ('"a"b', 3)])
def test_a_scalar_that_stands_alone_ends_before_what_follows(text: str, end: int) -> None:
    assert scanned_end(text, [1]) == end


@pytest.mark.parametrize(
    "text", ["[1}", '{"a": 1]', '{"a": [}', "[,]", "[1,]", '{"a": 1,}', "{1: 2}", "[1 2]", "]", ""]
)
def test_brackets_and_commas_stand_where_they_may(text: str) -> None:
    assert scanned_end(text + "]}", [1]) is None
