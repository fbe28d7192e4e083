"""What a run adds up, from all of its threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import pairwise


class Tally:
    """Operations, faults, and what went wrong; and when writes were acknowledged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ends: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.skipped: dict[str, str] = {}
        self.violations: list[str] = []
        self._acknowledged_s: list[float] = []
        self._windows: list[tuple[float, float]] = []
        #: From when to when clocks of a node ran at another rate.
        self.clocks_differed: list[tuple[float, float]] = []

    def end(self, how: str, is_write: bool) -> None:
        """An operation has ended: "ok", "fail" or "unknown"."""
        with self._lock:
            self.ends[how] += 1
            if is_write and how == "ok":
                self._acknowledged_s.append(time.monotonic())

    def fault(self, kind: str) -> None:
        with self._lock:
            self.faults[kind] += 1

    def violation(self, text: str) -> None:
        with self._lock:
            self.violations.append(text)

    def window(self, start_s: float, end_s: float) -> None:
        """A fault, from when a quorum could work to when all was well again."""
        with self._lock:
            self._windows.append((start_s, end_s))

    def last_acknowledged_s(self) -> float:
        with self._lock:
            return self._acknowledged_s[-1] if self._acknowledged_s else 0.0

    @property
    def operations(self) -> int:
        return sum(self.ends.values())

    @property
    def share_unknown(self) -> float:
        return self.ends["unknown"] / max(1, self.operations)

    def without_service_s(self) -> list[float]:
        """For each fault the longest time without an acknowledged write, sorted."""
        with self._lock:
            times = list(self._acknowledged_s)
            return sorted(_longest(times, start, end) for start, end in self._windows)


def _longest(times: list[float], start: float, end: float) -> float:
    inside = [start, *(t for t in times if start < t < end), end]
    return max(b - a for a, b in pairwise(inside))


def percentile(ordered: list[float], percent: int) -> float:
    """By nearest rank; 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, -(-percent * len(ordered) // 100) - 1))]
