"""Takes FlashAttention's kernels out of vLLM's wheel: `take_kernels.py WHEEL TORCH_VERSION SITE_PACKAGES`.

The kernels fit one torch, so a wheel that pins another than TORCH_VERSION is refused. Only what Penstock calls is
taken: the interface and the compiled versions 2 and 3. No `vllm/__init__.py` comes along: `vllm` is a namespace
package then, and the kernels import nothing else of it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from zipfile import ZipFile

FOLDER = "vllm/vllm_flash_attn/"
NEEDED = ("__init__.py", "flash_attn_interface.py", "_vllm_fa2_C.abi3.so", "_vllm_fa3_C.abi3.so")


def main(wheel_path: str, torch_version: str, site_packages: str) -> None:
    """Unpacks the needed files and vLLM's licence; exits with a message where the wheel doesn't fit."""
    with ZipFile(wheel_path) as wheel:
        pinned = torch_pin(wheel)
        if pinned != torch_version:
            sys.exit(f"{Path(wheel_path).name} is built for torch {pinned}, the image has torch {torch_version}")
        missing = {FOLDER + name for name in NEEDED} - set(wheel.namelist())
        if missing:
            sys.exit(f"{Path(wheel_path).name} lacks {', '.join(sorted(missing))}")
        for name in NEEDED:
            wheel.extract(FOLDER + name, site_packages)
        (licence,) = (name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        (Path(site_packages) / FOLDER / "LICENSE").write_bytes(wheel.read(licence))


def torch_pin(wheel: ZipFile) -> str | None:
    """The one version of torch that the wheel's metadata asks for."""
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    found = re.search(r"^Requires-Dist: torch==([\w.]+)\s*$", wheel.read(metadata).decode(), re.MULTILINE)
    return found and found.group(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
