"""The log in memory keeps the promises of the one on disk, on a disk that tests command."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from raftd.core.messages import HardState
from raftd.errors import Fatal, InvariantViolated, StorageFailed
from raftd.interfaces import ILogStorage
from raftd.storage.memory import MemoryLog
from raftd.test.logrig import entries, entry


class MemoryLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.persisted: list[int] = []
        self.failures: list[Fatal] = []
        self.clock = Clock()

    def started(self, log: MemoryLog) -> MemoryLog:
        log.start(self.persisted.append, self.failures.append)
        return log

    def test_interface(self) -> None:
        self.assertTrue(verifyObject(ILogStorage, MemoryLog()))

    def test_starts_with_what_it_is_given(self) -> None:
        log = MemoryLog(HardState(3, 1), entries(1, 4))
        self.assertEqual((log.hard_state, list(log.entries)), (HardState(3, 1), entries(1, 4)))
        empty = MemoryLog()
        self.assertEqual((empty.hard_state, list(empty.entries)), (HardState(), []))

    def test_entries_are_let_go(self) -> None:
        log = self.started(MemoryLog(HardState(3, 1), entries(1, 4)))
        self.assertEqual(list(log.entries), [])
        self.assertEqual(list(log.crash().entries), entries(1, 4))

    def test_50_durable_when_flushed(self) -> None:
        log = self.started(MemoryLog())
        log.write(1, HardState(1, 1), entries(1, 2))
        log.write(2, None, entries(3, 3))
        self.assertEqual((self.persisted, log.unflushed), ([], 2))
        log.flush()
        self.assertEqual((self.persisted, log.unflushed), ([2], 0))
        log.flush()
        self.assertEqual(self.persisted, [2])
        after = log.crash()
        self.assertEqual(
            (after.hard_state, list(after.entries)), (HardState(1, 1), entries(1, 3))
        )

    def test_crash_loses_the_rest(self) -> None:
        log = self.started(MemoryLog(HardState(1, 1), entries(1, 3)))
        log.write(1, HardState(2, 0), entries(2, 2, term=2))
        after = log.crash()
        self.assertEqual(
            (after.hard_state, list(after.entries)), (HardState(1, 1), entries(1, 3))
        )
        log.flush()
        log.write(2, None, [])
        self.assertEqual(self.persisted, [])

    def test_crash_may_keep_some(self) -> None:
        for kept, state in (
            (1, (HardState(2, 0), entries(1, 1) + entries(2, 2, term=2))),
            (2, (HardState(2, 0), entries(1, 1, term=2))),
            (9, (HardState(3, 3), entries(1, 1, term=2))),
        ):
            log = self.started(MemoryLog(HardState(1, 1), entries(1, 3)))
            log.write(1, HardState(2, 0), entries(2, 2, term=2))
            log.write(2, None, entries(1, 1, term=2))
            log.write(3, HardState(3, 3), [])
            after = log.crash(kept)
            self.assertEqual((after.hard_state, list(after.entries)), state)

    def test_50_a_flush_covers_what_was_there_when_it_began(self) -> None:
        """Group commit: what is written meanwhile is flushed together, by the next."""
        log = self.started(MemoryLog(clock=self.clock, delay_seconds=2))
        log.write(1, None, entries(1, 1))
        self.clock.advance(1)
        log.write(2, None, entries(2, 2))
        self.clock.advance(0.5)
        log.write(3, None, entries(3, 3))
        self.assertEqual(self.persisted, [])
        self.clock.advance(0.5)
        self.assertEqual((self.persisted, log.unflushed), ([1], 2))
        log.write(4, None, entries(4, 4))
        self.clock.advance(1.75)
        self.assertEqual((self.persisted, log.unflushed), ([1], 3))
        self.clock.advance(0.25)
        self.assertEqual((self.persisted, log.unflushed), ([1, 3], 1))
        self.assertEqual(list(log.crash().entries), entries(1, 3))

    def test_delay(self) -> None:
        """It may change; a flush under way takes as long as it was to take."""
        log = self.started(MemoryLog(clock=self.clock, delay_seconds=2))
        log.write(1, None, entries(1, 1))
        log.delay_seconds = 5
        log.write(2, None, entries(2, 2))
        self.clock.advance(2)
        self.assertEqual(self.persisted, [1])
        self.clock.advance(4)
        self.assertEqual(self.persisted, [1])
        self.clock.advance(1)
        self.assertEqual(self.persisted, [1, 2])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_flush_overtakes_the_delay(self) -> None:
        """Of all that is queued; the next write begins a flush of its own."""
        log = self.started(MemoryLog(clock=self.clock, delay_seconds=2))
        log.write(1, None, entries(1, 1))
        log.write(2, None, entries(2, 2))
        self.clock.advance(1)
        log.flush()
        self.assertEqual(self.persisted, [2])
        log.write(3, None, entries(3, 3))
        self.clock.advance(1)
        self.assertEqual(self.persisted, [2])
        self.clock.advance(1)
        self.assertEqual(self.persisted, [2, 3])

    def test_begins_to_hang(self) -> None:
        """The flush under way ends; the next never begins."""
        log = self.started(MemoryLog(clock=self.clock, delay_seconds=1))
        log.write(1, None, entries(1, 1))
        log.write(2, None, entries(2, 2))
        log.delay_seconds = None
        self.clock.advance(100)
        self.assertEqual(self.persisted, [1])
        # It is repaired, which the next write finds out.
        log.delay_seconds = 1
        log.write(3, None, entries(3, 3))
        self.clock.advance(1)
        self.assertEqual(self.persisted, [1, 3])

    def test_hanging_disk(self) -> None:
        log = self.started(MemoryLog(clock=self.clock, delay_seconds=None))
        log.write(1, None, entries(1, 1))
        self.clock.advance(1000)
        self.assertEqual(self.persisted, [])
        log.flush()
        self.assertEqual(self.persisted, [1])

    def test_write_from_persisted(self) -> None:
        """The next write may come from within the call for the last."""
        log = MemoryLog(clock=self.clock, delay_seconds=1)

        def persisted(number: int) -> None:
            self.persisted.append(number)
            if number < 3:
                log.write(number + 1, None, [entry(number + 1)])

        log.start(persisted, self.failures.append)
        log.write(1, None, [entry(1)])
        self.clock.pump([1, 1, 1, 1])
        self.assertEqual(self.persisted, [1, 2, 3])

    def test_47_fail(self) -> None:
        log = self.started(MemoryLog(clock=self.clock, delay_seconds=1))
        log.write(1, None, entries(1, 1))
        self.clock.advance(1)
        log.fail()
        log.write(2, None, entries(2, 2))
        self.assertEqual(self.failures, [])
        self.clock.advance(1)
        self.assertEqual((self.persisted, len(self.failures)), ([1], 1))
        self.assertIsInstance(self.failures[0], StorageFailed)
        log.write(3, None, entries(3, 3))
        log.flush()
        self.clock.advance(9)
        self.assertEqual((self.persisted, len(self.failures)), ([1], 1))
        self.assertEqual(list(log.crash().entries), entries(1, 1))

    def test_44_begins_anew(self) -> None:
        """Behind a snapshot, and not before that is flushed."""
        log = self.started(MemoryLog(HardState(1, 1), entries(1, 5)))
        log.write(1, HardState(3, 0), entries(9, 10, term=3), (8, 2))
        self.assertEqual(log.crash().base_index, 0)
        log = self.started(MemoryLog(HardState(1, 1), entries(1, 5)))
        log.write(1, HardState(3, 0), entries(9, 10, term=3), (8, 2))
        log.flush()
        after = log.crash()
        self.assertEqual((after.hard_state, after.base_index), (HardState(3, 0), 8))
        self.assertEqual((after.base_term, list(after.entries)), (2, entries(9, 10, term=3)))
        self.started(after)
        self.assertRaises(InvariantViolated, after.write, 1, None, entries(8, 8, term=3))
        after.write(1, None, entries(9, 9, term=4))

    def test_compact(self) -> None:
        """What is durable goes at once; hard state and term stay."""
        log = self.started(MemoryLog(HardState(4, 1), entries(1, 5, term=2)))
        log.compact(3)
        log.compact(2)
        log.write(1, None, entries(6, 6, term=4))
        self.assertRaises(InvariantViolated, log.compact, 7)
        after = log.crash(kept=1)
        self.assertEqual((after.hard_state, after.base_index), (HardState(4, 1), 3))
        self.assertEqual(after.base_term, 2)
        self.assertEqual(list(after.entries), entries(4, 5, term=2) + entries(6, 6, term=4))
        self.assertRaises(InvariantViolated, after.compact, 4)
        self.started(after).compact(6)
        again = after.crash()
        self.assertEqual((again.base_index, again.base_term, len(again.entries)), (6, 4, 0))
        self.assertEqual(again.hard_state, HardState(4, 1))

    def test_close(self) -> None:
        log = self.started(MemoryLog(clock=self.clock, delay_seconds=1))
        log.write(1, None, entries(1, 1))
        self.successResultOf(log.close())
        self.assertEqual(self.persisted, [1])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(list(log.crash().entries), entries(1, 1))
        self.successResultOf(MemoryLog().close())

    def test_defects_of_the_caller(self) -> None:
        log = MemoryLog(HardState(2, 5), entries(1, 2))
        self.assertRaises(InvariantViolated, log.write, 1, None, [])
        self.started(log)
        self.assertRaises(InvariantViolated, log.start, print, print)
        self.assertRaises(InvariantViolated, log.write, 2, None, [])
        self.assertRaises(InvariantViolated, log.write, 1, None, entries(4, 4))
        self.assertRaises(InvariantViolated, log.write, 1, HardState(1, 0), [])
        log.write(1, None, entries(3, 3))
