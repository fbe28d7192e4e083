"""
Short pauses of Python's garbage collector, however much there is in memory.

A full collection looks at every container, and at all that is in each: at every
key of a store, and for a million of them that keeps the reactor for forty
milliseconds or longer.  What has once been frozen (`gc.freeze`) is never looked at
again.  So the process lets Python collect only what is young by itself; the
rest is looked at here, often, and frozen as soon as that takes noticeably long.

What was frozen goes when nothing refers to it, like everything in Python; only
if it became part of a reference cycle that nobody needs would it stay for ever.  raftd
leaves no such cycles behind, neither a request nor a connection, and tests
hold it to that.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: How often it is looked at, in seconds: a store that is restored has some ten
#: thousand new keys by then, a store that is written to a few hundred.
INTERVAL_S = 0.05
#: What a look may take, in seconds; after one that took longer everything is frozen.
COLLECTION_S = 0.001
#: A look that comes so much too late, in seconds, only freezes: whatever kept the
#: reactor, as a recovery does, may have left far too much to look at.
LATE_S = 0.05
#: Containers that were allocated since the last look, if the next is to be
#: worth while.  A container has a few hundred keys.
WORTH_WHILE = 50
#: In the place of Python's own full collections: never.
NEVER = 1_000_000_000


def keep_pauses_short(reactor: IReactorTime) -> Collector:
    """
    Keep the pauses of this process's garbage collector short, from now on.

    `twist raftd` does so itself.  A program that embeds raftd and has much in
    memory calls it once, and must not leave reference cycles behind that it does not
    break: those that become garbage late are not collected.
    """
    collector = Collector(reactor)
    collector.start()
    return collector


class Collector:
    """
    Invariant: what is neither frozen nor young was added since the last time
    that everything was frozen, and took `COLLECTION_S` at most to look at.
    """

    def __init__(
        self, clock: IReactorTime, measure: Callable[[], float] = time.perf_counter
    ) -> None:
        """`measure` is how long something took, in seconds, whatever `clock` is."""
        self._clock = clock
        self._measure = measure
        self._thresholds = gc.get_threshold()
        self._looked_at = 0.0
        self._allocated = 0
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Freeze what is there, and begin to look."""
        self._thresholds = gc.get_threshold()
        gc.set_threshold(*self._thresholds[:2], NEVER)
        gc.freeze()
        self._arm()

    def stop(self) -> None:
        """Leave everything to Python again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()

    def _arm(self) -> None:
        self._looked_at = self._clock.seconds()
        self._allocated = self._count()
        self._timer = self._clock.callLater(INTERVAL_S, self._look)

    def _look(self) -> None:
        if self._clock.seconds() - self._looked_at > INTERVAL_S + LATE_S:
            gc.freeze()
        elif abs(self._count() - self._allocated) >= WORTH_WHILE:
            began = self._measure()
            gc.collect()
            if self._measure() - began > COLLECTION_S:
                gc.freeze()
        self._arm()

    def _count(self) -> int:
        """How many containers were allocated since something, about."""
        young, older, _ = gc.get_count()
        return young + older * self._thresholds[0]
