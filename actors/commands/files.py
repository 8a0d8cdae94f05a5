"""`--input prompts.jsonl --output answers.jsonl`: answers in the order of the prompts, one line each, restartable.

A line of input is a JSON object with "prompt", "prompt_token_ids" or "messages", and optionally "id" and
"sampling_params"; a line of output says its index and a digest of what it answers. A second run keeps the lines that
are whole, cuts off one of ours that is not, and refuses a file whose digests are of other prompts or other settings.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shutil import copyfileobj
from tempfile import NamedTemporaryFile
from typing import Any

from ...configs.sampling import SamplingParams
from ...errors import ConfigError, RequestError
from ..outputs import CompletionOutput, RequestOutput

_KEYS = ("prompt", "prompt_token_ids", "messages")
_SYNC_INTERVAL_S = 1.0
_MAX_DEPTH = 100  # lists and objects within one another: what looks into them calls itself for each


@dataclass(slots=True)
class Item:
    """One line of input."""

    index: int
    fields: dict[str, Any]
    params: SamplingParams
    digest: str


@contextmanager
def rereadable(file: Path) -> Iterator[Path]:
    """Where the file's content can be read more than once: a pipe's is copied. Raises ConfigError."""
    if file.is_file():
        yield file
        return
    with NamedTemporaryFile(prefix="penstock-") as copy:
        try:
            with file.open("rb") as pipe:
                copyfileobj(pipe, copy)
            copy.flush()
        except OSError as error:
            raise _unreadable(file, error) from None
        yield Path(copy.name)


def read_items(file: Path, params: SamplingParams, context: str, name: Path) -> Iterator[Item]:
    """The lines of a file of prompts; empty ones don't count. `context` names what else an answer depends on.

    Raises ConfigError with the file's `name` and the line's number for one that is no prompt, or has wrong sampling
    params.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
            for index, (number, line) in enumerate(numbered):
                yield _item(index, line, f"{name}, line {number}", params, context)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(name, error) from None


def _unreadable(name: Path, error: Exception) -> ConfigError:
    return ConfigError(f"--input {name} can't be read: {error}")


def _item(index: int, line: str, place: str, params: SamplingParams, context: str) -> Item:
    fields = _value(line, place)
    if not isinstance(fields, dict) or sum(key in fields for key in _KEYS) != 1:
        raise ConfigError(f"{place} has to be an object with one of {', '.join(_KEYS)}")
    messages = fields.get("messages", [])
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ConfigError(f"{place}: messages are no list of objects")
    if (own := fields.get("sampling_params")) is not None:
        params = _with(params, own, place)
    said = json.dumps([fields, params.model_dump(mode="json"), context], sort_keys=True)
    return Item(index, fields, params, sha256(said.encode()).hexdigest()[:16])


def _value(line: str, place: str) -> Any:
    try:
        value = json.loads(line)
        _check_depth(value)
    except RecursionError:
        raise ConfigError(f"{place} is nested more than {_MAX_DEPTH} deep") from None
    except ValueError as error:  # not only JSONDecodeError: a number may have too many digits
        raise ConfigError(f"{place} is no JSON: {error}") from None
    return value


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        if not level:
            return
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    if level:
        raise RecursionError


def _with(params: SamplingParams, own: object, place: str) -> SamplingParams:
    """The params, with what a line says over them."""
    if not isinstance(own, dict):
        raise ConfigError(f"{place}: sampling_params are a {type(own).__name__}; they are an object")
    try:
        return SamplingParams(**(params.model_dump(exclude_unset=True) | own))
    except RequestError as error:
        raise ConfigError(f"{place}: {error}") from None


class AnswerFile:
    """The output, open for appending; its lines so far are the answers to the first prompts."""

    def __init__(self, file: Path) -> None:
        try:
            self._file = file.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"--output {file} can't be written: {error}") from None
        self.path = file
        self.num_written = 0
        self._synced_s = time.monotonic()
        self._early: dict[int, bytes] = {}  # finished before an earlier one

    def resume(self, items: Iterator[Item]) -> int:
        """Holds the lines that are there against the prompts; how many are answered. Raises ConfigError."""
        self._file.seek(0)
        kept = 0
        while line := self._file.readline():
            item = next(items, None)
            is_whole = line.endswith(b"\n")
            fits = _answers if is_whole else _begins
            if item is None or not fits(line, item):
                raise ConfigError(
                    f"--output {self.path}, line {self.num_written + 1} answers another prompt, or the same with other "
                    "settings; give another --output, or remove it"
                )
            if not is_whole:
                break
            kept += len(line)
            self.num_written += 1
        self._file.truncate(kept)
        return self.num_written

    def put(self, item: Item, output: RequestOutput) -> None:
        """Takes a finished answer; writes what is its turn."""
        said = json.dumps(_line(item, output), ensure_ascii=False) + "\n"
        self._early[item.index] = said.encode(errors="backslashreplace")  # half a character stays as JSON escapes it
        while (line := self._early.pop(self.num_written, None)) is not None:
            self._file.write(line)
            self.num_written += 1
        self._file.flush()
        if time.monotonic() - self._synced_s > _SYNC_INTERVAL_S:
            self._sync()

    def close(self) -> None:
        """Brings everything to the disk."""
        self._file.flush()
        self._sync()
        self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_s = time.monotonic()


def _answers(line: bytes, item: Item) -> bool:
    try:
        fields = json.loads(line)
    except ValueError:
        return False
    return isinstance(fields, Mapping) and (fields.get("index"), fields.get("digest")) == (item.index, item.digest)


def _begins(rest: bytes, item: Item) -> bool:
    """Whether it may be what a cut has left of the item's line; another file without a newline is not."""
    second = "id" if "id" in item.fields else "prompt"
    beginning = f'{{"index": {item.index}, "{second}": '.encode()
    return rest[: len(beginning)] == beginning[: len(rest)]


def _line(item: Item, output: RequestOutput) -> dict[str, Any]:
    named = {"id": item.fields["id"]} if "id" in item.fields else {}
    return {
        "index": item.index,
        **named,
        "prompt": output.prompt,
        "outputs": [_completion(completion) for completion in output.outputs],
        "num_prompt_tokens": len(output.prompt_token_ids),
        "error": output.error,
        "digest": item.digest,
    }


def _completion(completion: CompletionOutput) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
    if completion.logprobs is not None:
        fields["cumulative_logprob"] = completion.cumulative_logprob
        fields["logprobs"] = [
            {token_id: [entry.logprob, entry.rank] for token_id, entry in table.items()}
            for table in completion.logprobs
        ]
    return fields
