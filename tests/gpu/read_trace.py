"""What a trace says of steps: `python tests/gpu/read_trace.py TRACE.json`: device and host time, by tenths of a run."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np


def steps_of(events: list[dict[str, Any]], pid: int) -> dict[int, dict[str, float]]:
    """For each step of a stage: milliseconds of compute, waiting and host."""
    names = {
        each["tid"]: each["args"]["name"] for each in events if each["pid"] == pid and each["name"] == "thread_name"
    }
    found: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for each in events:
        if each["pid"] != pid or each["ph"] != "X":
            continue
        lane = names[each["tid"]]
        if lane == "compute":
            kind = "wait" if each["cat"] == "wait" else each["args"]["what"]
        elif lane == "host":
            kind = "host"
        else:
            continue
        found[each["args"]["step"]][kind] += each["dur"] / 1000
    return found


def main() -> None:
    events = json.loads(Path(sys.argv[1]).read_text())["traceEvents"]
    rows = {each["pid"]: each["args"]["name"] for each in events if each["name"] == "process_name"}
    for pid, name in rows.items():
        steps = steps_of(events, pid)
        order = sorted(steps)
        print(f"{name}: {len(order)} steps; ms, median / mean / p99 of compute, of waits, of the host")
        for part in np.array_split(order, 10):
            columns = []
            for kind in ("compute", "wait", "host"):
                values = [steps[int(step)][kind] for step in part]
                columns.append(f"{np.median(values):7.3f} {np.mean(values):7.3f} {np.percentile(values, 99):7.3f}")
            print(f"  steps {part[0]:5} to {part[-1]:5}: {' | '.join(columns)}")


if __name__ == "__main__":
    main()
