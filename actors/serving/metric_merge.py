"""Several replicas' expositions as one: a scraper takes a metric's HELP and TYPE once, with all samples behind them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Family:
    header: dict[str, str] = field(default_factory=dict)  # "HELP" and "TYPE" lines as they were first told
    samples: list[str] = field(default_factory=list)


def merge_expositions(texts: Iterable[str]) -> str:
    """One exposition with every sample of all; each text names its own replica in every sample's labels."""
    families: dict[str, _Family] = {}
    for text in texts:
        family = _Family()  # of samples before any header, which no exposition of ours has
        for line in filter(None, text.split("\n")):
            if line.startswith("# "):
                _, keyword, name, *_ = [*line.split(" ", 3), "", ""]
                if keyword in ("HELP", "TYPE"):
                    family = families.setdefault(name, _Family())
                    family.header.setdefault(keyword, line)
            else:
                family.samples.append(line)
    lines = [line for each in families.values() for line in (*each.header.values(), *each.samples)]
    return "".join(f"{line}\n" for line in lines)
