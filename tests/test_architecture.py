"""The house's rules, read off its files: which way imports point, how large files are, what lies at the root."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {  # room: the rooms it may import besides itself; `errors` is everybody's
    "configs": set[str](),
    "scheduler": {"configs"},
    "model": {"configs", "scheduler"},
    "actors": {"configs", "scheduler", "model"},
}
HEAVY = {"torch", "ray", "pydantic", "transformers", "zmq", "yaml"}  # none of it in the scheduler
FORBIDDEN = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
MAX_LINES = 400
ROOT_ENTRIES = {
    *("actors", "configs", "docker", "model", "scheduler", "tests", "pyproject.toml", "Makefile", "py.typed"),
    *("README.md", "DESIGN.md", "LOG.md", "LICENSE", ".ci", ".gitignore"),
    *("__init__.py", "__main__.py", "cli.py", "errors.py"),
}


def tracked_files() -> list[Path]:
    """Every file that git tracks or would add, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    return [Path(name) for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file()]


FILES = tracked_files()
MODULES = [path for path in FILES if path.suffix == ".py" and path.parts[0] in ROOMS]


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, relative ones as `penstock.…`, also inside functions."""
    package = ("penstock", *path.parent.parts)
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *(node.module.split(".") if node.module else [])]
            yield ".".join(parts)
            yield from (".".join([*parts, alias.name]) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    allowed = ROOMS[path.parts[0]] | {path.parts[0]}
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "penstock" and len(parts) > 1 and parts[1] in ROOMS:
            assert parts[1] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] == "scheduler"], ids=str)
def test_the_scheduler_imports_nothing_heavy(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & HEAVY


def test_transformers_is_the_clients_and_the_demos_training_alone() -> None:
    users = {str(path) for path in MODULES if any(name.split(".")[0] == "transformers" for name in imported(path))}
    assert users <= {"actors/tokenizer.py", "model/demo/train.py", "model/demo/evaluate.py"}


def test_nothing_executable_is_unpacked() -> None:
    for path in (path for path in FILES if path.suffix == ".py"):
        assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN, path


def test_importing_the_scheduler_is_light_and_quick() -> None:
    code = (
        "import sys; before = set(sys.modules); import penstock.scheduler, penstock.scheduler.scheduler; "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    elapsed_s = time.perf_counter() - start
    assert done.stdout.strip() == "[]"
    assert elapsed_s < 3 * 0.3, f"{elapsed_s:.2f} s, the interpreter's start included"


def test_a_stage_does_not_load_torchs_compiler() -> None:
    """It would add seconds to the start of every rank."""
    code = "import sys, penstock.actors.stage_host; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_importing_penstock_alone_loads_no_torch_and_no_ray() -> None:
    code = "import sys, penstock; print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_has_two_subjects() -> None:
    sizes = {
        path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in FILES if path.suffix == ".py"
    }
    assert not {str(path): size for path, size in sizes.items() if size > MAX_LINES}


def test_the_root_holds_the_products_parts_and_nothing_else() -> None:
    assert {path.parts[0] for path in FILES} <= ROOT_ENTRIES


def test_every_sub_package_is_named_in_pyproject() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    present = {".".join(("penstock", *path.parent.parts)) for path in FILES if path.name == "__init__.py"}
    assert set(named) == {name for name in present if not name.startswith("penstock.tests")}
