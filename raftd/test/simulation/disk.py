"""
Disks: what is lost in a crash, what is slow, full or broken, and when.

A host has one `HostDisk` for as long as nobody pulls it out; each process sees
it through files of its own.  What the log says is durable is kept beside it
(`Durable`), for whoever checks that it is.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from zope.interface import implementer

from raftd.core.messages import Entry, HardState
from raftd.errors import Fatal
from raftd.interfaces import ILogStorage
from raftd.storage.wal import Wal
from raftd.storage.workers import Job
from raftd.test.cores import check
from raftd.test.simdisk import Inode, Operation, SimulatedDisk
from raftd.test.simulation.world import ProcessClock, Timer, World

LOG, SNAPSHOTS = "/log", "/snapshots"
#: How the names of their files end.
WHOLE = (".segment", ".snapshot")

#: How long a job of the disk's takes, in seconds, when nothing is wrong.
JOB_S = (0.0002, 0.002)


class Crashed(BaseException):
    """The process ends here, between two operations of its disk."""


class HostDisk(SimulatedDisk):
    """
    The disk of a host, as one process sees it.

    `crash_in`: the process crashes at the operation so many from now, or never.
    `fails_flush`: the next flush of a segment of the log, or of a snapshot, fails.
    `room`: by how many bytes files may grow yet, None for any.
    `slowness`: how many times longer everything takes.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.is_gone = False
        self.crash_in: int | None = None
        self.on_crash: Callable[[], None] = lambda: None
        self.fails_flush = ""
        #: When a flush of the log has failed.
        self.failed_at: float | None = None
        self.refused = 0
        self.room: int | None = None
        self.slowness = 1.0
        self.before = self._before

    def _before(self, operation: Operation) -> None:
        if self.is_gone:
            raise Crashed
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                self._world.counts["crashed at operation"] += 1
                self._break_off(operation)
                self.on_crash()
                raise Crashed
        name, path = operation.name, operation.path
        if name == "flush" and self.fails_flush and path.startswith(self.fails_flush):
            self.fails_flush = ""
            if path.endswith(".segment"):
                self.failed_at = self._world.now
            self.refused += 1
            self._world.counts["flush refused"] += 1
            raise OSError(errno.EIO, "Input/output error")
        if self.room is not None and name in ("create", "write"):
            self._take_room(operation, self.room)

    def _take_room(self, operation: Operation, room: int) -> None:
        """A write that has no room is made as far as it has."""
        grows = 0
        if operation.name == "write":
            inode, end = self.inode(operation.path), operation.offset + len(operation.data)
            grows = max(0, end - len(inode.cache))
            if grows > room:
                inode.write(
                    operation.data[: len(operation.data) - grows + room], operation.offset
                )
        if grows > room or (operation.name == "create" and not room):
            self.room = 0
            self.refused += 1
            self._world.counts[f"{operation.name} refused"] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room = room - grows

    def _break_off(self, operation: Operation) -> None:
        """A write is broken off anywhere."""
        if operation.name == "write":
            length = self._world.random.randrange(len(operation.data) + 1)
            if length:
                self.inode(operation.path).write(operation.data[:length], operation.offset)

    def job_s(self) -> float:
        """How long the next job takes."""
        return self._world.random.uniform(*JOB_S) * self.slowness

    def check_flushed(self) -> None:
        """Nothing of the log's segments may wait in the cache."""
        for name, node in self.folder(LOG).cache.items():
            if name.endswith(".segment"):
                assert isinstance(node, Inode)
                check(not node.pending, f"{name} is said to be durable and was not flushed")

    # -- bits that flip ----------------------------------------------------------

    def flip(self, random: Random) -> str:
        """Flip a bit of the log or of a snapshot; where, or nothing if there are none."""
        files = self._whole_files()
        if not files:
            return ""
        path = random.choice(list(files))
        inode = files[path]
        # A segment is mostly room for what comes.
        used = len(inode.cache.rstrip(b"\0")) if random.random() < 0.7 else 0
        offset, bit = random.randrange(used or len(inode.cache)), random.randrange(8)
        inode.flipped[offset] = inode.flipped.get(offset, 0) ^ 1 << bit
        return f"bit {bit} of {path} at {offset}"

    def is_damaged(self, sentence: str) -> bool:
        """Whether a sentence names a file of which bits have flipped, and an offset."""
        return any(
            f"{path} is damaged at offset " in sentence or f"{path} at offset " in sentence
            for path, inode in self._whole_files().items()
            if any(inode.flipped.values())
        )

    def restore(self) -> None:
        """Every bit is what it was."""
        for inode in self._whole_files().values():
            inode.flipped.clear()

    def _whole_files(self) -> dict[str, Inode]:
        """Segments and snapshots, by path, in order; not what nobody has finished yet."""
        return {
            f"{folder}/{name}": node
            for folder in (LOG, SNAPSHOTS)
            if self.exists(folder)
            for name, node in sorted(self.folder(folder).cache.items())
            if isinstance(node, Inode) and node.cache and name.endswith(WHOLE)
        }

    # -- what is left ----------------------------------------------------------

    def after_kill(self) -> HostDisk:
        """The process is gone; the system goes on, and with it its cache."""
        self.is_gone = True
        return self._successor(self)

    def after_power_loss(self, random: Random) -> HostDisk:
        """What was not flushed is lost, or not, sector by sector and name by name."""
        self.is_gone = True
        share = random.choice((0.0, 0.0, 0.5, 0.9, 1.0))
        kept = {unit: random.random() < share for unit in self._ordered_units()}
        return self._successor(self._survivor(kept))

    def _ordered_units(self) -> list[tuple[int, int]]:
        return self._units() if self.exists(LOG) else []

    def _successor(self, left: SimulatedDisk) -> HostDisk:
        new = HostDisk(self._world)
        new.root = left.root
        new.room, new.slowness = self.room, self.slowness
        return new


class DiskWorker:
    """A thread of a process that works on the disk: one job at a time, each takes a while."""

    def __init__(self, clock: ProcessClock, disk: HostDisk) -> None:
        self._clock = clock
        self._disk = disk
        self._jobs: deque[Job | None] = deque()
        self._is_busy = False
        self._timer: Timer | None = None

    def do(self, job: Job) -> None:
        if self._jobs and self._jobs[-1] == job:
            return  # it takes all that there is; the same once more would find nothing
        self._jobs.append(job)
        self._begin()

    def quit(self) -> None:
        self._jobs.append(None)

    def hurry(self) -> None:
        """The disk is quick again, for what is under way as well."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
            self._await_job()

    def _begin(self) -> None:
        if self._jobs and not self._is_busy and not self._clock.is_dead:
            self._is_busy = True
            self._await_job()

    def _await_job(self) -> None:
        clock = self._clock
        self._timer = clock.world.callLater(self._disk.job_s(), clock.enter, self._run)

    def _run(self) -> None:
        job = self._jobs.popleft()
        self._is_busy = False
        if job is not None:
            try:
                job()
            except Crashed:
                return
            self._begin()


# -- what the log has promised -----------------------------------------------------


class Write:
    """One write of the log's, on its way to the disk."""

    def __init__(
        self,
        number: int,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        base: tuple[int, int] | None,
    ) -> None:
        self.number = number
        self.hard_state = hard_state
        self.entries = list(entries)
        self.base = base


class Durable:
    """
    What the log of a host has said is durable, and what was on its way.

    `holds` answers for this very moment: if the power went now, a restart
    would find it.
    """

    def __init__(self, hard_state: HardState, entries: Sequence[Entry]) -> None:
        self.hard_state = hard_state
        self.base_index = 0
        self.base_term = 0
        self.entries = list(entries)
        self.pending: deque[Write] = deque()

    def write(self, write: Write) -> None:
        self.pending.append(write)

    def persisted(self, number: int) -> None:
        while self.pending and self.pending[0].number <= number:
            write = self.pending.popleft()
            if write.hard_state is not None:
                check(
                    _may_follow(self.hard_state, write.hard_state),
                    f"{write.hard_state} takes the place of {self.hard_state}",
                )
                self.hard_state = write.hard_state
            if write.base is not None:
                self.base_index, self.base_term = write.base
                self.entries.clear()
            if write.entries:
                keep = write.entries[0].index - 1 - self.base_index
                check(0 <= keep <= len(self.entries), "the log has no gap")
                del self.entries[keep:]
                self.entries += write.entries

    def compacted(self, index: int) -> None:
        """A snapshot holds what these entries have done."""
        drop = index - self.base_index
        if 0 < drop <= len(self.entries):
            self.base_term = self.entries[drop - 1].term
            del self.entries[:drop]
            self.base_index = index

    def holds(self, entry: Entry) -> bool:
        position = entry.index - self.base_index - 1
        if position < 0:
            return True  # behind a snapshot, which was durable first
        return position < len(self.entries) and self.entries[position] == entry

    def recovered(self, log: Wal) -> None:
        """What a restart has found: all that was durable, or what was to take its place."""
        found, was = log.hard_state, self.hard_state
        check(_may_follow(was, found), f"the disk has lost {was}, and has {found}")
        intact = self._intact_until()
        for entry in self.entries:
            if log.base_index < entry.index <= intact:
                position = entry.index - log.base_index - 1
                there = position < len(log.entries) and log.entries[position] == entry
                check(
                    there, f"entry {entry.index} of term {entry.term} was durable and is lost"
                )
        self.hard_state = log.hard_state
        self.base_index, self.base_term = log.base_index, log.base_term
        self.entries = list(log.entries)
        self.pending.clear()

    def _intact_until(self) -> int:
        """No write on its way cuts off anything up to here."""
        last = self.base_index + len(self.entries)
        for write in self.pending:
            if write.base is not None:
                return 0
            if write.entries:
                last = min(last, write.entries[0].index - 1)
        return last


def _may_follow(before: HardState, after: HardState) -> bool:
    """A term never goes back, and has one vote."""
    if after.term == before.term:
        return before.voted_for in (0, after.voted_for)
    return after.term > before.term


@implementer(ILogStorage)
class WatchedLog:
    """The log that ships, and beside it what it has said."""

    def __init__(self, log: Wal, durable: Durable, disk: HostDisk) -> None:
        self._log = log
        self._durable = durable
        self._disk = disk
        self.hard_state = log.hard_state
        self.base_index, self.base_term = log.base_index, log.base_term
        self.entries: Sequence[Entry] = log.entries
        self.commit_index = log.commit_index

    def start(
        self,
        persisted: Callable[[int], None],
        failed: Callable[[Fatal], None],
        space: Callable[[bool], None] | None = None,
    ) -> None:
        def noted(number: int) -> None:
            check(self._disk.failed_at is None, "nothing is durable after a failed flush")
            self._disk.check_flushed()
            self._durable.persisted(number)
            persisted(number)

        self.entries = ()
        self._log.start(noted, failed, space)

    def write(
        self,
        number: int,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        base: tuple[int, int] | None = None,
        commit_index: int = 0,
    ) -> None:
        self._durable.write(Write(number, hard_state, entries, base))
        self._log.write(number, hard_state, entries, base, commit_index)

    def look_for_space(self) -> None:
        self._log.look_for_space()

    def compact(self, base_index: int) -> None:
        self._durable.compacted(base_index)
        self._log.compact(base_index)

    def close(self) -> Any:
        return self._log.close()
