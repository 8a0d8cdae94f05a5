"""Text to token ids and back, in the client's process only.

`PreTrainedTokenizerFast` reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja;
it loads no torch and runs no code from the folder. `AutoTokenizer` does the one and may do the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..configs.engine import EngineConfig
from ..errors import ModelError, RequestError
from .messages import Message, plain_message

TOKENIZER_FILE = "tokenizer.json"


class TextError(RequestError):
    """One text of several can't be encoded; `index` is its place, `reason` what is wrong with it."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"text {index} {reason}")
        self.index = index
        self.reason = reason


class Decoder(Protocol):
    """What turns ids into text: all that a `Detokenizer` needs of a tokenizer."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers, GPT-2's and after, write bytes as."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted({*range(0x100)}.difference(plain))
    return {chr(byte): byte for byte in plain} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _byte_reader(decoder: Any) -> Callable[[str], bytes | None]:
    """How a vocabulary's entry says bytes, by the decoder that joins them: None for an entry that says text."""
    kinds = set(re.findall(r'"type":\s*"(\w+)"', "" if decoder is None else decoder.__getstate__().decode()))
    if "ByteLevel" in kinds:
        alphabet = _byte_alphabet()
        return lambda entry: bytes(alphabet[each] for each in entry) if alphabet.keys() >= set(entry) else None
    if "ByteFallback" in kinds:
        return lambda entry: bytes([int(entry[3:5], 16)]) if re.fullmatch("<0x[0-9A-Fa-f]{2}>", entry) else None
    return lambda entry: None


class Tokenizer:
    """A model's tokenizer and its chat template."""

    def __init__(self, folder: str) -> None:
        from transformers import PreTrainedTokenizerFast

        try:
            self.fast = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the library raises plain Exceptions for a damaged file
            raise ModelError(f"the tokenizer in {folder} can't be read: {error}") from None
        self._backend = self.fast.backend_tokenizer
        self._pieces: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._bytes_of = _byte_reader(self._backend.decoder)
        self._added = frozenset(self.fast.added_tokens_decoder)  # which is made anew whenever it is asked for

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a sequence, as tokenizer_config.json says."""
        value = self.fast.eos_token_id
        return None if value is None else int(value)

    def encode(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """The ids of each text, encoded as one batch; raises TextError for one with half a character in it."""
        if not texts:
            return []
        try:
            encoded = self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except TypeError:  # what the library says of a string that UTF-8 can't hold
            _check_texts(texts)
            raise
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids, as the tokenizer's own decoder joins them."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def piece(self, token_id: int) -> str:
        """One token's own text, special tokens included."""
        if token_id not in self._pieces:
            self._pieces[token_id] = self.decode([token_id], skip_special_tokens=False)
        return self._pieces[token_id]

    def piece_bytes(self, token_id: int) -> bytes:
        """One token's own bytes, which may be a part of a character; those of its text where it is no such token."""
        written = None if token_id in self._added else self._backend.id_to_token(token_id)
        found = None if written is None else self._bytes_of(written)
        return self.piece(token_id).encode("utf-8", "replace") if found is None else found

    def name(self, token_id: int) -> str:
        """One token's text, or what OpenAI calls bytes that are no text by themselves: `bytes:\\xe6`."""
        if token_id not in self._names:
            said = self.piece_bytes(token_id)
            try:
                self._names[token_id] = said.decode()
            except UnicodeDecodeError:
                self._names[token_id] = f"bytes:{repr(said)[2:-1]}"
        return self._names[token_id]

    def chat_prompt(self, messages: list[Message], /, **options: Any) -> str:
        """The text that the chat template makes of a conversation, ready for an answer.

        `options` go to the template: `add_generation_prompt` (True), `chat_template`, and the template's own names.
        """
        if self.fast.chat_template is None and not options.get("chat_template"):
            raise RequestError("the model's folder has no chat template; give chat_template=")
        options.setdefault("add_generation_prompt", True)
        plain = [plain_message(message) for message in messages]
        try:
            return str(self.fast.apply_chat_template(plain, tokenize=False, **options))
        except Exception as error:  # whatever a template does with messages that it was not made for
            raise RequestError(f"the chat template can't take these messages: {error}") from None


def _check_texts(texts: list[str]) -> None:
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(index, f"holds half a character, {text[error.start]!r}") from None


def check_tokenizer(config: EngineConfig) -> None:
    """Raises ModelError for a tokenizer that isn't there, before an engine starts for nothing."""
    folder = config.tokenizer_path
    if not (config.skip_tokenizer_init or (Path(folder) / TOKENIZER_FILE).is_file()):
        raise ModelError(
            f"no {TOKENIZER_FILE} in {folder}; give tokenizer= another folder, or skip_tokenizer_init=True "
            "and prompts as token ids"
        )


def load_tokenizer(config: EngineConfig) -> Tokenizer | None:
    """The engine's tokenizer, or None where its settings say so; raises ModelError."""
    check_tokenizer(config)
    return None if config.skip_tokenizer_init else Tokenizer(config.tokenizer_path)
