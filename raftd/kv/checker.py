"""
Do all members have the same state?  Asked in the background, again and again.

1. The leader proposes a `Checkpoint`.  Every member takes, as of that very
   entry, the digest of its store, in slices, while it goes on applying.
2. When the leader has its own, it proposes it with a second `Checkpoint`.
3. Every member compares.  A difference is logged, and is in `/status` and in
   the metrics of the member that differs from the leader.

The first index at which two members differ lies behind the last checkpoint at
which they agreed, and is at most that of the first at which they did not; the
log behind a snapshot is gone, so that it cannot be told more exactly.

A member that restored a snapshot, or started, between the two has nothing to
compare, and waits for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from raftd.errors import RaftdError
from raftd.interfaces import Done
from raftd.kv.interfaces import DigestStatus
from raftd.kv.operations import Checkpoint, Operation
from raftd.kv.results import Result

#: How often the leader asks, in seconds, if anything has changed.
INTERVAL_S = 600.0
#: A slice of the work, and the pause behind it, so that it takes a small part
#: of a processor.  In seconds.
SLICE_S = 0.002
PAUSE_S = 0.010
#: Digests, and announcements of the leader's, that are kept for comparing.
MAX_KEPT = 4


class Digestible(Protocol):
    """What a checker needs of a `Store`."""

    revision: int
    on_checkpoint: Callable[[int, Checkpoint], None] | None

    def digest_walk(self) -> Generator[None, None, bytes]: ...


class Checker:
    """
    Compares the digests of `store` on this node with the leader's.

    Invariant: of each kept index, `_own` has what this node found and
    `_leaders` what the leader said; none is in both.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        store: Digestible,
        change: Callable[[Operation, Done[Result]], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`change` proposes an operation."""
        self._clock = clock
        self._store = store
        self._change = change
        self._interval_s = interval_s
        self.status = DigestStatus()
        self._own: dict[int, bytes] = {}
        self._leaders: dict[int, bytes] = {}
        #: The digest that is being taken, as of which index, and its next slice.
        self._walk: Generator[None, None, bytes] | None = None
        self._walk_index = 0
        self._slice: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None
        self._is_leader = False
        self._asked_revision = 0
        store.on_checkpoint = self._applied

    def begin(self) -> None:
        """This node leads now."""
        self._is_leader = True
        self._timer = self._clock.callLater(self._interval_s, self._ask)

    def end(self) -> None:
        """This node leads no longer."""
        self._is_leader = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def stop(self) -> None:
        """The node stops."""
        self.end()
        self._give_up()

    # -- the leader ------------------------------------------------------------

    def _ask(self) -> None:
        self._timer = self._clock.callLater(self._interval_s, self._ask)
        if self._walk is None and self._store.revision != self._asked_revision:
            self._asked_revision = self._store.revision
            self._change(Checkpoint(), _ignore)

    # -- every member ------------------------------------------------------------

    def _applied(self, index: int, checkpoint: Checkpoint) -> None:
        if checkpoint.digest:
            self._leaders[checkpoint.index] = checkpoint.digest
            self._compare(checkpoint.index)
        else:
            self._give_up()
            self._walk, self._walk_index = self._store.digest_walk(), index
            self._slice = self._clock.callLater(0, self._go_on)

    def _give_up(self) -> None:
        if self._walk is not None:
            self._walk.close()
            self._walk = None
        if self._slice is not None:
            self._slice.cancel()
            self._slice = None

    def _go_on(self) -> None:
        assert self._walk is not None
        until = self._clock.seconds() + SLICE_S
        try:
            next(self._walk)
            while self._clock.seconds() < until:
                next(self._walk)
        except StopIteration as stop:
            self._walk = self._slice = None
            self._found(self._walk_index, stop.value)
        else:
            self._slice = self._clock.callLater(PAUSE_S, self._go_on)

    def _found(self, index: int, digest: bytes) -> None:
        self._own[index] = digest
        self._compare(index)
        if self._is_leader:
            self._change(Checkpoint(index, digest), _ignore)

    def _compare(self, index: int) -> None:
        if index in self._own and index in self._leaders:
            own, leaders = self._own.pop(index), self._leaders.pop(index)
            if own == leaders:
                if not self.status.differs_index:
                    self.status = DigestStatus(max(index, self.status.agreed_index))
            elif not self.status.differs_index:
                self._differs(index)
        for kept in (self._own, self._leaders):
            while len(kept) > MAX_KEPT:
                del kept[min(kept)]

    def _differs(self, index: int) -> None:
        agreed = self.status.agreed_index
        self.status = DigestStatus(agreed, index)
        self._log.critical(
            "The state of this member differs from the leader's: as of entry {index} their "
            "digests are not equal; {since}. Remove this member and let it join anew; its "
            "data directory is worth keeping for finding out why.",
            index=index,
            since=f"as of entry {agreed} they were"
            if agreed
            else "they were not compared before",
        )


def _ignore(outcome: Result | RaftdError) -> None:
    """If it came to nothing, there will be another."""
