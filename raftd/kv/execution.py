"""
Carrying out one change of the store: the steps of a transaction, or a single one.

Whether it can be carried out is asked first (`obstacle`), of all steps at
once; after that nothing fails.  A change that touches many keys is made in
steps, and readers see none of it until its revision is complete.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

from raftd.kv.leases import MAX_LEASES
from raftd.kv.operations import DeleteRangeWith, PutWith, Range
from raftd.kv.ranges import MAX_RESULT_BYTES, Budget, View, end_of, evaluate
from raftd.kv.records import VERSION_OVERHEAD_BYTES, size_of
from raftd.kv.refusals import REFUSALS, Refusal, compacted, future_revision
from raftd.kv.results import (
    DeleteResult,
    KeyValue,
    LeaseResult,
    PutResult,
    RangeResult,
    RevokeResult,
    StepResult,
    TransactionResult,
)
from raftd.kv.transactions import Chosen, SimpleStep
from raftd.kv.versions import STEP_KEYS, Versions

#: Records that a delete answers as what was there before.
MAX_PREVIOUS = 10_000


def end_of_delete(delete: DeleteRangeWith) -> bytes | None:
    """Up to where it deletes; None: there is no end."""
    return end_of(delete.range_end) if delete.range_end else delete.key + b"\0"


class Execution:
    """
    The change under way; `revision` is what the store's will be after it.

    Invariant: what it has written already is in `versions` at `revision`.
    """

    def __init__(self, versions: Versions, revision: int, compacted_revision: int) -> None:
        """`revision` is the last complete one."""
        self._versions = versions
        self._revision_before = revision
        self._compacted_revision = compacted_revision
        self.revision = revision
        #: To be granted when the change is complete.
        self.granted: dict[int, LeaseResult] = {}
        self._budget = Budget(MAX_RESULT_BYTES)

    # -- before ----------------------------------------------------------------

    def obstacle(self, steps: Iterable[SimpleStep], quota_bytes: int) -> Refusal | None:
        """Why `steps` cannot be carried out; None if they can, and then `revision` is known."""
        growth = previous = 0
        changes = False
        granted: set[int] = set()
        for step in steps:
            refusal = None
            if isinstance(step, PutWith):
                changes = True
                record = self._versions.get(step.key)
                refusal = self._obstacle_to_put(step, record, granted)
                value = record.value if step.keep_value and record is not None else step.value
                growth += len(step.key) + len(value) + VERSION_OVERHEAD_BYTES
                if step.previous and record is not None:
                    previous += size_of(record)
            elif isinstance(step, DeleteRangeWith):
                end = end_of_delete(step)
                changes = changes or bool(self._versions.live.range(step.key, end, 1))
            elif isinstance(step, Range):
                refusal = self._obstacle_to_range(step.revision)
            else:
                refusal = self._obstacle_to_grant(step.id, granted)
                granted.add(step.id)
            if refusal is not None:
                return refusal
        if growth and 0 < quota_bytes < self._versions.size_bytes + growth:
            return REFUSALS["quota_reached"]
        if previous > MAX_RESULT_BYTES:
            return REFUSALS["result_too_large"]
        self.revision = self._revision_before + changes
        return None

    def _obstacle_to_put(
        self, put: PutWith, record: KeyValue | None, granted: set[int]
    ) -> Refusal | None:
        if record is None and (put.keep_value or put.keep_lease):
            return REFUSALS["key_not_found"]
        if (
            put.lease
            and not put.keep_lease
            and put.lease not in self._versions.leases
            and put.lease not in granted
        ):
            return REFUSALS["lease_not_found"]
        return None

    def _obstacle_to_range(self, revision: int) -> Refusal | None:
        if revision <= 0:
            return None
        if revision > self._revision_before:
            return future_revision(self._revision_before)
        if revision < self._compacted_revision:
            return compacted(self._compacted_revision)
        return None

    def _obstacle_to_grant(self, id: int, granted: set[int]) -> Refusal | None:
        leases = self._versions.leases
        if id in leases or id in granted:
            return REFUSALS["lease_exists"]
        if len(leases) + len(granted) >= MAX_LEASES:
            return REFUSALS["too_many_leases"]
        return None

    # -- now -------------------------------------------------------------------

    def carry_out(self, chosen: Chosen) -> Generator[None, None, TransactionResult]:
        """All steps of a transaction, in order."""
        results: list[StepResult] = []
        for step in chosen.steps:
            if isinstance(step, Chosen):
                results.append((yield from self.carry_out(step)))
            else:
                results.append((yield from self.step(step)))
                if isinstance(step, Range | DeleteRangeWith) and step.range_end:
                    # It may have come past nearly `STEP_KEYS`, and so may the next.
                    yield
        return TransactionResult(self.revision, chosen.succeeded, results)

    def step(
        self, step: SimpleStep
    ) -> Generator[None, None, PutResult | DeleteResult | RangeResult | LeaseResult]:
        """One step that is no transaction."""
        if isinstance(step, PutWith):
            return self._put(step)
        if isinstance(step, DeleteRangeWith):
            return (yield from self._delete(step))
        if isinstance(step, Range):
            revision = step.revision if step.revision > 0 else self.revision
            view = View(self._versions, revision)
            return (yield from evaluate(view, step, self.revision, self._budget))
        lease = self.granted[step.id] = LeaseResult(step.id, step.ttl_ms)
        return lease

    def _put(self, put: PutWith) -> PutResult:
        old = self._versions.get(put.key)
        value, lease = put.value, put.lease
        if old is not None:
            value = old.value if put.keep_value else value
            lease = old.lease if put.keep_lease else lease
        self._versions.draft_put(put.key, value, lease, self.revision)
        previous = old if put.previous else None
        if previous is not None:
            self._budget.use(previous)
        return PutResult(self.revision, old is None, previous)

    def _delete(self, delete: DeleteRangeWith) -> Generator[None, None, DeleteResult]:
        versions, start, end = self._versions, delete.key, end_of_delete(delete)
        deleted = 0
        previous: list[KeyValue] = []
        room = delete.previous
        while keys := versions.live.range(start, end, STEP_KEYS):
            deleted += len(keys)
            for record in filter(None, map(versions.get, keys if room else ())):
                room = len(previous) < MAX_PREVIOUS and self._budget.takes(record)
                if not room:
                    break
                previous.append(record)
            versions.draft_delete_all(keys, self.revision)
            if len(keys) < STEP_KEYS:
                break
            yield
        return DeleteResult(self.revision, deleted, previous)

    def revoke(self, id: int) -> Generator[None, None, RevokeResult]:
        """Delete the keys of a lease, sorted; whoever calls it drops the lease."""
        leases = self._versions.leases
        self.revision = self._revision_before + bool(leases.keys(id, b"", 1))
        deleted, step = 0, STEP_KEYS // 2
        while keys := leases.keys(id, b"", step):
            deleted += len(keys)
            for key in keys:
                self._versions.draft_delete(key, self.revision)
            if len(keys) < step:
                break
            yield
        return RevokeResult(self.revision, deleted)
