"""
Snapshots and crashes: whatever a crash leaves, and at every step, a start finds
the last snapshot that was finished, or the one before it was; and damage is
refused.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from raftd.core.log import Log
from raftd.core.messages import Entry, HardState
from raftd.errors import (
    DirectoryDamaged,
    InvariantViolated,
    RaftdError,
    SnapshotDamaged,
    StorageFailed,
)
from raftd.test.logrig import create_rig, entries, entry, open_rig
from raftd.test.simdisk import Operation, SimulatedDisk, fail_on
from raftd.test.snapshotrig import (
    DIRECTORY,
    DictMachine,
    StoreRig,
    file_of,
    found,
    fresh_disk,
    metadata,
    path_of,
)

State = dict[bytes, bytes]

FIRST = {b"first": b"1" * 700}
SECOND = {b"second": b"2" * 900}
THIRD = {b"third": b"3"}
FOURTH = {b"fourth": b"4" * 600}
STATES = {0: {}, 10: FIRST, 20: SECOND, 30: THIRD, 40: FOURTH}


class Life:
    """
    Four snapshots: one written, one received, one half received and given up,
    one written while the oldest is read, one aborted.
    """

    def __init__(self, disk: SimulatedDisk) -> None:
        self.rig = StoreRig(disk)
        #: The newest snapshot of which it was said that it is finished.
        self.finished = 0

    def go(self) -> None:
        rig = self.rig.recover()
        self.took(10)
        receiver = rig.store.receive(20, 1)
        data = file_of(20, SECOND)
        rig.result(receiver.write(0, data[:600]))
        rig.result(receiver.write(600, data[600:]))
        rig.result(receiver.finish())
        self.finished = 20
        reader = rig.store.open()
        rig.result(rig.store.receive(25, 1).write(0, b"something"))
        rig.result(rig.store.receive(26, 1).write(0, b"something else"))
        self.took(30)
        rig.result(reader.read(0, 100))
        self.took(40)
        reader.close()
        aborted = rig.begin(50, FIRST)
        rig.run()
        aborted.abort()
        rig.run()

    def took(self, index: int) -> None:
        self.rig.take(index, STATES[index])
        self.finished = index


class CrashTests(SynchronousTestCase):
    def judged(self, check: Callable[[Life, Operation], None]) -> Life:
        life = Life(fresh_disk())
        life.rig.disk.before = lambda operation: check(life, operation)
        life.go()
        return life

    def check(self, disk: SimulatedDisk, finished: int) -> None:
        """What was finished is there, or a later one, which was about to be."""
        index, state = found(disk)
        self.assertGreaterEqual(index, finished)
        self.assertEqual(state, STATES[index])
        names = disk.names(DIRECTORY) if disk.exists(DIRECTORY) else []
        self.assertEqual([n for n in names if not n.endswith(".snapshot")], [])
        self.assertLessEqual(len(names), 2)
        self.assertEqual(disk.open_count, 0)
        # What a start has found lasts, whatever the power does then.
        self.assertEqual(found(disk.power_failure()), (index, state))

    def test_43_49_50_power_fails_at_every_step(self) -> None:
        choice = random.Random(1)
        count, seen = 0, set()

        def check(life: Life, operation: Operation) -> None:
            nonlocal count
            for disk in life.rig.disk.power_failures(choice, limit=64):
                self.check(disk, life.finished)
                count += 1
            seen.add(operation.name)

        life = self.judged(check)
        check(life, Operation("", ""))
        self.assertGreater(count, 150)
        steps = {"make_directory", "create", "write", "flush", "rename", "remove"}
        self.assertLessEqual(steps, seen)

    def test_43_49_killed_at_every_step(self) -> None:
        """Also within a write; then the power fails as well."""
        choice = random.Random(2)

        def check(life: Life, operation: Operation) -> None:
            lengths = {0}
            if operation.name == "write":
                lengths |= {choice.randrange(len(operation.data)) for _ in range(5)}
            for length in lengths:
                killed = life.rig.disk.killed()
                if length:
                    inode = killed.inode(operation.path)
                    inode.write(operation.data[:length], operation.offset)
                for disk in killed.power_failures(choice, limit=4):
                    self.check(disk, life.finished)
                self.check(killed, life.finished)

        self.judged(check)

    def test_49_crash_while_it_starts(self) -> None:
        """With leftovers to remove, and a third snapshot that a crash kept from going."""
        choice = random.Random(3)
        rig = StoreRig(fresh_disk()).recover()
        for index in (10, 20):
            rig.take(index, STATES[index])
        rig.disk.before = fail_on("remove")
        rig.take(30, THIRD)
        rig.begin(40, FOURTH)
        rig.result(rig.store.receive(50, 1).write(0, b"something"))
        rig.run()
        disk = rig.disk.killed()
        self.assertEqual(len(rig.names()), 5)
        count = 0

        def check(operation: Operation) -> None:
            nonlocal count
            for left in disk.power_failures(choice):
                self.check(left, 30)
                count += 1

        disk.before = check
        self.check(disk, 30)
        self.assertGreater(count, 6)

    def test_47_48_each_operation_fails_once(self) -> None:
        """A full or broken disk costs that snapshot, and never one that was finished."""
        total = Life(fresh_disk())
        total.go()
        choice = random.Random(4)
        outcomes = {"said so": 0, "went on": 0}
        for broken in range(1, total.rig.disk.operations + 1):
            life = Life(fresh_disk())
            calls = 0

            def fail(operation: Operation) -> None:
                nonlocal calls
                calls += 1
                if calls == broken + 2:  # noqa: B023
                    raise OSError(errno.ENOSPC, "No space left on device")

            calls = 2
            life.rig.disk.before = fail
            try:
                life.go()
            except StorageFailed as e:
                self.assertIn("No space left on device", str(e))
                outcomes["said so"] += 1
            else:
                outcomes["went on"] += 1
            life.rig.disk.before = lambda operation: None
            for disk in (life.rig.disk.killed(), *life.rig.disk.power_failures(choice, 8)):
                self.check(disk, life.finished)
        self.assertGreater(min(outcomes.values()), 2, outcomes)


class FailureTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = StoreRig(fresh_disk()).recover()
        self.rig.take(10, FIRST)

    def fail(self, *names: str) -> None:  # type: ignore[override]
        self.rig.disk.before = fail_on(*names)

    def refused(self, waited: Any) -> str:
        error = self.rig.error(waited)
        self.assertIsInstance(error, StorageFailed)
        return str(error)

    def test_48_writing(self) -> None:
        """It is not there; the next one is, when there is room."""
        for name in ("create", "write", "flush", "rename"):
            self.fail(name)
            writer = self.rig.begin(20, SECOND)
            self.rig.run()
            self.assertEqual(writer.pending_bytes, 0)
            self.assertIn("0020-00000000000000000001.tmp could", self.refused(writer.finish()))
            self.assertEqual(self.rig.store.latest, metadata(10))
            self.assertEqual(self.rig.names(), [os.path.basename(path_of(10))])
            self.assertEqual(self.rig.disk.open_count, 0)
        self.rig.disk.before = lambda operation: None
        self.rig.take(20, SECOND)
        self.assertEqual(found(self.rig.disk.power_failure()), (20, SECOND))

    def test_48_receiving(self) -> None:
        data = file_of(20, SECOND)
        for name in ("create", "write"):
            self.fail(name)
            receiver = self.rig.store.receive(20, 1)
            self.assertIn(".part could not be", self.refused(receiver.write(0, data)))
        for name in ("flush", "rename"):
            self.fail(name)
            receiver = self.rig.store.receive(20, 1)
            self.rig.result(receiver.write(0, data))
            self.assertIn(".part could not be", self.refused(receiver.finish()))
            self.assertEqual(self.rig.names(), [os.path.basename(path_of(10))])
        self.rig.disk.before = lambda operation: None
        receiver = self.rig.store.receive(20, 1)
        self.rig.result(receiver.write(0, data))
        self.rig.result(receiver.finish())
        self.assertEqual(found(self.rig.disk.power_failure()), (20, SECOND))

    def test_47_a_directory_that_could_not_be_flushed(self) -> None:
        """Then no name can be trusted to last, and a later flush proves nothing."""
        self.fail("flush_directory")
        text = self.refused(self.rig.begin(20, SECOND).finish())
        self.assertIn(f"The directory {DIRECTORY} could not be flushed", text)
        self.rig.disk.before = lambda operation: None
        for index in (20, 30):
            self.assertEqual(self.refused(self.rig.begin(index, THIRD).finish()), text)
        self.assertEqual(self.rig.store.latest, metadata(10))
        self.assertIn(found(self.rig.disk.killed()), ((10, FIRST), (20, SECOND)))
        self.assertEqual(found(self.rig.disk.power_failure()), (10, FIRST))

    def test_one_that_cannot_be_removed(self) -> None:
        """It takes room until the next start."""
        self.rig.take(20, SECOND)
        self.fail("remove")
        self.rig.take(30, THIRD)
        self.rig.run()
        self.assertEqual(len(self.rig.names()), 3)
        self.rig.disk.before = lambda operation: None
        self.assertEqual(found(self.rig.disk), (30, THIRD))
        self.assertEqual(len(self.rig.names()), 2)

    def test_unreadable(self) -> None:
        """An error of the disk while it is read is told as what it is."""
        reader = self.rig.store.open()

        def fail(fd: int, length: int, offset: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        self.patch(self.rig.disk, "read", fail)
        restored = reader.restore(self.rig.machine)
        self.assertIn(f"{path_of(10)} could not be read", self.refused(restored))
        # It is as good as damaged: the state is in memory as well, to be written again.
        error = self.rig.error(reader.read(0, 10))
        self.assertIsInstance(error, SnapshotDamaged)
        self.assertIn(f"{path_of(10)} could not be read", str(error))
        self.assertTrue(self.rig.store.is_damaged)
        with self.assertRaises(StorageFailed) as caught:
            found(self.rig.disk)
        self.assertIn(f"{path_of(10)} could not be read", str(caught.exception))


class DamageTests(SynchronousTestCase):
    """A node is started on a snapshot that is not what was written."""

    def setUp(self) -> None:
        rig = StoreRig(fresh_disk()).recover()
        for index in (10, 20):
            rig.take(index, STATES[index])
        self.disk = rig.disk

    def started(
        self,
        disk: SimulatedDisk,
        log_base_index: int | None = None,
        log_entries: Sequence[Entry] = (),
    ) -> StoreRig:
        return StoreRig(disk).recover(log_base_index, log_entries)

    def refused(
        self,
        disk: SimulatedDisk,
        log_base_index: int | None = None,
        log_entries: Sequence[Entry] = (),
    ) -> str:
        before = disk.contents()
        with self.assertRaises(DirectoryDamaged) as caught:
            self.started(disk, log_base_index, log_entries)
        self.assertEqual(disk.contents(), before)
        self.assertEqual(disk.open_count, 0)
        return str(caught.exception)

    def test_46_flipped_bits(self) -> None:
        """Each of them: named by file and offset, and never passed over silently."""
        size = len(self.disk.contents()[path_of(20)])
        for position in range(size * 8):
            disk = self.disk.killed()
            disk.inode(path_of(20)).cache[position // 8] ^= 1 << position % 8
            self.assertRegex(
                self.refused(disk), rf"^{path_of(20)} is damaged at offset \d+: .*Look at"
            )

    def test_46_51_other_damage(self) -> None:
        """Each kind with its sentence; a log that begins at 11 needs this very file."""
        small, large = self.disk.contents()[path_of(10)], self.disk.contents()[path_of(20)]
        for data, reason in (
            (b"", "offset 0: the file ends too early"),
            (large[:100], "offset 61: the file ends too early"),
            (large + b"\0", f"offset {len(large)}: data follows the end"),
            (small, "offset 0: it ends with entry 10 of term 1, not with entry 20"),
            (b"x" * 500, "offset 0: it is not a snapshot of raftd"),
        ):
            disk = self.disk.killed()
            disk.inode(path_of(20)).cache[:] = data
            self.assertIn(f"{path_of(20)} is damaged at {reason}", self.refused(disk, 11))
            self.assertIn(f"{path_of(20)} is damaged at {reason}", self.refused(disk))

    def damage(self, index: int) -> None:
        self.disk.inode(path_of(index)).write(b"?", 90)

    def test_51_the_one_before_if_the_log_reaches_back(self) -> None:
        """The damaged one is set aside, and never taken for a snapshot again."""
        self.damage(20)
        rig = self.started(self.disk, 10, entries(11, 20))
        self.assertEqual((rig.store.latest, rig.machine.state), (metadata(10), FIRST))
        aside = os.path.basename(path_of(20, suffix="damaged"))
        self.assertIn(aside, rig.names())
        self.assertEqual(found(self.disk.power_failure()), (10, FIRST))
        rig.take(20, SECOND)
        rig.take(30, THIRD)
        rig.run()
        self.assertIn(aside, rig.names())
        self.assertEqual(found(self.disk.power_failure()), (30, THIRD))

    def test_51_none_if_the_log_begins_at_the_beginning(self) -> None:
        self.damage(10)
        self.damage(20)
        self.refused(self.disk.killed(), 1, entries(2, 30))
        rig = self.started(self.disk, 0, entries(1, 30))
        self.assertEqual((rig.store.latest, rig.machine.state), (None, {}))
        self.assertEqual(found(self.disk.power_failure()), (0, {}))

    def test_41_51_not_if_the_log_does_not_lead_to_the_damaged_one(self) -> None:
        """
        It came from the leader, and this log never had what it held.

        The leader may count on all of it: to go on from the one before would
        take back what was acknowledged.
        """
        self.damage(20)
        elsewhere = [*entries(11, 19), *entries(20, 30, term=2)]
        for base, log in (
            (0, ()),
            (0, entries(1, 10)),
            (0, entries(1, 19)),
            (10, ()),
            (10, entries(11, 19)),
            (10, elsewhere),
        ):
            sentence = self.refused(self.disk.killed(), base, log)
            self.assertTrue(sentence.startswith(f"{path_of(20)} is damaged at offset "))
            self.assertIn("the log does not lead to its last entry, 20 of term 1", sentence)
            self.assertIn("remove this member from the cluster, empty the directory", sentence)
        # Each of those that are passed over.
        self.damage(10)
        for log in ((), entries(1, 9), entries(1, 19), elsewhere):
            self.refused(self.disk.killed(), 0, log)
        self.assertEqual(self.started(self.disk, 0, entries(1, 20)).store.latest, None)

    def test_look_changes_nothing(self) -> None:
        """It finds what a start would find, with the same errors."""
        self.damage(20)
        self.disk.close(self.disk.create(path_of(30, suffix="part")))
        before, operations = self.disk.contents(), self.disk.operations
        store = StoreRig(self.disk).store
        machine = DictMachine()
        self.assertEqual(store.look(machine, 10, entries(11, 20)), metadata(10))
        self.assertEqual((machine.state, store.latest), (FIRST, None))
        self.assertRaises(DirectoryDamaged, store.look, machine, 10, entries(11, 19))
        self.assertRaises(DirectoryDamaged, store.look, machine, 21, ())
        self.assertEqual(self.disk.contents(), before)
        self.assertEqual((self.disk.operations, self.disk.open_count), (operations, 0))
        store.recover(machine, 10, entries(11, 20))
        self.assertEqual(store.latest, metadata(10))

    def test_the_one_before_is_not_read_without_need(self) -> None:
        self.damage(10)
        self.assertEqual(found(self.disk), (20, SECOND))

    def test_version_of_the_future(self) -> None:
        """Not called damaged, and never passed over, even if the log would allow it."""
        from raftd.storage import snapshot_format

        self.patch(snapshot_format, "FORMAT_VERSION", 2)
        data = file_of(20, SECOND)
        self.patch(snapshot_format, "FORMAT_VERSION", 1)
        self.disk.inode(path_of(20)).cache[:] = data
        for base in (None, 0):
            sentence = self.refused(self.disk, base, entries(1, 30))
            self.assertTrue(
                sentence.startswith(f"{path_of(20)} cannot be read: it has snapshot format ver")
            )
            self.assertIn("Start the version of raftd that wrote it", sentence)

    def test_files_of_others_are_left_alone(self) -> None:
        for name in ("notes.txt", "1-1.snapshot", "1-1.tmp"):
            self.disk.close(self.disk.create(f"{DIRECTORY}/{name}"))
        rig = self.started(self.disk)
        rig.take(30, THIRD)
        rig.run()
        self.assertLessEqual({"notes.txt", "1-1.snapshot", "1-1.tmp"}, set(rig.names()))

    def test_all_errors_are_ours(self) -> None:
        """Random bytes anywhere end in a sentence, never in a traceback."""
        choice = random.Random(7)
        refused = 0
        for _ in range(300):
            disk = self.disk.killed()
            cache = disk.inode(path_of(20)).cache
            at = choice.randrange(len(cache))
            cache[at : at + choice.randrange(100)] = choice.randbytes(choice.randrange(100))
            try:
                self.assertEqual(found(disk), (20, SECOND))
            except RaftdError as e:
                refused += 1
                self.assertIsInstance(e, DirectoryDamaged)
        self.assertGreater(refused, 250)


class LogTests(SynchronousTestCase):
    """Snapshots and the log of the same directory."""

    def test_41_a_gap_between_snapshot_and_log(self) -> None:
        """The person is told which entries are missing where, and what to do."""
        for snapshot, base in ((0, 5), (10, 11), (10, 200)):
            rig = StoreRig(fresh_disk()).recover()
            if snapshot:
                rig.take(snapshot, FIRST)
            with self.assertRaises(DirectoryDamaged) as caught:
                StoreRig(rig.disk).recover(base)
            sentence = str(caught.exception)
            self.assertIn(f"The log begins with entry {base + 1}, which needs", sentence)
            self.assertIn(DIRECTORY, sentence)
            held = f"the newest snapshot ends with entry {snapshot}"
            self.assertIn(held if snapshot else "there is none", sentence)
            self.assertIn("join again as a new member", sentence)

    def test_41_no_gap(self) -> None:
        for base in (0, 3, 10):
            rig = StoreRig(fresh_disk()).recover()
            rig.take(10, FIRST)
            again = StoreRig(rig.disk).recover(base)
            self.assertEqual(again.machine.state, FIRST)

    def test_41_44_compaction_and_snapshots_under_power_failures(self) -> None:
        """
        Entries are applied, snapshots taken and received, and the log compacted
        behind them: after a crash at any step, snapshot and log still make
        every state that was acknowledged.
        """
        choice = random.Random(5)
        disk = fresh_disk()
        log = create_rig(disk).start()
        log.run()
        snapshots = StoreRig(disk).recover()
        durable, count = 0, 0
        live: State = {}

        def judge(operation: Operation) -> None:
            nonlocal count
            for left in disk.power_failures(choice, limit=12):
                again = open_rig(left)
                start = StoreRig(left).recover(again.wal.base_index, again.wal.entries)
                core = Log(again.wal.entries, again.wal.base_index, again.wal.base_term)
                if start.store.latest is not None:
                    core.fit(start.store.latest)
                restored = start.store.latest
                at = restored.last_included_index if restored else 0
                self.assertGreaterEqual(core.last_index, durable)
                state = start.machine.state
                for e in core.entries(at + 1, max(at, durable)):
                    state[b"%d" % e.index] = e.data
                if at <= durable:
                    self.assertEqual(
                        state, {k: v for k, v in live.items() if int(k) <= durable}
                    )
                count += 1

        disk.before = judge
        for i in range(1, 31):
            new = entry(i, 1, b"%d" % i * 300)
            log.write(HardState(1, 1) if i == 1 else None, [new])
            log.run()
            live[b"%d" % i] = new.data
            durable = i
            if i % 5 == 0:
                snapshots.take(i, live)
                log.wal.compact(i - 2)
                log.run()
                snapshots.run()
        # What the judge found on a thread stops the log.
        self.assertEqual(log.failures, [])
        self.assertGreater(count, 300)
        self.assertGreater(open_rig(disk.killed()).wal.base_index, 10)

    def test_41_44_installed_and_the_log_not_yet_begun_anew(self) -> None:
        """The crash comes between the snapshot and the log: the log is fitted to it."""
        disk = fresh_disk()
        log = create_rig(disk, HardState(1, 1), entries(1, 5)).start()
        log.run()
        snapshots = StoreRig(disk).recover()
        receiver = snapshots.store.receive(40, 3)
        snapshots.result(receiver.write(0, file_of(40, FOURTH, 3)))
        snapshots.result(receiver.finish())
        left = disk.power_failure()
        again = open_rig(left).start()
        start = StoreRig(left).recover(again.wal.base_index, again.entries)
        assert start.store.latest is not None
        core = Log(again.entries, again.wal.base_index, again.wal.base_term)
        core.fit(start.store.latest)
        self.assertEqual(core.base_to_write(), (40, 3))
        again.write(HardState(3, 0), entries(41, 42, term=3), core.base_to_write())
        again.run()
        left = left.power_failure()
        self.assertEqual(open_rig(left).wal.base_index, 40)
        # Now the log needs that snapshot.
        left.inode(path_of(40, 3)).cache[70] ^= 1
        with self.assertRaises(DirectoryDamaged):
            StoreRig(left).recover(40)

    def test_41_51_damaged_at_each_step_of_an_installation(self) -> None:
        """
        A snapshot is received, and the log begins anew behind it; a crash may
        come anywhere, and damages the snapshot if it is there.

        Then the node starts only with all that it had before, and only while
        nobody was told of the snapshot; or it refuses and says why.
        """
        disk = fresh_disk()
        log = create_rig(disk, HardState(1, 1), entries(1, 15)).start()
        log.run()
        snapshots = StoreRig(disk).recover()
        snapshots.take(10, FIRST)
        outcomes: set[tuple[bool, int]] = set()

        def judge(operation: Operation) -> None:
            for left in disk.power_failures(random.Random(3), limit=16):
                arrived = left.exists(path_of(40, 3))
                if arrived:
                    left.inode(path_of(40, 3)).cache[70] ^= 1
                again = open_rig(left)
                try:
                    start = StoreRig(left).recover(again.wal.base_index, again.entries)
                except DirectoryDamaged as e:
                    self.assertIn(path_of(40, 3), str(e))
                    self.assertIn("join again as a new member", str(e))
                    outcomes.add((arrived, -1))
                else:
                    self.assertEqual(start.machine.state, FIRST)
                    self.assertEqual(len(again.entries), 15)
                    outcomes.add((arrived, 10))

        disk.before = judge
        receiver = snapshots.store.receive(40, 3)
        snapshots.result(receiver.write(0, file_of(40, FOURTH, 3)))
        snapshots.result(receiver.finish())
        log.write(HardState(3, 0), entries(41, 42, term=3), (40, 3))
        log.run()
        log.wal.compact(40)
        log.run()
        judge(Operation("end", ""))
        disk.before = lambda operation: None
        self.assertEqual(log.failures, [])
        self.assertEqual(outcomes, {(False, 10), (True, -1)})

    def test_the_core_refuses_a_gap_too(self) -> None:
        core = Log(entries(6, 8), 5, 1)
        self.assertRaises(InvariantViolated, core.fit, metadata(4))

    def test_several_nodes_share_a_process(self) -> None:
        """Stores know only their own directory."""
        one, two = StoreRig(fresh_disk()).recover(), StoreRig(fresh_disk()).recover()
        one.take(10, FIRST)
        two.take(20, SECOND)
        self.assertEqual((found(one.disk), found(two.disk)), ((10, FIRST), (20, SECOND)))
        self.assertEqual(DictMachine(FIRST).digest(), DictMachine(dict(FIRST)).digest())
