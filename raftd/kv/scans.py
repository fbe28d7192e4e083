"""
Ranges that take longer than a step: one after the other, a slice for each turn
of the reactor, so that none of them delays a heartbeat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from raftd.errors import Overloaded, RaftdError, Stopped
from raftd.interfaces import Done
from raftd.kv.results import RangeResult

Walk = Generator[None, None, RangeResult]

#: How long one slice may take, in seconds.
SLICE_S = 0.003
#: Ranges under way; each may hold an answer of `raftd.kv.ranges.MAX_RANGE_BYTES`.
MAX_SCANS = 32


class Scans:
    """
    The ranges under way.

    Invariant: `_call` is there if and only if `_walks` has any.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._walks: deque[tuple[Walk, Done[RangeResult]]] = deque()
        self._call: IDelayedCall | None = None

    def run(self, walk: Walk, done: Done[RangeResult]) -> None:
        """Draw the steps of `walk`: most ranges have only one, and are answered at once."""
        if self._step(walk, done):
            return
        if len(self._walks) >= MAX_SCANS:
            walk.close()
            done(Overloaded("This node has too many large ranges to read. Try again."))
            return
        self._walks.append((walk, done))
        if self._call is None:
            self._call = self._clock.callLater(0, self._go_on)

    def stop(self) -> None:
        """Give up what is under way."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        walks, self._walks = self._walks, deque()
        for walk, done in walks:
            walk.close()
            done(Stopped("This node is stopping."))

    def _go_on(self) -> None:
        """One slice of the range that has waited longest."""
        walk, done = self._walks.popleft()
        until = self._clock.seconds() + SLICE_S
        over = self._step(walk, done)
        while not over and self._clock.seconds() < until:
            over = self._step(walk, done)
        if not over:
            self._walks.append((walk, done))
        self._call = self._clock.callLater(0, self._go_on) if self._walks else None

    def _step(self, walk: Walk, done: Done[RangeResult]) -> bool:
        """One step; whether it was the last."""
        try:
            next(walk)
        except StopIteration as end:
            done(end.value)
        except RaftdError as e:
            done(e)
        else:
            return False
        return True
