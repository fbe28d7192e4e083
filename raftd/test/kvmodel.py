"""
The store once more, naive and obviously right: a dictionary for each revision.

Nothing is ever forgotten here; what was compacted is merely refused.
"""

from __future__ import annotations

import operator
from typing import Any

from raftd.kv.leases import MAX_LEASES
from raftd.kv.operations import (
    EVERY_KEY,
    KEY,
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
from raftd.kv.records import VERSION_OVERHEAD_BYTES
from raftd.kv.refusals import REFUSALS, Refusal, compacted, future_revision
from raftd.kv.results import (
    CompactResult,
    DeleteResult,
    KeyValue,
    LeaseResult,
    NoResult,
    PutResult,
    RangeResult,
    Result,
    RevokeResult,
    StepResult,
    TransactionResult,
)

State = dict[bytes, KeyValue]

FIELDS = ["key", "value", "version", "create_revision", "mod_revision", "lease"]
RELATIONS = [None, operator.eq, operator.ne, operator.lt, operator.gt]


def is_inside(key: bytes, start: bytes, end: bytes) -> bool:
    if not end:
        return key == start
    return key >= start and (end == EVERY_KEY or key < end)


def size(record: KeyValue) -> int:
    return len(record.key) + len(record.value) + VERSION_OVERHEAD_BYTES


class Refused(Exception):
    """An operation that changes nothing, and why."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


def refuse(code: str) -> None:
    raise Refused(REFUSALS[code])


class Model:
    def __init__(self) -> None:
        self.compacted_revision = 0
        self.quota_bytes = 0
        #: By revision; nothing is at 0.
        self.states: list[State] = [{}, {}]
        #: By revision, in order.
        self.changes: list[list[KeyValue]] = [[], []]
        self.leases: dict[int, int] = {}
        #: The numbers of their grants, and the next one.
        self.numbers: dict[int, int] = {}
        self.next_number = 1

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    @property
    def size_bytes(self) -> int:
        """What was compacted is there only if it is still to be seen."""
        shown = self.states[self.compacted_revision].values()
        changed = self.changes[self.compacted_revision + 1 :]
        return sum(map(size, shown)) + sum(size(r) for change in changed for r in change)

    # -- reading ---------------------------------------------------------------

    def state(self, revision: int) -> State:
        if revision <= 0:
            return self.states[-1]
        if revision > self.revision:
            raise Refused(future_revision(self.revision))
        if revision < self.compacted_revision:
            raise Refused(compacted(self.compacted_revision))
        return self.states[revision]

    def range(self, query: Range) -> RangeResult:
        if not query.key:
            refuse("empty_key")
        return evaluate(self.state(query.revision), query, self.revision)

    # -- changing --------------------------------------------------------------

    def apply(self, operation: Operation) -> Result | Refusal:
        try:
            return self._apply(operation)
        except Refused as e:
            return e.refusal

    def _apply(self, operation: Operation) -> Result:
        if isinstance(operation, SetQuota):
            self.quota_bytes = operation.quota_bytes
            return NoResult()
        if isinstance(operation, Compact):
            if operation.revision <= self.compacted_revision:
                raise Refused(compacted(self.compacted_revision))
            if operation.revision > self.revision:
                raise Refused(future_revision(self.revision))
            self.compacted_revision = operation.revision
            return CompactResult(operation.revision)
        if isinstance(operation, RevokeLease):
            return self._revoke(operation.id)
        if isinstance(operation, ExpireLease):
            if self.numbers.get(operation.id) != operation.number:
                refuse("lease_not_found")
            return self._revoke(operation.id)
        if isinstance(operation, Put):
            operation = PutWith(operation.key, operation.value, operation.lease)
        if isinstance(operation, DeleteRange):
            operation = DeleteRangeWith(operation.key, operation.range_end)
        if isinstance(operation, PutWith | DeleteRangeWith | GrantLease | Transaction):
            check(operation)
            result = Attempt(self).carry_out(operation)
            assert not isinstance(result, RangeResult)
            return result
        raise AssertionError(f"no operation of the model: {operation}")

    def _revoke(self, id: int) -> RevokeResult:
        if id not in self.leases:
            refuse("lease_not_found")
        del self.leases[id]
        del self.numbers[id]
        state = dict(self.states[-1])
        keys = sorted(key for key in state if state[key].lease == id)
        for key in keys:
            del state[key]
        if keys:
            revision = self.revision + 1
            self.states.append(state)
            self.changes.append([KeyValue(key, b"", 0, revision, 0) for key in keys])
        return RevokeResult(self.revision, len(keys))


class Attempt:
    """A change that takes effect if nothing refuses it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.state = dict(model.states[-1])
        self.leases = dict(model.leases)
        self.changes: list[KeyValue] = []
        self.revision = model.revision + 1
        self.grows = False

    def carry_out(self, step: Step) -> StepResult:
        result = self.step(step)
        model = self.model
        if not self.changes:
            # It has changed nothing: once more, with the revision that stays.
            self.revision = model.revision
            self.leases = dict(model.leases)
            result = self.step(step)
        puts = [record for record in self.changes if record.version]
        if puts and 0 < model.quota_bytes < model.size_bytes + sum(map(size, puts)):
            refuse("quota_reached")
        model.leases = self.leases
        for id in self.leases:
            if id not in model.numbers:
                model.numbers[id] = model.next_number
                model.next_number += 1
        if self.changes:
            model.states.append(self.state)
            model.changes.append(self.changes)
        return result

    def step(self, step: Step) -> StepResult:
        if isinstance(step, PutWith):
            return self.put(step)
        if isinstance(step, DeleteRangeWith):
            keys = sorted(k for k in self.state if is_inside(k, step.key, step.range_end))
            gone = [self.state.pop(key) for key in keys]
            self.changes += [KeyValue(key, b"", 0, self.revision, 0) for key in keys]
            return DeleteResult(self.revision, len(keys), gone if step.previous else [])
        if isinstance(step, Range):
            state = self.state if step.revision <= 0 else self.model.state(step.revision)
            return evaluate(state, step, self.revision)
        if isinstance(step, GrantLease):
            if step.id in self.leases:
                refuse("lease_exists")
            if len(self.leases) >= MAX_LEASES:
                refuse("too_many_leases")
            self.leases[step.id] = step.ttl_ms
            return LeaseResult(step.id, step.ttl_ms)
        succeeded = all(holds(compare, self.model.states[-1]) for compare in step.compares)
        steps = step.success if succeeded else step.failure
        return TransactionResult(self.revision, succeeded, [self.step(s) for s in steps])

    def put(self, put: PutWith) -> PutResult:
        old = self.state.get(put.key)
        value, lease = put.value, put.lease
        if put.keep_value or put.keep_lease:
            if old is None:
                raise Refused(REFUSALS["key_not_found"])
            value = old.value if put.keep_value else value
            lease = old.lease if put.keep_lease else lease
        if lease and lease not in self.leases:
            refuse("lease_not_found")
        created = self.revision if old is None else old.create_revision
        version = 1 if old is None else old.version + 1
        record = KeyValue(put.key, value, created, self.revision, version, lease)
        self.state[put.key] = record
        self.changes.append(record)
        return PutResult(self.revision, old is None, old if put.previous else None)


def holds(compare: Compare, state: State) -> bool:
    records: list[KeyValue | None] = [
        state[key] for key in state if is_inside(key, compare.key, compare.range_end)
    ]
    for record in records or [None]:
        if record is None and compare.target == VALUE:
            return False
        actual = 0 if record is None else getattr(record, FIELDS[compare.target])
        relation: Any = RELATIONS[compare.relation]
        if not relation(actual, compare.operand):
            return False
    return True


def evaluate(state: State, query: Range, revision: int) -> RangeResult:
    """Fetch, filter, sort, cut."""
    found = [state[key] for key in sorted(state) if is_inside(key, query.key, query.range_end)]
    count = len(found)
    if query.count_only:
        return RangeResult(revision, count, False, [])
    if query.min_mod_revision:
        found = [r for r in found if r.mod_revision >= query.min_mod_revision]
    if query.max_mod_revision:
        found = [r for r in found if r.mod_revision <= query.max_mod_revision]
    if query.min_create_revision:
        found = [r for r in found if r.create_revision >= query.min_create_revision]
    if query.max_create_revision:
        found = [r for r in found if r.create_revision <= query.max_create_revision]
    field = operator.attrgetter(FIELDS[query.sort_by])
    found = sorted(found, key=field, reverse=query.descending)
    cut = found[: query.limit] if query.limit > 0 else found
    if query.keys_only:
        cut = [
            KeyValue(r.key, b"", r.create_revision, r.mod_revision, r.version, r.lease)
            for r in cut
        ]
    return RangeResult(revision, count, len(cut) < len(found), cut)


# -- what a transaction may be -------------------------------------------------------


def check(operation: Step) -> None:
    """Whatever can be told without the state."""
    if isinstance(operation, Transaction):
        if operations(operation) > 128 or parts(operation) > 512:
            refuse("too_many_operations")
        check_keys(operation)
        touched = list(touches(operation, ()))
        for i, (one, path) in enumerate(touched):
            for other, other_path in touched[i + 1 :]:
                if conflict(one, other) and may_both_happen(path, other_path):
                    refuse("duplicate_key")
    elif not isinstance(operation, GrantLease) and not operation.key:
        refuse("empty_key")


def operations(transaction: Transaction) -> int:
    counts = [len(transaction.compares)]
    for steps in (transaction.success, transaction.failure):
        nested = [operations(s) for s in steps if isinstance(s, Transaction)]
        counts.append(len(steps) + sum(nested))
    return max(counts)


def parts(transaction: Transaction) -> int:
    both = (*transaction.success, *transaction.failure)
    nested = [parts(step) for step in both if isinstance(step, Transaction)]
    return len(transaction.compares) + len(both) + sum(nested)


def check_keys(transaction: Transaction) -> None:
    for compare in transaction.compares:
        if not compare.key:
            refuse("empty_key")
        if isinstance(compare.operand, bytes) != (compare.target == VALUE):
            refuse("unknown_operation")
    for step in (*transaction.success, *transaction.failure):
        if isinstance(step, Transaction):
            check_keys(step)
        elif not isinstance(step, GrantLease) and not step.key:
            refuse("empty_key")


#: The transactions around a step, and which way each must go for it.
Path = tuple[tuple[int, bool], ...]


def touches(transaction: Transaction, path: Path) -> Any:
    """Every put and delete in it, with its path."""
    for way, steps in ((True, transaction.success), (False, transaction.failure)):
        for number, step in enumerate(steps):
            if isinstance(step, Transaction):
                yield from touches(step, (*path, (number, way)))
            elif isinstance(step, PutWith | DeleteRangeWith):
                yield step, (*path, (number, way))


def may_both_happen(one: Path, other: Path) -> bool:
    for (number, way), (other_number, other_way) in zip(one, other, strict=False):
        if way != other_way:
            return False
        if number != other_number:
            break
    return True


def conflict(one: PutWith | DeleteRangeWith, other: PutWith | DeleteRangeWith) -> bool:
    if isinstance(one, PutWith) and isinstance(other, PutWith):
        return one.key == other.key
    if isinstance(one, PutWith) and isinstance(other, DeleteRangeWith):
        return is_inside(one.key, other.key, other.range_end)
    if isinstance(one, DeleteRangeWith) and isinstance(other, PutWith):
        return is_inside(other.key, one.key, one.range_end)
    return False


assert KEY == 0
