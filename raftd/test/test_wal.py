"""The write-ahead log: what it promises while nothing goes wrong, and its bounds."""

from __future__ import annotations

import errno
import os
import random
import re
import sys
import threading
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.modules import getModule
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from raftd.core.messages import Entry, HardState
from raftd.errors import DirectoryDamaged, Fatal, InvariantViolated, StorageFailed
from raftd.interfaces import ILogStorage
from raftd.storage import frames, wal
from raftd.storage.files import Files
from raftd.storage.frames import SECTOR
from raftd.storage.segments import (
    SegmentHeader,
    encode_segment_header,
)
from raftd.storage.wal import Wal
from raftd.test.logrig import (
    MEMBER,
    PATH,
    SALT,
    ManualReactor,
    Rig,
    create_rig,
    entries,
    entry,
    new_disk,
    open_rig,
    recovered,
    recovered_commit_index,
)
from raftd.test.simdisk import Operation

SEED = frames.checksum_seed(int.from_bytes(SALT, "little"))


class WalTests(SynchronousTestCase):
    def test_interface(self) -> None:
        self.assertTrue(verifyObject(ILogStorage, create_rig().wal))

    def test_new_log(self) -> None:
        """Durable at once, and there is nothing else."""
        rig = create_rig(None, HardState(1, MEMBER), entries(1, 2))
        self.assertEqual(rig.wal.hard_state, HardState(1, MEMBER))
        self.assertEqual(list(rig.wal.entries), entries(1, 2))
        left = rig.disk.power_failure()
        self.assertEqual(list(left.contents()), [f"{PATH}/00000000000000000001.segment"])
        self.assertEqual(recovered(left), (HardState(1, MEMBER), entries(1, 2)))

    def test_entries_are_let_go(self) -> None:
        """The core has them, and drops them when there is a snapshot."""
        rig = create_rig(None, HardState(1, MEMBER), entries(1, 2))
        self.assertEqual(len(rig.wal.entries), 2)
        found = rig.wal.entries
        mine: list[Entry] = []
        self.assertGreater(sys.getrefcount(found), sys.getrefcount(mine))
        rig.start()
        self.assertEqual(list(rig.wal.entries), [])
        self.assertEqual(sys.getrefcount(found), sys.getrefcount(mine))
        rig.write(None, entries(2, 3))
        rig.run()
        self.assertEqual(recovered(rig.disk), (HardState(1, MEMBER), entries(1, 3)))

    def test_never_created_over_another(self) -> None:
        rig = create_rig(None, HardState(1, MEMBER))
        self.assertRaises(InvariantViolated, create_rig, rig.disk)
        self.assertEqual(recovered(rig.disk), (HardState(1, MEMBER), []))

    def test_empty_and_missing(self) -> None:
        """A node without its log does not start with an empty one."""
        disk = new_disk()
        self.assertRaises(StorageFailed, recovered, disk)
        disk.make_directory(PATH)
        with self.assertRaises(DirectoryDamaged) as caught:
            recovered(disk)
        self.assertIn("00000000000000000001.segment is missing", str(caught.exception))

    def test_of_another_member(self) -> None:
        rig = create_rig()
        with self.assertRaises(DirectoryDamaged) as caught:
            Wal.open(PATH, 42, reactor=ManualReactor(), files=rig.disk)
        self.assertIn("it belongs to member 1122334455667788", str(caught.exception))

    def test_of_another_log(self) -> None:
        """A segment copied from elsewhere, even of the same member."""
        rig = self.long_log()
        path = f"{PATH}/00000000000000000002.segment"
        stranger = encode_segment_header(SegmentHeader(4096, 2, MEMBER, 4321))
        rig.disk.inode(path).write(stranger, 0)
        with self.assertRaises(DirectoryDamaged) as caught:
            recovered(rig.disk)
        self.assertIn(
            f"{path} is damaged at offset 0: it belongs to ano", str(caught.exception)
        )

    def long_log(self) -> Rig:
        rig = create_rig().start()
        for i in range(1, 12):
            rig.write(HardState(i, 0), [entry(i, i, b"x" * 700)])
            rig.run()
        return rig

    def test_too_many_empty_segments(self) -> None:
        """A crash leaves at most two; what else was in them is gone."""
        rig = self.long_log()
        names = [n for n in sorted(rig.disk.contents()) if n.endswith(".segment")]
        self.assertEqual(len(names), 5)
        for name in names[2:]:
            rig.disk.inode(name).write(bytes(4096 - SECTOR), SECTOR)
        with self.assertRaises(DirectoryDamaged) as caught:
            recovered(rig.disk)
        self.assertIn(
            f"{names[3]} is damaged at offset 512: it is empty", str(caught.exception)
        )
        rig.disk.remove(names[4])
        self.assertEqual(recovered(rig.disk)[0], HardState(6, 0))

    def test_frames_that_do_not_follow(self) -> None:
        """Whole frames whose records contradict what is before them are refused."""
        for records, reason in (
            ([(None, entries(4, 5))], "entry 4 does not follow entry 2"),
            ([(None, [entry(3, 2), entry(5, 2)])], "entry 5 stands where 4 belongs"),
            ([(None, [entry(3, 3), entry(4, 2)])], "entry 4 has term 2, the one before it 3"),
            ([(None, [entry(3, 0)])], "entry 3 has term 0, the one before it 1"),
            ([(HardState(1, 0), [])], "the term goes down from 2 to 1"),
            ([(HardState(2, 6), [])], "the vote of term 2 changes"),
            ([(HardState(2, 0), [])], "the vote of term 2 changes"),
            ([1], "do not decode"),
        ):
            rig = create_rig(None, HardState(2, 5), entries(1, 2))
            frame = frames.encode_frame(2, msgspec.msgpack.encode(records), SEED)
            path = f"{PATH}/00000000000000000001.segment"
            rig.disk.inode(path).write(bytes(frame), 2 * SECTOR)
            with self.assertRaises(DirectoryDamaged) as caught:
                recovered(rig.disk)
            self.assertIn(f"{path} is damaged at offset 1024", str(caught.exception))
            self.assertIn(reason, str(caught.exception))

    def frame_into(self, rig: Rig, number: int, offset: int, frame: bytes) -> None:
        rig.disk.inode(f"{PATH}/{number:020}.segment").write(frame, offset)

    def test_46_frames_in_the_wrong_segment(self) -> None:
        """Each of these frames would be the next, were it not for what is before it."""
        records: list[Any] = [(HardState(), [], (0, 0))]
        whole = bytes(frames.encode_frame(2, msgspec.msgpack.encode(records), SEED))
        torn = bytes(frames.encode_frame(2, bytes(1000), SEED)[:SECTOR])
        for first, second, third, sentence in (
            (torn, whole, b"", "1.segment is damaged at offset 1024: a frame is incomplete"),
            (torn, torn, b"", "1.segment is damaged at offset 1024: a frame is incomplete"),
            (b"", torn, torn, "3.segment is damaged at offset 512: it holds data, but the"),
            (b"", b"", whole, "3.segment is damaged at offset 512: it holds data, but the"),
            (b"", b"", torn, "3.segment is damaged at offset 512: it holds data, but the"),
        ):
            rig = create_rig().start()
            rig.wal._writer.preparer.take()
            rig.wal._writer.preparer.take()
            self.frame_into(rig, 1, 1024, first)
            self.frame_into(rig, 2, 512, second)
            self.frame_into(rig, 3, 512, third)
            with self.assertRaises(DirectoryDamaged) as caught:
                recovered(rig.disk)
            self.assertIn(sentence, str(caught.exception))

    def test_46_a_torn_frame_and_a_bit_in_the_next_segment(self) -> None:
        """Either may be what is wrong; whoever looks at the disk is told of both."""
        torn = bytes(frames.encode_frame(2, bytes(1000), SEED)[:SECTOR])
        for offset in (2 * SECTOR, 2000):
            rig = create_rig().start()
            rig.wal._writer.preparer.take()
            self.frame_into(rig, 1, 1024, torn)
            self.frame_into(rig, 2, offset, b"\x10")
            with self.assertRaises(DirectoryDamaged) as caught:
                recovered(rig.disk)
            segments = [f"{PATH}/{number:020}.segment" for number in (1, 2)]
            self.assertIn(
                f"{segments[0]} is damaged at offset 1024: a frame is incomplete, and data "
                f"follows in {segments[1]} at offset {offset}.",
                str(caught.exception),
            )

    def test_files_of_others_are_left_alone(self) -> None:
        rig = self.long_log()
        state = recovered(rig.disk)
        rig.disk.close(rig.disk.create(f"{PATH}/notes.txt"))
        rig.disk.close(rig.disk.create(f"{PATH}/00000000000000000009.tmp"))
        self.assertEqual(recovered(rig.disk), state)
        self.assertIn(f"{PATH}/notes.txt", rig.disk.contents())
        self.assertNotIn(f"{PATH}/00000000000000000009.tmp", rig.disk.contents())

    def test_22_replay_equals_what_was_live(self) -> None:
        """Random writes, truncations and merged flushes; reopened at random."""
        for seed in range(30):
            choice = random.Random(seed)
            rig = create_rig().start()
            log: list[Entry] = []
            hard_state = HardState()
            for _ in range(40):
                term = hard_state.term + choice.randrange(2)
                first = choice.randrange(max(1, len(log) - 4), len(log) + 2)
                del log[first - 1 :]
                new = entries(
                    first, first + choice.randrange(4), term, choice.randrange(1, 300)
                )
                log += new
                changed = term != hard_state.term
                hard_state = HardState(term, 1) if changed else hard_state
                rig.write(hard_state if changed else None, new)
                if choice.random() < 0.5:
                    rig.run_log()
                if choice.random() < 0.2:
                    rig.run()
                    self.assertEqual(rig.acknowledged, rig.number)
                    disk = rig.disk.power_failure()
                    self.assertEqual(recovered(disk), (hard_state, log))
                    rig = open_rig(disk).start()
            rig.run()
            self.assertEqual(recovered(rig.disk.power_failure()), (hard_state, log))


class CommitIndexTests(SynchronousTestCase):
    """What was known to be committed when a write was made."""

    def recovered(self, rig: Rig) -> int:
        return recovered_commit_index(rig.disk.power_failure())

    def test_27_the_greatest_that_was_written(self) -> None:
        rig = create_rig(None, HardState(1, 0), entries(1, 4)).start()
        self.assertEqual(rig.wal.commit_index, 0)
        rig.write(None, entries(5, 6), commit_index=3)
        rig.write(HardState(2, 0), [], commit_index=4)
        rig.write(HardState(3, 0), [])
        self.assertEqual(self.recovered(rig), 0)
        rig.run()
        self.assertEqual(self.recovered(rig), 4)
        again = open_rig(rig.disk.power_failure()).start()
        self.assertEqual(again.wal.commit_index, 4)
        again.write(None, entries(7, 7), commit_index=2)
        again.run()
        self.assertEqual(self.recovered(again), 4)

    def test_27_a_log_that_begins_anew_moves_nothing_down(self) -> None:
        rig = create_rig(None, HardState(1, 0), entries(1, 4)).start()
        rig.write(None, [], commit_index=4)
        rig.write(None, [], (9, 1))
        rig.run()
        self.assertEqual(self.recovered(rig), 4)

    def test_27_outlives_the_segment_that_held_it(self) -> None:
        """A checkpoint carries it on, after a restart as well."""
        for restarts in (False, True):
            rig = create_rig().start()
            rig.write(HardState(1, 0), entries(1, 3, size=900), commit_index=2)
            for i in range(4, 12):
                rig.run()
                if restarts:
                    rig = open_rig(rig.disk.power_failure()).start()
                rig.write(None, entries(i, i, size=900))
            rig.run()
            rig.wal.compact(11)
            rig.run()
            self.assertNotIn(f"{PATH}/00000000000000000001.segment", rig.disk.contents())
            self.assertEqual(self.recovered(rig), 2)

    def test_27_a_write_of_several_frames(self) -> None:
        """What is committed in it is not said before it is there."""
        rig = create_rig(segment_bytes=1 << 16).start()
        seen = set()

        def judge(operation: Operation) -> None:
            disk = rig.disk.power_failure()
            log, commit_index = recovered(disk)[1], recovered_commit_index(disk)
            self.assertLessEqual(commit_index, len(log))
            seen.add((len(log), commit_index))

        rig.disk.before = judge
        rig.write(None, entries(1, 100, size=2000), commit_index=90)
        rig.run_log()
        judge(Operation("", ""))
        self.assertGreater(len(seen), 3)
        self.assertEqual({c for _, c in seen}, {0, 90})

    def test_27_records_without_it(self) -> None:
        """As older logs have them, and what a newer one adds at the end is passed over."""
        rig = create_rig(None, HardState(1, 0), entries(1, 2))
        for sequence, expected, record in (
            (2, 0, (None, entries(3, 3))),
            (3, 0, (None, entries(4, 4), None)),
            (4, 3, (None, entries(5, 5), None, 3)),
            (5, 4, (None, entries(6, 6), None, 4, "more")),
        ):
            frame = frames.encode_frame(sequence, msgspec.msgpack.encode([record]), SEED)
            path = f"{PATH}/00000000000000000001.segment"
            rig.disk.inode(path).write(bytes(frame), sequence * SECTOR)
            self.assertEqual(len(recovered(rig.disk)[1]), sequence + 1)
            self.assertEqual(recovered_commit_index(rig.disk), expected)


class GroupCommitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = create_rig(segment_bytes=1 << 16).start()
        self.rig.run()
        self.operations: list[Operation] = []
        self.rig.disk.before = self.operations.append

    def names(self) -> list[str]:
        return [operation.name for operation in self.operations]

    def test_nothing_happens_in_write(self) -> None:
        self.rig.write(None, entries(1, 3))
        self.assertEqual(self.operations, [])
        self.assertEqual(self.rig.persisted, [])

    def test_one_frame_for_all_that_waits(self) -> None:
        """Ten writes, one write and one flush of the disk, one call."""
        for i in range(1, 11):
            self.rig.write(HardState(i, 0), [entry(i, i)])
        self.rig.run()
        self.assertEqual(self.names(), ["write", "flush"])
        self.assertEqual(self.rig.persisted, [10])
        self.assertEqual(recovered(self.rig.disk)[0], HardState(10, 0))

    def test_truncation_deeper_than_what_waits(self) -> None:
        """
        Durable are 1 to 5; 6 and 7 wait when a write cuts off from 3 on: the
        one frame that holds all of them recovers to what was last said.
        """
        self.rig.write(None, entries(1, 5))
        self.rig.run()
        self.rig.write(None, entries(6, 7))
        self.rig.write(HardState(2, 0), entries(3, 4, term=2))
        self.rig.write(None, entries(4, 4, term=3))
        self.rig.run()
        self.assertEqual(self.names(), ["write", "flush"] * 2)
        self.assertEqual(self.rig.persisted, [1, 4])
        log = entries(1, 2) + entries(3, 3, term=2) + entries(4, 4, term=3)
        self.assertEqual(recovered(self.rig.disk), (HardState(2, 0), log))

    def test_50_persisted_only_after_the_flush(self) -> None:
        """At each operation, what was reported is durable already."""
        rig = self.rig

        def judge(operation: Operation) -> None:
            rig.reactor.run()
            state = recovered(rig.disk.power_failure())
            self.assertEqual(len(state[1]), rig.acknowledged)

        rig.disk.before = judge
        for i in range(1, 6):
            rig.write(None, [entry(i)])
            rig.run_log()
        self.assertEqual(rig.persisted, [1, 2, 3, 4, 5])

    def test_write_while_flushing(self) -> None:
        """What comes during a flush goes into the next."""

        def judge(operation: Operation) -> None:
            self.operations.append(operation)
            if operation.name == "flush" and self.rig.number < 4:
                self.rig.write(None, [entry(self.rig.number + 1)])

        self.rig.disk.before = judge
        self.rig.write(None, [entry(1)])
        self.rig.run()
        self.assertEqual(self.rig.persisted, [1, 2, 3, 4])
        self.assertEqual(self.names(), ["write", "flush"] * 4)

    def test_bound_on_one_frame(self) -> None:
        """More than fits one frame becomes several, each reported when it is durable."""
        for i in range(1, 9):
            self.rig.write(None, [entry(i, data=bytes(20_000))])
        self.rig.run_log()
        self.assertEqual(self.rig.persisted, [3, 6, 8])
        writes = [o for o in self.operations if o.name == "write" and any(o.data[:4])]
        self.assertLessEqual(max(len(o.data) for o in writes), (1 << 16) - SECTOR)
        self.assertEqual(len(recovered(self.rig.disk)[1]), 8)

    def test_one_write_of_several_frames(self) -> None:
        """It is reported once, after the last of them; a crash between leaves a part of it."""
        seen = set()
        state = HardState(1, 0), entries(1, 100, size=2000)

        def judge(operation: Operation) -> None:
            self.rig.reactor.run()
            self.assertEqual(self.rig.persisted, [])
            hard_state, log = recovered(self.rig.disk.power_failure())
            seen.add(len(log))
            # The hard state goes with the first of them.
            self.assertEqual(hard_state, state[0] if log else HardState())

        self.rig.disk.before = judge
        self.rig.write(*state)
        self.rig.run_log()
        self.assertEqual(self.rig.persisted, [1])
        self.assertGreater(len(seen), 3)
        self.assertEqual(recovered(self.rig.disk.power_failure()), state)

    def test_frame_that_ends_within_a_write(self) -> None:
        """The writes that it completes are reported, and the last when it is complete."""
        self.rig.write(None, entries(1, 1))
        self.rig.write(None, entries(2, 41, size=2000))
        self.rig.run_log()
        self.assertEqual(self.rig.persisted, [1, 2])
        self.assertGreater(self.names().count("flush"), 1)

    def test_entry_that_fits_no_frame(self) -> None:
        """Refused to its caller; the log goes on."""
        with self.assertRaises(InvariantViolated) as caught:
            self.rig.write(None, [*entries(1, 2), entry(3, data=bytes(1 << 16))])
        self.assertIn("entry 3 takes", str(caught.exception))
        self.rig.number = 0
        self.rig.write(None, entries(1, 2))
        self.rig.run()
        self.assertEqual(recovered(self.rig.disk)[1], entries(1, 2))

    def test_largest_write_that_fits(self) -> None:
        """At each size around the largest, it fits or it is refused; never half of it."""
        fitted = refused = 0
        limit = self.rig.wal._payload_limit
        for size in range(limit - 80, limit):
            rig = create_rig(segment_bytes=1 << 16).start()
            try:
                rig.write(
                    HardState(2**63, 2**64 - 1),
                    [entry(1, data=bytes(size))],
                    commit_index=2**64 - 1,
                )
            except InvariantViolated:
                refused += 1
            else:
                rig.run()
                self.assertEqual(rig.persisted, [1], rig.failures)
                fitted += 1
        self.assertGreater(min(fitted, refused), 10)

    def test_bound_on_the_queue(self) -> None:
        self.patch(wal, "MAX_QUEUED_BYTES", 1000)
        self.rig.write(None, [entry(1, data=bytes(800))])
        self.assertGreater(self.rig.wal._queued_bytes, 800)
        self.assertRaises(InvariantViolated, self.rig.write, None, [entry(2, data=bytes(800))])
        self.rig.number = 1
        self.rig.run()
        self.assertEqual(self.rig.wal._queued_bytes, 0)
        self.rig.write(None, [entry(2, data=bytes(800))])
        self.rig.run()
        self.assertEqual(self.rig.persisted, [1, 2])

    def test_defects_of_the_caller(self) -> None:
        """They raise at once, and leave no trace."""
        write = self.rig.wal.write
        write(1, HardState(2, 5), entries(1, 4, term=2))
        for number, hard_state, new in (
            (1, None, []),
            (3, None, []),
            (2, HardState(1, 0), []),
            (2, HardState(2, 6), []),
            (2, None, entries(6, 6, term=2)),
            (2, None, entries(0, 1, term=2)),
            (2, None, [entry(5, 2), entry(7, 2)]),
            (2, None, [entry(5, 1)]),
            (2, None, [entry(5, 3), entry(6, 2)]),
        ):
            self.assertRaises(InvariantViolated, write, number, hard_state, new)
        write(2, None, [entry(3, 2), entry(4, 3)])
        self.assertRaises(InvariantViolated, write, 3, None, [entry(5, 2)])
        write(3, None, [entry(4, 2)])
        self.rig.run()
        state = HardState(2, 5), [*entries(1, 2, term=2), entry(3, 2), entry(4, 2)]
        self.assertEqual(recovered(self.rig.disk), state)


class ThreadTests(TestCase):
    """With real threads, the real reactor and a real disk."""

    @inlineCallbacks
    def test_life(self) -> Any:
        path = os.path.join(self.mktemp(), "log")
        os.makedirs(os.path.dirname(path))
        log = Wal.create(
            path,
            MEMBER,
            HardState(1, 0),
            entries(1, 1),
            reactor=IReactorFromThreads(reactor),
            segment_bytes=1 << 16,
        )
        done: Deferred[None] = Deferred()
        seen: list[int] = []
        main = threading.current_thread()

        def persisted(number: int) -> None:
            self.assertIs(threading.current_thread(), main)
            seen.append(number)
            if number == 300:
                done.callback(None)

        failures: list[Fatal] = []
        log.start(persisted, failures.append)
        for number in range(1, 301):
            log.write(number, HardState(number, 7), [entry(number + 1, number, b"z" * 1000)])
        yield done
        yield log.close()
        self.assertEqual(failures, [])
        self.assertEqual(seen, sorted(set(seen)))
        # Many writes shared a flush, and there were several segments.
        self.assertLess(len(seen), 150)
        self.assertGreater(len(os.listdir(path)), 4)
        again = Wal.open(path, MEMBER, reactor=IReactorFromThreads(reactor))
        self.assertEqual(again.hard_state, HardState(300, 7))
        self.assertEqual([e.index for e in again.entries], list(range(1, 302)))
        yield again.close()

    @inlineCallbacks
    def test_failure(self) -> Any:
        class Broken(Files):
            def write_and_flush(self, fd: int, data: object, offset: int) -> None:
                raise OSError(errno.EIO, "Input/output error")

        path = os.path.join(self.mktemp(), "log")
        os.makedirs(os.path.dirname(path))
        files = Files()
        log = Wal.create(
            path,
            MEMBER,
            HardState(1, 0),
            [],
            reactor=IReactorFromThreads(reactor),
            segment_bytes=1 << 16,
            files=files,
        )
        failed: Deferred[Fatal] = Deferred()
        log._writer._files = Broken()
        log.start(lambda number: failed.errback(AssertionError(number)), failed.callback)
        log.write(1, None, entries(1, 1))
        failure = yield failed
        self.assertIsInstance(failure, StorageFailed)
        self.assertIn("Input/output error", str(failure))
        yield log.close()


class DocumentationTests(SynchronousTestCase):
    """`docs/log-format.md` shows what the code writes, byte by byte."""

    def test_worked_example(self) -> None:
        page = getModule("raftd").filePath.parent().sibling("docs").child("log-format.md")
        if not page.exists():
            raise SkipTest("raftd is installed without its docs")
        first = Entry(1, 1, 1, 5, b"\x91\xc4\x02hi")
        rig = create_rig(None, HardState(1, MEMBER), [first], 3072).start()
        rig.write(HardState(2, 0), [], commit_index=1)
        last = Entry(3, 2, 1, 8, bytes(461) + b"*" + bytes(138))
        rig.write(None, [Entry(2, 2, 0, 7, b""), last], commit_index=1)
        rig.run_log()
        data = rig.disk.contents()[f"{PATH}/00000000000000000001.segment"]
        line_pattern = r"^([0-9a-f]{8})  ((?:[0-9a-f]{2} ?)+)$"
        lines = re.findall(line_pattern, page.getContent().decode(), re.M)
        shown = bytearray()
        for offset, line in lines:
            shown.extend(bytes(int(offset, 16) - len(shown)))
            shown.extend(bytes.fromhex(line))
        self.assertEqual(bytes(shown).ljust(3072, b"\0"), data)
