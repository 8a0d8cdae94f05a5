"""README.md says what the code does: its settings table is the settings, and its example runs.

`python tests/test_readme.py` writes the table anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from penstock.configs.engine import EngineConfig

README = Path(__file__).parent.parent / "README.md"
TABLE = re.compile(r"(<!-- settings: .*? -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def settings_table() -> str:
    """The settings, a row each."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in EngineConfig.model_fields.items():
        rows.append(f"| `{name}` | `{field.default}` | {field.description} |")
    return "\n".join(rows) + "\n"


def example() -> str:
    """The Python code of the README."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


def test_the_settings_table_is_the_settings() -> None:
    found = TABLE.search(README.read_text(encoding="utf-8"))
    assert found is not None
    assert found.group(2) == settings_table()


def test_the_example_runs_and_has_about_twenty_lines(tmp_path: Path) -> None:
    assert len(example().splitlines()) <= 22
    done = subprocess.run(
        [sys.executable, "-c", example()], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["17 + 25 =  42 stop", "9 + 30 =  39 stop", "enots [101, 110, 111, 116, 115, 257]"]
    assert lines[-1] == " 5"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(TABLE.sub(lambda found: found.group(1) + settings_table() + found.group(3), text), "utf-8")
