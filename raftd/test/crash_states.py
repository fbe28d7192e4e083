"""
Everything that a crash can leave of a data directory, and every flipped bit in it.

    python -m raftd.test.crash_states           # all of them: some minutes
    python -m raftd.test.crash_states 20        # of first bytes and of bits, one in twenty

A short life of a node's log and snapshots is recorded on a simulated disk
(`simdisk.py`): writes of one to five sectors, two truncations, snapshots taken
and received, compactions, a log that begins anew.  Ahead of each operation on
the disk it is asked what a crash would leave there, and each of these is
started from:

- after a power failure, any of the unflushed sectors and names: every
  combination of them, or so many chosen ones where there are too many;
- if the process alone died, any number of first bytes of the write under way;
- or these, and zeros instead of any of its last sectors; or a power failure
  after that.

At the end every bit of every file is flipped, one at a time, and every sector
is made zeros.

A state is `recovered` if what is found is the state after the last write that
was acknowledged, or after a later one (a snapshot that is damaged is passed
over where the log leads from the one before); `refused` if the start fails with a
sentence that names the damaged file (that of a flipped bit, always) and an
offset in it; and otherwise `silently lost`.
"""

from __future__ import annotations

import collections
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from twisted.logger import ILogObserver, LogEvent, globalLogBeginner
from zope.interface import provider

from raftd.core.log import Log
from raftd.core.messages import Entry, HardState
from raftd.errors import Fatal, RaftdError
from raftd.interfaces import Stage
from raftd.storage.directory import Identity, decode_identity, encode_identity
from raftd.storage.frames import SECTOR
from raftd.test.logrig import PATH, create_rig, entries, new_disk, open_rig
from raftd.test.simdisk import Operation, SimulatedDisk
from raftd.test.snapshotrig import DIRECTORY, StoreRig, file_of

IDENTITY_PATH: Final = "/data/identity.json"
IDENTITY: Final = Identity(Stage.MEMBER, "localhost:4001", 7, 9, log_created=True)

#: Combinations of what is unflushed up to which all are tried.
MAX_COMBINATIONS: Final = 256
#: Power failures that are tried after each number of first bytes of a write.
FAILURES_OF_A_PREFIX: Final = 2

#: What the state machine holds: each entry under its index.
State = dict[bytes, bytes]

RECOVERED, REFUSED, LOST = "recovered", "refused", "silently lost"


class Moment(NamedTuple):
    """What a start may find."""

    hard_state: HardState
    state: State


class Tally:
    """How many states of each kind had which outcome, and what was lost where."""

    def __init__(self) -> None:
        self.outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.lost: list[str] = []

    def add(self, kind: str, outcome: str, where: str) -> None:
        self.outcomes[kind, outcome] += 1
        if outcome == LOST:
            self.lost.append(f"{kind}: {where}")

    def line(self, *kinds: str) -> str:
        counts = [sum(self.outcomes[k, o] for k in kinds) for o in (RECOVERED, REFUSED, LOST)]
        recovered, refused, lost = counts
        return (
            f"states {sum(counts)}, recovered {recovered}, refused {refused}, "
            f"silently lost {lost}"
        )


#: What a crash alone can leave behind.
COMBINATIONS, PREFIXES, ZEROED = (
    "combinations of sectors and names",
    "first bytes",
    "zeroed tails",
)
CRASHES: Final = (COMBINATIONS, PREFIXES, ZEROED)
FLIPS, ZEROS = "flipped bits", "sectors of zeros"
#: Of what a start need not read: the rest of a segment, a snapshot that is not the last.
UNUSED = "flipped bits of what is not read"


class Life:
    """The recorded life; `visit` is called ahead of each operation on the disk."""

    def __init__(self, visit: Callable[[Life, Operation], None]) -> None:
        self.disk = disk = new_disk()
        disk.close(disk.create(IDENTITY_PATH))
        disk.inode(IDENTITY_PATH).write(encode_identity(IDENTITY), 0)
        disk.inode(IDENTITY_PATH).flush()
        disk.flush_directory("/data")
        first = entries(1, 1)
        self._terms = {1: 1}
        self.moments = [Moment(HardState(1, 0), _state_of(first))]
        #: Of these, the last one that a start must find, or a later one.
        self.acknowledged = -1
        disk.before = lambda operation: visit(self, operation)
        self._log = create_rig(disk, HardState(1, 0), first).start()
        self._log.run()
        self._snapshots = StoreRig(disk).recover()
        self.acknowledged = 0

    def go(self) -> Life:
        self._write(HardState(1, 7), entries(2, 3))
        self._write(None, entries(4, 8, size=400))
        self._write(HardState(2, 0), entries(6, 9, term=2, size=250))
        self._take_snapshot(6)
        self._write(None, [Entry(10, 2, 1, 2000, bytes(1500))])
        self._write(HardState(3, 9), entries(9, 13, term=3, size=300))
        self._take_snapshot(12)
        self._begin_anew(20)
        self._write(HardState(6, 9), entries(21, 24, term=6, size=500))
        self._take_snapshot(22)
        self._write(None, entries(25, 26, term=6, size=700))
        self.disk.before = lambda operation: None
        return self

    def _write(self, hard_state: HardState | None, new: Sequence[Entry]) -> None:
        before, state = self.moments[-1]
        state = {k: v for k, v in state.items() if int(k) < new[0].index}
        self._terms.update({entry.index: entry.term for entry in new})
        self.moments.append(Moment(hard_state or before, {**state, **_state_of(new)}))
        self._log.write(hard_state, new)
        self._written()

    def _written(self) -> None:
        self._log.run_log()
        assert self._log.acknowledged == self._log.number, self._log.failures
        self.acknowledged = len(self.moments) - 1
        self._log.run()

    def _take_snapshot(self, index: int) -> None:
        state = {k: v for k, v in self.moments[-1].state.items() if int(k) <= index}
        self._snapshots.take(index, state, self._terms[index])
        self._log.wal.compact(index - 1)
        self._log.run()
        self._snapshots.run()

    def _begin_anew(self, index: int) -> None:
        """A snapshot of the leader, beyond the end of the log, takes its place."""
        state = {b"%d" % i: b"of the leader" for i in range(1, index + 1)}
        hard_state = self.moments[-1].hard_state
        self.moments.append(Moment(hard_state, state))
        data = file_of(index, state, 5)
        receiver = self._snapshots.store.receive(index, 5)
        self._snapshots.result(receiver.write(0, data[: len(data) // 2]))
        self._snapshots.result(receiver.write(len(data) // 2, data[len(data) // 2 :]))
        self._snapshots.result(receiver.finish())
        self.moments.append(Moment(HardState(5, 0), state))
        self._log.write(HardState(5, 0), [], (index, 5))
        self._written()
        self._snapshots.run()

    def outcome(self, disk: SimulatedDisk, damaged: str = "") -> str:
        """What comes of a start from what is on `disk`, where this file was damaged."""
        if self.acknowledged < 0 and not disk.exists(PATH):
            return RECOVERED
        try:
            found = _started(disk)
        except Fatal as e:
            return REFUSED if f"{damaged} is damaged at offset " in str(e) else LOST
        must = self.moments[max(0, self.acknowledged) :]
        return RECOVERED if found in must else LOST


def _state_of(new: Sequence[Entry]) -> State:
    return {b"%d" % entry.index: entry.data for entry in new}


def _started(disk: SimulatedDisk) -> Moment:
    """What a node finds: its identity, and log and snapshot together, as its core fits them."""
    identity = disk.open(IDENTITY_PATH)
    data = disk.read(identity, disk.size(identity), 0)
    disk.close(identity)
    assert decode_identity(data, IDENTITY_PATH) == IDENTITY
    wal = open_rig(disk).wal
    try:
        start = StoreRig(disk).recover(wal.base_index, wal.entries)
        log = Log(wal.entries, wal.base_index, wal.base_term)
        latest = start.store.latest
        if latest is not None:
            log.fit(latest, wal.commit_index)
        at = latest.last_included_index if latest else 0
        return Moment(
            wal.hard_state,
            {**start.machine.state, **_state_of(log.entries(at + 1, log.last_index))},
        )
    finally:
        wal.close()


# -- crashes ---------------------------------------------------------------------


class Crashes:
    """Every state that a crash can leave; of the first bytes of writes, one in `step`."""

    def __init__(self, tally: Tally, step: int) -> None:
        self._tally = tally
        self._step = step
        self._count = 0
        self._choice = random.Random(1)
        #: Ahead of how many operations there were too many combinations to try all.
        self.sampled = 0
        self.operations = 0

    def visit(self, life: Life, operation: Operation) -> None:
        self.operations += 1
        units = life.disk._units()
        self.sampled += 2 ** len(units) > MAX_COMBINATIONS
        for disk in life.disk.power_failures(self._choice, MAX_COMBINATIONS):
            self._settle(life, operation, COMBINATIONS, disk)
        self._settle(life, operation, PREFIXES, life.disk.killed())
        if operation.name == "write":
            self._cut(life, operation)

    def _cut(self, life: Life, operation: Operation) -> None:
        """The write under way ends anywhere; or its last sectors are zeros."""
        data, offset = operation.data, operation.offset
        for length in range(1, len(data) + 1):
            if not self._is_chosen():
                continue
            killed = life.disk.killed()
            killed.inode(operation.path).write(data[:length], offset)
            failures = list(killed.power_failures(self._choice, FAILURES_OF_A_PREFIX))
            self._settle(life, operation, PREFIXES, killed)
            for disk in failures:
                self._settle(life, operation, PREFIXES, disk)
        for tail in range(0, len(data), SECTOR):
            durable = life.disk.inode(operation.path).durable
            if any(durable[offset + tail : offset + len(data)]):
                continue  # written a second time: the same bytes are there already
            killed = life.disk.killed()
            killed.inode(operation.path).write(data[:tail] + bytes(len(data) - tail), offset)
            self._settle(life, operation, ZEROED, killed)

    def _is_chosen(self) -> bool:
        self._count += 1
        return self._count % self._step == 0

    def _settle(self, life: Life, operation: Operation, kind: str, disk: SimulatedDisk) -> None:
        outcome = life.outcome(disk)
        # A start must not refuse what a crash has left.
        if outcome == REFUSED:
            self._tally.lost.append(f"{kind}: refused ahead of {operation[:2]}")
        self._tally.add(kind, outcome, f"ahead of {operation.name} of {operation.path}")


# -- damage ----------------------------------------------------------------------


def damages(life: Life) -> Iterator[tuple[str, str, int, bytes]]:
    """(kind, path, offset, what is there instead) for all bits and sectors of all files."""
    contents = life.disk.contents()
    newest = max(path for path in contents if path.startswith(DIRECTORY))
    for path, data in sorted(contents.items()):
        is_read = path == newest or not path.startswith(DIRECTORY)
        used = len(data.rstrip(b"\0")) if is_read else 0
        for offset, byte in enumerate(data):
            for bit in range(8):
                kind = FLIPS if offset < used else UNUSED
                yield kind, path, offset, bytes([byte ^ 1 << bit])
        for offset in range(0, len(data), SECTOR):
            if any(data[offset : offset + SECTOR]):
                yield ZEROS, path, offset, bytes(len(data[offset : offset + SECTOR]))


def damage(life: Life, tally: Tally, step: int) -> None:
    for number, (kind, path, offset, instead) in enumerate(damages(life)):
        if kind != ZEROS and number % step:
            continue
        disk = life.disk.killed()
        disk.inode(path).cache[offset : offset + len(instead)] = instead
        where = f"{path}, offset {offset}"
        try:
            # A segment that lacks a sector may be noticed by the next one.
            outcome = life.outcome(disk, "" if kind == ZEROS else path)
        except RaftdError as e:
            outcome, where = LOST, f"{where}: {e}"
        tally.add(kind, outcome, where)


def run(step: int = 1) -> tuple[Tally, Crashes]:
    """Record the life, and try all states; of first bytes and of bits, one in `step`."""
    tally = Tally()
    crashes = Crashes(tally, step)
    life = Life(crashes.visit).go()
    damage(life, tally, step)
    return tally, crashes


@provider(ILogObserver)
def _say_nothing(event: LogEvent) -> None:
    """Takes the place of a log."""


def main(arguments: list[str]) -> int:
    # What a node says of a damaged snapshot would be said some thousand times.
    globalLogBeginner.beginLoggingTo([_say_nothing], redirectStandardIO=False)
    began = time.monotonic()
    tally, crashes = run(int(arguments[0]) if arguments else 1)
    print(
        f"{crashes.operations} operations; ahead of {crashes.sampled} of them there were more "
        f"than {MAX_COMBINATIONS} combinations, of which so many were tried"
    )
    for kind in (*CRASHES, FLIPS, UNUSED, ZEROS):
        print(f"  {kind}: {tally.line(kind)}")
    for where in tally.lost:
        print(f"  not as it should be: {where}")
    print(f"{time.monotonic() - began:.0f} s")
    print(f"crashes: {tally.line(*CRASHES)}")
    print(f"flipped bits: {tally.line(FLIPS, UNUSED)}")
    return int(any(tally.outcomes[kind, LOST] for kind in (*CRASHES, FLIPS, UNUSED)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
