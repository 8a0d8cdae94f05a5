"""`penstock replay FILE`: a recorded run scheduled again, every plan's bytes compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError
from ...scheduler.record import replay
from .flags import Parser
