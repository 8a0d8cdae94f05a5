"""The application as Serve's own commands deploy it, behind Serve's proxy, in a real cluster."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from ..head import BIN, Head, free_ports, http_status, ray_head
from ..rig import eventually, heed_ctrl_c

pytestmark = pytest.mark.slow

FILE = """\
applications:
  - name: from-a-file
    import_path: penstock.actors.app:build
    args:
      model: demo
      pipeline_parallel_size: 2
      num_kv_blocks: 256
      num_replicas: 2
      app_name: from-a-file
http_options:
  port: {port}
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(num_cpus=6) as made:
        ray.init(address=made.address, namespace="penstock", log_to_driver=False)
        yield made
        ray.shutdown()


def command(head: Head, *arguments: str) -> None:
    done = subprocess.run([BIN / "serve", *arguments], env=head.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def names() -> list[str]:
    return [str(actor["name"]) for actor in ray.util.list_named_actors(all_namespaces=True)]


def stream(url: str, **more: Any) -> list[str]:
    """The pieces of text of a streamed answer."""
    body = {"model": "demo", "prompt": "17 + 25 =", "temperature": 0, "max_tokens": 8, "stream": True} | more
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line)["choices"][0]["text"] for line in lines]


def test_a_file_is_deployed_and_proxies_stream(head: Head, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "deploy.yaml").write_text(FILE.format(port=port))
    command(head, "deploy", str(tmp_path / "deploy.yaml"), "--address", head.dashboard)
    eventually(lambda: http_status(f"{url}/health") == 200, timeout_s=90)
    assert "".join(stream(url)) == " 42"
    assert len([piece for piece in stream(url) if piece]) > 1
    assert len([name for name in names() if name.startswith("from-a-file-")]) == 2
    assert http_status(f"{url}/metrics") == 200
    assert http_status(f"{url}/nonsense") == 404
    command(head, "shutdown", "-y", "--address", head.dashboard)
    eventually(lambda: not names(), timeout_s=30)


def test_the_builder_is_run_with_arguments(head: Head) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command(head, "start", "--http-port", str(port))
    run = ["run", "penstock.actors.app:build", "model=demo", "num_kv_blocks=256", "served_model_name=small"]
    with subprocess.Popen(
        [BIN / "serve", *run], env=head.env, stderr=subprocess.DEVNULL, preexec_fn=heed_ctrl_c
    ) as ran:
        eventually(lambda: http_status(f"{url}/health") == 200, timeout_s=90)
        assert "".join(stream(url, model="small")) == " 42"
        ran.send_signal(signal.SIGINT)
        ran.wait(60)
    eventually(lambda: not names(), timeout_s=30)
