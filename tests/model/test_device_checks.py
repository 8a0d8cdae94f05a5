"""What keeps a GPU from serving is told in one line, whichever GPU this machine has."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import ConfigError
from penstock.model.gpu.device import check_cuda

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


def pretend(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, has_bf16: bool = True) -> None:
    """A GPU that torch can't initialise, or one with or without bfloat16."""

    def init() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: error is None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(OLD_DRIVER), OLD_DRIVER),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
        (RuntimeError("CUDA unknown error\nFor debugging consider this and that"), "CUDA unknown error"),
    ],
    ids=["an old driver", "no GPU", "no CUDA", "two lines"],
)
def test_why_torch_can_use_no_gpu_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    pretend(monkeypatch, error)
    with pytest.raises(ConfigError) as caught:
        check_cuda(torch.float32, 16)
    assert str(caught.value) == f"device is 'cuda', but torch finds no usable GPU: {reason}"


def test_a_card_without_bf16_is_named_and_serves_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, has_bf16=False)
    with pytest.raises(ConfigError) as caught:
        check_cuda(torch.bfloat16, 16)
    assert str(caught.value) == "dtype is 'bfloat16', but Tesla T4 doesn't compute in it: choose dtype 'float16'"
    check_cuda(torch.float16, 16)
    check_cuda(torch.float32, 16)


def test_a_card_with_bf16_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    check_cuda(torch.bfloat16, 16)


def test_a_block_size_that_kernels_dont_take_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch)
    check_cuda(torch.bfloat16, 48)
    with pytest.raises(ConfigError, match="block_size is 24; on a GPU it must be a multiple of 16"):
        check_cuda(torch.bfloat16, 24)
