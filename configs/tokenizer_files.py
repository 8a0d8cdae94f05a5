"""What a tokenizer's files say of its eos token, for those who need no more of a tokenizer and don't load one."""

from __future__ import annotations

from pathlib import Path

from .json_fields import Fields


def eos_token_id(folder: str | Path) -> int | None:
    """The id of the token that ends a text, found as transformers does; None where no file names one.

    Raises ModelError for a file that is no JSON object.
    """
    config = _read(folder, "tokenizer_config.json")
    named = config.values.get("eos_token")
    if not config.has("added_tokens_decoder"):  # else the older file isn't asked
        named = _read(folder, "special_tokens_map.json").values.get("eos_token", named)
    text = named.get("content") if isinstance(named, dict) else named
    return _id_of(text, _read(folder, "tokenizer.json")) if isinstance(text, str) else None


def _id_of(text: str, tokenizer: Fields) -> int | None:
    vocab = tokenizer.inner("model").values.get("vocab")
    ids = vocab if isinstance(vocab, dict) else {word: index for index, (word, _) in enumerate(vocab or [])}
    added = tokenizer.values.get("added_tokens") or []
    found = next((each["id"] for each in added if each["content"] == text), ids.get(text))
    return found if isinstance(found, int) else None


def _read(folder: str | Path, name: str) -> Fields:
    path = Path(folder) / name
    return Fields.read(path) if path.is_file() else Fields(str(path), {})
