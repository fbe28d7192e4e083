"""Read the output of trial and print `N passed, N failed`; fail unless all passed."""

import re
import sys
from pathlib import Path


def figures(output: str) -> tuple[int, int, int]:
    """How many tests passed, failed and were skipped, by trial's last summary."""
    summaries = re.findall(r"^(?:PASSED|FAILED)(?: \((.*)\))?$", output, re.M)
    if not summaries:
        return 0, 0, 0
    counts = {
        name: int(count)
        for name, _, count in (part.partition("=") for part in summaries[-1].split(", "))
        if count
    }
    passed = counts.get("successes", 0) + counts.get("expectedFailures", 0)
    failed = sum(counts.get(name, 0) for name in ("failures", "errors", "unexpectedSuccesses"))
    return passed, failed, counts.get("skips", 0)


def main() -> int:
    path = Path(sys.argv[1])
    passed, failed, skipped = figures(
        path.read_text("utf-8", "replace") if path.exists() else ""
    )
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
