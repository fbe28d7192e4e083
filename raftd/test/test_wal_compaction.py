"""
Compaction of the write-ahead log: what goes, what stays, and that every crash
between leaves a log; and logs that begin anew behind a snapshot.
"""

from __future__ import annotations

import base64
import errno
import random
import zlib

from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Entry, HardState
from raftd.errors import DirectoryDamaged, InvariantViolated, StorageFailed
from raftd.storage.compaction import Beginnings
from raftd.storage.recovery import look
from raftd.storage.replay import Outline
from raftd.storage.segments import decode_segment_header, encode_segment_header
from raftd.test.logrig import (
    MEMBER,
    PATH,
    SMALL_SEGMENT,
    Rig,
    create_rig,
    entries,
    entry,
    new_disk,
    open_rig,
    recovered,
    recovered_with_base,
)
from raftd.test.simdisk import Operation, SimulatedDisk
from raftd.test.snapshotrig import StoreRig


def segments(disk: SimulatedDisk) -> list[int]:
    """The numbers of the segments that there are."""
    names = (path.rpartition("/")[2] for path in disk.contents())
    return sorted(int(name.split(".")[0]) for name in names if name.endswith(".segment"))


def path_of(number: int) -> str:
    return f"{PATH}/{number:020}.segment"


def long_log(last: int = 20) -> Rig:
    """Entries 1 to `last`, three to a segment, and one segment prepared."""
    rig = create_rig().start()
    rig.run()
    for i in range(1, last + 1):
        rig.write(HardState(i, 0), [entry(i, i, b"x" * 900)])
        rig.run()
    return rig


class BeginningsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.beginnings = Beginnings()
        for number, last_index in ((1, 0), (2, 10), (3, 10), (4, 25)):
            self.beginnings.begin(number, last_index)

    def needed(self, *base_indexes: int) -> list[int]:
        return [self.beginnings.first_needed(i) for i in base_indexes]

    def test_the_newest_that_may_be_first(self) -> None:
        self.assertEqual(self.needed(0, 9, 10, 24, 25, 99), [1, 1, 3, 3, 4, 4])

    def test_what_was_cut_off_cannot_be_leaned_on(self) -> None:
        """Without the entries before it, nobody would know the term of entry 24."""
        self.beginnings.truncate(25)
        self.assertEqual(self.needed(10, 25, 99), [3, 3, 3])
        self.beginnings.begin(5, 30)
        self.assertEqual(self.needed(29, 30), [3, 5])

    def test_only_behind_the_end_nothing_is_cut_off(self) -> None:
        self.beginnings.truncate(26)
        self.assertEqual(self.needed(25), [4])

    def test_anew(self) -> None:
        self.beginnings.begin_anew()
        self.assertEqual(self.needed(0), [4])
        self.beginnings.begin(5, 7)
        self.assertEqual(self.needed(6, 7), [4, 5])

    def test_none(self) -> None:
        """As in a log of which every segment is of an older version."""
        self.assertEqual(Beginnings().first_needed(99), 0)
        empty = Beginnings()
        empty.begin_anew()
        self.assertEqual(empty.first_needed(99), 0)


class OutlineTests(SynchronousTestCase):
    def test_base(self) -> None:
        outline = Outline()
        outline.write(HardState(3, 0), entries(1, 5, term=2))
        self.assertFalse(outline.write(None, entries(6, 6, term=3), (5, 2)))
        self.assertEqual((outline.base_index, outline.last), (0, (6, 3)))
        self.assertTrue(outline.write(None, entries(9, 9, term=3), (8, 2)))
        self.assertEqual((outline.base_index, outline.base_term, outline.last), (8, 2, (9, 3)))
        self.assertEqual([outline.term_at(i) for i in (8, 9)], [2, 3])

    def test_refusals_change_nothing(self) -> None:
        outline = Outline()
        outline.write(HardState(3, 0), entries(11, 15, term=2), (10, 2))
        # A term before that of the base, and indexes before it, among others.
        for new, base in (
            (entries(10, 12, term=2), None),
            (entries(17, 17, term=2), None),
            (entries(11, 11, term=1), None),
            ([], (9, 2)),
            ([], (10, 3)),
            ([], (12, 1)),
            (entries(20, 20, term=3), (20, 2)),
            (entries(22, 22, term=3), (20, 2)),
            (entries(21, 21, term=2), (20, 3)),
        ):
            self.assertRaises(InvariantViolated, outline.write, HardState(4, 0), new, base)
            self.assertEqual(outline.hard_state, HardState(3, 0))
            self.assertEqual((outline.base_index, outline.last), (10, (15, 2)))

    def test_compact(self) -> None:
        """What is gone is not cut off any more; what is left keeps its terms."""
        outline = Outline()
        outline.write(None, [*entries(1, 3), *entries(4, 6, term=2), *entries(7, 8, term=4)])
        self.assertTrue(outline.compact(5))
        self.assertFalse(outline.compact(5))
        self.assertFalse(outline.compact(4))
        self.assertEqual([outline.term_at(i) for i in (5, 6, 7, 8)], [2, 2, 4, 4])
        self.assertRaises(InvariantViolated, outline.write, None, entries(5, 5, term=4))
        self.assertRaises(InvariantViolated, outline.write, None, entries(6, 6, term=1))
        self.assertRaises(InvariantViolated, outline.compact, 9)
        outline.write(None, entries(6, 6, term=3))
        self.assertRaises(InvariantViolated, outline.write, None, [], (4, 3))
        self.assertTrue(outline.compact(6))
        self.assertEqual(outline.last, (6, 3))


class CompactionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = long_log()
        self.assertEqual(segments(self.rig.disk), [1, 2, 3, 4, 5, 6, 7, 8])

    def compacted(self, base_index: int) -> list[int]:
        self.rig.wal.compact(base_index)
        self.rig.run()
        return segments(self.rig.disk)

    def check(self, base: int) -> None:
        """What is recovered begins at `base`, at most, and has everything else."""
        for disk in (self.rig.disk.killed(), self.rig.disk.power_failure()):
            hard_state, found, log = recovered_with_base(disk)
            self.assertEqual(hard_state, HardState(20, 0))
            self.assertEqual(found, (base, base))
            self.assertEqual([e.index for e in log], list(range(base + 1, 21)))

    def test_whole_segments_go(self) -> None:
        self.assertEqual(self.compacted(2), [1, 2, 3, 4, 5, 6, 7, 8])
        self.assertEqual(self.compacted(3), [2, 3, 4, 5, 6, 7, 8])
        self.check(3)
        self.assertEqual(self.compacted(11), [4, 5, 6, 7, 8])
        self.check(9)
        self.assertEqual(self.compacted(10), [4, 5, 6, 7, 8])

    def test_never_the_segment_being_written(self) -> None:
        """Nor the one that is prepared; term and vote survive without a single entry."""
        self.assertEqual(self.compacted(20), [7, 8])
        self.check(18)
        self.rig.write(HardState(21, 7), [entry(21, 21, b"y" * 2500)])
        self.rig.run()
        # Now that there is a later one, it goes by itself.
        self.assertEqual(segments(self.rig.disk), [8, 9])
        self.compacted(21)
        rig = open_rig(self.rig.disk.power_failure()).start()
        self.assertEqual((rig.wal.base_index, rig.wal.base_term), (20, 20))
        rig.wal.compact(21)
        rig.write(HardState(22, 3), [])
        rig.write(None, [entry(22, 22, b"z" * 3000)], (21, 21))
        rig.run()
        # The checkpoint of segment 9 is all that says term 22 and vote 3.
        rig.write(HardState(23, 0), [])
        rig.run()
        self.assertEqual(recovered(rig.disk)[0], HardState(23, 0))

    def test_hard_state_alone_survives(self) -> None:
        """All entries are gone, and with them the segments that ever held the vote."""
        rig = create_rig(None, HardState(3, 9), entries(1, 3, term=3)).start()
        rig.run()
        rig.write(HardState(7, 5), [])
        rig.write(None, entries(4, 4, term=7, size=2400))
        rig.run()
        rig.write(None, [], (4, 7))
        for _ in range(8):
            rig.run()
            rig.write(None, [])
        rig.run()
        rig.wal.compact(4)
        rig.run()
        self.assertNotIn(1, segments(rig.disk))
        self.assertEqual(
            recovered_with_base(rig.disk.power_failure()), (HardState(7, 5), (4, 7), [])
        )

    def test_on_the_preparers_thread_one_by_one(self) -> None:
        """Each removal is flushed before the next, and preparing comes in between."""
        operations: list[Operation] = []
        self.rig.disk.before = operations.append
        self.rig.wal.compact(20)
        self.rig.run_log()
        self.assertEqual(operations, [])
        worker = self.rig.workers["raftd log segments"]
        while worker.jobs:
            worker.jobs.pop(0)()
            self.assertEqual(
                [o.name for o in operations], ["remove", "flush_directory"], operations
            )
            operations.clear()
        self.assertEqual(segments(self.rig.disk), [7, 8])

    def test_no_flush_of_its_own(self) -> None:
        """The checkpoint goes with the first frame of its segment."""
        operations: list[Operation] = []
        self.rig.write(None, [entry(21, 21, b"z" * 900)])
        self.rig.run()
        self.rig.disk.before = operations.append
        self.rig.write(None, [entry(22, 22, b"z" * 900)])
        self.rig.run_log()
        self.assertEqual([o.name for o in operations], ["write", "flush"])
        self.assertEqual(operations[0].path, path_of(8))

    def test_44_late_and_repeated(self) -> None:
        """Less than before is no news; more than there is is a defect."""
        self.compacted(12)
        before = self.rig.disk.operations
        for base_index in (0, 5, 12):
            self.compacted(base_index)
        self.assertEqual(self.rig.disk.operations, before)
        self.assertRaises(InvariantViolated, self.rig.wal.compact, 21)
        self.assertRaises(InvariantViolated, self.rig.write, None, [entry(12, 20)])

    def test_after_a_restart(self) -> None:
        """Recovery knows as well where the log may begin."""
        self.rig = open_rig(self.rig.disk.power_failure()).start()
        self.assertEqual(self.compacted(13), [5, 6, 7, 8])
        self.check(12)
        self.rig = open_rig(self.rig.disk.power_failure()).start()
        self.assertEqual(self.compacted(16), [6, 7, 8])
        self.check(15)

    def test_18_what_was_cut_off_below_a_checkpoint(self) -> None:
        """
        A conflict cuts off entries below where segments began; these cannot
        be first any more, whatever is compacted.
        """
        self.rig.write(HardState(30, 0), [entry(14, 30, b"n" * 100)])
        self.rig.write(None, entries(15, 25, term=30, size=90))
        self.rig.run()
        state = recovered(self.rig.disk)
        self.assertEqual(segments(self.rig.disk)[:1], [1])
        # Segments 6 and 7 began with 15 and 18; 5 began with 12.
        self.assertEqual(self.compacted(18)[0], 5)
        for disk in (self.rig.disk.killed(), self.rig.disk.power_failure()):
            hard_state, base, log = recovered_with_base(disk)
            self.assertEqual((hard_state, base), (HardState(30, 0), (12, 12)))
            self.assertEqual(log, state[1][12:])

    def test_close_waits_and_nothing_is_removed_afterwards(self) -> None:
        self.rig.wal.compact(20)
        self.rig.run_log()
        closed = self.rig.wal.close()
        self.rig.run_log()
        self.successResultOf(closed)
        before = self.rig.disk.operations
        self.rig.run_preparer()
        self.assertEqual(self.rig.disk.operations, before)
        self.assertRaises(InvariantViolated, self.rig.wal.compact, 20)

    def test_not_started(self) -> None:
        rig = create_rig(None, HardState(), entries(1, 3))
        self.assertRaises(InvariantViolated, rig.wal.compact, 2)

    def test_largest_write_behind_a_checkpoint(self) -> None:
        """Whatever fits at all fits into a new segment, with the largest checkpoint."""
        largest = HardState(2**64 - 1, 2**64 - 1)
        fitted = 0
        limit = self.rig.wal._payload_limit
        for size in range(limit - 100, limit):
            rig = create_rig(None, largest, base=(2**62, 2**63)).start()
            try:
                rig.write(None, [entry(2**62 + 1, 2**63, bytes(size))], None, 2**62)
            except InvariantViolated:
                continue
            rig.write(largest, [entry(2**62 + 2, 2**64 - 1, bytes(size))], None, 2**62 + 1)
            rig.run()
            self.assertEqual((rig.acknowledged, rig.failures), (2, []))
            self.assertEqual({len(d) for d in rig.disk.contents().values()}, {SMALL_SEGMENT})
            self.assertEqual(len(recovered(rig.disk.power_failure())[1]), 2)
            fitted += 1
        self.assertGreater(fitted, 5)


class CrashTests(SynchronousTestCase):
    def test_49_power_fails_at_every_step(self) -> None:
        """
        Ahead of each operation of a long life with compactions: nothing that
        was acknowledged and is not covered is lost, and the log has no gap.
        """
        choice = random.Random(1)
        rig = create_rig().start()
        rig.run()
        # Bound to what the loop does, as the judge is called from within it.
        durable, compacted, count = 0, 0, 0

        def judge(operation: Operation) -> None:
            nonlocal count
            for disk in rig.disk.power_failures(choice, limit=32):
                hard_state, (base, base_term), log = recovered_with_base(disk)
                self.assertLessEqual(base, compacted)
                self.assertEqual(base_term, base)
                self.assertEqual(
                    [e.index for e in log[: durable - base]], list(range(base + 1, durable + 1))
                )
                self.assertGreaterEqual(hard_state.term, durable)
                count += 1

        rig.disk.before = judge
        for i in range(1, 25):
            rig.write(HardState(i, 0), [entry(i, i, b"x" * 900)])
            rig.run_log()
            durable = i
            if i % 4 == 0:
                compacted = i - choice.randrange(3)
                rig.wal.compact(compacted)
            rig.run()
        # What the judge found on a thread stops the log.
        self.assertEqual(rig.failures, [])
        self.assertGreater(count, 200)
        self.assertGreater(segments(rig.disk)[0], 5)

    def test_49_killed_between_two_removals(self) -> None:
        """Every number of removals leaves a legal log, which goes on where it was."""
        rig = long_log()
        rig.wal.compact(20)
        rig.run_log()
        worker = rig.workers["raftd log segments"]
        firsts = []
        while worker.jobs:
            worker.jobs.pop(0)()
            again = open_rig(rig.disk.killed()).start()
            firsts.append((segments(again.disk)[0], again.wal.base_index))
            again.wal.compact(20)
            again.write(None, [entry(21, 21)])
            again.run()
            self.assertEqual(segments(again.disk), [7, 8])
            self.assertEqual(len(recovered(again.disk.power_failure())[1]), 3)
        self.assertEqual(firsts, [(n + 1, 3 * n) for n in range(1, 7)])

    def test_18_49_killed_between_two_removals_that_lean_on_what_is_gone(self) -> None:
        """
        A conflict has cut off entries below where two segments began.  These
        are first for a moment, one after the other, while all that is not
        needed goes: a crash then must not keep the node from starting.
        """
        rig = long_log()
        rig.write(HardState(30, 0), [entry(14, 30, b"n" * 900)])
        rig.write(None, [entry(i, 30, b"n" * 900) for i in range(15, 31)])
        rig.run()
        for i in range(31, 40):
            rig.write(HardState(i, 0), [entry(i, i, b"x" * 900)])
            rig.run()
        state = recovered(rig.disk)
        rig.wal.compact(36)
        rig.run_log()
        worker = rig.workers["raftd log segments"]
        firsts = []
        while worker.jobs:
            worker.jobs.pop(0)()
            for disk in (rig.disk.killed(), rig.disk.power_failure()):
                first = segments(disk)[0]
                self.assertEqual(look(disk, PATH, MEMBER).entries, recovered(disk)[1])
                again = open_rig(disk).start()
                base = again.wal.base_index
                self.assertLessEqual(base, 36)
                self.assertEqual(recovered(disk), (state[0], state[1][base:]))
                # It goes on where it was, and takes what is left with it.
                again.wal.compact(36)
                again.write(None, [entry(40, 39)])
                again.run()
                self.assertEqual(recovered(disk.power_failure())[1][-1], entry(40, 39))
            firsts.append((first, base))
        self.assertEqual([first for first, _ in firsts], [*range(2, segments(rig.disk)[0] + 1)])
        # Those that lean are passed over, to the first that does not.
        self.assertEqual([base for first, base in firsts if first in (6, 7)], [16, 16])

    def test_41_a_log_that_begins_later_than_it_should(self) -> None:
        """Its first segment is lost: it begins with one behind it, and so does not fit."""
        rig = long_log()
        rig.write(HardState(30, 0), [entry(2, 30, b"n" * 900)])
        rig.write(HardState(31, 0), [entry(3, 31, b"n" * 900)])
        rig.run()
        rig.disk.remove(path_of(1))
        with self.assertRaises(DirectoryDamaged) as caught:
            recovered(rig.disk)
        self.assertIn("a frame does not follow what is before it", str(caught.exception))
        for i in range(4, 8):
            rig.write(HardState(30 + i, 0), [entry(i, 30 + i, b"n" * 900)])
            rig.run()
        again = open_rig(rig.disk)
        self.assertGreater(again.wal.base_index, 1)
        with self.assertRaises(DirectoryDamaged):
            StoreRig(rig.disk).recover(again.wal.base_index, again.wal.entries)

    def test_a_segment_that_cannot_be_removed(self) -> None:
        """It takes room; the log says so, goes on, and tries again."""
        rig = long_log()

        def refuse(operation: Operation) -> None:
            if operation.name == "remove":
                raise OSError(errno.EPERM, "Operation not permitted")

        rig.disk.before = refuse
        with capturedLogs() as events:
            rig.wal.compact(10)
            rig.run()
            rig.wal.compact(11)
            rig.run()
        [warning] = [e for e in events if e["log_level"] is LogLevel.warn]
        self.assertIn(
            f"{path_of(1)}, which is not needed any more, stays", formatEvent(warning)
        )
        self.assertEqual((rig.failures, segments(rig.disk)[0]), ([], 1))
        rig.disk.before = lambda operation: None
        rig.wal.compact(12)
        rig.run()
        self.assertEqual(segments(rig.disk)[0], 5)

    def test_47_directory_that_cannot_be_flushed(self) -> None:
        """Nobody knows what is there: nothing more is removed, and the log stops."""
        rig = long_log()

        def refuse(operation: Operation) -> None:
            if operation.name == "flush_directory":
                raise OSError(errno.EIO, "Input/output error")

        rig.disk.before = refuse
        rig.wal.compact(10)
        rig.run()
        [failure] = rig.failures
        self.assertIsInstance(failure, StorageFailed)
        self.assertIn(f"{PATH} could not be flushed", str(failure))
        rig.disk.before = lambda operation: None
        rig.wal.compact(12)
        rig.run()
        self.assertEqual(segments(rig.disk)[0], 2)

    def test_41_a_missing_segment(self) -> None:
        """In the middle it is a gap; the first frame of the log must be there."""
        rig = long_log()
        rig.disk.remove(path_of(4))
        with self.assertRaises(DirectoryDamaged) as caught:
            recovered(rig.disk)
        self.assertIn(f"{path_of(4)} is missing: the log has a gap", str(caught.exception))
        for number in range(1, 8):
            if number != 4:
                rig.disk.remove(path_of(number))
        with self.assertRaises(DirectoryDamaged) as caught:
            recovered(rig.disk)
        self.assertIn(
            f"{path_of(8)} is damaged at offset 512: the first frame of the log",
            str(caught.exception),
        )

    def test_46_flipped_bits_of_a_log_that_begins_later(self) -> None:
        rig = long_log(10)
        rig.wal.compact(9)
        rig.run()
        self.assertEqual(segments(rig.disk), [4, 5])
        state = recovered_with_base(rig.disk)
        data = rig.disk.contents()[path_of(4)]
        used = len(data.rstrip(b"\0"))
        choice = random.Random(2)
        for offset in range(used):
            disk = rig.disk.killed()
            disk.inode(path_of(4)).cache[offset] ^= 1 << choice.randrange(8)
            with self.assertRaises(DirectoryDamaged) as caught:
                recovered(disk)
            self.assertIn(f"{path_of(4)} is damaged at offset", str(caught.exception))
        self.assertEqual(recovered_with_base(rig.disk), state)

    def test_46_a_checkpoint_that_contradicts(self) -> None:
        """Segments of two copies of a log, taken at different times, do not mix."""
        one, other = long_log(5), create_rig().start()
        other.run()
        for i in range(1, 4):
            other.write(HardState(i, 0), [entry(i, i, b"x" * 900), entry(i + 1, i)])
            other.run()
        two = path_of(2)
        disk = other.disk.killed()
        disk.inode(two).write(one.disk.contents()[two], 0)
        with self.assertRaises(DirectoryDamaged) as caught:
            recovered(disk)
        self.assertIn(f"{two} is damaged at offset 512", str(caught.exception))
        self.assertIn("its checkpoint says", str(caught.exception))


class BeginAnewTests(SynchronousTestCase):
    """A snapshot has been installed, and the log does not lead up to it."""

    def setUp(self) -> None:
        self.rig = long_log()

    def test_44_round_trip(self) -> None:
        self.rig.write(HardState(40, 3), entries(101, 103, term=40), (100, 39))
        self.rig.run()
        state = (HardState(40, 3), (100, 39), entries(101, 103, term=40))
        self.assertEqual(recovered_with_base(self.rig.disk.power_failure()), state)
        # All segments before it are garbage, whether anybody compacts or not.
        self.assertEqual(segments(self.rig.disk), [7, 8])

    def test_behind_an_earlier_entry(self) -> None:
        """A conflicting suffix beyond the snapshot goes with the rest."""
        self.rig.write(None, [], (15, 30))
        self.rig.write(None, entries(16, 16, term=31))
        self.rig.run()
        expected = (HardState(20, 0), (15, 30), entries(16, 16, term=31))
        self.assertEqual(recovered_with_base(self.rig.disk.power_failure()), expected)
        self.rig.write(None, entries(17, 24, term=31, size=900))
        self.rig.run()
        self.rig.wal.compact(20)
        self.rig.run()
        hard_state, base, log = recovered_with_base(self.rig.disk.power_failure())
        self.assertEqual((hard_state, log[-1].index), (HardState(20, 0), 24))
        self.assertGreater(base[0], 15)

    def test_without_entries(self) -> None:
        """Nothing of the old log is left; and the next checkpoint knows where it begins."""
        self.rig.write(None, [], (100, 30))
        self.rig.run()
        state = (HardState(20, 0), (100, 30), list[Entry]())
        self.assertEqual(recovered_with_base(self.rig.disk.power_failure()), state)
        before = segments(self.rig.disk)
        self.rig.write(None, [entry(101, 30, bytes(3300))])
        self.rig.run()
        self.assertGreater(segments(self.rig.disk), before)
        _, base, log = recovered_with_base(self.rig.disk.power_failure())
        self.assertEqual((base, [e.index for e in log]), ((100, 30), [101]))

    def test_the_last_entry_changes_nothing(self) -> None:
        self.rig.write(None, entries(21, 21, term=21), (20, 20))
        self.rig.run()
        self.assertEqual([e.index for e in recovered(self.rig.disk)[1]], list(range(1, 22)))

    def test_merged_with_what_waits(self) -> None:
        """Everything in one frame, in order: appended, dropped, begun anew twice, cut off."""
        rig = create_rig(segment_bytes=1 << 16).start()
        rig.run()
        operations: list[Operation] = []
        rig.disk.before = operations.append
        rig.write(HardState(1, 0), entries(1, 5))
        rig.write(None, entries(11, 14), (10, 1))
        rig.write(HardState(2, 0), entries(13, 13, term=2))
        rig.write(None, [], (20, 2))
        rig.write(None, entries(21, 23, term=2))
        rig.write(HardState(3, 0), entries(22, 22, term=3))
        rig.run()
        self.assertEqual([o.name for o in operations], ["write", "flush"])
        log = entries(21, 21, term=2) + entries(22, 22, term=3)
        self.assertEqual(recovered_with_base(rig.disk), (HardState(3, 0), (20, 2), log))

    def test_in_many_frames(self) -> None:
        """A write with a base that is cut in pieces: only the first begins anew."""
        new = entries(101, 120, term=50, size=900)
        self.rig.write(HardState(50, 1), new, (100, 49))
        seen = set()

        def judge(operation: Operation) -> None:
            seen.add(recovered_with_base(self.rig.disk.power_failure())[1])

        self.rig.disk.before = judge
        self.rig.run_log()
        self.assertEqual(self.rig.acknowledged, self.rig.number)
        self.assertEqual(seen, {(0, 0), (100, 49)})
        expected = (HardState(50, 1), (100, 49), new)
        self.assertEqual(recovered_with_base(self.rig.disk.power_failure()), expected)

    def test_22_random_lives(self) -> None:
        """Writes, conflicts, new beginnings, compactions and restarts: as in the model."""
        shortened = anew = 0
        for seed in range(40):
            choice = random.Random(seed)
            rig = create_rig().start()
            base, log, hard_state, compacted = (0, 0), list[Entry](), HardState(), 0
            for _ in range(60):
                term = hard_state.term + choice.randrange(2)
                changed = term != hard_state.term
                hard_state = HardState(term, 1) if changed else hard_state
                last = log[-1].index if log else base[0]
                new_base = None
                if choice.random() < 0.06:
                    new_base = base = (last + choice.randrange(-2, 5), term)
                    if base[0] <= compacted:
                        new_base = base = (compacted + 1, term)
                    log.clear()
                    compacted, last = base[0], base[0]
                    anew += 1
                first = choice.randrange(max(compacted + 1, last - 3), last + 2)
                log = [e for e in log if e.index < first]
                first = first if log else compacted + 1 if new_base else first
                new = entries(
                    first, first + choice.randrange(4), term, choice.randrange(1, 300)
                )
                log += new
                rig.write(hard_state if changed else None, new, new_base)
                if choice.random() < 0.2:
                    rig.run()
                    compacted = choice.randrange(compacted, log[-1].index + 1)
                    rig.wal.compact(compacted)
                if choice.random() < 0.5:
                    rig.run_log()
                if choice.random() < 0.2:
                    rig.run()
                    rig = open_rig(rig.disk.power_failure()).start()
                    self.check(rig, hard_state, log, compacted)
                    shortened += rig.wal.base_index > base[0]
            rig.run()
            rig = open_rig(rig.disk.power_failure())
            self.check(rig, hard_state, log, compacted)
        self.assertGreater(min(shortened, anew), 20)

    def check(self, rig: Rig, hard_state: HardState, log: list[Entry], compacted: int) -> None:
        self.assertEqual(rig.wal.hard_state, hard_state)
        self.assertLessEqual(rig.wal.base_index, compacted)
        kept = [e for e in log if e.index > compacted]
        found = [e for e in rig.entries if e.index > compacted]
        self.assertEqual(found, kept)

    def test_created_behind_a_base(self) -> None:
        rig = create_rig(None, HardState(5, 1), entries(51, 52, term=5), base=(50, 4))
        state = (HardState(5, 1), (50, 4), entries(51, 52, term=5))
        self.assertEqual(recovered_with_base(rig.disk.power_failure()), state)
        self.assertRaises(
            InvariantViolated, create_rig, None, HardState(5, 1), entries(1, 2), base=(50, 4)
        )


#: Three segments, the last prepared and empty, as version 1 of the format wrote
#: them: entries 1 to 8, of which 7 was cut off and written again.
VERSION_1 = (
    "c-rmQJxjwt9LMn_mxm4x`VORGUDZA!#l;GOPJ*LDr4NW2Z77I~4la&uASw!qi!VUP)<K~TLLHpM$w5S_wN_t%_"
    ")lmd6!HSh{XP(y8}E+q(TkBSlymEwMNuGwg5ds=gYCjnCK?_RB_=DX77`$E2B!8xM#0$V?RkWr-A<`;b2L6yHB"
    "C`5Em0KjS+lO?^|G-uJYh-B_`Nrt#2Wr{wzL0IchI1hQ}toLH5d7&{bxeeVvP3t<5sFgA&6`qCW*}bMBV<Gr~g"
    "VRH&T1D4yk{c`j=(uzeWAWAc$-pCW+4d#N7U6Pyf@8qsxm6KeN=oLj5ZW_5Vrz$03Mp9wv#-{lsmf@BT00{?Co"
    "Ov)3)>{8v2Ze<S_&tgoex>HJse{8v>v|J!u_Cm@Jy9wv#>{UqG~f2ybdm6OX0?MgqV{x#}f)2RP1>OToVWb-gd"
    "bnYkV_OEqEVR~Njzw`MtYgWx`vs-^%$riJ#x)pLpo!+<q6jm<?-~X`$0Q~B||1;eGIXe7j+E@hu0000006zQyQ"
    "`uWu"
)


class OldLogTests(SynchronousTestCase):
    """Logs that were written before there were checkpoints."""

    def setUp(self) -> None:
        data = zlib.decompress(base64.b85decode(VERSION_1))
        self.disk = new_disk()
        self.disk.make_directory(PATH)
        for number in range(1, len(data) // SMALL_SEGMENT + 1):
            fd = self.disk.create(path_of(number))
            start = (number - 1) * SMALL_SEGMENT
            self.disk.write(fd, data[start : start + SMALL_SEGMENT], 0)
            self.disk.flush(fd)
            self.disk.close(fd)
        self.disk.flush_directory(PATH)
        self.disk.flush_directory("/data")
        log = [entry(i, i, b"%d" % i * 700) for i in range(3, 7)]
        log = [*entries(1, 2), *log, entry(7, 7, b"again"), entry(8, 7)]
        self.state = (HardState(7, 0), (0, 0), log)

    def test_opens(self) -> None:
        self.assertEqual(recovered_with_base(self.disk), self.state)
        self.assertEqual(recovered_with_base(self.disk.power_failure()), self.state)

    def test_49_crash_while_it_is_taken_over(self) -> None:
        choice = random.Random(1)
        count = 0

        def judge(operation: Operation) -> None:
            nonlocal count
            for disk in self.disk.power_failures(choice):
                self.assertEqual(recovered_with_base(disk), self.state)
                count += 1

        # Two segments that were not used, as a crash can leave them.
        header = decode_segment_header(self.disk.contents()[path_of(3)], "")
        another = encode_segment_header(header._replace(number=4))
        fd = self.disk.create(path_of(4))
        self.disk.write(fd, another.ljust(SMALL_SEGMENT, b"\0"), 0)
        self.disk.flush(fd)
        self.disk.close(fd)
        self.disk.flush_directory(PATH)
        self.disk.before = judge
        rig = open_rig(self.disk).start()
        rig.run()
        self.assertEqual(rig.failures, [])
        self.assertGreater(count, 5)

    def test_goes_on_in_a_segment_of_its_own(self) -> None:
        """A program that knows only version 1 must not take what follows for all there is."""
        rig = open_rig(self.disk).start()
        rig.run()
        before = self.disk.contents()[path_of(2)]
        rig.write(HardState(9, 1), [])
        rig.run()
        rig.write(None, entries(9, 12, term=9, size=700))
        rig.run()
        self.assertEqual(self.disk.contents()[path_of(2)], before)
        versions = {n: self.disk.contents()[path_of(n)][8] for n in segments(self.disk)}
        self.assertEqual(versions, {1: 1, 2: 1, 3: 2, 4: 2})
        expected = (HardState(9, 1), (0, 0), self.state[2] + entries(9, 12, term=9, size=700))
        self.assertEqual(recovered_with_base(self.disk.power_failure()), expected)
        rig.wal.compact(12)
        rig.run()
        self.assertEqual(segments(self.disk), [3, 4])
        left = self.disk.power_failure()
        self.assertEqual(recovered_with_base(left), (HardState(9, 1), (8, 7), expected[2][8:]))

    def test_without_its_first_segment(self) -> None:
        self.disk.remove(path_of(1))
        with self.assertRaises(DirectoryDamaged) as caught:
            recovered(self.disk)
        self.assertIn(f"{path_of(1)} is missing: the log has a gap", str(caught.exception))
