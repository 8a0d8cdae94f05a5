"""The command line: finds the sub-command, and turns errors into a message and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

from . import __version__
from .actors.logs import speak
from .errors import PenstockError

COMMANDS = {
    "bench": "measure an engine: `bench throughput|serve-sim` runs a workload and says where the time went",
    "generate": "answer prompts, a file of prompts, or questions that the demo model was not trained on",
    "serve": "an OpenAI endpoint over HTTP, in the foreground, on Ray Serve",
    "replay": "schedule a recorded run again and compare every plan's bytes",
}
_FAILED, _MISUSED = 1, 2  # exit statuses
_INTERRUPTED, _TERMINATED = 130, 143  # as shells count SIGINT and SIGTERM


def usage() -> str:
    """What `penstock --help` says."""
    lines = [f"  {name:10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: penstock COMMAND [options]", "", *lines, "", "penstock COMMAND --help lists the options."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"penstock {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"penstock: unknown command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return _MISUSED
    speak()
    signal.signal(signal.SIGTERM, _leave)
    try:
        return int(import_module(f".actors.commands.{name}", __package__).run(rest))
    except SystemExit as left:  # argparse has said what there was to say
        return int(left.code or 0)
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("penstock: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends a command by way of everything that it has to end."""
    raise SystemExit(_TERMINATED)
