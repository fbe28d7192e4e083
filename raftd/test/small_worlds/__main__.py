"""Searches from each start to the depth that was asked for; see the package."""

from __future__ import annotations

import sys
import time
from typing import Final

from raftd.test.small_worlds.search import Result, Search
from raftd.test.small_worlds.starts import STARTS

#: The depth without an argument.
DEPTH: Final = 12


def tell(name: str, result: Result, began: float) -> None:
    seconds = time.monotonic() - began
    print(
        f"from {name}: {result}; {result.steps} steps tried, {result.rows} by the core, "
        f"{result.node_states} states of one node, {seconds:.0f} s",
        flush=True,
    )
    if result.violation is not None:
        print(f"broken: {result.violation.rule}")
        for number, line in enumerate(result.violation.trace, 1):
            print(f"{number:4}. {line}")


def main(arguments: list[str]) -> int:
    depth = int(arguments[0]) if arguments else DEPTH
    states = violations = 0
    for name in arguments[1:] or STARTS:
        began = time.monotonic()
        result = Search(name).run(depth)
        tell(name, result, began)
        states += result.states
        violations += result.violation is not None
        if violations:
            break
    print(f"states {states}, depth {depth}, violations {violations}")
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
