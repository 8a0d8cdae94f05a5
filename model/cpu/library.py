"""Compiles kernels.c and products.c with the system's compiler at first use, keeps the result, and calls into it.

The library lies in the user's cache folder (mode 0700) under a name that holds a digest of its sources, of the
compiler's call and of the processor, so that a change of any of them compiles anew. Where that isn't possible
(no compiler, nowhere to write) `load_library` says so once in the log and answers None: torch serves then.
`PENSTOCK_CPU_KERNELS=0` in the environment asks for torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch  # noqa: F401  loads the OpenMP runtime that the library's symbols resolve to

from ..cache_folder import cache_folder

logger = logging.getLogger(__name__)

_SOURCES = ("kernels.c", "products.c")
_INCLUDED = ("kernels.inc", "vectors.inc")
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
_COMPILE_TIMEOUT_S = 60.0


class CpuLibrary:
    """The compiled functions, for the element types that they exist for."""

    DTYPES = ("float32", "bfloat16")

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def rms_norm(self, dtype: str) -> ctypes._NamedFuncPointer:
        """(x, weight, y, rows, size, eps, threads)"""
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        return self._function(
            f"rms_norm_{dtype}", pointer, pointer, pointer, count, count, ctypes.c_float, ctypes.c_int
        )

    def attend(self, dtype: str) -> ctypes._NamedFuncPointer:
        """(layer, step, qkv, queries, out), answering 0, or 1 when memory ran out"""
        function = self._function(f"attend_{dtype}", *[ctypes.c_void_p] * 5)
        function.restype = ctypes.c_int
        return function

    def product(self) -> ctypes._NamedFuncPointer:
        """(product), of bfloat16"""
        return self._function("product_bfloat16", ctypes.c_void_p)

    def _function(self, name: str, *argument_types: Any) -> ctypes._NamedFuncPointer:
        function = self._library[name]
        function.argtypes = argument_types
        function.restype = None
        return function


@cache
def load_library() -> CpuLibrary | None:
    """The library, compiled if need be; None where torch has to serve."""
    if os.environ.get("PENSTOCK_CPU_KERNELS") == "0":
        return None
    try:
        return CpuLibrary(_compiled())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("the CPU kernels can't be compiled (%s): plain torch serves, more slowly", error)
        return None


def _compiled() -> Path:
    """The library's file. Several processes may come at once: each compiles to a file of its own and renames it."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise OSError(f"no compiler {os.environ.get('CC') or 'cc'} on the PATH")
    folder = cache_folder()
    target = folder / f"cpu-{_digest(compiler)}.so"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile(compiler, Path(scratch)).replace(target)
    return target


def _digest(compiler: str) -> str:
    """Names the build: sources, compiler, flags, and the processor that `-march=native` means."""
    digest = hashlib.sha256(repr((compiler, _FLAGS, platform.machine(), _processor())).encode())
    for name in (*_SOURCES, *_INCLUDED):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, folder: Path) -> Path:
    """Compiles with OpenMP but links without: its symbols resolve to the runtime that torch has loaded."""
    built, library = [], folder / "kernels.so"
    for name in _SOURCES:
        built.append(str(folder / f"{name}.o"))
        _run([compiler, *_FLAGS, "-fopenmp", "-c", str(Path(__file__).with_name(name)), "-o", built[-1]])
    _run([compiler, "-shared", *built, "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command[:1])} ended with {done.returncode}: {done.stderr.strip()[:300]}")
