"""
`python -m raftd.test.judge FILE...`: a verdict for each recorded history.

The status is 0 only if all are linearizable and their watches true: a file that
is undecided, cannot be read, or has nothing to judge is a failure as well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from raftd.test.judge.files import read_history
from raftd.test.judge.history import BadHistory
from raftd.test.judge.linearizability import judge


def main(arguments: Sequence[str]) -> int:
    """The status to exit with."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m raftd.test.judge FILE...", file=sys.stderr)
        return 2
    good = [_judge(Path(name)) for name in arguments]
    if len(good) > 1:
        print(f"linearizable {sum(good)}/{len(good)}")
    return 0 if all(good) else 1


def _judge(path: Path) -> bool:
    started_s = time.perf_counter()
    try:
        judgement = judge(read_history(path))
    except (OSError, BadHistory) as e:
        print(f"{path}: not judged: {e}")
        return False
    taken_s = time.perf_counter() - started_s
    watched = f", {judgement.watched} lines of watches" if judgement.watched else ""
    print(
        f"{path}: {judgement.verdict.value} ({judgement.operations} operations{watched}, "
        f"{judgement.unknown} unknown, {judgement.configurations} configurations, "
        f"{taken_s:.3f} s)"
    )
    for line in judgement.reasons:
        print(f"  {line}")
    return judgement.is_good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
