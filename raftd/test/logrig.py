"""What the tests of the storage share: a reactor and threads that run when they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IReactorFromThreads
from zope.interface import implementer

from raftd.core.messages import Entry, EntryKind, HardState
from raftd.errors import Fatal
from raftd.storage.files import Files
from raftd.storage.wal import Wal
from raftd.storage.workers import Job
from raftd.test.simdisk import SimulatedDisk

MEMBER = 0x1122334455667788
SALT = bytes(range(1, 9))
PATH = "/data/log"

#: Header and seven sectors for frames.
SMALL_SEGMENT = 4096


@implementer(IReactorFromThreads)
class ManualReactor:
    """Keeps what threads ask for until `run`."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], Any]] = []

    def callFromThread(
        self, callable: Callable[..., Any], *args: object, **kwargs: object
    ) -> None:
        self._calls.append(lambda: callable(*args, **kwargs))

    def run(self) -> None:
        while self._calls:
            self._calls.pop(0)()


class ManualWorker:
    """A thread that works when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.ended = False

    def do(self, job: Job) -> None:
        if not self.ended:
            self.jobs.append(job)

    def quit(self) -> None:
        self.ended = True

    def run(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()


def entry(index: int, term: int = 1, data: bytes = b"") -> Entry:
    return Entry(index, term, EntryKind.COMMAND, 1000 + index, data or b"entry %d" % index)


def entries(first: int, last: int, term: int = 1, size: int = 0) -> list[Entry]:
    return [entry(i, term, b"%d" % (i % 10) * size) for i in range(first, last + 1)]


class Rig:
    """A `Wal` on a simulated disk, and everything it said."""

    def __init__(self, disk: SimulatedDisk, wal: Wal, workers: dict[str, ManualWorker]) -> None:
        self.disk = disk
        self.wal = wal
        #: What was recovered: the log itself lets go of it when it is started.
        self.entries = list(wal.entries)
        self.workers = workers
        self.persisted: list[int] = []
        self.failures: list[Fatal] = []
        #: What was said about room on the disk, to one who asks.
        self.space: list[bool] = []
        self.number = 0

    def start(self, *, asks_for_space: bool = False) -> Rig:
        space = self.space.append if asks_for_space else None
        self.wal.start(self.persisted.append, self.failures.append, space)
        return self

    @property
    def reactor(self) -> ManualReactor:
        reactor = self.wal._reactor
        assert isinstance(reactor, ManualReactor)
        return reactor

    @property
    def acknowledged(self) -> int:
        return self.persisted[-1] if self.persisted else 0

    def write(
        self,
        hard_state: HardState | None,
        new: Sequence[Entry],
        base: tuple[int, int] | None = None,
        commit_index: int = 0,
    ) -> int:
        self.number += 1
        self.wal.write(self.number, hard_state, new, base, commit_index)
        return self.number

    def run_log(self) -> None:
        self.workers["raftd log"].run()
        self.reactor.run()

    def run_preparer(self) -> None:
        self.workers["raftd log segments"].run()

    def run(self) -> None:
        self.run_log()
        self.run_preparer()
        self.run_log()


def open_rig(disk: SimulatedDisk, segment_bytes: int = SMALL_SEGMENT) -> Rig:
    workers: dict[str, ManualWorker] = {}
    wal = Wal.open(
        PATH,
        MEMBER,
        reactor=ManualReactor(),
        segment_bytes=segment_bytes,
        files=disk,
        start_worker=lambda name: workers.setdefault(name, ManualWorker()),
    )
    return Rig(disk, wal, workers)


def create_rig(
    disk: SimulatedDisk | None = None,
    hard_state: HardState | None = None,
    first: Sequence[Entry] = (),
    segment_bytes: int = SMALL_SEGMENT,
    base: tuple[int, int] = (0, 0),
) -> Rig:
    if disk is None:
        disk = new_disk()
    workers: dict[str, ManualWorker] = {}
    wal = Wal.create(
        PATH,
        MEMBER,
        hard_state or HardState(),
        first,
        base=base,
        reactor=ManualReactor(),
        segment_bytes=segment_bytes,
        files=disk,
        start_worker=lambda name: workers.setdefault(name, ManualWorker()),
        random_source=lambda length: SALT[:length],
    )
    return Rig(disk, wal, workers)


def new_disk() -> SimulatedDisk:
    """A disk with the empty directory `/data`."""
    disk = SimulatedDisk()
    disk.make_directory("/data")
    disk.flush_directory("/")
    return disk


def recovered(disk: Files) -> tuple[HardState, list[Entry]]:
    """What opening the log finds; it is closed again."""
    hard_state, _, found = recovered_with_base(disk)
    return hard_state, found


def recovered_commit_index(disk: Files) -> int:
    """The commit index that opening the log finds."""
    wal = Wal.open(PATH, MEMBER, reactor=ManualReactor(), files=disk)
    wal.close()
    return wal.commit_index


def recovered_with_base(disk: Files) -> tuple[HardState, tuple[int, int], list[Entry]]:
    """What opening the log finds, with the (index, term) that it begins behind."""
    wal = Wal.open(PATH, MEMBER, reactor=ManualReactor(), files=disk)
    found = wal.hard_state, (wal.base_index, wal.base_term), list(wal.entries)
    wal.close()
    return found
