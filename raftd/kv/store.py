"""
The key-value state machine: multi-version, in the manner of etcd v3.

An empty store is at revision 1.  Whatever changes something makes one new
revision; whatever changes nothing keeps it.  Everything here is a function of
the commands applied so far and of nothing else, so that equal logs give equal
digests.

Whatever may take long is applied in steps.  In between, and always, readers
see the last complete revision.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar
from weakref import WeakSet

from zope.interface import implementer

from raftd.core.messages import Command
from raftd.interfaces import IStateMachine
from raftd.kv.execution import Execution
from raftd.kv.history import ChangedKeys
from raftd.kv.interfaces import Event
from raftd.kv.operations import (
    Checkpoint,
    Compact,
    DeleteRange,
    DeleteRangeWith,
    ExpireLease,
    GrantLease,
    Put,
    Range,
    RevokeLease,
    SetQuota,
    Transaction,
    decode_operation,
)
from raftd.kv.ranges import MAX_RANGE_BYTES, Budget, View, evaluate
from raftd.kv.records import FIRST_REVISION, VERSION_OVERHEAD_BYTES, tombstone
from raftd.kv.refusals import REFUSALS, Refusal, compacted, error_of, future_revision
from raftd.kv.results import (
    CompactResult,
    KeyValue,
    LeaseResult,
    NoResult,
    PutResult,
    RangeResult,
    Result,
    encode_result,
)
from raftd.kv.snapshots import Restore, Snapshot, State, digest
from raftd.kv.transactions import Chosen, SimpleStep, choose, refusal_of, simple_steps
from raftd.kv.versions import Versions
from raftd.kv.walks import Head, Walk

T = TypeVar("T")

#: An operation being carried out, in steps; what it came to.
Steps = Generator[None, None, Result | Refusal]


@implementer(IStateMachine)
class Store:
    """
    Keys, their versions, and leases, changed only by `apply`.

    Invariant: `_versions` has nothing above `revision` but what the operation
    under way has written so far.
    """

    def __init__(self) -> None:
        #: The last complete revision; it never goes back.
        self.revision = FIRST_REVISION
        #: The oldest revision that can be read; 0: nothing was compacted yet.
        self.compacted_revision = 0
        #: What `size_bytes` may grow to; 0: no bound.
        self.quota_bytes = 0
        #: Called, from within `apply` or the end of a restore, whenever
        #: `revision` or `compacted_revision` has changed.
        self.on_change: Callable[[], None] | None = None
        #: Called from within `apply` with the index and the content of a checkpoint.
        self.on_checkpoint: Callable[[int, Checkpoint], None] | None = None
        #: Called from within `apply` with the id of a lease and its TTL in
        #: milliseconds when it was granted, and with 0 when it is gone.
        self.on_lease: Callable[[int, int], None] | None = None
        #: Takes the containers of a state that a restore has replaced and nobody
        #: reads any more, to let go of them bit by bit; None: they go at once.
        self.on_discard: Callable[[list[object]], None] | None = None
        self._versions = Versions(FIRST_REVISION)
        #: Keys and bytes before the operation under way; None between operations.
        self._before: tuple[int, int] | None = None
        #: Those that are being drawn.
        self._walks: WeakSet[Walk] = WeakSet()

    # -- reading ---------------------------------------------------------------

    def get(self, key: bytes, revision: int = 0) -> KeyValue | None:
        """
        The record of `key`, None if there is none; as of `revision`, 0 for now.

        `Compacted`, `FutureRevision` raised.
        """
        versions = self._versions
        if revision <= 0:
            if versions.newest <= self.revision:
                return versions.get(key)
            revision = self.revision
        self._check_readable(revision)
        return versions.at(key, revision)

    def range(self, query: Range) -> RangeResult:
        """
        The records of a range, as of the last complete revision unless `query` says.

        `BadRequest`, `Compacted`, `FutureRevision` raised.  A range that is
        sorted or filtered looks at all its keys, and may take long:
        `range_walk` does it in steps.
        """
        return _drained(self.range_walk(query))

    def range_walk(self, query: Range) -> Generator[None, None, RangeResult]:
        """
        The same as of this call, in steps of a few milliseconds, between which
        operations may be applied; `Compacted` raised if one of them has made
        it impossible.
        """
        if not query.key:
            raise error_of(REFUSALS["empty_key"])
        revision = query.revision if query.revision > 0 else self.revision
        self._check_readable(revision)
        view, budget = View(self._versions, revision), Budget(MAX_RANGE_BYTES)
        return self._range_steps(evaluate(view, query, self.revision, budget), revision)

    def _range_steps(
        self, steps: Generator[None, None, RangeResult], revision: int
    ) -> Generator[None, None, RangeResult]:
        # What was applied before the first step may have made it impossible, too.
        self._check_readable(revision)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: RangeResult = end.value
                return result
            yield
            self._check_readable(revision)

    def _check_readable(self, revision: int) -> None:
        if revision > self.revision:
            raise error_of(future_revision(self.revision))
        if revision < self.compacted_revision:
            raise error_of(compacted(self.compacted_revision))

    def changed_keys(self, revision: int) -> Sequence[bytes]:
        """
        The keys that `revision` changed, in order, each once; nothing is copied.

        `revision` is above `compacted_revision` and at most `self.revision`.
        """
        return ChangedKeys(self._versions.history.at(revision))

    def event(self, key: bytes, revision: int, previous: bool) -> Event:
        """What `revision`, which has changed `key`, did to it; for `revision` see above."""
        versions = self._versions
        change = versions.history.at(revision)
        if isinstance(change, KeyValue):
            record = change
        else:
            record = versions.at(key, revision) or tombstone(key, revision)
        before = versions.replaced_of(key, revision) if previous else None
        return Event(record, before if before is not None and before.version else None)

    def portion_end(self, max_keys: int, after: int) -> int:
        """
        The last revision up to which those behind `after`, and behind the
        compacted one, have changed `max_keys` keys at most; one more than
        `after` at least.
        """
        begin = max(after, self.compacted_revision, FIRST_REVISION)
        return self._versions.history.portion_end(begin, max_keys)

    def __len__(self) -> int:
        """How many keys there are."""
        return self._versions.count if self._before is None else self._before[0]

    @property
    def size_bytes(self) -> int:
        """
        What all versions take that are kept, tombstones too: keys, values, and
        `raftd.kv.records.VERSION_OVERHEAD_BYTES` each.
        """
        return self._versions.size_bytes if self._before is None else self._before[1]

    @property
    def lease_count(self) -> int:
        """How many leases there are."""
        return len(self._versions.leases)

    def leases(self) -> list[LeaseResult]:
        """All leases, in the order of their ids."""
        return self._versions.leases.sorted()

    def granted_leases(self) -> list[LeaseResult]:
        """All leases, in the order in which they were granted: quicker than sorted."""
        return self._versions.leases.pinned()

    def lease(self, id: int) -> LeaseResult | None:
        """A lease, None if there is none."""
        return self._versions.leases.get(id)

    def lease_number(self, id: int) -> int:
        """
        Which grant has made the lease, 0 if there is none: no other grant ever
        has the same number.
        """
        return self._versions.leases.number(id)

    def lease_keys(self, id: int, limit: int) -> list[bytes]:
        """
        The first keys of a lease, in order; none if there is no such lease.

        While a change is under way it may have fewer already.
        """
        return self._versions.leases.keys(id, b"", limit)

    # -- the state as a whole ----------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The state as of this call (`IStateMachine.snapshot`); drawn alone or with others."""
        return Snapshot(self._walk())

    def digest(self) -> bytes:
        """A SHA-256 over the whole state: equal states give equal digests."""
        return _drained(self.digest_walk())

    def digest_walk(self) -> Generator[None, None, bytes]:
        """The digest as of this call, in steps of a few milliseconds, whatever is applied."""
        return digest(self._walk())

    def _walk(self) -> Walk:
        head = Head(
            self.revision,
            self.compacted_revision,
            self.quota_bytes,
            len(self),
            self._versions.leases.next_number,
        )
        walk = Walk(self._versions, head)
        # Only a weak one: whoever drops a walk half-way has given it up.
        self._walks.add(walk)
        return walk

    def restore(self, ahead: int | None = None) -> Restore:
        """
        Begin to take over another store's state (`IStateMachine.restore`).

        With `ahead` it is to be a new cluster's: its revision is so much
        further then, and if that is not 0 all before it compacted
        (`raftd.kv.snapshots.moved_on`).
        """
        return Restore(self._become, ahead)

    def _become(self, state: State) -> None:
        # Walks of the old state go on with its versions, which nobody changes any more.
        self._walks = WeakSet()
        self._versions.discard = self.on_discard
        self._versions = state.versions
        self.revision = state.revision
        self.compacted_revision = state.compacted_revision
        self.quota_bytes = state.quota_bytes
        self._changed()

    # -- changing --------------------------------------------------------------

    def apply(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        """
        Carry out an operation (`IStateMachine.apply`).

        The result is an encoded `Result`, or a `Refusal` if the operation
        changed nothing because it cannot be carried out, as when its bytes
        mean nothing to this version (`raftd.kv.operations`).
        """
        operation = decode_operation(command.operation)
        if isinstance(operation, Put):
            return encode_result(self._put(operation))
        if isinstance(operation, Refusal):
            return encode_result(operation)
        if isinstance(operation, SetQuota):
            self.quota_bytes = operation.quota_bytes
            return _NO_RESULT
        if isinstance(operation, Checkpoint):
            if self.on_checkpoint is not None:
                self.on_checkpoint(index, operation)
            return _NO_RESULT
        if isinstance(operation, Transaction):
            steps = self._transaction(operation)
        elif isinstance(operation, Compact):
            steps = self._compact(operation.revision)
        elif isinstance(operation, RevokeLease):
            steps = self._revoke(operation.id)
        elif isinstance(operation, ExpireLease):
            steps = self._expire(operation)
        elif isinstance(operation, DeleteRange):
            steps = self._single(DeleteRangeWith(operation.key, operation.range_end))
        else:
            steps = self._single(operation)
        return self._begin(steps)

    def _put(self, put: Put) -> PutResult | Refusal:
        """The commonest operation, on its shortest way; see `Execution` for the others."""
        key, lease, versions = put.key, put.lease, self._versions
        if not key:
            return REFUSALS["empty_key"]
        if lease and lease not in versions.leases:
            return REFUSALS["lease_not_found"]
        if self.quota_bytes:
            growth = len(key) + len(put.value) + VERSION_OVERHEAD_BYTES
            if versions.size_bytes + growth > self.quota_bytes:
                return REFUSALS["quota_reached"]
        revision = self.revision + 1
        record = versions.put(key, put.value, lease, revision)
        self.revision = revision
        if self.on_change is not None:
            self.on_change()
        return PutResult(revision, record.version == 1)

    def _begin(self, steps: Steps) -> bytes | Generator[None, None, bytes]:
        """Whatever is done within one step is done at once."""
        self._before = (self._versions.count, self._versions.size_bytes)
        try:
            next(steps)
        except StopIteration as end:
            self._before = None
            return encode_result(end.value)
        return self._go_on(steps)

    def _go_on(self, steps: Steps) -> Generator[None, None, bytes]:
        yield
        result = yield from steps
        self._before = None
        return encode_result(result)

    def _single(self, step: SimpleStep) -> Steps:
        if not isinstance(step, GrantLease) and not step.key:
            return REFUSALS["empty_key"]
        execution = self._execution()
        refusal = execution.obstacle((step,), self.quota_bytes)
        if refusal is not None:
            return refusal
        result = yield from execution.step(step)
        self._commit(execution)
        return result

    def _transaction(self, transaction: Transaction) -> Steps:
        refusal = refusal_of(transaction)
        if refusal is not None:
            return refusal
        chosen: Chosen = yield from choose(transaction, View(self._versions, self.revision))
        execution = self._execution()
        refusal = execution.obstacle(simple_steps(chosen), self.quota_bytes)
        if refusal is not None:
            return refusal
        result = yield from execution.carry_out(chosen)
        self._commit(execution)
        return result

    def _revoke(self, id: int) -> Steps:
        leases = self._versions.leases
        if id not in leases:
            return REFUSALS["lease_not_found"]
        execution = self._execution()
        result = yield from execution.revoke(id)
        leases.drop(id)
        if self.on_lease is not None:
            self.on_lease(id, 0)
        self._commit(execution)
        return result

    def _expire(self, expire: ExpireLease) -> Steps:
        if self._versions.leases.number(expire.id) != expire.number:
            # What has expired is gone, and another lease has its id.
            return REFUSALS["lease_not_found"]
        return (yield from self._revoke(expire.id))

    def _compact(self, revision: int) -> Steps:
        if revision <= self.compacted_revision:
            return compacted(self.compacted_revision)
        if revision > self.revision:
            return future_revision(self.revision)
        # A walk that begins while this goes on is as of this compaction already.
        walks = [walk for walk in self._walks if not walk.done]

        def keep(record: KeyValue) -> None:
            for walk in walks:
                walk.keep(record)

        self.compacted_revision = revision
        self._changed()
        yield from self._versions.compact(revision, keep if walks else None)
        return CompactResult(revision)

    def _execution(self) -> Execution:
        return Execution(self._versions, self.revision, self.compacted_revision)

    def _commit(self, execution: Execution) -> None:
        """What was written is complete: it is visible from here on."""
        self._before = None
        for lease in execution.granted.values():
            self._versions.leases.grant(lease)
            if self.on_lease is not None:
                self.on_lease(lease.id, lease.ttl_ms)
        self._versions.complete()
        assert self._versions.history.last == execution.revision, "a revision is lost"
        if execution.revision != self.revision:
            self.revision = execution.revision
            self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()


_NO_RESULT = encode_result(NoResult())


def _drained(steps: Generator[None, None, T]) -> T:
    """All steps at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
