"""What the leader does for the store, with time: compacting, and comparing digests."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Member
from raftd.errors import NoQuorum, OutcomeUnknown, Overloaded, RaftdError, Stopped
from raftd.events import LeaderChanged, TermChanged
from raftd.interfaces import Done, INode, NodeStatus
from raftd.kv.checker import INTERVAL_S as CHECK_INTERVAL_S
from raftd.kv.checker import PAUSE_S as CHECK_PAUSE_S
from raftd.kv.checker import SLICE_S, Checker
from raftd.kv.compactor import (
    INTERVAL_S,
    MAX_SEEN,
    PAUSE_S,
    PORTION_KEYS,
    RETRY_S,
    SMALL_PORTION_KEYS,
    Compactor,
)
from raftd.kv.interfaces import DigestStatus
from raftd.kv.operations import Checkpoint, Compact, Operation
from raftd.kv.results import CompactResult, NoResult, Result
from raftd.kv.tenure import Tenure

ME, OTHER = Member(1, "n1"), Member(2, "n2")


class FakeNode:
    """A node whose reads are answered by the test."""

    def __init__(self) -> None:
        self.reads: list[Done[None]] = []

    def read(self, done: Done[None]) -> None:
        self.reads.append(done)

    def status(self) -> NodeStatus:
        return NodeStatus(ME, 1, "leader", 1, None, 0, 0, 0, 0, 0, 0.0, ())


class TenureTests(SynchronousTestCase):
    """A tenure begins with a confirmed read, and ends with the next news."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.node = FakeNode()
        self.seen: list[str] = []
        self.tenure = Tenure(
            self.clock,
            cast(INode, self.node),
            lambda: self.seen.append("begin"),
            lambda: self.seen.append("end"),
        )

    def test_confirmed(self) -> None:
        self.tenure.observe(LeaderChanged(2, ME))
        self.assertEqual(self.seen, [])
        self.node.reads.pop()(None)
        self.assertEqual((self.seen, self.tenure.lasts), (["begin"], True))
        self.tenure.observe(TermChanged(3))
        self.assertEqual(self.seen, ["begin"])
        self.tenure.observe(LeaderChanged(3, None))
        self.tenure.stop()
        self.assertEqual((self.seen, self.tenure.lasts), (["begin", "end"], False))

    def test_another_leads(self) -> None:
        self.tenure.observe(LeaderChanged(2, OTHER))
        self.assertEqual(self.node.reads, [])

    def test_confirmed_too_late(self) -> None:
        """The answer to a read of an earlier tenure begins none."""
        self.tenure.observe(LeaderChanged(2, ME))
        self.tenure.observe(LeaderChanged(3, None))
        self.tenure.observe(LeaderChanged(4, ME))
        first, second = self.node.reads
        first(None)
        self.assertEqual(self.seen, [])
        second(None)
        self.assertEqual(self.seen, ["begin"])

    def test_not_confirmed(self) -> None:
        """A leader that could not be sure yet asks again, and not at once."""
        self.tenure.observe(LeaderChanged(2, ME))
        self.node.reads.pop()(NoQuorum("Too few."))
        self.assertEqual(self.node.reads, [])
        self.clock.advance(1.0)
        self.node.reads.pop()(Overloaded("Not now."))
        self.clock.advance(1.0)
        self.node.reads.pop()(None)
        self.assertEqual(self.seen, ["begin"])

    def test_one_that_leads_no_longer_asks_no_more(self) -> None:
        self.tenure.observe(LeaderChanged(2, ME))
        self.node.reads.pop()(NoQuorum("Too few."))
        self.tenure.observe(LeaderChanged(2, None))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.tenure.observe(LeaderChanged(3, ME))
        self.node.reads.pop()(Stopped("The node is stopping."))
        self.assertEqual((self.clock.getDelayedCalls(), self.seen), ([], []))


class FakeDatabase:
    """Takes proposals, and has the revisions that the test gives it."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted_revision = 0
        self.proposed: list[Operation] = []
        self.dones: list[Done[Result]] = []

    def portion_end(self, max_keys: int, after: int = 0) -> int:
        return self.compacted_revision + max_keys

    def change(self, operation: Operation, done: Done[Result], retry: bytes = b"") -> None:
        self.proposed.append(operation)
        self.dones.append(done)

    def answer(self, outcome: Result | RaftdError) -> None:
        self.dones.pop(0)(outcome)

    def carry_out(self) -> None:
        """Compact as was proposed."""
        operation = self.proposed[-1]
        assert isinstance(operation, Compact)
        self.compacted_revision = operation.revision
        self.answer(CompactResult(operation.revision))


class CompactorTests(SynchronousTestCase):
    """By number, by age, by both, and only while it leads."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.database = FakeDatabase()

    def compactor(self, keep_revisions: int = 0, keep_s: float = 0) -> Compactor:
        compactor = Compactor(self.clock, self.database, keep_revisions, keep_s)
        compactor.begin()
        return compactor

    def at(self, revision: int) -> list[Operation]:
        """What is proposed by the next look, at which the store is at `revision`."""
        self.database.revision = revision
        self.clock.advance(INTERVAL_S)
        proposed, self.database.proposed = self.database.proposed, []
        return proposed

    def test_nothing_to_do(self) -> None:
        self.compactor()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_by_number(self) -> None:
        self.compactor(keep_revisions=100)
        self.assertEqual(self.at(110), [])
        self.assertEqual(self.at(111), [Compact(11)])
        self.assertEqual(self.at(400), [], "one at a time")
        self.database.compacted_revision = 11
        self.database.answer(CompactResult(11))
        self.assertEqual(self.at(400), [Compact(300)])

    def test_by_age(self) -> None:
        """What is compacted is older than the age; what is younger is kept."""
        self.compactor(keep_s=3 * INTERVAL_S)
        self.assertEqual([self.at(5), self.at(8)], [[], []])
        # The first look saw revision 1, which is what is there before any write.
        self.assertEqual(self.at(9), [Compact(1)])
        self.database.compacted_revision = 1
        self.database.answer(CompactResult(1))
        self.assertEqual(self.at(9), [Compact(5)])

    def test_a_long_age_is_told_by_few_points_in_time(self) -> None:
        """So many, and no more, are kept; what goes is older, by a part of the age at most."""
        keep_s = 100 * MAX_SEEN * INTERVAL_S
        compactor = self.compactor(keep_s=keep_s)
        looks = int(keep_s / INTERVAL_S)
        for look in range(1, looks):
            self.assertEqual(self.at(look), [])
            self.assertLessEqual(len(compactor._seen), MAX_SEEN + 2)
        for look in range(looks, looks + 1000):
            for operation in self.at(look):
                assert isinstance(operation, Compact)
                self.assertLessEqual(operation.revision, max(look - looks, 1))
                self.assertGreaterEqual(operation.revision, look - looks - 100)
                self.database.compacted_revision = operation.revision
                self.database.answer(CompactResult(operation.revision))
        self.assertGreaterEqual(self.database.compacted_revision, 800)

    def test_by_both(self) -> None:
        self.compactor(keep_revisions=1000, keep_s=INTERVAL_S)
        self.assertEqual(self.at(50), [Compact(1)])
        self.database.compacted_revision = 1
        self.database.answer(CompactResult(1))
        self.assertEqual(self.at(1200), [Compact(200)])

    def test_unanswered(self) -> None:
        """An answer that nobody knows only means that it is proposed again."""
        self.compactor(keep_revisions=10)
        self.assertEqual(self.at(100), [Compact(90)])
        self.database.answer(OutcomeUnknown("It may have happened."))
        self.assertEqual(self.at(100), [Compact(90)])

    def test_a_portion_that_came_to_nothing_is_tried_again(self) -> None:
        self.begin_with(3 * SMALL_PORTION_KEYS)
        self.database.answer(NoQuorum("Too few."))
        self.clock.advance(RETRY_S - 0.001)
        self.assertEqual(self.reached(), [1])
        self.clock.advance(0.002)
        self.assertEqual(self.reached(), [1, 1])

    def begin_with(self, surplus: int) -> Compactor:
        """So many revisions more than are to be kept, and the first of them proposed."""
        compactor = self.compactor(keep_revisions=1000)
        self.database.revision = 1000 + surplus
        self.clock.advance(INTERVAL_S)
        return compactor

    def reached(self) -> list[float]:
        """How far each went that was proposed, in small portions."""
        compacts = [op.revision for op in self.database.proposed if isinstance(op, Compact)]
        return [revision / SMALL_PORTION_KEYS for revision in compacts]

    def test_53_other_work_goes_on_between_portions(self) -> None:
        self.begin_with(3 * SMALL_PORTION_KEYS + SMALL_PORTION_KEYS // 2)
        for n in range(1, 4):
            self.assertEqual(self.reached(), list(range(1, n + 1)))
            self.database.carry_out()
            self.clock.advance(PAUSE_S / 2)
            self.assertEqual(len(self.database.proposed), n)
            self.clock.advance(PAUSE_S / 2)
        self.assertEqual(self.reached(), [1, 2, 3, 3.5])
        self.database.carry_out()
        self.clock.advance(INTERVAL_S)
        self.assertEqual(len(self.database.proposed), 4)

    def test_a_slow_answer_is_pause_enough(self) -> None:
        self.begin_with(3 * SMALL_PORTION_KEYS)
        self.clock.advance(3 * PAUSE_S)
        self.database.carry_out()
        self.clock.advance(0)
        self.assertEqual(self.reached(), [1, 2])

    def look(self) -> set[float]:
        """
        Carry out what is proposed until the next look; how far each goes, in
        small portions, but for the first, which may be from before, and the
        last, which is what was left.
        """
        sizes: list[float] = []
        due = max(call.getTime() for call in self.clock.getDelayedCalls())
        while self.clock.seconds() < due:
            if self.database.dones:
                before = self.database.compacted_revision
                self.database.carry_out()
                sizes.append((self.database.compacted_revision - before) / SMALL_PORTION_KEYS)
            self.clock.advance(min(PAUSE_S, due - self.clock.seconds()))
        return set(sizes[1:-1])

    def test_larger_portions_when_more_comes_than_goes(self) -> None:
        """As large as it takes, rather than as fast as it can; and smaller when it is done."""
        self.begin_with(5000 * SMALL_PORTION_KEYS)
        self.assertEqual([self.look(), self.look()], [{1}, {2}])
        for size in (4, 2, 1, 1):
            self.database.revision += 20 * SMALL_PORTION_KEYS
            self.assertEqual(self.look(), {size})

    def test_small_portions_when_it_leads_again(self) -> None:
        compactor = self.begin_with(5000 * SMALL_PORTION_KEYS)
        self.assertEqual([self.look(), self.look()], [{1}, {2}])
        compactor.end()
        compactor.begin()
        self.assertEqual(self.look(), {1})

    def test_large_portions_without_a_pause_when_answers_are_slow(self) -> None:
        """Else the history would grow without bound, however slow the answers are."""
        self.begin_with(1000 * PORTION_KEYS)
        for _ in range(4):
            self.clock.advance(INTERVAL_S)
            self.database.carry_out()
        before = self.database.compacted_revision
        self.clock.advance(0)
        for _ in range(49):
            self.database.carry_out()
            self.clock.advance(0)
            self.assertEqual(len(self.database.dones), 1)
        self.assertGreater(self.database.compacted_revision - before, 48 * PORTION_KEYS)

    def test_end_between_portions(self) -> None:
        compactor = self.begin_with(3 * SMALL_PORTION_KEYS)
        self.database.carry_out()
        compactor.end()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_end_while_a_portion_is_proposed(self) -> None:
        compactor = self.begin_with(3 * SMALL_PORTION_KEYS)
        compactor.end()
        self.database.carry_out()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_end_and_begin_while_a_portion_is_proposed(self) -> None:
        """There is one at a time, whoever it was proposed by."""
        compactor = self.begin_with(3 * SMALL_PORTION_KEYS)
        compactor.end()
        compactor.begin()
        self.assertEqual(self.reached(), [1])
        self.database.carry_out()
        self.clock.advance(PAUSE_S)
        self.assertEqual(self.reached(), [1, 2])

    def test_end(self) -> None:
        """Who leads no longer does nothing, and counts ages anew when it leads again."""
        compactor = self.compactor(keep_s=INTERVAL_S)
        compactor.end()
        compactor.end()
        self.assertEqual(self.at(50), [])
        compactor.begin()
        self.assertEqual(self.at(60), [Compact(50)])


class FakeStore:
    """A store whose digest takes `steps` steps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.revision = 1
        self.on_checkpoint: Callable[[int, Checkpoint], None] | None = None
        self.state = b"state"
        self.steps = 3
        self.given_up = 0

    def digest_walk(self) -> Generator[None, None, bytes]:
        state = self.state
        return self._walk(state)

    def _walk(self, state: bytes) -> Generator[None, None, bytes]:
        try:
            for _ in range(self.steps):
                self._clock.rightNow += SLICE_S / 2
                yield
        except GeneratorExit:
            self.given_up += 1
            raise
        return b"digest of " + state

    def applied(self, index: int, checkpoint: Checkpoint) -> None:
        assert self.on_checkpoint is not None
        self.on_checkpoint(index, checkpoint)


class CheckerTests(SynchronousTestCase):
    """Three members that apply the same checkpoints; the first leads."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.stores = [FakeStore(self.clock) for _ in range(3)]
        self.index = 0
        self.checkers = [Checker(self.clock, store, self.change) for store in self.stores]
        self.checkers[0].begin()

    def change(self, operation: Operation, done: Done[Result]) -> None:
        """Commit at once, and apply at every member."""
        assert isinstance(operation, Checkpoint)
        self.index += 1
        for store in self.stores:
            store.applied(self.index, operation)
        done(NoResult())

    def check(self) -> list[DigestStatus]:
        """Once around; what each member knows then."""
        for store in self.stores:
            store.revision += 1
        self.clock.advance(CHECK_INTERVAL_S)
        self.clock.pump([CHECK_PAUSE_S] * 20)
        return [checker.status for checker in self.checkers]

    def test_equal(self) -> None:
        self.assertEqual(self.check(), [DigestStatus(1)] * 3)
        self.assertEqual(self.check(), [DigestStatus(3)] * 3)

    def test_nothing_changed(self) -> None:
        """The second time there would be nothing new to compare."""
        self.check()
        self.clock.advance(CHECK_INTERVAL_S)
        self.assertEqual(self.index, 2)

    def test_as_of_the_entry(self) -> None:
        """What is written while the digest is taken is not in it, anywhere."""
        for store in self.stores:
            store.revision += 1
        self.clock.advance(CHECK_INTERVAL_S)
        self.stores[1].state = b"later"
        self.clock.pump([CHECK_PAUSE_S] * 20)
        self.assertEqual(self.checkers[1].status, DigestStatus(1))

    def test_difference(self) -> None:
        """It is told by the member that differs, with the span in which it began."""
        self.check()
        self.stores[2].state = b"other"
        statuses = self.check()
        self.assertEqual(statuses, [DigestStatus(3), DigestStatus(3), DigestStatus(1, 3)])
        # A difference does not go away by being equal later.
        self.stores[2].state = b"state"
        self.assertEqual(self.check()[2], DigestStatus(1, 3))

    def test_slower_than_the_leader(self) -> None:
        """A member that hears of the leader's digest first compares when it has its own."""
        self.stores[1].steps = 15
        self.stores[2].steps, self.stores[2].state = 15, b"other"
        self.assertEqual(self.check()[1:], [DigestStatus(1), DigestStatus(0, 1)])

    def test_nothing_to_compare(self) -> None:
        """A member that was not there at the checkpoint says nothing of it."""
        store = FakeStore(self.clock)
        late = Checker(self.clock, store, self.change)
        store.applied(7, Checkpoint(5, b"digest of something"))
        self.assertEqual(late.status, DigestStatus())

    def test_superseded(self) -> None:
        """A checkpoint ends the one before that is under way."""
        store = self.stores[1]
        store.applied(7, Checkpoint())
        self.clock.advance(0)
        store.applied(8, Checkpoint())
        self.assertEqual(store.given_up, 1)
        self.clock.pump([CHECK_PAUSE_S] * 20)
        store.applied(9, Checkpoint(8, b"digest of state"))
        self.assertEqual(self.checkers[1].status, DigestStatus(8))

    def test_stop(self) -> None:
        self.stores[0].revision += 1
        self.clock.advance(CHECK_INTERVAL_S)
        for checker in self.checkers:
            checker.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
