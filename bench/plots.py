"""
Plots of what `compare.py` has measured.

    python bench/plots.py samples.json ... --into docs/plots

Of the files that its `--json` has written: `writes.svg`, writes a second and
their latency by the number of clients, and `failover.svg`, how long the next
write took after `kill -9` of the leader.  Needs `matplotlib` of PyPI.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
# The same samples give the same files.
matplotlib.rcParams["svg.hashsalt"] = "raftd"

from matplotlib import pyplot as plt  # noqa: E402, the backend comes first

CLIENTS = (1, 16, 64, 256, 1000)

#: In this order, so that each has its colour in all plots.
SYSTEMS = ("raftd", "etcd 3.4", "etcd 3.5", "PySyncObj")

Rows = list[dict[str, Any]]


def read(paths: Iterable[str]) -> Rows:
    """The samples of all files together."""
    rows: Rows = []
    for path in paths:
        with open(path) as file:
            rows += json.load(file)["samples"]
    return rows


def by_clients(rows: Rows, system: str, figure: str) -> tuple[list[int], list[float]]:
    """Numbers of clients, and the median of a figure for each."""
    found: dict[int, list[float]] = {}
    for row in rows:
        for clients in CLIENTS:
            if row["system"] == system and row["line"] == f"writes-{clients}":
                found.setdefault(clients, []).append(row[figure])
    return sorted(found), [median(found[clients]) for clients in sorted(found)]


def draw_writes(rows: Rows, path: str) -> None:
    """Throughput beside latency, both by clients."""
    figure, (rates, latencies) = plt.subplots(1, 2, figsize=(10, 4))
    for number, system in enumerate(SYSTEMS):
        clients, rate = by_clients(rows, system, "rate")
        if not clients:
            continue
        color = f"C{number}"
        rates.plot(clients, rate, "o-", color=color, label=system)
        for name, style in (("p50_ms", "o-"), ("p99_ms", "^:")):
            label = f"{system}, {name.removesuffix('_ms')}"
            _, latency = by_clients(rows, system, name)
            latencies.plot(clients, latency, style, color=color, label=label)
    rates.set(title="Writes a second", xscale="log", ylim=(0, None))
    latencies.set(title="Latency of a write, ms", xscale="log", yscale="log")
    for axes in (rates, latencies):
        axes.set_xlabel("clients")
        axes.set_xticks(CLIENTS, [str(n) for n in CLIENTS])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
    rates.legend()
    latencies.set_ylim(top=20 * latencies.get_ylim()[1])  # room for the legend
    latencies.legend(fontsize="small", ncols=2, loc="upper left")
    save(figure, path)


def draw_failover(rows: Rows, path: str) -> None:
    """The share of kills after which a write was acknowledged within so many seconds."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for number, system in enumerate(SYSTEMS):
        took = sorted(
            seconds
            for row in rows
            if row["system"] == system and row["line"] == "failover"
            for seconds in row["each"]
        )
        if took:
            label = f"{system}, {len(took)} kills"
            axes.step([0, *took], _shares(took), where="post", color=f"C{number}", label=label)
    axes.set(
        title="From kill -9 of the leader to the next write",
        xlabel="seconds",
        ylabel="share",
        xlim=(0, None),
        ylim=(0, 1.02),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def _shares(took: Sequence[float]) -> list[float]:
    return [n / len(took) for n in range(len(took) + 1)]


def save(figure: Any, path: str) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", nargs="+", metavar="FILE")
    parser.add_argument("--into", required=True, metavar="DIRECTORY")
    options = parser.parse_args()
    rows = read(options.samples)
    os.makedirs(options.into, exist_ok=True)
    lines = {row["line"] for row in rows}
    if lines & {f"writes-{clients}" for clients in CLIENTS}:
        draw_writes(rows, os.path.join(options.into, "writes.svg"))
    if "failover" in lines:
        draw_failover(rows, os.path.join(options.into, "failover.svg"))


if __name__ == "__main__":
    main()
