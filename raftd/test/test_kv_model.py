"""
The store against a model that is naive and obviously right (`raftd.test.kvmodel`).

Hypothesis draws bytes, and they are read as operations, reads, and moments at
which a snapshot is drawn on: so ten thousand operations take seconds, and what
fails shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import RaftdError
from raftd.kv.interfaces import Event
from raftd.kv.operations import (
    EVERY_KEY,
    VALUE,
    Compact,
    Compare,
    DeleteRange,
    DeleteRangeWith,
    ExpireLease,
    GrantLease,
    Operation,
    Put,
    PutWith,
    Range,
    RevokeLease,
    SetQuota,
    Step,
    Transaction,
)
from raftd.kv.refusals import Refusal, error_of
from raftd.kv.results import LeaseResult
from raftd.kv.store import Store
from raftd.test.kvmodel import Model, Refused
from raftd.test.kvrig import apply, check_invariants, make_small, restored

T = TypeVar("T")

KEYS = [b"a", b"a\0", b"b", b"c", b"cc", b"d", b"\xff", b""]
ENDS = [b"", EVERY_KEY, b"b", b"cb", b"d", b"a", b"\xff\xff"]
VALUES = [b"", b"1", b"2", b"v" * 40]


class Source:
    """Choices, out of bytes; when there are no more, the first of everything."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    @property
    def empty(self) -> bool:
        return self.position >= len(self.data)

    def below(self, bound: int) -> int:
        if self.empty:
            return 0
        self.position += 1
        return self.data[self.position - 1] % bound

    def one_of(self, choices: list[T]) -> T:
        return choices[self.below(len(choices))]

    def chance(self, in_: int) -> bool:
        """Once in so many."""
        return self.below(in_) == in_ - 1


class Generator:
    """Operations that make sense, mostly, where the model is now."""

    def __init__(self, source: Source, model: Model) -> None:
        self.source = source
        self.model = model

    def key(self) -> bytes:
        # The empty key is the last, and rare.
        return self.source.one_of(KEYS if self.source.chance(16) else KEYS[:-1])

    def revision(self) -> int:
        return self.model.revision + 1 - self.source.below(8)

    def lease(self) -> int:
        return self.source.below(4) if self.source.chance(3) else 0

    def put(self) -> Put:
        return Put(self.key(), self.source.one_of(VALUES), self.lease())

    def put_with(self) -> PutWith:
        flags = self.source.below(16)
        keep_value, keep_lease = flags & 12 == 4, flags & 12 == 8
        return PutWith(*self.put_fields(), bool(flags & 1), keep_value, keep_lease)

    def put_fields(self) -> tuple[bytes, bytes, int]:
        return self.key(), self.source.one_of(VALUES), self.lease()

    def delete(self) -> DeleteRange:
        return DeleteRange(self.key(), self.source.one_of(ENDS))

    def delete_with(self) -> DeleteRangeWith:
        return DeleteRangeWith(self.key(), self.source.one_of(ENDS), self.source.chance(2))

    def range(self) -> Range:
        source = self.source
        key, end = (b"a", EVERY_KEY) if source.chance(2) else (self.key(), source.one_of(ENDS))
        flags = source.below(64)
        return Range(
            key,
            end,
            self.revision() if flags & 1 else 0,
            source.below(4) if flags & 2 else 0,
            bool(flags & 4),
            flags & 0b11000 == 0b11000,
            source.below(6) if flags & 8 else 0,
            source.chance(2),
            *((self.revision() if source.chance(4) else 0) for _ in range(4)),
        )

    def compare(self) -> Compare:
        source = self.source
        target = 1 + source.below(5)
        operand: bytes | int = source.one_of(VALUES)
        if (target == VALUE) is source.chance(32):
            operand = self.revision() if source.chance(2) else source.below(3)
        end = source.one_of(ENDS) if source.chance(3) else b""
        return Compare(self.key(), end, target, 1 + source.below(4), operand)

    def transaction(self, depth: int = 0) -> Transaction:
        compares = tuple(self.compare() for _ in range(self.source.below(3)))
        success = tuple(self.step(depth) for _ in range(self.source.below(4)))
        failure = tuple(self.step(depth) for _ in range(self.source.below(3)))
        return Transaction(compares, success, failure)

    def step(self, depth: int) -> Step:
        kind = self.source.below(10 if depth < 2 else 8)
        if kind < 4:
            return self.put_with()
        if kind < 6:
            return self.delete_with()
        if kind < 7:
            return self.range()
        if kind < 8:
            return self.grant()
        return self.transaction(depth + 1)

    def grant(self) -> GrantLease:
        return GrantLease(1 + self.source.below(3), 1000)

    def expiry(self) -> ExpireLease:
        """Mostly of the lease that there is, if there is one."""
        id = 1 + self.source.below(3)
        number = self.model.numbers.get(id, 0) - self.source.one_of([0, 0, 0, 1])
        return ExpireLease(id, max(1, number))

    def quota(self) -> SetQuota:
        return SetQuota(self.source.one_of([0, 0, 0, 1, 1200, 4000]))

    def operation(self) -> Operation:
        kinds: list[Callable[[], Operation]] = [
            *[self.put] * 6,
            *[self.put_with] * 3,
            *[self.delete] * 2,
            self.delete_with,
            *[self.transaction] * 8,
            *[self.grant] * 2,
            lambda: RevokeLease(1 + self.source.below(3)),
            self.expiry,
            *[lambda: Compact(self.revision())] * 2,
            self.quota,
        ]
        return self.source.one_of(kinds)()


class Pinned:
    """A snapshot that is drawn now and then, and what it is to come to."""

    def __init__(self, store: Store) -> None:
        self.digest = store.digest()
        self.size_bytes = store.size_bytes
        self.snapshot: Iterator[bytes] = store.snapshot()
        self.walk = store.digest_walk()
        self.walked: bytes | None = None
        self.slices: list[bytes] = []
        #: What was applied since.
        self.operations: list[Operation] = []

    def draw(self) -> None:
        for piece in self.snapshot:
            self.slices.append(piece)
            break
        if self.walked is None:
            try:
                next(self.walk)
            except StopIteration as end:
                self.walked = end.value

    def finish(self) -> Store:
        self.slices += self.snapshot
        while self.walked is None:
            self.draw()
        return restored(b"".join(self.slices), (7, 100))


class Session:
    """One store and one model, side by side."""

    def __init__(self, test: SynchronousTestCase, data: bytes) -> None:
        self.test = test
        self.source = Source(data)
        self.store = Store()
        self.model = Model()
        self.generator = Generator(self.source, self.model)
        self.pinned: list[Pinned] = []
        self.log: list[Operation] = []

    def run(self) -> int:
        while not self.source.empty:
            self.operate()
            if self.source.chance(3):
                self.read(Range(b"a", EVERY_KEY) if self.source.chance(4) else None)
            if self.source.chance(12):
                self.pinned.append(Pinned(self.store))
        self.finish()
        return len(self.log)

    def operate(self) -> None:
        operation = self.generator.operation()
        self.log.append(operation)
        for pinned in self.pinned:
            pinned.operations.append(operation)
        result = apply(self.store, operation, self.between)
        expected = self.model.apply(operation)
        if isinstance(expected, Refusal):
            expected_error = error_of(expected)
            self.test.assertEqual(repr(result), repr(expected_error))
            assert isinstance(result, RaftdError)
            self.test.assertEqual(result.code, expected_error.code)
        else:
            self.test.assertEqual(result, expected)
        self.compare()
        self.draw()

    def draw(self) -> None:
        for pinned in self.pinned:
            if self.source.chance(4):
                pinned.draw()

    def between(self) -> None:
        """Between two steps, readers see what was there before."""
        self.draw()
        model, store = self.model, self.store
        self.test.assertEqual(
            (store.revision, len(store)), (model.revision, len(model.states[-1]))
        )
        if store.compacted_revision != model.compacted_revision:
            # A compaction is seen at once.
            return
        self.test.assertEqual(store.size_bytes, model.size_bytes)
        self.read(Range(b"\0", EVERY_KEY))
        self.read(None)

    def compare(self) -> None:
        model, store, equal = self.model, self.store, self.test.assertEqual
        equal(
            (store.revision, store.compacted_revision, store.quota_bytes, store.size_bytes),
            (model.revision, model.compacted_revision, model.quota_bytes, model.size_bytes),
        )
        state = model.states[-1]
        equal(len(store), len(state))
        for key in KEYS:
            equal(store.get(key), state.get(key))
        equal(
            store.leases(), [LeaseResult(id, model.leases[id]) for id in sorted(model.leases)]
        )
        for id in (1, 2, 3):
            keys = sorted(key for key in state if state[key].lease == id)
            equal(store.lease_keys(id, 2), keys[:2])
            equal(store.lease_number(id), model.numbers.get(id, 0))

    def read(self, query: Range | None) -> None:
        query = query or self.generator.range()
        self.test.assertEqual(
            outcome(lambda: self.store.range(query)), outcome(lambda: self.model.range(query))
        )
        revision = self.generator.revision()
        key = self.generator.key()
        self.test.assertEqual(
            outcome(lambda: self.store.get(key, revision)),
            outcome(lambda: self.model.state(revision).get(key)),
        )
        if self.model.compacted_revision < revision <= self.model.revision:
            self.check_changes(revision)

    def check_changes(self, revision: int) -> None:
        changes = self.model.changes[revision]
        keys = self.store.changed_keys(revision)
        self.test.assertEqual(list(keys), [record.key for record in changes])
        for record in changes:
            before = self.model.states[revision - 1].get(record.key)
            for previous in (False, True):
                event = self.store.event(record.key, revision, previous)
                self.test.assertEqual(event, Event(record, before if previous else None))

    def finish(self) -> None:
        """Snapshots are of their moment, and go on as the store itself; so does a replay."""
        check_invariants(self.store)
        digest = self.store.digest()
        replayed = Store()
        for operation in self.log:
            apply(replayed, operation)
        self.test.assertEqual(replayed.digest(), digest)
        for pinned in self.pinned:
            copy = pinned.finish()
            check_invariants(copy)
            self.test.assertEqual(
                (copy.digest(), copy.size_bytes), (pinned.digest, pinned.size_bytes)
            )
            self.test.assertEqual(pinned.walked, pinned.digest)
            for operation in pinned.operations:
                apply(copy, operation)
            self.test.assertEqual(copy.digest(), digest)


def outcome(read: Callable[[], object]) -> object:
    try:
        return read()
    except (RaftdError, Refused) as e:
        error = error_of(e.refusal) if isinstance(e, Refused) else e
        return error.code, str(error)


class AgainstTheModel(SynchronousTestCase):
    def test_ten_thousand_operations(self) -> None:
        make_small(self.patch)
        operations = 0

        @settings(
            derandomize=True,
            max_examples=300,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.binary(min_size=1200, max_size=1200))
        def run(data: bytes) -> None:
            nonlocal operations
            operations += Session(self, data).run()

        run()
        self.assertGreater(operations, 10_000)
