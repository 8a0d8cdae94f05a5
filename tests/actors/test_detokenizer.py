"""Text while it comes: never half a character, the same as the whole at once, stop strings anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

import penstock.model.demo
from penstock.actors.detokenizer import Detokenizer, find_stop, held_back
from penstock.actors.tokenizer import Tokenizer

BYTES = Tokenizer(str(Path(penstock.model.demo.__file__).parent))  # a token for each byte
TEXTS = st.text(st.sampled_from("a 1\nßé你🙂́\U0010ffff\ufffd"), max_size=40)
END = 257
FIRST_BYTE = 5  # the metaspace tokenizer's token for a byte of 0


def metaspace() -> Backend:
    """Llama's kind: a space is part of a token, unknown characters fall back to byte tokens."""
    words = ["<unk>", "▁Hello", "▁world", "▁", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def in_pieces(detokenizer: Detokenizer, ids: list[int], size: int = 1) -> list[str]:
    pieces = [detokenizer.append(ids[at : at + size]) for at in range(0, len(ids), size)]
    return [*pieces, detokenizer.finish()]


@settings(deadline=None)
@given(TEXTS, st.integers(1, 5))
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str, size: int) -> None:
    pieces = in_pieces(Detokenizer(BYTES, []), list(text.encode()), size)
    assert "".join(pieces) == text
    assert all(text.count("\ufffd") or "\ufffd" not in piece for piece in pieces)


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=150))
def test_any_bytes_give_what_decoding_them_at_once_gives(ids: list[int]) -> None:
    assert "".join(in_pieces(Detokenizer(BYTES, []), ids)) == BYTES.decode(ids)


def test_bytes_that_never_become_a_character_do_not_pile_up() -> None:
    detokenizer = Detokenizer(BYTES, [])
    text = "".join(detokenizer.append([255]) for _ in range(500))
    assert len(detokenizer._context) + len(detokenizer._pending) < 20
    assert text + detokenizer.finish() == "\ufffd" * 500


def test_long_runs_of_wide_characters_do_not_pile_up() -> None:
    detokenizer = Detokenizer(BYTES, [])
    assert "".join(detokenizer.append([byte]) for byte in ("🙂" * 200).encode()) == "🙂" * 200
    assert len(detokenizer._context) + len(detokenizer._pending) < 20


def test_a_character_comes_with_its_last_byte() -> None:
    assert in_pieces(Detokenizer(BYTES, []), list("🙂".encode())) == ["", "", "", "🙂", ""]


def test_special_tokens_are_left_out_unless_wanted() -> None:
    ids = [ord("a"), END, ord("b")]
    assert "".join(in_pieces(Detokenizer(BYTES, []), ids)) == "ab"
    assert "".join(in_pieces(Detokenizer(BYTES, [], skip_special_tokens=False), ids)) == "a<|end|>b"


@pytest.mark.parametrize(("prompt", "text"), [([1], " world"), ([], "world")])
def test_a_space_between_prompt_and_answer_is_the_answers(prompt: list[int], text: str) -> None:
    assert Detokenizer(metaspace(), prompt).append([2]) == text


@settings(deadline=None)
@given(st.lists(st.sampled_from(["▁Hello", "▁world", "▁", "s", "🙂", "é"]), max_size=60), st.integers(1, 9))
def test_spaces_and_byte_tokens_of_a_metaspace_tokenizer_survive(words: list[str], size: int) -> None:
    backend, ids = metaspace(), list[int]()
    for word in words:
        known = backend.token_to_id(word)
        ids += [known] if known is not None else [FIRST_BYTE + byte for byte in word.encode()]
    assert "".join(in_pieces(Detokenizer(backend, []), ids, size)) == backend.decode(ids)


def test_a_wrong_byte_leaves_the_characters_before_it_alone() -> None:
    backend = metaspace()
    ids = [FIRST_BYTE + byte for byte in "🙂".encode()] + [FIRST_BYTE + 255, 1]
    assert "".join(in_pieces(Detokenizer(backend, []), ids)) == "🙂\ufffd Hello"


def test_the_earliest_stop_string_wins_and_only_new_text_is_searched() -> None:
    assert find_stop("one two three", 13, ["three", "two"]) == (4, "two")
    assert find_stop("a stop b", 1, ["stop"]) is None
    assert find_stop("abab", 1, ["ab", "b"]) == (2, "ab")
    assert find_stop("abc", 3, ["ab", "abc"]) == (0, "abc")


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_is_found_in_the_step_that_completes_it(text: str, stops: list[str]) -> None:
    first = next((end for end in range(1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)), None)
    found = next((end for end in range(1, len(text) + 1) if find_stop(text[:end], 1, stops)), None)
    assert found == first


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    assert held_back("so far: EN", ["END", "STOP"]) == 2
    assert held_back("so far: END", ["STOP"]) == 0
    assert held_back("S", ["STOP"]) == 1
    assert held_back("S", []) == 0
