"""`penstock serve`: an OpenAI endpoint over HTTP, in the foreground until a signal ends it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from types import FrameType

from ...configs.engine import EngineConfig
from ...configs.load import load_configs
from ...configs.serving import ServeConfig
from ..server import Server
from .flags import Parser, add_flags, add_settings

log = logging.getLogger(__name__)


def run(arguments: Sequence[str]) -> int:
    """The command's exit status."""
    parsed = _parser().parse(arguments)
    names = {*EngineConfig.model_fields, *ServeConfig.model_fields}
    config, serving = load_configs(**{name: value for name, value in vars(parsed).items() if name in names})
    with Server(config, serving) as server:
        ended = _on_signals()
        log.info("serves %s at %s", serving.served_model_name, server.url)
        while not ended.wait(1.0):
            server.check()
        log.info("drains: running requests get %g s", serving.drain_timeout_s)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="penstock serve", description=__doc__, usage="%(prog)s [MODEL] [options]")
    add_settings(parser)
    add_flags(parser, "server", ServeConfig)
    return parser


def _on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set, once there is something to drain."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
    return ended
