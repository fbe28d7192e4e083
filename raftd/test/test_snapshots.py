"""Snapshots: what a store promises while nothing goes wrong, and its bounds."""

from __future__ import annotations

import os
import random
import zlib
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import Clock
from twisted.python.modules import getModule
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from raftd.core.membership import Configuration
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import (
    DirectoryDamaged,
    InvariantViolated,
    SnapshotDamaged,
    Stopped,
)
from raftd.interfaces import (
    ISnapshotReader,
    ISnapshotReceiver,
    ISnapshotStore,
    ISnapshotWriter,
)
from raftd.storage import snapshot_format, snapshot_reader, snapshots
from raftd.storage.frames import Damage
from raftd.storage.memory import MemorySnapshotStore
from raftd.storage.snapshot_format import (
    BLOCK_BYTES,
    MAX_BLOCK_BYTES,
    SnapshotDecoder,
    SnapshotEncoder,
)
from raftd.storage.snapshots import SnapshotStore
from raftd.test.simdisk import Operation
from raftd.test.snapshotrig import (
    CONFIGURATION,
    DIRECTORY,
    DictMachine,
    StoreRig,
    file_of,
    found,
    fresh_disk,
    metadata,
    path_of,
)

SMALL = {b"key": b"value", b"other": b""}
LARGE = {b"%05d" % i: b"%d" % i * 150 for i in range(2000)}


def encoded(blocks: list[bytes], about: SnapshotMetadata | None = None) -> bytes:
    encoder = SnapshotEncoder()
    parts = [encoder.head(about or metadata(7)), *map(encoder.block, blocks), encoder.end()]
    data = b"".join(parts)
    assert encoder.length == len(data)
    return data


def decoded(data: bytes, piece: int = 1 << 20) -> tuple[SnapshotMetadata, list[bytes]]:
    decoder = SnapshotDecoder()
    blocks: list[bytes] = []
    for at in range(0, len(data), piece):
        blocks += decoder.feed(data[at : at + piece])
    return decoder.finish(), blocks


class FormatTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        """However it is cut."""
        choice = random.Random(1)
        blocks = [choice.randbytes(choice.choice((1, 7, 5000))) for _ in range(20)]
        blocks.append(bytes(MAX_BLOCK_BYTES))
        data = encoded(blocks)
        for piece in (len(data), 100_000, 4096, 777):
            self.assertEqual(decoded(data, piece), (metadata(7), blocks))
        few = encoded(blocks[:3])
        for piece in range(1, 90):
            self.assertEqual(decoded(few, piece), (metadata(7), blocks[:3]))

    def test_empty_state(self) -> None:
        self.assertEqual(decoded(encoded([])), (metadata(7), []))

    def test_46_every_flipped_bit_is_refused(self) -> None:
        data = encoded([b"one", b"two" * 20])
        for position in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[position // 8] ^= 1 << position % 8
            with self.assertRaises(Damage) as caught:
                decoded(bytes(flipped))
            self.assertLessEqual(caught.exception.offset, position // 8)

    def test_46_every_end_too_early_and_too_late(self) -> None:
        data = encoded([b"one", b"two" * 20])
        for length in range(len(data)):
            self.assertRaises(Damage, decoded, data[:length])
        self.assertRaises(Damage, decoded, data + b"\0")

    def test_43_parts_of_two_files_never_pass_for_one(self) -> None:
        """Two nodes cut the same state differently, and a receiver gets pieces of both."""
        one, other = encoded([b"aaaa", b"bb", b"cc"]), encoded([b"aaaa", b"dd", b"cc"])
        self.assertEqual(len(one), len(other))
        mixed = 0
        for at in range(len(one)):
            data = one[:at] + other[at:]
            if data not in (one, other):
                self.assertRaises(Damage, decoded, data)
                mixed += 1
        self.assertGreater(mixed, 30)
        # Whole blocks, in another order.
        swapped = encoded([b"aaaa", b"cc", b"bb"])
        head = len(one) - 44 - 2 * 10
        self.assertRaises(Damage, decoded, one[:head] + swapped[head:-44] + one[-44:])

    def test_damage_has_its_offset(self) -> None:
        data = bytearray(encoded([b"one", b"two", b"three"]))
        start = bytes(data).index(b"two") - 8
        data[start + 9] ^= 1
        decoder = SnapshotDecoder()
        with self.assertRaises(Damage) as caught:
            decoder.feed(bytes(data))
        self.assertEqual(caught.exception.offset, start)

    def test_bounds(self) -> None:
        """Nothing that a file says makes a reader hold more than a block."""
        for block in (b"", bytes(MAX_BLOCK_BYTES + 1)):
            self.assertRaises(ValueError, SnapshotEncoder().block, block)
        data = encoded([b"x"])
        head = len(data) - 44 - 9
        for length in (MAX_BLOCK_BYTES + 1, 2**32 - 1):
            huge = data[:head] + length.to_bytes(4, "little")
            decoder = SnapshotDecoder()
            self.assertRaises(Damage, decoder.feed, huge + bytes(4))
        huge = data[:12] + (2**32 - 1).to_bytes(4, "little") + data[16:]
        self.assertRaises(Damage, SnapshotDecoder().feed, huge)
        many = msgspec.structs.replace(metadata(7), time_ms=1)
        self.patch(snapshot_format, "MAX_METADATA_BYTES", 10)
        self.assertRaises(ValueError, SnapshotEncoder().head, many)

    def test_version_of_the_future(self) -> None:
        self.patch(snapshot_format, "FORMAT_VERSION", 2)
        data = encoded([b"x"])
        self.patch(snapshot_format, "FORMAT_VERSION", 1)
        with self.assertRaises(snapshot_format.VersionUnknown) as caught:
            decoded(data)
        self.assertIn("snapshot format version 2", caught.exception.reason)

    def test_head_that_does_not_decode(self) -> None:
        no_text = b"\x94\x01\x01\x94\x91\x92\x01\xa1\xeb\x90\x90\x90\x00"
        for body in (b"", b"\x91\x01", b"\xc1", b"\x94\x01\x01\x90", no_text):
            head = b"raftsnap" + bytes([1, 0, 0, 0, len(body), 0, 0, 0]) + body
            data = head + zlib.crc32(head).to_bytes(4, "little")
            with self.assertRaises(Damage) as caught:
                SnapshotDecoder().feed(data)
            self.assertIn("does not decode", caught.exception.reason)


class WritingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = StoreRig(fresh_disk()).recover()
        self.store = self.rig.store

    def test_interfaces(self) -> None:
        self.assertTrue(verifyObject(ISnapshotStore, self.store))
        self.assertTrue(verifyObject(ISnapshotReceiver, self.store.receive(3, 1)))
        writer = self.store.create(metadata(5))
        self.assertTrue(verifyObject(ISnapshotWriter, writer))
        writer.abort()
        self.rig.take(9, SMALL)
        self.assertTrue(verifyObject(ISnapshotReader, self.store.open()))
        self.assertTrue(verifyObject(ISnapshotReceiver, self.store.receive(9, 1)))

    def test_nothing_is_made_before_it_is_needed(self) -> None:
        self.assertEqual(self.rig.disk.contents(), {})
        self.assertFalse(self.rig.disk.exists(DIRECTORY))
        self.assertIsNone(self.store.latest)
        self.assertRaises(InvariantViolated, self.store.open)

    def test_durable_when_it_is_finished(self) -> None:
        for state in (SMALL, LARGE, {}):
            rig = StoreRig(fresh_disk()).recover()
            finished = rig.begin(7, state).finish()
            while not rig.store.latest:
                self.assertNoResult(finished)
                self.assertTrue(rig.step())
            self.successResultOf(finished)
            self.assertEqual(rig.store.latest, metadata(7))
            self.assertEqual(found(rig.disk.power_failure()), (7, state))
            self.assertEqual(rig.disk.open_count, 0)
            self.assertEqual(rig.names(), [os.path.basename(path_of(7))])

    def test_blocks_are_of_one_size_whatever_the_slices(self) -> None:
        """A million slices of a few bytes do not become a million blocks."""
        writer = self.store.create(metadata(7))
        choice = random.Random(2)
        state = choice.randbytes(3 * BLOCK_BYTES + 17)
        at = 0
        while at < len(state):
            length = choice.choice((0, 1, 900, 150_000))
            writer.write(state[at : at + length])
            at += length
        self.rig.result(writer.finish())
        data = self.rig.disk.contents()[path_of(7)]
        _, blocks = decoded(data)
        self.assertEqual(b"".join(blocks), state)
        self.assertEqual([len(b) for b in blocks], [BLOCK_BYTES] * 3 + [17])

    def test_pending_bytes(self) -> None:
        """They let whoever writes pace himself; the bound is a defect of his."""
        self.patch(snapshots, "MAX_PENDING_BYTES", 1000)
        writer = self.store.create(metadata(7))
        writer.write(bytes(600))
        writer.write(bytes(400))
        self.assertEqual(writer.pending_bytes, 1000)
        self.assertRaises(InvariantViolated, writer.write, b"x")
        self.rig.run()
        self.assertEqual(writer.pending_bytes, 0)
        writer.write(bytes(1000))

    def test_53_flushed_bit_by_bit(self) -> None:
        """No flush is for more than a few megabytes: the log's own flushes wait behind it."""
        unflushed, most = 0, 0

        def judge(operation: Operation) -> None:
            nonlocal unflushed, most
            if operation.name == "write":
                unflushed += len(operation.data)
                most = max(most, unflushed)
            elif operation.name == "flush":
                unflushed = 0

        self.rig.disk.before = judge
        writer = self.store.create(metadata(7))
        for _ in range(200):
            writer.write(bytes(64 << 10))
        self.rig.result(writer.finish())
        self.assertLess(most, 5 << 20)

    def test_abort_leaves_nothing(self) -> None:
        writer = self.rig.begin(7, LARGE)
        for _ in range(40):
            self.rig.step()
        self.assertEqual(self.rig.names(), [os.path.basename(path_of(7, suffix="tmp"))])
        writer.abort()
        writer.abort()
        # Another one may begin at once, for the same entry.
        self.rig.take(7, SMALL)
        self.assertEqual(found(self.rig.disk), (7, SMALL))
        self.assertEqual(self.rig.names(), [os.path.basename(path_of(7))])
        self.assertEqual(self.rig.disk.open_count, 0)

    def test_one_at_a_time(self) -> None:
        writer = self.store.create(metadata(7))
        self.assertRaises(InvariantViolated, self.store.create, metadata(8))
        finished = writer.finish()
        self.assertRaises(InvariantViolated, self.store.create, metadata(8))
        self.assertRaises(InvariantViolated, writer.write, b"x")
        self.assertRaises(InvariantViolated, writer.finish)
        self.rig.result(finished)
        self.rig.take(8, SMALL)

    def test_the_last_two_are_kept(self) -> None:
        for index in range(1, 6):
            self.rig.take(index * 10, {b"%d" % index: b""})
        self.rig.run()
        names = [os.path.basename(path_of(index)) for index in (40, 50)]
        self.assertEqual(self.rig.names(), names)
        self.assertEqual(found(self.rig.disk.power_failure()), (50, {b"5": b""}))

    def test_an_older_one_is_never_the_latest(self) -> None:
        """One that was received overtakes one that was being written."""
        writer = self.rig.begin(10, SMALL)
        receiver = self.store.receive(20, 2)
        self.rig.result(receiver.write(0, file_of(20, LARGE, 2)))
        self.rig.result(receiver.finish())
        self.rig.result(writer.finish())
        self.assertEqual(self.store.latest, metadata(20, 2))
        self.assertEqual(found(self.rig.disk.power_failure()), (20, LARGE))

    def test_42_two_close_together(self) -> None:
        """Of neighbouring entries, and of the same one, while one is sent."""
        self.rig.take(10, SMALL)
        reader = self.store.open()
        self.rig.take(11, LARGE)
        self.rig.take(11, LARGE)
        self.rig.take(12, SMALL)
        self.assertEqual(len(self.rig.result(reader.read(0, 1 << 20))), reader.size)
        reader.close()
        self.rig.run()
        self.assertEqual(len(self.rig.names()), 2)
        self.assertEqual(found(self.rig.disk.power_failure()), (12, SMALL))

    def test_before_and_after(self) -> None:
        """A store that was not recovered, or is closed, does nothing."""
        fresh = StoreRig(fresh_disk())
        for store in (fresh.store, self.store):
            if store is self.store:
                self.successResultOf(store.close())
                self.assertRaises(InvariantViolated, store.close)
            self.assertRaises(InvariantViolated, store.create, metadata(7))
            self.assertRaises(InvariantViolated, store.receive, 7, 1)
            self.assertRaises(InvariantViolated, store.open)
        self.assertRaises(InvariantViolated, self.rig.recover)


class ReceivingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = StoreRig(fresh_disk()).recover()
        self.data = file_of(20, LARGE, 3)
        self.receiver = self.rig.store.receive(20, 3)

    def piece(self, offset: int, length: int = 100_000) -> int:
        """Send a piece; where to go on."""
        receiver = self.rig.store.receive(20, 3)
        return self.rig.result(receiver.write(offset, self.data[offset : offset + length]))

    def send(self, offset: int = 0) -> None:
        while offset < len(self.data):
            offset = self.piece(offset)

    def test_in_order(self) -> None:
        self.send()
        self.assertIsNone(self.rig.store.latest)
        self.assertEqual(self.rig.result(self.receiver.finish()), metadata(20, 3))
        self.assertEqual(self.rig.store.latest, metadata(20, 3))
        self.assertEqual(self.rig.disk.contents()[path_of(20, 3)], self.data)
        self.assertEqual(found(self.rig.disk.power_failure()), (20, LARGE))
        self.assertEqual(self.rig.disk.open_count, 0)

    def test_43_resumed_after_a_broken_connection(self) -> None:
        """The same index and term: it goes on where it stopped, whoever sends."""
        offset = self.piece(self.piece(0))
        self.assertEqual(offset, 200_000)
        again = self.rig.store.receive(20, 3)
        self.assertIs(again, self.receiver)
        # The sender begins anew, and is told where to go on.
        self.assertEqual(self.piece(0), 200_000)
        self.send(200_000)
        self.rig.result(again.finish())
        self.assertEqual(found(self.rig.disk), (20, LARGE))

    def test_43_duplicates_late_pieces_and_gaps(self) -> None:
        """Any order and repetition of pieces ends in the same file."""
        for seed in range(20):
            choice = random.Random(seed)
            self.setUp()
            asked = 0
            while asked < len(self.data):
                offset = choice.choice((asked, asked, 0, max(0, asked - 30_000), asked + 5))
                answer = self.piece(offset, choice.randrange(1, 80_000))
                self.assertGreaterEqual(answer, asked)
                self.assertTrue(offset == asked or answer == asked)
                asked = answer
            self.rig.result(self.receiver.finish())
            self.assertEqual(self.rig.disk.contents()[path_of(20, 3)], self.data)

    def test_pieces_in_flight(self) -> None:
        """Several before the first is answered; a gap is answered behind all of them."""
        size = 50_000
        answers = [
            self.receiver.write(offset, self.data[offset : offset + size])
            for offset in (0, size, 3 * size, 2 * size)
        ]
        outcomes = [self.rig.result(answer) for answer in answers]
        self.assertEqual(outcomes, [size, 2 * size, 3 * size, 3 * size])

    def test_bounded_memory(self) -> None:
        """What does not fit is not kept, and asked for again when there is room."""
        self.patch(snapshots, "MAX_PENDING_BYTES", 100_000)
        first = self.receiver.write(0, self.data[:80_000])
        second = self.receiver.write(80_000, self.data[80_000:160_000])
        self.assertNoResult(second)
        self.assertEqual((self.rig.result(first), self.rig.result(second)), (80_000, 80_000))
        self.send(80_000)
        self.rig.result(self.receiver.finish())
        self.assertEqual(found(self.rig.disk), (20, LARGE))

    def test_43_another_snapshot_begins(self) -> None:
        """The part of the one before is given up, in whatever state it is."""
        self.piece(0)
        newer = self.rig.store.receive(30, 3)
        self.rig.result(newer.write(0, file_of(30, SMALL, 3)))
        self.rig.result(newer.finish())
        self.rig.run()
        self.assertEqual(self.rig.names(), [os.path.basename(path_of(30, 3))])
        late = self.receiver.write(100_000, b"late")
        self.assertIsInstance(self.rig.error(late), Stopped)
        self.assertEqual(found(self.rig.disk), (30, SMALL))

    def test_43_the_same_index_of_another_term(self) -> None:
        self.piece(0)
        other = self.rig.store.receive(20, 4)
        self.assertIsNot(other, self.receiver)
        self.assertEqual(self.rig.result(other.write(100_000, b"x")), 0)

    def test_never_visible_before_it_is_checked(self) -> None:
        """At no moment of the check, and neither to a start after a crash."""
        self.rig.take(5, SMALL)
        self.send()
        finished = self.receiver.finish()
        steps = 0
        while not finished.called:
            self.assertEqual(self.rig.store.latest, metadata(5))
            self.rig.step()
            steps += 1
        # Read and checked in several bounded steps, other work in between.
        self.assertGreater(steps, 4)
        self.assertEqual(self.rig.store.latest, metadata(20, 3))

    def test_others_do_not_wait_for_a_check(self) -> None:
        self.patch(snapshots, "STEP_BYTES", 50_000)
        self.rig.take(5, SMALL)
        self.send()
        finished = self.receiver.finish()
        reader = self.rig.store.open()
        self.rig.result(reader.read(0, 1000))
        self.assertNoResult(finished)
        self.rig.result(finished)

    def test_the_last_piece_again(self) -> None:
        """Its answer was lost: while it is checked, and after."""
        self.send()
        finished = self.receiver.finish()
        receiver = self.rig.store.receive(20, 3)
        last = len(self.data) - 10
        again = receiver.write(last, self.data[last:])
        self.assertEqual(self.successResultOf(again), len(self.data))
        second = receiver.finish()
        self.assertEqual(self.rig.result(finished), metadata(20, 3))
        self.assertEqual(self.successResultOf(second), metadata(20, 3))
        self.assertEqual(self.successResultOf(receiver.finish()), metadata(20, 3))
        late = self.rig.store.receive(20, 3)
        self.assertEqual(self.successResultOf(late.write(last, self.data[last:])), last + 10)
        self.assertEqual(self.successResultOf(late.finish()), metadata(20, 3))
        self.assertEqual(self.rig.disk.contents()[path_of(20, 3)], self.data)

    def test_46_damaged_on_the_way(self) -> None:
        """Every bit, of a small one: discarded, told, and received anew."""
        data = file_of(20, SMALL, 3)
        rig = StoreRig(fresh_disk()).recover()
        rig.take(5, SMALL)
        for position in range(0, len(data) * 8, 3):
            flipped = bytearray(data)
            flipped[position // 8] ^= 1 << position % 8
            receiver = rig.store.receive(20, 3)
            self.assertEqual(rig.result(receiver.write(0, bytes(flipped))), len(data))
            error = rig.error(receiver.finish())
            self.assertIsInstance(error, SnapshotDamaged)
            self.assertIn("The snapshot up to entry 20 arrived damaged at off", str(error))
            rig.run()
            self.assertEqual(rig.store.latest, metadata(5))
            self.assertEqual(rig.names(), [os.path.basename(path_of(5))])
        receiver = rig.store.receive(20, 3)
        rig.result(receiver.write(0, data))
        rig.result(receiver.finish())
        self.assertEqual(rig.disk.open_count, 0)

    def test_43_pieces_of_two_senders(self) -> None:
        """Another leader's file of the same index and term differs: found out at the end."""
        other = file_of(20, {**LARGE, b"00003": b"9" * 150}, 3)
        self.piece(0, 200_000)
        self.rig.result(self.receiver.write(200_000, other[200_000:]))
        self.assertIsInstance(self.rig.error(self.receiver.finish()), SnapshotDamaged)

    def test_not_the_snapshot_that_was_announced(self) -> None:
        for index, term in ((21, 3), (20, 2)):
            receiver = self.rig.store.receive(20, 3)
            self.rig.result(receiver.write(0, file_of(index, SMALL, term)))
            error = self.rig.error(receiver.finish())
            self.assertIsInstance(error, SnapshotDamaged)
            self.assertIn(f"it ends with entry {index} of term {term}, not", str(error))

    def test_finish_too_early(self) -> None:
        self.piece(0)
        self.assertIn("ends too early", str(self.rig.error(self.receiver.finish())))
        self.assertIn("ends too", str(self.rig.error(self.rig.store.receive(9, 1).finish())))


class ReadingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.rig = StoreRig(fresh_disk()).recover()
        self.rig.take(20, LARGE, 3)
        self.reader = self.rig.store.open()

    def test_read(self) -> None:
        data = self.rig.disk.contents()[path_of(20, 3)]
        self.assertEqual((self.reader.metadata, self.reader.size), (metadata(20, 3), len(data)))
        for offset, size in ((0, 10), (5000, 70_000), (len(data) - 3, 10), (len(data), 10)):
            found = self.rig.result(self.reader.read(offset, size))
            self.assertEqual(found, data[offset : offset + size])
        self.assertRaises(InvariantViolated, self.reader.read, 0, (4 << 20) + 1)

    def test_deletion_waits_for_readers(self) -> None:
        data = self.rig.disk.contents()[path_of(20, 3)]
        second = self.rig.store.open()
        for index in (30, 40, 50):
            self.rig.take(index, SMALL, 3)
        self.rig.run()
        kept = [os.path.basename(path_of(i, 3)) for i in (20, 40, 50)]
        self.assertEqual(self.rig.names(), kept)
        self.reader.close()
        self.rig.run()
        self.assertEqual(self.rig.names(), kept)
        self.assertEqual(self.rig.result(second.read(0, 4 << 20)), data)
        second.close()
        second.close()
        self.rig.run()
        self.assertEqual(self.rig.names(), kept[1:])
        self.assertEqual(self.rig.disk.open_count, 0)
        self.assertIsInstance(self.rig.error(second.read(0, 1)), Stopped)

    def test_restore(self) -> None:
        machine = DictMachine({b"old": b"state"})
        restored = self.reader.restore(machine)
        while not restored.called:
            # Until the end, the present state stays.
            self.assertEqual(machine.state, {b"old": b"state"})
            self.rig.step()
        self.successResultOf(restored)
        self.assertEqual(machine.digest(), DictMachine(LARGE).digest())
        self.assertLessEqual(max(machine.steps), BLOCK_BYTES)

    def test_45_restoring_lets_the_reactor_work(self) -> None:
        """A state machine that takes a millisecond a slice is paused after a few."""
        self.patch(snapshot_reader, "RESTORE_SLICE_S", 0.003)
        self.rig.clock.tick_s = 0.001
        machine = DictMachine()
        pauses: list[int] = []
        self.rig.clock.on_call_later = lambda: pauses.append(len(machine.steps))
        self.rig.result(self.reader.restore(machine))
        self.assertEqual(len(machine.steps), 17)
        for before, after in zip([0, *pauses], [*pauses, 17], strict=True):
            self.assertLessEqual(after - before, 3)

    def test_46_damaged_on_the_disk(self) -> None:
        """The state machine keeps what it has, and the file and offset are named."""
        inode = self.rig.disk.inode(path_of(20, 3))
        inode.cache[150_000] ^= 4
        machine = DictMachine({b"old": b"state"})
        error = self.rig.error(self.reader.restore(machine))
        self.assertIsInstance(error, DirectoryDamaged)
        self.assertRegex(str(error), rf"^{path_of(20, 3)} is damaged at offset \d+: a block")
        self.assertEqual(machine.state, {b"old": b"state"})

    def test_closed_while_restoring(self) -> None:
        machine = DictMachine({b"old": b"state"})
        restored = self.reader.restore(machine)
        self.rig.step()
        self.reader.close()
        self.assertIsInstance(self.rig.error(restored), Stopped)
        self.assertEqual(machine.state, {b"old": b"state"})

    def test_a_state_that_the_machine_refuses(self) -> None:
        writer = self.rig.store.create(metadata(30))
        writer.write(b"\xc1")
        self.rig.result(writer.finish())
        error = self.rig.error(self.rig.store.open().restore(self.rig.machine))
        self.assertIsInstance(error, DirectoryDamaged)
        self.assertIn("no state of a dict begins so", str(error))
        with self.assertRaises(DirectoryDamaged) as caught:
            found(self.rig.disk)
        self.assertIn(f"The state in {path_of(30)} cannot be restored", str(caught.exception))
        writer = self.rig.store.create(metadata(40))
        writer.write(msgspec.msgpack.encode((b"key", b"value"))[:-1])
        self.rig.result(writer.finish())
        error = self.rig.error(self.rig.store.open().restore(self.rig.machine))
        self.assertIn("the last item is not whole", str(error))


class CloseTests(SynchronousTestCase):
    def test_gives_up_everything(self) -> None:
        """At every step of it: no file is open, and what is not whole is gone."""
        for steps in range(0, 60, 3):
            rig = StoreRig(fresh_disk()).recover()
            rig.take(5, SMALL)
            writer = rig.begin(30, LARGE)
            finished = writer.finish()
            receiver = rig.store.receive(20, 3)
            data = file_of(20, LARGE, 3)
            piece = receiver.write(0, data)
            received = receiver.finish()
            reader = rig.store.open()
            read = reader.read(0, 1000)
            machine = DictMachine()
            restored = reader.restore(machine)
            for _ in range(steps * 40):
                rig.step()
            closed = rig.store.close()
            for waited in (finished, piece, received, read, restored):
                waited.addErrback(lambda failure: failure.trap(Stopped))
            rig.run()
            self.successResultOf(closed)
            for waited in (finished, piece, received, read, restored):
                self.assertTrue(waited.called)
            self.assertEqual(rig.disk.open_count, 0)
            self.assertTrue(rig.worker.ended)
            self.assertNotIn("tmp", "".join(rig.names()))
            self.assertNotIn("part", "".join(rig.names()))
            for late in (reader.close, writer.abort):
                late()
            index, state = found(rig.disk)
            self.assertEqual(state, {5: SMALL, 20: LARGE, 30: LARGE}[index])

    def test_never_used(self) -> None:
        self.successResultOf(StoreRig(fresh_disk()).store.close())


class MemoryTests(SynchronousTestCase):
    """The store in memory is the same one; its disk takes time, and forgets."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = MemorySnapshotStore(self.clock, delay_seconds=0.01)
        self.store.recover(DictMachine())

    def take(self, store: MemorySnapshotStore, index: int, state: dict[bytes, bytes]) -> Any:
        writer = store.create(metadata(index))
        for data in DictMachine(state).snapshot():
            writer.write(data)
        return writer.finish()

    def test_interface(self) -> None:
        self.assertTrue(verifyObject(ISnapshotStore, self.store))

    def test_takes_its_time(self) -> None:
        finished = self.take(self.store, 7, SMALL)
        self.clock.pump([0.005] * 3)
        self.assertNoResult(finished)
        self.clock.pump([0.01] * 3)
        self.successResultOf(finished)
        self.assertEqual(self.store.latest, metadata(7))
        self.store.delay_seconds = 0.0
        finished = self.take(self.store, 8, SMALL)
        self.clock.pump([0.0] * 5)
        self.successResultOf(finished)

    def test_50_crash(self) -> None:
        """What was finished survives, what was under way does not, and nothing happens."""
        self.take(self.store, 7, SMALL)
        self.clock.pump([0.01] * 5)
        data = file_of(20, LARGE, 3)
        receiver = self.store.receive(20, 3)
        receiver.write(0, data[:100])
        finished = self.take(self.store, 8, LARGE)
        self.clock.pump([0.01] * 30)
        after = self.store.crash()
        self.clock.pump([0.01] * 3000)
        self.assertNoResult(finished)
        machine = DictMachine()
        after.recover(machine)
        self.assertEqual((after.latest, machine.state), (metadata(7), SMALL))
        # It works as before, and what was received before is forgotten.
        answer = after.receive(20, 3).write(100, data[100:])
        self.clock.pump([0.01] * 2)
        self.assertEqual(self.successResultOf(answer), 0)

    def test_send_and_restore(self) -> None:
        self.take(self.store, 7, SMALL)
        self.clock.pump([0.01] * 5)
        other = MemorySnapshotStore(self.clock, delay_seconds=0.01)
        other.recover(DictMachine())
        reader = self.store.open()
        data = reader.read(0, 1 << 20)
        self.clock.pump([0.01] * 2)
        receiver = other.receive(7, 1)
        kept = receiver.write(0, self.successResultOf(data))
        finished = receiver.finish()
        self.clock.pump([0.01] * 8)
        self.assertEqual(self.successResultOf(kept), reader.size)
        self.assertEqual(self.successResultOf(finished), metadata(7))
        machine = DictMachine()
        restored = other.open().restore(machine)
        self.clock.pump([0.01] * 5)
        self.successResultOf(restored)
        self.assertEqual(machine.state, SMALL)
        closed = other.close()
        self.clock.pump([0.01] * 3)
        self.successResultOf(closed)

    def test_41_gap(self) -> None:
        self.assertRaises(
            DirectoryDamaged, self.store.crash().recover, DictMachine(), log_base_index=3
        )


class RivalTests(SynchronousTestCase):
    """Snapshots of several leaders, which arrive while others are at work."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = MemorySnapshotStore(self.clock, delay_seconds=0.001)
        self.store.recover(DictMachine())

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(0.001)

    def arrive(self, index: int, blocks: int) -> Deferred[SnapshotMetadata]:
        """All pieces of a snapshot; what its check comes to."""
        receiver, data = self.store.receive(index, 1), _file(index, blocks)
        for offset in range(0, len(data), 1 << 19):
            kept = receiver.write(offset, data[offset : offset + (1 << 19)])
            self.turns(5)
            self.successResultOf(kept)
        return receiver.finish()

    def test_43_one_that_is_checked_and_comes_again_is_two_files(self) -> None:
        done = self.arrive(100, 60)
        self.turns(2)  # its check has begun
        self.store.receive(200, 1).write(0, _file(200, 2)[:1000])
        self.store.receive(100, 1).write(0, _file(100, 60)[:1000])
        self.turns(200)
        metadata = self.successResultOf(done)
        reader = self.store.open(metadata)
        read = reader.read(reader.size - 10, 100)
        self.turns(5)
        self.assertEqual(self.successResultOf(read), _file(100, 60)[-10:])

    def test_42_the_one_that_has_just_arrived_can_be_read(self) -> None:
        for index in (200, 300, 100):
            done = self.arrive(index, 1)
            self.turns(50)
        self.assertEqual(self.store.open(self.successResultOf(done)).metadata, _metadata(100))


def _metadata(index: int) -> SnapshotMetadata:
    return SnapshotMetadata(index, 1, Configuration(), 0)


def _file(index: int, blocks: int) -> bytes:
    encoder = SnapshotEncoder()
    head = encoder.head(_metadata(index))
    body = b"".join(encoder.block(bytes([k % 251]) * 65_536) for k in range(blocks))
    return head + body + encoder.end()


class ThreadTests(TestCase):
    """With real threads, the real reactor and a real disk; two nodes in one process."""

    @inlineCallbacks
    def test_life(self) -> Any:
        path = self.mktemp()
        os.makedirs(os.path.join(path, "one"))
        os.makedirs(os.path.join(path, "two"))
        stores = []
        real: Any = reactor
        for name in ("one", "two"):
            store = SnapshotStore(os.path.join(path, name, "snapshots"), real)
            store.recover(DictMachine())
            stores.append(store)
        one, two = stores
        state = {b"%d" % i: os.urandom(5000) for i in range(2000)}
        writer = one.create(metadata(9))
        for data in DictMachine(state).snapshot():
            writer.write(data)
        yield writer.finish()
        reader = one.open()
        receiver = two.receive(9, 1)
        offset = 0
        while offset < reader.size:
            piece = yield reader.read(offset, 300_000)
            offset = yield receiver.write(offset, piece)
        received = yield receiver.finish()
        self.assertEqual(received, metadata(9))
        machine = DictMachine()
        restoring = two.open()
        yield restoring.restore(machine)
        self.assertEqual(machine.digest(), DictMachine(state).digest())
        yield one.close()
        yield two.close()
        again = SnapshotStore(os.path.join(path, "two", "snapshots"), real)
        machine = DictMachine()
        again.recover(machine, log_base_index=9)
        self.assertEqual(machine.state, state)
        yield again.close()


class DocumentationTests(SynchronousTestCase):
    """`docs/snapshot-format.md` shows what the code writes, byte by byte."""

    def test_worked_example(self) -> None:
        page = getModule("raftd").filePath.parent().sibling("docs").child("snapshot-format.md")
        if not page.exists():
            raise SkipTest("raftd is installed without its docs")
        about = SnapshotMetadata(5, 2, CONFIGURATION, 1005)
        shown = bytearray()
        for line in page.getContent().decode().splitlines():
            offset, _, rest = line.partition("  ")
            if len(offset) == 8 and offset == f"{len(shown):08x}":
                shown += bytes.fromhex(rest)
        self.assertEqual(bytes(shown), encoded([b"hello", b"!"], about))
