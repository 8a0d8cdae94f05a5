"""What HTTP adds: to a request's first token beside the bare handle, and to each token of 64 streams at once.

The first with the demo model over real Ray actors, by way of the server's own port and of Ray Serve's proxy; a request
over the handle and one over HTTP take turns. The second with a source of tokens that costs nothing in the engine's
place. Goals on two idle cores: under 5 ms on the first token, at least 10 000 tokens per second.
usage: python tests/benchmarks/bench_serving.py [--requests 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ray

from penstock import SamplingParams, connect
from penstock.actors.async_engine import AsyncEngine
from penstock.actors.cluster import NAMESPACE
from penstock.actors.server import Server
from penstock.configs.load import load_configs

PROMPT = "17 + 25 ="
NUM_CLIENTS, NUM_TOKENS = 64, 1000
STEP_S = 0.001  # of the costless source


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


async def stream(port: int, path: str, body: dict[str, object]) -> tuple[float, int]:
    """One streamed request on a connection of its own: seconds to its first event, and its events."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps({**body, "stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    start_s = time.perf_counter()
    writer.write(head.encode() + data)
    first_s, num_events, tail = 0.0, 0, b""
    while chunk := await reader.read(1 << 16):
        num_events += chunk.count(b"data: ")
        if num_events and not first_s:
            first_s = time.perf_counter() - start_s
        tail = (tail + chunk)[-64:]
    writer.close()
    assert b"[DONE]" in tail, tail
    return first_s, num_events


async def over_handle(engine: AsyncEngine, params: SamplingParams) -> float:
    start_s = time.perf_counter()
    first_s = 0.0
    async for _ in engine.generate(PROMPT, params):
        first_s = first_s or time.perf_counter() - start_s
    return first_s


async def first_tokens(engine: AsyncEngine, port: int, num_requests: int) -> dict[str, float]:
    """Medians in milliseconds, over the handle and over HTTP in turns."""
    params = SamplingParams(temperature=0, max_tokens=4)
    body: dict[str, object] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    handle, http = list[float](), list[float]()
    for _ in range(num_requests + 20):
        handle.append(await over_handle(engine, params))
        http.append((await stream(port, "/v1/completions", body))[0])
    medians = [statistics.median(times[20:]) * 1000 for times in (handle, http)]
    return {"handle_ms": medians[0], "http_ms": medians[1], "added_ms": medians[1] - medians[0]}


def ingress(kind: str, num_requests: int) -> dict[str, float]:
    """The demo model behind this ingress."""
    port = free_port()
    with Server(*load_configs("demo", port=port, ingress=kind, num_cpus=4)):
        (name,) = [
            actor["name"]
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if actor["namespace"] == NAMESPACE and actor["name"].startswith("penstock-")
        ]
        engine = connect(name)
        try:
            return asyncio.run(first_tokens(engine, port, num_requests))
        finally:
            engine.close()


async def flood(port: int, path: str, body: dict[str, object]) -> dict[str, float]:
    start_s = time.perf_counter()
    streams = await asyncio.gather(*(stream(port, path, body) for _ in range(NUM_CLIENTS)))
    elapsed_s = time.perf_counter() - start_s
    return {
        "tokens_per_s": NUM_CLIENTS * NUM_TOKENS / elapsed_s,
        "events_per_s": sum(num_events for _, num_events in streams) / elapsed_s,
    }


def costless() -> dict[str, dict[str, float]]:
    """64 streams of a source that costs nothing."""
    port = free_port()
    command = [sys.executable, "-m", "penstock.tests.benchmarks.costless", str(port), str(STEP_S)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        messages = [{"role": "user", "content": "hi"}]
        bodies = {
            "/v1/completions": {"prompt": "hi", "max_tokens": NUM_TOKENS},
            "/v1/chat/completions": {"messages": messages, "max_tokens": NUM_TOKENS},
        }
        return {path: asyncio.run(flood(port, path, body)) for path, body in bodies.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {
        f"first token, {kind}": ingress(kind, arguments.requests) for kind in ("direct", "proxy")
    }
    figures |= costless()
    for name, values in figures.items():
        print(f"{name:24}", ", ".join(f"{key} {value:.2f}" for key, value in values.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
