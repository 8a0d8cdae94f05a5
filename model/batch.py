"""One step as tensors: what the layers and the attention need of a `StepInput`.

Shapes: T tokens of the step, S rows, W most blocks of a row. Rows keep the plan's order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..scheduler.mirror import StepInput
from ..scheduler.plan import Ints


@dataclass(slots=True)
class Batch:
    """A step on its device. Host copies stand beside what the CPU must know to launch the work."""

    num_tokens: int
    num_rows: int
    max_query_len: int  # most tokens of a row
    max_seq_len: int
    all_decode: bool  # one token in every row
    token_ids: Tensor  # [T] int64; ~slot where the FutureMap has the token
    positions: Tensor  # [T] int64
    cache_slots: Tensor  # [T] int64
    query_starts: Tensor  # [S + 1] int32
    seq_lens: Tensor  # [S] int32
    block_table: Tensor  # [S, W] int32
    host_query_starts: Ints  # [S + 1]
    host_seq_lens: Ints  # [S]
    prepared: dict[object, Any] = field(default_factory=dict)  # an attention backend's own, shared by the layers

    @classmethod
    def from_step(cls, inputs: StepInput, device: torch.device | str = "cpu") -> Batch:
        """The step's arrays as tensors on the device; copies to a GPU don't wait."""

        def tensor(values: Ints, dtype: type[np.integer] = np.int64) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype)).to(device, non_blocking=True)

        return cls(
            num_tokens=inputs.total_tokens,
            num_rows=inputs.num_rows,
            max_query_len=int(inputs.num_tokens.max(initial=0)),
            max_seq_len=int(inputs.seq_lens.max(initial=0)),
            all_decode=inputs.all_decode,
            token_ids=tensor(inputs.token_ids),
            positions=tensor(inputs.positions),
            cache_slots=tensor(inputs.cache_slots),
            query_starts=tensor(inputs.query_starts, np.int32),
            seq_lens=tensor(inputs.seq_lens, np.int32),
            block_table=tensor(inputs.block_table, np.int32),
            host_query_starts=inputs.query_starts,
            host_seq_lens=inputs.seq_lens,
        )
