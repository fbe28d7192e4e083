"""
`python -m raftd.test.judge.calibrate [FOLDER]`: the judge, judged.

The folder has recorded histories, `NAME.log`, of which other checkers have
given the verdicts: `verdicts.tsv`, a heading and then lines of `NAME`, a tab,
and `true` (linearizable) or `false`.  They are no part of the project.  Without
a FOLDER it is the one that the variable RAFTD_HISTORIES names, or else
`../shared/histories` beside the checkout, if there is one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

import raftd
from raftd.test.judge.files import read_history
from raftd.test.judge.linearizability import judge
from raftd.test.judge.search import Verdict

#: Names the folder.
VARIABLE = "RAFTD_HISTORIES"

#: How long one history may take, in seconds.
LIMIT_S = 1.0


class Calibrated(msgspec.Struct, frozen=True):
    """One history: the verdict that is known, the one that was given, and the time it took."""

    name: str
    is_linearizable: bool
    verdict: Verdict
    taken_s: float

    @property
    def is_right(self) -> bool:
        """Undecided is never right."""
        expected = Verdict.GOOD if self.is_linearizable else Verdict.BAD
        return self.verdict is expected


def find_folder() -> Path | None:
    """Where the histories are; None if they are not here."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    beside = Path(raftd.__file__).resolve().parents[2] / "shared" / "histories"
    return beside if beside.is_dir() else None


def calibrate(folder: Path) -> list[Calibrated]:
    """Judge every history of which the verdict is known; OSError if there are none."""
    lines = (folder / "verdicts.tsv").read_text(encoding="utf-8").splitlines()[1:]
    found = []
    for line in filter(None, lines):
        name, _, verdict = line.partition("\t")
        history = read_history(folder / f"{name}.log")
        started_s = time.perf_counter()
        given = judge(history, explains=False).verdict
        taken_s = time.perf_counter() - started_s
        found.append(Calibrated(name, verdict == "true", given, taken_s))
    return found


def main(arguments: Sequence[str]) -> int:
    """The status to exit with: 0 also if there is no folder and none was named."""
    folder = Path(arguments[0]) if arguments else find_folder()
    if folder is None:
        print(f"no folder of recorded histories beside the checkout, and {VARIABLE} names none")
        return 0
    found = calibrate(folder)
    for each in found:
        if not each.is_right:
            known = Verdict.GOOD if each.is_linearizable else Verdict.BAD
            print(f"{each.name}: {each.verdict.value}, but it is {known.value}")
    right = sum(each.is_right for each in found)
    print(f"verdicts {right}/{len(found)}")
    if not found:
        return 1
    slowest = max(found, key=lambda each: each.taken_s)
    print(f"slowest {slowest.name} {slowest.taken_s:.3f} s")
    return 0 if right == len(found) and slowest.taken_s < LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
