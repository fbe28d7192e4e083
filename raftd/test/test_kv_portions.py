"""A large compaction is many small ones, so that writes come between."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Command, decode_command, encode_command
from raftd.errors import Compacted, FutureRevision, NoQuorum, RaftdError
from raftd.idempotency import Idempotency
from raftd.interfaces import Done, INode
from raftd.kv.compactor import INTERVAL_S, PORTION_REVISIONS, Compactor
from raftd.kv.database import Database
from raftd.kv.operations import Compact, Put, decode_operation, encode_operation
from raftd.kv.results import CompactResult
from raftd.kv.store import Store
from raftd.kv.watches import WatchHub

KEY = b"k" * 32


class Node:
    """What is proposed waits for the test, and is applied in that order."""

    def __init__(self, store: Store) -> None:
        self.machine = Idempotency(store)
        self.proposed: list[tuple[bytes, Done[bytes]]] = []
        self.applied = 0

    def propose(self, data: bytes, done: Done[bytes]) -> None:
        self.proposed.append((data, done))

    def compact_at(self, place: int) -> Compact:
        operation = decode_operation(decode_command(self.proposed[place][0]).operation)
        assert isinstance(operation, Compact), operation
        return operation

    def apply(self) -> int:
        """Apply the oldest; in how many steps."""
        data, done = self.proposed.pop(0)
        self.applied += 1
        result: bytes | Generator[None, None, bytes]
        result = self.machine.apply(self.applied, 0, decode_command(data))
        steps = 1
        if isinstance(result, Generator):
            try:
                while True:
                    next(result)
                    steps += 1
            except StopIteration as end:
                result = cast(bytes, end.value)
        done(result)
        return steps


class PortionTests(SynchronousTestCase):
    REVISIONS = 2 * PORTION_REVISIONS + 500

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = Store()
        self.node = Node(self.store)
        self.database = Database(
            self.clock,
            cast(INode, self.node),
            self.node.machine,
            self.store,
            WatchHub(self.store, self.clock),
            600,
        )
        self.outcomes: list[Any] = []

    def write(self, count: int) -> None:
        for n in range(count):
            put = encode_command(Command(encode_operation(Put(b"%d" % (n % 7), b"v"))))
            self.node.propose(put, lambda outcome: None)
            self.node.apply()

    def compact(self, revision: int, retry: bytes = b"") -> None:
        self.database.change(Compact(revision), self.outcomes.append, retry)

    def test_53_writes_come_between(self) -> None:
        self.write(self.REVISIONS)
        target = self.store.revision
        self.compact(target, KEY)
        reached = []
        while self.node.proposed:
            self.assertEqual(len(self.node.proposed), 1)
            reached.append(self.node.compact_at(0).revision)
            # Of 7 keys, so each step looks at no more than `STEP_KEYS` revisions.
            self.assertLess(self.node.apply(), 2 * PORTION_REVISIONS / 512)
            if self.node.proposed:
                self.write_before()
        self.assertEqual(reached, [PORTION_REVISIONS, 2 * PORTION_REVISIONS, target])
        self.assertEqual(self.outcomes, [CompactResult(target)])
        self.assertEqual(self.store.compacted_revision, target)
        self.assertEqual(self.store.revision, target + len(reached) - 1)
        # The key belongs to the last one, and a retry is the last one only.
        self.compact(target, KEY)
        self.assertEqual(self.node.compact_at(0).revision, target)
        self.node.apply()
        self.assertEqual(self.outcomes, [CompactResult(target)] * 2)

    def write_before(self) -> None:
        """A write that was proposed after a portion, and before the next."""
        later = self.node.proposed
        self.node.proposed = []
        self.write(1)
        self.node.proposed = later

    def test_what_was_compacted_meanwhile_is_passed_over(self) -> None:
        self.write(self.REVISIONS)
        self.compact(self.store.revision)
        self.node.proposed.pop()[1](Compacted("Somebody did.", PORTION_REVISIONS + 1))
        self.assertEqual(self.node.compact_at(0), Compact(2 * PORTION_REVISIONS))
        self.assertEqual(self.outcomes, [])

    def test_a_portion_that_comes_to_nothing_is_the_end(self) -> None:
        self.write(self.REVISIONS)
        self.compact(self.store.revision)
        error = NoQuorum("Too few.")
        self.node.proposed.pop()[1](error)
        self.assertEqual((self.outcomes, self.node.proposed), ([error], []))

    def test_what_is_not_there_yet_is_refused_before_anything_is_compacted(self) -> None:
        self.write(self.REVISIONS)
        self.compact(self.store.revision + 1)
        self.node.apply()
        self.assertIsInstance(self.outcomes[0], FutureRevision)
        self.assertEqual(self.store.compacted_revision, 0)

    def test_what_was_compacted_before_is_refused(self) -> None:
        self.write(self.REVISIONS)
        for _ in range(2):
            self.compact(9)
            self.node.apply()
        self.assertEqual(self.outcomes[0], CompactResult(9))
        self.assertIsInstance(self.outcomes[1], Compacted)

    def test_what_the_leader_compacts_by_itself(self) -> None:
        Compactor(self.clock, self.database, 100, 0).begin()
        self.write(self.REVISIONS)
        target = self.store.revision - 100
        self.clock.advance(INTERVAL_S)
        self.node.apply()
        # It looks again, and has not had its answer.
        self.clock.advance(INTERVAL_S)
        self.assertEqual(len(self.node.proposed), 1)
        while self.node.proposed:
            self.node.apply()
        self.assertEqual(self.store.compacted_revision, target)

    def test_each_answer_is_one(self) -> None:
        outcome: RaftdError = NoQuorum("Too few.")
        self.write(3)
        self.compact(2)
        self.node.proposed.pop()[1](outcome)
        self.assertEqual(self.outcomes, [outcome])
