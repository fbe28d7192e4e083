"""
A log and snapshots in memory, for tests and for programs that embed raftd and
can lose them.

They keep the promises of `ILogStorage` and `ISnapshotStore` with a disk that
their owner commands: nothing is durable before it is flushed, a crash loses
what was not, and a flush of the log can be made to fail.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from raftd.core.messages import Entry, HardState
from raftd.errors import Fatal, InvariantViolated, StorageFailed
from raftd.interfaces import ILogStorage
from raftd.storage.files import Files
from raftd.storage.replay import Outline, Position, Record, Replay
from raftd.storage.snapshot_files import snapshot_key
from raftd.storage.snapshots import SnapshotStore
from raftd.storage.workers import Job


@implementer(ILogStorage)
class MemoryLog:
    """
    An `ILogStorage` in memory.

    Without a clock, writes become durable when `flush` is called.  With one,
    there is group commit, as on a disk: a flush begins with the first write
    that waits, takes `delay_seconds`, and covers what was queued when it
    began; what comes meanwhile waits for the next, which begins then.  The
    delay may be changed at any time, for flushes that begin later, and None
    means that the disk hangs until `flush` is called.
    """

    def __init__(
        self,
        hard_state: HardState | None = None,
        entries: Sequence[Entry] = (),
        *,
        base: Position = (0, 0),
        commit_index: int = 0,
        clock: IReactorTime | None = None,
        delay_seconds: float | None = 0.0,
    ) -> None:
        self._durable = Replay()
        self._durable.write(hard_state, entries, base, commit_index)
        self._outline = Outline()
        self._outline.write(hard_state, entries, base)
        self.hard_state = self._durable.hard_state
        self.base_index = self._durable.base_index
        self.base_term = self._durable.base_term
        self.commit_index = commit_index
        self.entries: Sequence[Entry] = tuple(entries)
        self._clock = clock
        self.delay_seconds = delay_seconds
        self._queued: list[Record] = []
        self._last_number = 0
        self._compacted_index = 0
        #: The flush under way, and how many of `_queued` it covers.
        self._call: IDelayedCall | None = None
        self._covered = 0
        self._started = False
        #: False once it failed, crashed or was closed: it never calls anybody again.
        self._alive = True
        self._failing: Fatal | None = None
        #: Whether there is room, which only `look_for_space` finds out.
        self.has_space = True
        self._told_space = True
        self._space: Callable[[bool], None] | None = None

    @property
    def unflushed(self) -> int:
        """How many writes a crash could lose now."""
        return len(self._queued)

    # -- ILogStorage ---------------------------------------------------------

    def start(
        self,
        persisted: Callable[[int], None],
        failed: Callable[[Fatal], None],
        space: Callable[[bool], None] | None = None,
    ) -> None:
        if self._started:
            raise InvariantViolated("the log was started twice")
        self._started = True
        self.entries = ()
        self._persisted = persisted
        self._failed = failed
        self._space = space
        self.look_for_space()

    def look_for_space(self) -> None:
        if self._space is not None and self._alive and self.has_space is not self._told_space:
            self._told_space = self.has_space
            self._space(self.has_space)

    def write(
        self,
        number: int,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        base: Position | None = None,
        commit_index: int = 0,
    ) -> None:
        if not self._started or number != self._last_number + 1:
            raise InvariantViolated(f"write {number} follows write {self._last_number}")
        self._outline.write(hard_state, entries, base)
        self._last_number = number
        if not self._alive:
            return
        self._queued.append(Record(hard_state, tuple(entries), base, commit_index))
        if self._call is None:
            self._begin_flush()

    def compact(self, base_index: int) -> None:
        if not self._started:
            raise InvariantViolated("the log is not open for compaction")
        if self._outline.compact(base_index):
            self._compacted_index = base_index
            self._compact()

    def close(self) -> Deferred[None]:
        if self._alive and self._started:
            self.flush()
        self._die()
        return succeed(None)

    # -- the disk ------------------------------------------------------------

    def flush(self) -> None:
        """
        Make durable at once all that is queued, whatever flush is under way,
        and say so; or fail if that was asked for.
        """
        if not self._alive or not self._queued:
            return
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._end_flush(len(self._queued))

    def _begin_flush(self) -> None:
        """A flush of what is queued now."""
        if self._clock is not None and self.delay_seconds is not None:
            self._covered = len(self._queued)
            self._call = self._clock.callLater(self.delay_seconds, self._delayed_flush)

    def _delayed_flush(self) -> None:
        self._call = None
        self._end_flush(self._covered)

    def _end_flush(self, count: int) -> None:
        """The first `count` writes that are queued are durable; the next flush begins."""
        if self._failing is not None:
            self._die()
            self._failed(self._failing)
            return
        self._keep(count)
        number = self._last_number - len(self._queued)
        if self._queued:
            self._begin_flush()
        self._persisted(number)

    def fail(self, reason: Fatal | None = None) -> None:
        """Make the next flush fail, and so the log."""
        self._failing = reason or StorageFailed("The log in memory was told to fail.")

    def crash(self, kept: int = 0) -> MemoryLog:
        """
        Lose what was not flushed but the first `kept` writes of it, which a
        real disk may have written; what a restart would recover.

        This object is dead afterwards: it takes writes and forgets them.
        """
        self._keep(min(kept, len(self._queued)))
        self._die()
        after = MemoryLog(
            self._durable.hard_state,
            self._durable.entries,
            base=(self._durable.base_index, self._durable.base_term),
            commit_index=self._durable.commit_index,
            clock=self._clock,
            delay_seconds=self.delay_seconds,
        )
        after.has_space = self.has_space
        return after

    def _keep(self, count: int) -> None:
        for record in self._queued[:count]:
            self._durable.write(
                record.hard_state, record.entries, record.base, record.commit_index
            )
        del self._queued[:count]
        self._compact()

    def _compact(self) -> None:
        """Of what is not needed, what is durable goes now."""
        durable = self._durable
        last_index, _ = durable.outline.last
        durable.compact(min(self._compacted_index, last_index))

    def _die(self) -> None:
        self._alive = False
        self._queued.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None


class MemorySnapshotStore(SnapshotStore):
    """
    The store of snapshots that ships, on files in memory.

    Each piece of work of its disk takes `delay_seconds` of the clock; the
    delay may be changed at any time.
    """

    def __init__(self, clock: IReactorTime, *, delay_seconds: float = 0.0) -> None:
        self._clock = clock
        self._disk = _ClockedDisk(clock, delay_seconds)
        self._memory = _MemoryFiles()
        super().__init__(
            _DIRECTORY, self._disk, files=self._memory, start_worker=lambda name: self._disk
        )

    @property
    def delay_seconds(self) -> float:
        return self._disk.delay_seconds

    @delay_seconds.setter
    def delay_seconds(self, delay_seconds: float) -> None:
        self._disk.delay_seconds = delay_seconds

    def crash(self) -> MemorySnapshotStore:
        """
        Lose what is not finished; what a restart would find, to be recovered.

        This object is dead afterwards: nothing it was asked for ever happens.
        """
        self._disk.alive = False
        after = MemorySnapshotStore(self._clock, delay_seconds=self.delay_seconds)
        after._memory.take_over(self._memory)
        return after


#: Where the snapshots in memory are.
_DIRECTORY = "/snapshots"


class _ClockedDisk:
    """The thread of a store in memory, and its reactor, under one clock."""

    def __init__(self, clock: IReactorTime, delay_seconds: float) -> None:
        self.delay_seconds = delay_seconds
        self.alive = True
        self.seconds = clock.seconds
        self._clock = clock
        self._jobs: deque[Job] = deque()
        self._ended = False

    # -- Worker --------------------------------------------------------------

    def do(self, job: Job) -> None:
        if not self._ended:
            self._jobs.append(job)
            if len(self._jobs) == 1:
                self.callLater(self.delay_seconds, self._run)

    def quit(self) -> None:
        self._ended = True

    def _run(self) -> None:
        self._jobs[0]()
        self._jobs.popleft()
        if self._jobs:
            self.callLater(self.delay_seconds, self._run)

    # -- Reactor -------------------------------------------------------------

    def callLater(self, delay: float, callable: Callable[..., object], /) -> IDelayedCall:
        return self._clock.callLater(delay, self._unless_crashed, callable)

    def callFromThread(self, callable: Callable[..., object], /, *args: object) -> None:
        callable(*args)

    def _unless_crashed(self, callable: Callable[..., object]) -> None:
        if self.alive:
            callable()


class _MemoryFiles(Files):
    """Files in memory, as far as a store of snapshots uses any; all directories exist."""

    def __init__(self) -> None:
        self._named: dict[str, bytearray] = {}
        self._open: dict[int, bytearray] = {}
        self._descriptors = count(3)

    def take_over(self, other: _MemoryFiles) -> None:
        """Have the snapshots that are whole there."""
        for path, data in other._named.items():
            if snapshot_key(os.path.basename(path)) is not None:
                self._named[path] = bytearray(data)

    def create(self, path: str) -> int:
        self._named[path] = bytearray()
        return self.open(path)

    def open(self, path: str) -> int:
        if path not in self._named:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        fd = next(self._descriptors)
        self._open[fd] = self._named[path]
        return fd

    def close(self, fd: int) -> None:
        del self._open[fd]

    def size(self, fd: int) -> int:
        return len(self._open[fd])

    def read(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._open[fd][offset : offset + length])

    def write(self, fd: int, data: bytes | bytearray, offset: int) -> None:
        self._open[fd][offset : offset + len(data)] = data

    def flush(self, fd: int) -> None:
        pass

    def names(self, path: str) -> list[str]:
        return sorted(name.removeprefix(f"{path}/") for name in self._named)

    def exists(self, path: str) -> bool:
        return path == _DIRECTORY or path in self._named

    def rename(self, old: str, new: str) -> None:
        self._named[new] = self._named.pop(old)

    def remove(self, path: str) -> None:
        del self._named[path]

    def flush_directory(self, path: str) -> None:
        pass
