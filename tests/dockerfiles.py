"""Reads docker/'s Dockerfiles and their ignore files; of the language, what these use: no heredocs, no variables."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from .test_architecture import FILES, ROOT

DOCKER = ROOT / "docker"
IMAGES = ("Dockerfile.cpu", "Dockerfile.gpu")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `RUN --mount=… pip …` has the keyword RUN, one flag, and the rest as its value."""

    keyword: str
    flags: tuple[str, ...]
    value: str

    def option(self, name: str) -> dict[str, str]:
        """The parts of the flag `--name=key=value,…`, or of `--name=value` under the flag's own name."""
        for flag in self.flags:
            if flag.startswith(f"--{name}="):
                text = flag.removeprefix(f"--{name}=")
                return dict(part.split("=", 1) for part in text.split(",")) if "=" in text else {name: text}
        return {}

    @property
    def mounts(self) -> list[dict[str, str]]:
        """What a RUN sees besides its stage's files."""
        return [Instruction(self.keyword, (flag,), "").option("mount") for flag in self.flags]

    @property
    def words(self) -> list[str]:
        """The value's words: a JSON list's, or a shell's."""
        return json.loads(self.value) if self.value.startswith("[") else shlex.split(self.value)


@dataclass(frozen=True, slots=True)
class Stage:
    """What follows a FROM, up to the next one."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def all(self, keyword: str) -> list[Instruction]:
        """Its instructions with a keyword, in order."""
        return [one for one in self.instructions if one.keyword == keyword]

    def last(self, keyword: str) -> Instruction:
        """The one that holds."""
        return self.all(keyword)[-1]


def instructions(path: Path) -> list[Instruction]:
    """A Dockerfile's instructions, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    parsed = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        keyword, rest = line.split(None, 1)
        assert keyword.isupper(), f"{path.name}: {line}"
        flags = []
        while rest.startswith("--"):
            flag, rest = rest.split(None, 1)
            flags.append(flag)
        parsed.append(Instruction(keyword, tuple(flags), rest.strip()))
    return parsed


def stages(image: str) -> list[Stage]:
    """A Dockerfile's stages; the last is the image."""
    found: list[tuple[str, str, list[Instruction]]] = []
    for one in instructions(DOCKER / image):
        if one.keyword == "FROM":
            base, _, name = one.value.partition(" AS ")
            found.append((base, name, []))
        elif found:
            found[-1][2].append(one)
        else:
            assert one.keyword == "ARG", f"{image}: {one.keyword} before the first FROM"
    return [Stage(base, name, tuple(body)) for base, name, body in found]


def build_arguments(image: str) -> dict[str, str]:
    """The ARGs that have a default."""
    given = [one.value for one in instructions(DOCKER / image) if one.keyword == "ARG" and "=" in one.value]
    return dict(text.split("=", 1) for text in given)


def context(image: str) -> set[Path]:
    """The tracked files that a build sees: the last pattern of the ignore file that matches decides."""
    patterns = [
        line
        for line in (DOCKER / f"{image}.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return {path for path in FILES if not _ignored(path, patterns)}


def _ignored(path: Path, patterns: list[str]) -> bool:
    ignored = False
    for pattern in patterns:
        if any(_matches(str(part), pattern.lstrip("!")) for part in (path, *path.parents[:-1])):
            ignored = not pattern.startswith("!")
    return ignored


def _matches(path: str, pattern: str) -> bool:
    """Docker's `*` stays within a folder, `**/` is any depth."""
    if pattern.startswith("**/"):
        return fnmatch(path.rpartition("/")[2], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)
