"""README.md says what the code does: its settings table is the settings, and its example runs.

`python -m penstock.tests.test_readme` writes the tables anew.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import BaseModel

from penstock.actors.serving.chat_protocol import ChatRequest
from penstock.actors.serving.completion_protocol import CompletionRequest
from penstock.configs.engine import EngineConfig
from penstock.configs.serving import ServeConfig

from .actors.head import is_free
from .actors.rig import eventually

README = Path(__file__).parent.parent / "README.md"
PORTS = 6379, 8000, 8265, 52365  # the examples' and Ray's, whose agents outlive a killed raylet by a minute
OPENAIS = {  # fields of completions and chats
    *("model", "prompt", "messages", "n", "stream", "stream_options", "temperature", "top_p", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "max_tokens", "max_completion_tokens", "stop", "logprobs", "top_logprobs"),
    *("seed", "echo", "best_of", "suffix", "response_format", "tools", "tool_choice", "parallel_tool_calls"),
    *("modalities", "audio", "function_call", "functions", "prediction", "reasoning_effort", "verbosity"),
    *("web_search_options", "user", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "moderation"),
}
TABLES = {"settings": EngineConfig, "server settings": ServeConfig}


def table(name: str) -> re.Pattern[str]:
    """A table in the README: the mark before it, its rows, the mark behind it."""
    return re.compile(rf"(<!-- {name}: .*? -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def rows_of(settings: type[BaseModel]) -> str:
    """The settings, a row each."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        rows.append(f"| `{name}` | `{field.default}` | {field.description} |")
    return "\n".join(rows) + "\n"


def blocks(language: str) -> list[str]:
    """The README's code in this language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def unused_ports() -> None:
    """Waits until nobody holds a port that a quick start or its Ray cluster listens on."""
    eventually(lambda: all(is_free(port) for port in PORTS), 90)


def run(command: list[str], folder: Path) -> list[str]:
    """What the command prints, line by line, in a folder of its own and with this environment's commands."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PATH": path}
    printed = folder / "printed"
    with open(printed, "w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(240)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(printed.read_text()) from late
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what a command that failed half-way has left
    assert status == 0, printed.read_text()
    return printed.read_text().splitlines()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_settings_is_the_settings(name: str) -> None:
    found = table(name).search(README.read_text(encoding="utf-8"))
    assert found is not None
    assert found.group(2) == rows_of(TABLES[name])


def test_the_fields_that_are_not_openais_are_named() -> None:
    named = re.search(r"vLLM's extra fields it takes (.*?) too\.", README.read_text(encoding="utf-8"), re.DOTALL)
    assert named is not None
    fields = ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys()
    assert set(re.findall(r"`(\w+)`", named.group(1))) == fields - OPENAIS


def test_the_example_runs_and_is_short(tmp_path: Path) -> None:
    code = blocks("python")[0]
    assert len(code.splitlines()) <= 22
    lines = [line for line in run([sys.executable, "-c", code], tmp_path) if not line.startswith("penstock: ")]
    assert lines[:3] == ["17 + 25 =  42 stop", "9 + 30 =  39 stop", "enots [101, 110, 111, 116, 115, 257]"]
    assert lines[-1] == "0  42"


@pytest.mark.slow
@pytest.mark.usefixtures("unused_ports")
def test_the_quick_start_over_http_runs_as_written(tmp_path: Path) -> None:
    (line,) = [line for line in run(["bash", "-e", "-c", blocks("sh")[0]], tmp_path) if line[:1] == "{"]
    answer, _ = json.JSONDecoder().raw_decode(line)  # nothing ends the line before the server's next one
    assert answer["choices"][0]["message"]["content"] == "42"


@pytest.mark.slow
@pytest.mark.usefixtures("unused_ports")
def test_the_quick_starts_of_jobs_and_of_a_handle_run_as_written(tmp_path: Path) -> None:
    """The handle's is run while the job of the other one serves."""
    (tmp_path / "handle.py").write_text(blocks("python")[1])
    code = blocks("sh")[1].replace("ray job logs serving", "echo handle; python handle.py\nray job logs serving")
    lines = run(["bash", "-e", "-c", code], tmp_path)
    (answered,) = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert json.loads(answered)["outputs"][0]["text"] == " 42"
    assert lines[lines.index("handle") + 1 :].index(" 42") < 40
    assert any("stage 1 rank 0" in line for line in lines)


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    for name, settings in TABLES.items():
        found = table(name).search(text)
        assert found is not None
        text = text.replace(found.group(0), found.group(1) + rows_of(settings) + found.group(3))
    README.write_text(text, "utf-8")
