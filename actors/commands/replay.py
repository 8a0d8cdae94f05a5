"""`penstock replay FILE`: a recorded run scheduled again, every plan's bytes compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError
from ...scheduler.record import replay
from .flags import Parser


def run(arguments: Sequence[str]) -> int:
    """The command's exit status: 0 when every plan is the same, 1 at the first difference."""
    parser = Parser(prog="penstock replay", description=__doc__)
    parser.add_argument("file", type=Path, help="what `--record FILE` of another command has written")
    file: Path = parser.parse(arguments).file
    if not file.exists():
        raise ConfigError(f"no such record: {file}")
    try:
        report = replay(file)
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}") from None
    if report.difference is not None:
        print(f"penstock: {report.difference}", file=sys.stderr)
        return 1
    print(
        f"{report.num_plans} plans of {report.num_plan_bytes} bytes, from {report.num_calls} calls: every byte the same"
    )
    return 0
