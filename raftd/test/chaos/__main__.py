"""
    python -m raftd.test.chaos --nodes 3 --minutes 1 --seed 1
    python -m raftd.test.chaos --nodes 3 --minutes 1 --seed 1 --system etcd

The last line is `operations, faults by kind, linearizable n/n, share unknown,
locks held, time without service, violations`; the status is 1 if there were any.
A run that was bad leaves its histories and logs, and says where.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec

from raftd.test.chaos import sandbox
from raftd.test.chaos.faults import FAULTS
from raftd.test.chaos.run import SYSTEMS, Outcome, Plan, Run
from raftd.test.defects.planting import Garden
from raftd.test.defects.table import ALL


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser("python -m raftd.test.chaos")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--system", choices=sorted(SYSTEMS), default="raftd")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument(
        "--network",
        choices=("namespaces", "loopback"),
        help="namespaces if the machine allows them",
    )
    parser.add_argument(
        "--only", default="", help=f"these faults, separated by commas: {', '.join(FAULTS)}"
    )
    parser.add_argument("--faketime", type=Path, help="libfaketimeMT.so.1, if not installed")
    parser.add_argument("--defect", help="put this one of raftd.test.defects into the nodes")
    parser.add_argument("--keep", type=Path, help="keep everything here, good or bad")
    parser.add_argument("--verbose", action="store_true", help="tell of each fault")
    return parser


def main(arguments: list[str]) -> int:
    """The status to exit with."""
    options = _parse(arguments)
    is_inside = sandbox.INSIDE in os.environ
    if not is_inside and options.network != "loopback":
        prefix = sandbox.command()
        if prefix is not None:
            return sandbox.run_inside(prefix, arguments)
        if options.network == "namespaces" or options.system == "etcd":
            print("this machine does not allow namespaces", file=sys.stderr)
            return 2
    if is_inside:
        sandbox.end_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    return _run(options, arguments, is_inside)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """What was asked for; ends the program if that makes no sense."""
    this = parser()
    options = this.parse_args(arguments)
    if options.nodes < 3:
        this.error("fewer than three nodes survive nothing")
    unknown = set(filter(None, options.only.split(","))) - set(FAULTS)
    if unknown:
        this.error(f"there is no fault called {sorted(unknown)[0]!r}")
    if options.defect is not None and options.defect not in {d.name for d in ALL}:
        this.error(f"there is no defect called {options.defect!r}")
    if options.keep is not None and options.keep.exists():
        this.error(f"{options.keep} is there already")
    return options


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace, arguments: list[str], is_inside: bool) -> int:
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        directory = options.keep.resolve()
    else:
        directory = Path(tempfile.mkdtemp(prefix="raftd-chaos-"))
    only = tuple(filter(None, options.only.split(",")))
    plan = Plan(
        system=options.system,
        nodes=options.nodes,
        seconds=options.minutes * 60,
        seed=options.seed,
        clients=options.clients,
        directory=directory,
        has_namespaces=is_inside,
        faketime=options.faketime,
        only=only,
        is_verbose=options.verbose,
    )
    is_kept = options.keep is not None
    try:
        with _planted(options.defect) as tree:
            plan = msgspec.structs.replace(plan, tree=tree)
            outcome = Run(plan, lambda text: print(text, flush=True)).run()
        is_kept = is_kept or not outcome.is_good
        _report(outcome, directory, arguments)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
    except Exception:
        is_kept = True
        print(f"kept: {directory}", flush=True)
        raise
    finally:
        if not is_kept:
            shutil.rmtree(directory, ignore_errors=True)
    return 0 if outcome.is_good else 1


@contextmanager
def _planted(name: str | None) -> Iterator[Path | None]:
    """A copy of the package with a defect in it; None if none is named."""
    if name is None:
        yield None
        return
    (defect,) = (defect for defect in ALL if defect.name == name)
    with Garden() as garden, garden.planted(defect):
        yield garden.tree


def _report(outcome: Outcome, directory: Path, arguments: list[str]) -> None:
    for text in outcome.violations:
        print(text)
    if not outcome.is_good:
        print(f"kept: {directory}")
        print(f"again: python -m raftd.test.chaos {shlex.join(arguments)}")
    print(outcome, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
