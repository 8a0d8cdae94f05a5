"""The wheel holds every tracked file of the package and nothing else, and works without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .test_architecture import FILES, ROOMS, ROOT

ROOT_MODULES = {"__init__.py", "__main__.py", "cli.py", "errors.py", "py.typed"}
PACKAGE_FILES = {path for path in FILES if path.parts[0] in ROOMS or str(path) in ROOT_MODULES}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, so that nothing else can slip in."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in FILES:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_the_packages_tracked_files_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {Path("penstock") / path for path in PACKAGE_FILES}


def test_the_wheel_generates_in_a_clean_folder(wheel: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    run = [sys.executable, "-m", "penstock", "generate", "--prompt", "17 + 25 =", "--pipeline-parallel-size", "2"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import penstock; print(penstock.__file__)"]
    found = subprocess.run(where, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(site / "penstock" / "__init__.py")
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "42"
    assert list(folder.iterdir()) == []
