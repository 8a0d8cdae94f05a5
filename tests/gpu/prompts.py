"""What engines on GPUs are asked."""

from __future__ import annotations

PROMPTS = [[5, 9, 13, 200, 41] * 3, [7, 8], list(range(20, 60)), [100] * 9] * 4
NUM_DIFFERENT = 4
LENGTH = 24
