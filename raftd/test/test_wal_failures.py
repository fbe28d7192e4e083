"""The write-ahead log when a segment, a write or a flush fails, and when it is closed."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import HardState
from raftd.errors import InvariantViolated, StorageFailed
from raftd.test.logrig import (
    create_rig,
    entries,
    entry,
    open_rig,
    recovered,
)
from raftd.test.simdisk import Operation


def warnings(events: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]


class PreparationTests(SynchronousTestCase):
    """The next segment is made off the hot path."""

    def setUp(self) -> None:
        self.rig = create_rig().start()
        self.operations: list[Operation] = []

    def fill(self) -> None:
        """Three writes that take a segment each second time or so."""
        for _ in range(3):
            number = self.rig.number + 1
            self.rig.write(None, [entry(number, data=b"x" * 1100)])
            self.rig.run_log()

    def test_ready_ahead_of_need(self) -> None:
        """A flush that begins a segment only writes and flushes."""
        self.rig.run_preparer()
        self.assertEqual(len(self.rig.wal._writer.preparer._ready), 1)
        self.rig.disk.before = self.operations.append
        self.fill()
        self.assertEqual(self.rig.persisted, [1, 2, 3])
        self.assertEqual([o.name for o in self.operations], ["write", "flush"] * 3)
        self.assertEqual(len({o.path for o in self.operations}), 2)
        # And then the one after it is made.
        self.rig.run_preparer()
        self.assertEqual(len(self.rig.wal._writer.preparer._ready), 1)

    def test_made_when_it_is_not_ready(self) -> None:
        self.fill()
        self.assertEqual(self.rig.persisted, [1, 2, 3])
        self.assertEqual(len(recovered(self.rig.disk.power_failure())[1]), 3)

    def test_46_no_more_than_one_ahead(self) -> None:
        for _ in range(4):
            self.rig.workers["raftd log segments"].do(self.rig.wal._prepare)
            self.rig.run_preparer()
        names = [n for n in self.rig.disk.contents() if n.endswith(".segment")]
        self.assertEqual(len(names), 2)

    def full(self, operation: Operation) -> None:
        """A disk on which nothing new finds room."""
        self.operations.append(operation)
        if operation.path.endswith(".tmp") and operation.name == "write":
            raise OSError(errno.ENOSPC, "No space left on device")

    def test_48_full_disk_ahead_of_need(self) -> None:
        """The log goes on, warns, and recovers when there is room."""
        self.rig.disk.before = self.full
        self.rig.run_preparer()
        with capturedLogs() as events:
            self.rig.reactor.run()
        [warning] = warnings(events)
        self.assertIn("No space left on device", warning)
        self.assertIn("00000000000000000002.segment, could not be prepared", warning)
        self.assertIn("takes no more writes until there is room", warning)
        self.assertEqual(self.rig.failures, [])
        self.assertNotIn(".tmp", "".join(self.rig.disk.contents()))
        self.rig.write(None, [entry(1)])
        self.rig.run_log()
        self.assertEqual(self.rig.persisted, [1])
        self.rig.disk.before = self.operations.append
        self.rig.run_preparer()
        self.assertEqual(len(self.rig.wal._writer.preparer._ready), 1)

    def test_one_warning_for_each_reason(self) -> None:
        """It is not said again at each attempt; but it is when it comes back."""
        numbers = [errno.ENOSPC, errno.ENOSPC, errno.EIO, errno.EIO, 0, errno.EIO]

        def refuse(operation: Operation) -> None:
            if operation.path.endswith(".tmp") and operation.name == "write" and numbers[0]:
                raise OSError(numbers[0], os.strerror(numbers[0]))

        worker = self.rig.workers["raftd log segments"]
        self.rig.run_preparer()
        self.rig.disk.before = refuse
        found = []
        while numbers:
            self.rig.wal._writer.preparer._ready.clear()
            worker.do(self.rig.wal._prepare)
            with capturedLogs() as events:
                self.rig.run_preparer()
                self.assertEqual(warnings(events), [])  # not in this thread
                self.rig.reactor.run()
            found.append(len(warnings(events)))
            del numbers[0]
        self.assertEqual(found, [1, 0, 1, 0, 0, 1])

    def test_48_full_disk_when_needed(self) -> None:
        """Where nobody asks for room it stops, and a restart with room is clean."""
        self.rig.disk.before = self.full
        self.fill()
        self.assertEqual(self.rig.persisted, [1, 2])
        [failure] = self.rig.failures
        self.assertIsInstance(failure, StorageFailed)
        self.assertIn("No space left on device", str(failure))
        # The one that it could not make, not the one that it wrote last.
        self.assertIn("/data/log/00000000000000000002.segment, could", str(failure))
        self.assertNotIn("00000000000000000001.segment", str(failure))
        self.rig.disk.before = lambda operation: None
        self.fill()
        self.assertEqual(self.rig.persisted, [1, 2])
        self.assertEqual(len(self.rig.failures), 1)
        rig = open_rig(self.rig.disk.power_failure()).start()
        self.assertEqual(len(rig.entries), 2)
        rig.write(None, [entry(3)])
        rig.run()
        self.assertEqual(rig.persisted, [1])

    def test_another_failure_when_needed(self) -> None:
        """It names the segment that could not be made, and has nothing to wait for."""

        def fail(operation: Operation) -> None:
            if operation.path.endswith(".tmp") and operation.name == "create":
                raise OSError(errno.EIO, "Input/output error")

        rig = self.rig = create_rig().start(asks_for_space=True)
        rig.disk.before = fail
        with capturedLogs() as events:
            rig.run()
        [warning] = warnings(events)
        self.assertIn("stops when the present one is full", warning)
        self.fill()
        [failure] = rig.failures
        self.assertIn("/data/log/00000000000000000002.segment, could not be", str(failure))
        self.assertIn("Input/output error", str(failure))
        self.assertEqual((rig.persisted, rig.space), ([1, 2], []))

    def test_attempts_on_a_full_disk_are_bounded(self) -> None:
        """One for each part of a segment, not one for each flush."""
        rig = create_rig(segment_bytes=1 << 18).start()
        rig.disk.before = self.full
        for _ in range(200):
            rig.write(None, [entry(rig.number + 1)])
            rig.run()
        attempts = [o for o in self.operations if o.name == "create"]
        self.assertGreater(len(attempts), 3)
        self.assertLess(len(attempts), 12)
        self.assertEqual(rig.acknowledged, 200)

    def test_47_name_that_may_not_last(self) -> None:
        """A segment whose name could not be flushed is never used, and the log stops."""

        def fail(operation: Operation) -> None:
            if operation.name == "flush_directory":
                raise OSError(errno.EIO, "Input/output error")

        self.rig.disk.before = fail
        self.rig.run_preparer()
        self.rig.run_log()
        [failure] = self.rig.failures
        self.assertIn("The directory /data/log could not be flushed", str(failure))
        self.fill()
        self.assertEqual(self.rig.persisted, [])

    def test_other_length(self) -> None:
        """Segments of another length are taken over, and new ones have the new length."""
        self.rig.run()
        self.rig.write(None, entries(1, 2))
        self.rig.run()
        rig = open_rig(self.rig.disk.power_failure(), segment_bytes=8192).start()
        for i in range(3, 14):
            rig.write(None, [entry(i, data=b"y" * 900)])
            rig.run()
        self.assertEqual(rig.acknowledged, 11, rig.failures)
        lengths = {len(d) for p, d in rig.disk.contents().items()}
        self.assertEqual(lengths, {4096, 8192})
        self.assertEqual(len(recovered(rig.disk.power_failure())[1]), 13)

    def test_unfit_length(self) -> None:
        for length in (0, 512, 1000, 1 << 31):
            self.assertRaises(ValueError, create_rig, None, segment_bytes=length)


class FullDiskTests(SynchronousTestCase):
    """48: a node that asks for room is told, and the log waits for it."""

    def setUp(self) -> None:
        self.rig = create_rig(hard_state=HardState(1, 7)).start(asks_for_space=True)
        self.attempts = 0
        #: Writes without an entry.
        self.terms = 0
        self.rig.disk.before = self.full
        self.rig.run()

    def full(self, operation: Operation) -> None:
        """No room for a segment; and whatever was acknowledged is there at each step."""
        left = recovered(self.rig.disk.power_failure())[1]
        self.assertGreaterEqual(len(left), self.rig.acknowledged - self.terms)
        if operation.path.endswith(".tmp") and operation.name == "flush":
            self.attempts += 1
            error = errno.ENOSPC if self.attempts % 2 else errno.EDQUOT
            raise OSError(error, os.strerror(error))

    def make_room(self) -> None:
        self.rig.disk.before = lambda operation: None
        self.rig.wal.look_for_space()

    def write(self, count: int) -> None:
        for _ in range(count):
            number = self.rig.number + 1
            self.rig.write(None, [entry(number, data=b"%d" % (number % 10) * 1100)])
            self.rig.run()

    def check(self, count: int) -> None:
        """So many entries are durable, and nothing else."""
        found = recovered(self.rig.disk.power_failure())[1]
        self.assertEqual([e.index for e in found], [*range(1, count + 1)])
        for e in found:
            self.assertEqual(e.data, b"%d" % (e.index % 10) * 1100)

    def test_48_looking_for_room_writes_nothing(self) -> None:
        """It goes on for as long as the disk is full, and others may need what is left."""
        looks: list[int] = []
        written: list[Operation] = []

        def reserve(fd: int, length: int) -> None:
            looks.append(length)
            raise OSError(errno.ENOSPC, "No space left on device")

        def note(operation: Operation) -> None:
            if operation.name in ("write", "flush"):
                written.append(operation)

        patched = self.patch(self.rig.disk, "reserve", reserve)
        self.rig.disk.before = note
        for _ in range(3):
            self.rig.wal.look_for_space()
            self.rig.run()
        self.assertEqual((looks, written), ([self.rig.wal._writer._segment.length] * 3, []))
        self.assertEqual(self.rig.space, [False])
        patched.restore()
        self.rig.wal.look_for_space()
        self.rig.run()
        self.assertEqual(self.rig.space, [False, True])

    def test_48_told_once(self) -> None:
        self.assertEqual(self.rig.space, [False])
        for _ in range(3):
            self.rig.wal.look_for_space()
            self.rig.run()
        self.assertEqual(self.rig.space, [False])
        self.make_room()
        self.rig.run()
        self.assertEqual((self.rig.space, self.rig.failures), ([False, True], []))
        self.assertNotIn(".tmp", "".join(self.rig.disk.contents()))

    def test_48_what_is_left_is_for_terms_and_votes(self) -> None:
        for term in range(2, 8):
            self.terms += 1
            self.rig.write(HardState(term, 7), [])
            self.rig.run()
            self.assertEqual(self.rig.acknowledged, self.rig.number, self.rig.failures)
        left = recovered(self.rig.disk.power_failure())[0]
        self.assertEqual((left, self.rig.failures), (HardState(7, 7), []))

    def test_48_what_needs_more_waits(self) -> None:
        """Neither acknowledged nor failed, and nothing of it half-written."""
        before = self.attempts
        self.write(2)
        self.check(2)
        self.write(3)
        self.assertEqual((self.rig.acknowledged, self.rig.failures), (2, []))
        self.check(2)
        attempts = self.attempts - before
        # They wait in their order, in whatever groups they came.
        self.rig.write(None, [entry(6, data=b"6" * 1100)])
        self.rig.write(None, [entry(7, data=b"7" * 1100)])
        # Not one for each write that waits.
        self.write(8)
        self.assertEqual(self.attempts - before, attempts)
        self.rig.wal.look_for_space()
        self.rig.run()
        self.assertEqual((self.rig.acknowledged, self.rig.space), (2, [False]))
        self.make_room()
        self.rig.run()
        self.assertEqual((self.rig.acknowledged, self.rig.failures), (15, []))
        self.assertEqual(self.rig.space[-1], True)
        self.check(15)
        self.write(5)
        self.check(20)

    def test_48_a_group_waits_in_its_order(self) -> None:
        self.write(2)
        for index in (3, 4, 5):
            self.rig.write(None, [entry(index, data=b"%d" % index * 400)])
        self.rig.run()
        self.assertEqual(self.rig.acknowledged, 2)
        self.make_room()
        self.rig.run()
        self.assertEqual((self.rig.acknowledged, self.rig.failures), (5, []))
        found = recovered(self.rig.disk.power_failure())[1]
        self.assertEqual([e.data[:1] for e in found[2:]], [b"3", b"4", b"5"])

    def test_48_restart_while_it_waits(self) -> None:
        """On the full disk, and again with room."""
        self.write(5)
        disk = self.rig.disk.killed()
        self.rig = open_rig(disk).start(asks_for_space=True)
        disk.before = self.full
        self.rig.run()
        self.assertEqual(
            ([e.index for e in self.rig.entries], self.rig.space), ([1, 2], [False])
        )
        disk = disk.power_failure()
        self.rig = open_rig(disk).start(asks_for_space=True)
        self.assertEqual(len(self.rig.entries), 2)
        self.rig.write(HardState(2, 7), [entry(3, term=2)])
        self.rig.run()
        self.assertEqual((self.rig.persisted, self.rig.space), ([1], []))
        self.assertEqual(len(recovered(disk.power_failure())[1]), 3)

    def test_48_removed_segments_are_room(self) -> None:
        """A snapshot may make it: then nobody has to."""
        self.make_room()
        self.rig.run()
        self.write(6)
        self.rig.disk.before = self.full
        self.write(6)
        self.assertEqual(self.rig.space[-1], False)
        waiting = self.rig.number - self.rig.acknowledged
        self.assertGreater(waiting, 0)
        removed = []

        def until_removed(operation: Operation) -> None:
            if operation.name == "remove" and operation.path.endswith(".segment"):
                removed.append(operation.path)
            if not removed:
                self.full(operation)

        self.rig.disk.before = until_removed
        self.rig.wal.compact(6)
        self.rig.run()
        self.rig.wal.look_for_space()
        self.rig.run()
        self.assertTrue(removed)
        self.assertEqual((self.rig.acknowledged, self.rig.failures), (12, []))

    def test_48_closed_while_it_waits(self) -> None:
        self.write(5)
        closed = self.rig.wal.close()
        self.rig.run()
        self.successResultOf(closed)
        self.assertEqual((self.rig.acknowledged, self.rig.failures), (2, []))
        self.assertEqual(self.rig.disk.open_count, 0)
        self.check(2)
        before = self.rig.disk.operations
        self.rig.wal.look_for_space()
        self.rig.run()
        self.assertEqual(self.rig.disk.operations, before)

    def test_47_full_disk_within_a_frame(self) -> None:
        """A file system that finds room for each write anew: half a frame is a failure."""

        def full(operation: Operation) -> None:
            if operation.name == "write":
                raise OSError(errno.ENOSPC, "No space left on device")

        self.rig.disk.before = full
        self.write(2)
        [failure] = self.rig.failures
        self.assertIn("00000000000000000001.segment", str(failure))
        self.make_room()
        self.write(1)
        self.assertEqual((self.rig.acknowledged, len(self.rig.failures)), (0, 1))


class FailureTests(SynchronousTestCase):
    def test_47_a_failed_flush_is_not_retried(self) -> None:
        rig = create_rig().start()
        rig.run()
        operations: list[str] = []

        def fail(operation: Operation) -> None:
            operations.append(operation.name)
            if operation.name == "flush":
                raise OSError(errno.EIO, "Input/output error")

        rig.disk.before = fail
        rig.write(None, entries(1, 1))
        rig.write(None, entries(2, 2))
        rig.run()
        rig.write(None, entries(3, 3))
        rig.run()
        self.assertEqual(operations, ["write", "flush"])
        self.assertEqual(rig.persisted, [])
        [failure] = rig.failures
        self.assertIn("00000000000000000001.segment", str(failure))
        self.assertIn("Input/output error", str(failure))
        closed = rig.wal.close()
        rig.run()
        self.successResultOf(closed)
        self.assertEqual(operations, ["write", "flush"])
        self.assertEqual(rig.disk.open_count, 0)

    def test_nothing_is_written_before_the_node_knows(self) -> None:
        """The log has stopped, and the reactor does not know yet: it writes on, in vain."""
        rig = create_rig().start()
        rig.run()
        operations: list[str] = []

        def fail(operation: Operation) -> None:
            operations.append(operation.name)
            raise OSError(errno.EIO, "Input/output error")

        rig.disk.before = fail
        rig.write(None, entries(1, 1))
        rig.workers["raftd log"].run()
        rig.write(None, entries(2, 2))
        rig.workers["raftd log"].run()
        self.assertEqual(operations, ["write"])
        rig.run()
        self.assertEqual((rig.persisted, len(rig.failures)), ([], 1))

    def test_two_failures(self) -> None:
        """Only the first is told."""
        rig = create_rig().start()

        def fail(operation: Operation) -> None:
            if operation.name in ("flush_directory", "write"):
                raise ZeroDivisionError(operation.name)

        rig.disk.before = fail
        rig.write(None, entries(1, 1))
        rig.workers["raftd log"].run()
        rig.run_preparer()
        rig.run()
        [failure] = rig.failures
        self.assertIn("ZeroDivisionError('write')", str(failure))

    def test_acknowledgements_on_their_way(self) -> None:
        """What was durable before the failure may be reported; nothing after it."""
        rig = create_rig(segment_bytes=1 << 16).start()
        rig.run()

        written = [b""]

        def fail(operation: Operation) -> None:
            if operation.name == "write":
                written[0] = operation.data
            elif b"bad" in written[0]:
                raise OSError(errno.EIO, "Input/output error")

        rig.disk.before = fail
        rig.write(None, [entry(1, data=bytes(40_000))])
        rig.write(None, [entry(2, data=b"bad" * 14_000)])
        rig.run()
        self.assertEqual((rig.persisted, len(rig.failures)), ([1], 1))

    def test_defect_in_a_thread(self) -> None:
        """Never a thread that died silently."""
        for name in ("raftd log", "raftd log segments"):
            rig = create_rig().start()

            def fail(operation: Operation) -> None:
                raise ZeroDivisionError("a defect")

            rig.disk.before = fail
            if name == "raftd log":
                rig.write(None, entries(1, 1))
            rig.workers[name].run()
            rig.run_log()
            [failure] = rig.failures
            self.assertIsInstance(failure, StorageFailed)
            self.assertIn("ZeroDivisionError('a defect')", str(failure))
            rig.disk.before = lambda operation: None
            rig.write(None, entries(1, 1))
            rig.run()
            self.assertEqual(rig.persisted, [])


class CloseTests(SynchronousTestCase):
    def test_flushes_what_is_queued(self) -> None:
        rig = create_rig().start()
        rig.write(None, entries(1, 4))
        closed = rig.wal.close()
        self.assertNoResult(closed)
        rig.run()
        self.successResultOf(closed)
        self.assertEqual(rig.persisted, [1])
        self.assertEqual(rig.disk.open_count, 0)
        self.assertTrue(all(worker.ended for worker in rig.workers.values()))
        self.assertEqual(len(recovered(rig.disk.power_failure())[1]), 4)

    def test_nothing_afterwards(self) -> None:
        """Not even a segment that was to be prepared: the directory may be another's by now."""
        rig = create_rig().start()
        closed = rig.wal.close()
        rig.run_log()
        self.successResultOf(closed)
        before = rig.disk.operations
        rig.run_preparer()
        self.assertEqual(rig.disk.operations, before)
        self.assertRaises(InvariantViolated, rig.write, None, [])
        self.assertRaises(InvariantViolated, rig.wal.close)

    def test_never_started(self) -> None:
        rig = create_rig()
        self.successResultOf(rig.wal.close())
        self.assertEqual(rig.disk.open_count, 0)
        self.assertRaises(InvariantViolated, rig.start)

    def test_started_twice(self) -> None:
        rig = create_rig().start()
        self.assertRaises(InvariantViolated, rig.start)

    def test_write_before_start(self) -> None:
        self.assertRaises(InvariantViolated, create_rig().write, None, [])
