"""A token's own bytes, which a client joins to characters that no single token holds."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given

from penstock.actors.tokenizer import Tokenizer

from .test_detokenizer import BYTES, END, FIRST_BYTE, TEXTS, metaspace


@given(TEXTS)
def test_the_bytes_of_byte_level_tokens_are_the_texts(text: str) -> None:
    (ids,) = BYTES.encode([text])
    assert b"".join(BYTES.piece_bytes(token_id) for token_id in ids) == text.encode()


def test_a_special_token_is_its_text() -> None:
    assert BYTES.piece_bytes(END) == BYTES.piece(END).encode()


def test_byte_tokens_of_a_fallback_are_their_bytes_and_words_are_text(tmp_path: Path) -> None:
    metaspace().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(str(tmp_path))
    assert [tokenizer.piece_bytes(FIRST_BYTE + byte) for byte in (0xE2, 0x0A)] == [b"\xe2", b"\n"]
    assert tokenizer.piece_bytes(1) == tokenizer.piece(1).encode() == b"Hello"


def test_a_token_is_named_by_its_text_or_by_its_bytes(tmp_path: Path) -> None:
    assert [BYTES.name(token_id) for token_id in (97, END, 0xE6)] == ["a", "<|end|>", r"bytes:\xe6"]
    metaspace().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(str(tmp_path))
    assert [tokenizer.name(token_id) for token_id in (1, FIRST_BYTE + 0xE6)] == ["Hello", r"bytes:\xe6"]


def test_an_id_that_no_token_has_is_nothing() -> None:
    assert BYTES.piece_bytes(1 << 20) == BYTES.piece(1 << 20).encode()
