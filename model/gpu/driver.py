"""CUDA C++ at run time: compiled by the NVRTC that torch brings, kept in the user's cache, launched by the driver.

A compiled kernel's file is named by a digest of its text, of the options and of the compiler's version.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..cache_folder import cache_folder

logger = logging.getLogger(__name__)

_OPTIONS = ("--gpu-architecture=sm_90a", "--std=c++17")
_MAX_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CLUSTER, _PROGRAMMATIC = 4, 6  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, ..._PROGRAMMATIC_STREAM_SERIALIZATION
_BFLOAT16, _SWIZZLE_128, _PROMOTE_256 = 9, 3, 3  # CU_TENSOR_MAP_...


class TensorMap(ctypes.Structure):
    """CUtensorMap, which is passed by value and aligned to 64 bytes."""

    _fields_ = [("opaque", ctypes.c_uint64 * 16)]


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16)]


class _Config(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")],
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    ]


class Kernel:
    """One compiled function, loaded on the device that is current; kept for ever."""

    def __init__(self, image: bytes, name: str, threads: int, shared_bytes: int, cluster: int) -> None:
        self._image = image
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        torch.cuda.current_stream()  # there is a context
        _check(_cuda().cuModuleLoadData(ctypes.byref(module), image))
        _check(_cuda().cuModuleGetFunction(ctypes.byref(self._function), module, name.encode()))
        _check(_cuda().cuFuncSetAttribute(self._function, _MAX_SHARED, shared_bytes))
        self._attributes = (_Attribute * 2)()
        self._attributes[0].id, self._attributes[0].value[0] = _PROGRAMMATIC, 1
        self._attributes[1].id = _CLUSTER
        self._attributes[1].value[:3] = [cluster, 1, 1]
        self._config = _Config(1, 1, 1, threads, 1, 1, shared_bytes, None, self._attributes, 1 + (cluster > 1))

    def launch(self, programs: int, arguments: Sequence[Any]) -> None:
        """Enqueues it on the current stream; it may start when the kernel before may be followed.

        Raises RuntimeError for what the driver reports.
        """
        self._config.grid_x = programs
        self._config.stream = torch.cuda.current_stream().cuda_stream
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        _check(_cuda().cuLaunchKernelEx(ctypes.byref(self._config), self._function, pointers, None))


def tensor_map(pointer: int, rows: int, columns: int, box_rows: int, box_columns: int) -> TensorMap:
    """How bulk copies find tiles of a dense bfloat16 matrix, swizzled over 128 bytes; zeros lie outside."""
    room = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + 64)
    found = TensorMap.from_buffer(room, -ctypes.addressof(room) % 64)
    _check(
        _cuda().cuTensorMapEncodeTiled(
            ctypes.byref(found),
            _BFLOAT16,
            2,
            ctypes.c_void_p(pointer),
            (ctypes.c_uint64 * 2)(columns, rows),
            (ctypes.c_uint64 * 1)(columns * 2),
            (ctypes.c_uint32 * 2)(box_columns, box_rows),
            (ctypes.c_uint32 * 2)(1, 1),
            0,
            _SWIZZLE_128,
            _PROMOTE_256,
            0,
        )
    )
    return found


@cache
def can_compile() -> bool:
    """Whether there is a compiler, and a folder for what it makes; says so once in the log where there is not."""
    try:
        _nvrtc()
        cache_folder()
    except OSError as error:
        logger.warning("CUDA kernels can't be compiled (%s): cuBLAS serves, more slowly", error)
        return False
    return True


def compiled(source: str) -> bytes:
    """The machine code; from the cache folder, if it is there.

    Raises RuntimeError with the compiler's words, OSError where there is no compiler or no folder of one's own.
    """
    nvrtc = _nvrtc()
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    digest = hashlib.sha256(repr((source, _OPTIONS, major.value, minor.value)).encode()).hexdigest()[:16]
    target = cache_folder() / f"gpu-{digest}.cubin"
    if target.is_file():
        return target.read_bytes()
    image = _compile(nvrtc, source)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            (whole := Path(scratch) / target.name).write_bytes(image)
            whole.replace(target)
    except OSError as error:  # as on a full disk: the next process compiles again
        logger.warning("a compiled kernel can't be kept in %s: %s", target.parent, error)
    return image


def _compile(nvrtc: ctypes.CDLL, source: str) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    options = (ctypes.c_char_p * len(_OPTIONS))(*(option.encode() for option in _OPTIONS))
    try:
        if nvrtc.nvrtcCompileProgram(program, len(_OPTIONS), options):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            words = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, words)
            raise RuntimeError(f"NVRTC: {words.value.decode(errors='replace')[:2000]}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        image = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, image)
        return image.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def _nvrtc() -> ctypes.CDLL:
    version = (torch.version.cuda or "").partition(".")[0]
    name, parts = f"libnvrtc.so.{version}", (f"cu{version}", "cuda_nvrtc")
    brought = (Path(folder) / "nvidia" / part / "lib" / name for folder in sys.path for part in parts)
    return ctypes.CDLL(next((str(path) for path in brought if path.is_file()), name))


@cache
def _cuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int) -> None:
    if status:
        words = ctypes.c_char_p()
        _cuda().cuGetErrorString(status, ctypes.byref(words))
        raise RuntimeError(f"CUDA: {(words.value or b'?').decode()} ({status})")
