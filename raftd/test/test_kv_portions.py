"""A large compaction is many small ones, so that writes come between."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.messages import Command, decode_command, encode_command
from raftd.errors import (
    Compacted,
    FutureRevision,
    IdempotencyKeyReused,
    NoQuorum,
    OutcomeUnknown,
)
from raftd.idempotency import Idempotency
from raftd.interfaces import Done, INode
from raftd.kv.compactor import INTERVAL_S, PAUSE_S, PORTION_KEYS, Compactor
from raftd.kv.database import Database
from raftd.kv.operations import (
    Compact,
    DeleteRange,
    Operation,
    Put,
    decode_operation,
    encode_operation,
)
from raftd.kv.results import CompactResult
from raftd.kv.store import Store
from raftd.kv.versions import STEP_KEYS
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
    REVISIONS = 2 * PORTION_KEYS + 200

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
            self.write_key(b"%d" % (n % 7))

    def write_key(self, key: bytes) -> None:
        self.change(Put(key, b"v"))

    def change(self, operation: Operation) -> None:
        command = encode_command(Command(encode_operation(operation)))
        self.node.propose(command, lambda outcome: None)
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
            self.assertLess(self.node.apply(), 2 * PORTION_KEYS / STEP_KEYS)
            if self.node.proposed:
                self.write_before()
        # The first revision is that of the empty store.
        self.assertEqual(reached, [1 + PORTION_KEYS, 1 + 2 * PORTION_KEYS, target])
        self.assertEqual(self.outcomes, [CompactResult(target)])
        self.assertEqual(self.store.compacted_revision, target)
        self.assertEqual(self.store.revision, target + len(reached) - 1)
        # A retry finds that nothing is left to do.
        self.compact(target, KEY)
        while self.node.proposed:
            self.node.apply()
        self.assertEqual(self.outcomes, [CompactResult(target)] * 2)
        self.assertEqual(self.store.compacted_revision, target)

    def write_before(self) -> None:
        """A write that was proposed after a portion, and before the next."""
        self.change_before(Put(b"0", b"v"))

    def change_before(self, operation: Operation) -> None:
        """Somebody else's, that comes before what is proposed."""
        later = self.node.proposed
        self.node.proposed = []
        self.change(operation)
        self.node.proposed = later

    def test_what_was_compacted_meanwhile_is_passed_over(self) -> None:
        self.write(self.REVISIONS)
        self.compact(self.store.revision)
        self.node.proposed.pop()[1](Compacted("Somebody did.", PORTION_KEYS + 1))
        self.assertEqual(self.node.compact_at(0), Compact(1 + 2 * PORTION_KEYS))
        self.assertEqual(self.outcomes, [])

    def test_a_portion_that_comes_to_nothing_is_the_end(self) -> None:
        self.write(self.REVISIONS)
        self.compact(self.store.revision)
        error = NoQuorum("Too few.")
        self.node.proposed.pop()[1](error)
        self.assertEqual((self.outcomes, self.node.proposed), ([error], []))

    def test_30_what_was_compacted_in_part_is_not_said_to_have_changed_nothing(self) -> None:
        self.write(self.REVISIONS)
        self.compact(self.store.revision)
        self.node.apply()
        self.node.proposed.pop()[1](NoQuorum("Too few."))
        self.assertEqual(self.node.proposed, [])
        (outcome,) = self.outcomes
        self.assertIsInstance(outcome, OutcomeUnknown)
        self.assertIn("Only some", str(outcome))

    def test_key_that_was_used_before_compacts_nothing(self) -> None:
        """Only the request's hash, the last half of the key, is another."""
        self.write(self.REVISIONS)
        self.compact(3, KEY)
        self.node.apply()
        self.compact(self.store.revision, KEY[:16] + b"x" * 16)
        self.node.apply()
        self.assertEqual(self.outcomes[0], CompactResult(3))
        self.assertIsInstance(self.outcomes[1], IdempotencyKeyReused)
        self.assertEqual(self.node.proposed, [])
        self.assertEqual(self.store.compacted_revision, 3)

    def test_retry_of_one_whose_first_portion_somebody_else_has_compacted(self) -> None:
        """What is kept is that this was refused: neither the end nor an answer."""
        self.write(self.REVISIONS)
        target = self.store.revision
        self.compact(target, KEY)
        self.change_before(Compact(self.node.compact_at(0).revision))
        while self.node.proposed:
            self.node.apply()
        self.compact(target, KEY)
        while self.node.proposed:
            self.node.apply()
        self.assertEqual(self.outcomes, [CompactResult(target)] * 2)

    def test_retry_through_a_node_that_lags_behind(self) -> None:
        """It gets the first portion's result, and that is not the end."""
        self.write(self.REVISIONS)
        target = self.store.revision
        self.compact(target, KEY)
        self.node.apply()
        self.node.proposed.pop()[1](NoQuorum("Too few."))
        self.patch(Database, "revision", target - 1)
        self.compact(target, KEY)
        while self.node.proposed:
            self.node.apply()
        self.assertEqual(self.outcomes[1:], [CompactResult(target)])
        self.assertEqual(self.store.compacted_revision, target)

    def test_all_was_compacted_before_the_first_portion_came(self) -> None:
        self.write(self.REVISIONS)
        target = self.store.revision
        self.compact(target)
        self.change_before(Compact(target))
        self.node.apply()
        self.assertIsInstance(self.outcomes[0], Compacted)
        self.assertEqual(self.node.proposed, [])

    def test_retry_goes_on_where_the_first_attempt_has_ended(self) -> None:
        self.write(self.REVISIONS)
        target = self.store.revision
        self.compact(target, KEY)
        for _ in range(2):
            self.node.apply()
        self.node.proposed.pop()[1](NoQuorum("Too few."))
        self.compact(target, KEY)
        # The first of them only gets the answer that was kept.
        proposed = [self.node.compact_at(0).revision]
        self.node.apply()
        proposed.append(self.node.compact_at(0).revision)
        self.node.apply()
        self.assertEqual(proposed, [target, target])
        self.assertEqual(self.outcomes[1:], [CompactResult(target)])
        self.assertEqual(self.store.compacted_revision, target)

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
            self.clock.advance(PAUSE_S)
        self.assertEqual(self.store.compacted_revision, target)

    def test_53_revisions_with_many_keys_make_portions_of_few(self) -> None:
        """Of revisions 2 to 5 each changes many keys, then one very many, then few."""
        many = PORTION_KEYS * 9 // 20
        for count in (many, many, many, many, 5 * PORTION_KEYS, 3, 3):
            if count == 3:
                self.write(count)
                continue
            for n in range(count):
                # Keys are put, and go all at once.
                self.write_key(b"%d" % n)
            self.change(DeleteRange(b"\0", b"\0"))
        ends = [0]
        while ends[-1] < self.store.revision:
            ends.append(self.store.portion_end(PORTION_KEYS, ends[-1]))
        changed = [
            sum(len(self.store.changed_keys(r)) for r in range(max(begin, 1) + 1, end + 1))
            for begin, end in pairwise(ends)
        ]
        self.assertEqual(sum(changed), 2 * (4 * many + 5 * PORTION_KEYS) + 6)
        for (begin, end), count in zip(pairwise(ends), changed, strict=True):
            self.assertTrue(count <= PORTION_KEYS or end == begin + 1, (begin, end, count))
        self.assertEqual(max(changed), 5 * PORTION_KEYS)
        self.compact(self.store.revision)
        portions = 0
        while self.node.proposed:
            self.node.apply()
            portions += 1
        self.assertEqual(portions, len(ends) - 1)
        self.assertEqual(self.outcomes, [CompactResult(self.store.revision)])
