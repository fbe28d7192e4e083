"""What the tests of snapshots share: a state machine that is a dict, and a store to drive."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from zope.interface import implementer

from raftd.core.membership import Configuration
from raftd.core.messages import Command, Entry, Member
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import RaftdError
from raftd.interfaces import IRestore, IStateMachine
from raftd.storage.snapshots import SnapshotStore
from raftd.test.logrig import ManualWorker
from raftd.test.simdisk import SimulatedDisk

T = TypeVar("T")

DIRECTORY = "/data/snapshots"
CONFIGURATION = Configuration(voters=(Member(1, "localhost:4001"), Member(2, "höst:4002")))


def metadata(index: int, term: int = 1) -> SnapshotMetadata:
    return SnapshotMetadata(index, term, CONFIGURATION, 1000 + index)


def path_of(index: int, term: int = 1, suffix: str = "snapshot") -> str:
    return f"{DIRECTORY}/{index:020}-{term:020}.{suffix}"


@implementer(IStateMachine)
class DictMachine:
    """A dict of byte strings; a command is a key and a value."""

    def __init__(self, state: dict[bytes, bytes] | None = None) -> None:
        self.state = dict(state or {})
        #: How much was written in each step of restoring.
        self.steps: list[int] = []

    def apply(self, index: int, time_ms: int, command: Command) -> bytes:
        key, value = msgspec.msgpack.decode(command.operation)
        self.state[key] = value
        return b""

    def snapshot(self) -> Iterator[bytes]:
        for item in list(self.state.items()):
            yield msgspec.msgpack.encode(item)

    def restore(self) -> IRestore:
        return DictRestore(self)

    def digest(self) -> bytes:
        encoded = msgspec.msgpack.encode(sorted(self.state.items()))
        return hashlib.sha256(encoded).digest()


@implementer(IRestore)
class DictRestore:
    """Takes anything that is cut anyhow; the state must end where an item ends."""

    def __init__(self, machine: DictMachine) -> None:
        self._machine = machine
        self._data = bytearray()

    def write(self, data: bytes) -> None:
        self._machine.steps.append(len(data))
        if not self._data and data.startswith(b"\xc1"):
            raise ValueError("no state of a dict begins so")
        self._data += data

    def finish(self) -> None:
        state: dict[bytes, bytes] = {}
        rest = bytes(self._data)
        while rest:
            # Items are pairs of byte strings, each with its own length.
            item, rest = _first(rest)
            state[item[0]] = item[1]
        self._machine.state = state


def _first(data: bytes) -> tuple[tuple[bytes, bytes], bytes]:
    at = 1
    parts = []
    for _ in range(2):
        width = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(data[at])
        if width is None:
            raise ValueError("no item of a dict")
        length = int.from_bytes(data[at + 1 : at + 1 + width], "big")
        at += 1 + width + length
        parts.append(data[at - length : at])
    if at > len(data):
        raise ValueError("the last item is not whole")
    return (parts[0], parts[1]), data[at:]


class ManualClock(Clock):
    """A clock, and calls from threads that are made when they are run."""

    def __init__(self) -> None:
        super().__init__()
        self.from_threads: list[Callable[[], Any]] = []
        #: How much the clock goes on each time that somebody looks at it.
        self.tick_s = 0.0
        self.on_call_later: Callable[[], object] = lambda: None

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        self.on_call_later()
        return super().callLater(delay, callable, *args, **kw)

    def callFromThread(self, callable: Callable[..., object], *args: object) -> None:
        self.from_threads.append(lambda: callable(*args))

    def seconds(self) -> float:
        now = super().seconds()
        self.rightNow += self.tick_s
        return float(now)


class StoreRig:
    """A store on a simulated disk, whose thread and reactor run when they are told."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.disk = disk
        self.clock = ManualClock()
        self.worker = ManualWorker()
        self.store = SnapshotStore(
            DIRECTORY, self.clock, files=disk, start_worker=lambda name: self.worker
        )
        self.machine = DictMachine()

    def recover(
        self, log_base_index: int | None = None, log_entries: Sequence[Entry] = ()
    ) -> StoreRig:
        self.store.recover(self.machine, log_base_index, log_entries)
        return self

    def step(self) -> bool:
        """One job of the thread, or what it told the reactor; whether there was anything."""
        if self.clock.from_threads:
            self.clock.from_threads.pop(0)()
        elif self.worker.jobs:
            self.worker.jobs.pop(0)()
        elif self.clock.getDelayedCalls():
            self.clock.advance(0)
        else:
            return False
        return True

    def run(self) -> None:
        while self.step():
            pass

    def result(self, deferred: Deferred[T]) -> T:
        """What it fires with; its error is raised."""
        outcome: list[Any] = []
        deferred.addBoth(outcome.append)
        while not outcome:
            assert self.step(), "it will never fire"
        if hasattr(outcome[0], "raiseException"):
            outcome[0].raiseException()
        value: T = outcome[0]
        return value

    def error(self, deferred: Deferred[Any]) -> RaftdError:
        try:
            self.result(deferred)
        except RaftdError as e:
            return e
        raise AssertionError("it did not fail")

    def take(self, index: int, state: dict[bytes, bytes], term: int = 1) -> None:
        """Write a whole snapshot."""
        self.result(self.begin(index, state, term).finish())

    def begin(self, index: int, state: dict[bytes, bytes], term: int = 1) -> Any:
        writer = self.store.create(metadata(index, term))
        for data in DictMachine(state).snapshot():
            writer.write(data)
        return writer

    def names(self) -> list[str]:
        """The files that are there."""
        if not self.disk.exists(DIRECTORY):
            return []
        return self.disk.names(DIRECTORY)


def file_of(index: int, state: dict[bytes, bytes], term: int = 1) -> bytes:
    """A snapshot file as a node writes it."""
    rig = StoreRig(fresh_disk()).recover()
    rig.take(index, state, term)
    return rig.disk.contents()[path_of(index, term)]


def fresh_disk() -> SimulatedDisk:
    """A disk with the empty directory `/data`."""
    disk = SimulatedDisk()
    disk.make_directory("/data")
    disk.flush_directory("/")
    return disk


def found(disk: SimulatedDisk) -> tuple[int, dict[bytes, bytes]]:
    """What a start finds: the index of the newest snapshot, 0 if none, and the state."""
    rig = StoreRig(disk).recover()
    latest = rig.store.latest
    return (latest.last_included_index if latest else 0), rig.machine.state
