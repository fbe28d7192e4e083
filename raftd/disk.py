"""The storage of a node, as its core hears of it: what is durable, and if there is room."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.core.raft import Raft
from raftd.core.ready import Ready
from raftd.errors import Fatal
from raftd.interfaces import ILogStorage

#: How often it is tried, while the disk is full, whether there is room again.
SPACE_RETRY_S = 2.0


class Disk:
    """
    What a node hands to storage, and what storage answers.

    Invariant: until it is stopped, `_space_timer` runs while the disk is full.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        raft: Raft,
        storage: ILogStorage,
        *,
        wake: Callable[[], None],
        defect: Callable[[Failure], None],
    ) -> None:
        """`wake` asks for a turn; `defect` takes the errors that nobody expected."""
        self._clock = clock
        self._raft = raft
        self._storage = storage
        self._wake = wake
        self._defect = defect
        self.has_space = True
        #: When storage looks for room again.
        self._space_timer: IDelayedCall | None = None
        self._stopped = False

    def start(self, fail: Callable[[Fatal], None]) -> None:
        """Storage must have been opened; `fail` is called if it cannot go on."""
        self._storage.start(self._persisted, fail, self._space_changed)

    def stop(self) -> None:
        """The core is told of nothing any more; what was handed over is still written."""
        self._stopped = True
        if self._space_timer is not None and self._space_timer.active():
            self._space_timer.cancel()

    def close(self) -> Deferred[None]:
        """Flush, and close storage; fires when it is done."""
        return self._storage.close()

    def write(self, ready: Ready) -> None:
        """
        Hand the write to storage; at the end of a turn, for there is one interpreter,
        and the log's thread would only wait for it, or take it from this one.
        """
        write, ready.write = ready.write, None
        if write is not None:
            self._storage.write(
                write.number, write.hard_state, write.entries, write.base, write.commit_index
            )

    def _persisted(self, number: int) -> None:
        if not self._stopped:
            try:
                self._raft.persisted(number, self._clock.seconds())
            except Exception:
                self._defect(Failure())
            if self._raft.wants_turn:
                self._wake()

    def _space_changed(self, is_left: bool) -> None:
        """Storage has no room for more commands, or has room again."""
        if self._stopped:
            return
        if is_left:
            self._log.info("There is room on the disk again: writes are taken.")
        else:
            self._log.error("The disk is full: no writes are taken until there is room again.")
            self._look_for_space()
        self._raft.space_changed(is_left, self._clock.seconds())
        self.has_space = is_left
        self._wake()

    def _look_for_space(self) -> None:
        if self._space_timer is None:  # else it was full a moment ago as well
            self._space_timer = self._clock.callLater(SPACE_RETRY_S, self._space_due)

    def _space_due(self) -> None:
        self._space_timer = None
        if not self.has_space:
            self._look_for_space()
            self._storage.look_for_space()
