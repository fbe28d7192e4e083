"""
    python -m raftd.test.work                # what a request costs, beside its limits
    python -m raftd.test.work --set-limits   # make limits of it, a margin above

The status is 1 if anything is above its limit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from raftd.test.work.report import excesses, set_limits, table
from raftd.test.work.scenarios import SCENARIOS, measure


def main(arguments: Sequence[str]) -> int:
    if arguments not in ([], ["--set-limits"]):
        print(__doc__, file=sys.stderr)
        return 2
    measured = {scenario.name: measure(scenario) for scenario in SCENARIOS}
    if arguments:
        print(f"written: {set_limits(measured)}")
        return 0
    print(table(measured))
    return int(any(excesses(scenario, measured[scenario.name]) for scenario in SCENARIOS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
