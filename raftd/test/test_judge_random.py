"""
The judge against the store that ships, and against every order one by one.

Histories come from the real store, carried out one operation after the other
and then spread out in time, so that they overlap: they must be accepted.  One
answer is changed: then the judge must say what `raftd.test.judge.brute` says,
which tries everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from twisted.trial.unittest import SynchronousTestCase

from raftd.kv import operations as kv
from raftd.kv.results import (
    DeleteResult,
    KeyValue,
    PutResult,
    RangeResult,
    TransactionResult,
)
from raftd.kv.store import Store
from raftd.test.judge.brute import has_order
from raftd.test.judge.calls import (
    Call,
    Compare,
    CompareAndSet,
    Delete,
    Get,
    Put,
    Range,
    Record,
    Result,
    Scalar,
    Transaction,
)
from raftd.test.judge.history import History, Operation
from raftd.test.judge.linearizability import judge
from raftd.test.kvrig import apply

KEYS = ["a", "b"]
VALUES = ["x", "y", "z"]
TARGETS = {
    "value": kv.VALUE,
    "version": kv.VERSION,
    "create_revision": kv.CREATE_REVISION,
    "mod_revision": kv.MOD_REVISION,
}
RELATIONS = {"=": kv.EQUAL, "!=": kv.NOT_EQUAL, "<": kv.LESS, ">": kv.GREATER}

# -- the real store, asked in the judge's terms -----------------------------------------


class Real:
    """A store that carries out calls, and says everything about them."""

    def __init__(self) -> None:
        self.store = Store()

    def carry_out(self, call: Call) -> Result:
        if isinstance(call, Get | Range):
            found = self.store.range(_step(call))
            return self._result(call, found)
        if isinstance(call, Put):
            return self._result(call, apply(self.store, _step(call)))
        if isinstance(call, Delete):
            return self._result(call, apply(self.store, _step(call)))
        if isinstance(call, CompareAndSet):
            compare = Compare(call.key, 0, "version")
            if call.expected is not None:
                compare = Compare(call.key, call.expected)
            done = apply(
                self.store, _step(Transaction((compare,), (Put(call.key, call.value),)))
            )
            assert isinstance(done, TransactionResult)
            return Result(succeeded=done.succeeded, revision=done.revision)
        return self._result(call, apply(self.store, _step(call)))

    def _result(self, call: Call, found: object) -> Result:
        if isinstance(found, PutResult):
            return Result(created=found.created, revision=found.revision)
        if isinstance(found, DeleteResult):
            return Result(count=found.deleted, revision=found.revision)
        if isinstance(found, TransactionResult):
            assert isinstance(call, Transaction)
            steps = call.success if found.succeeded else call.failure
            parts = [
                msgspec.structs.replace(self._result(step, part), revision=UNSET)
                for step, part in zip(steps, found.results, strict=True)
            ]
            return Result(
                succeeded=found.succeeded, results=tuple(parts), revision=found.revision
            )
        assert isinstance(found, RangeResult), found
        if isinstance(call, Range):
            kvs = tuple(_record(kv) for kv in found.kvs)
            return Result(kvs=kvs, count=found.count, revision=found.revision)
        if not found.kvs:
            return Result(
                value=None,
                create_revision=0,
                mod_revision=0,
                version=0,
                revision=found.revision,
            )
        record = _record(found.kvs[0])
        return Result(
            value=record.value,
            create_revision=record.create_revision,
            mod_revision=record.mod_revision,
            version=record.version,
            revision=found.revision,
        )


def _record(found: KeyValue) -> Record:
    return Record(
        found.key.decode(),
        found.value.decode(),
        found.create_revision,
        found.mod_revision,
        found.version,
    )


def _step(call: Call) -> Any:
    """As the store's own operation."""
    if isinstance(call, Get):
        return kv.Range(call.key.encode())
    if isinstance(call, Range):
        return kv.Range(call.key.encode(), call.end.encode(), limit=call.limit)
    if isinstance(call, Put):
        return kv.PutWith(call.key.encode(), str(call.value).encode())
    if isinstance(call, Delete):
        return kv.DeleteRangeWith(call.key.encode(), call.end.encode())
    assert isinstance(call, Transaction)
    return kv.Transaction(
        tuple(_compare(compare) for compare in call.compares),
        tuple(map(_step, call.success)),
        tuple(map(_step, call.failure)),
    )


def _compare(compare: Compare) -> kv.Compare:
    operand = compare.operand
    return kv.Compare(
        compare.key.encode(),
        compare.end.encode(),
        TARGETS[compare.target],
        RELATIONS[compare.relation],
        operand.encode() if isinstance(operand, str) else operand,
    )


def without_revisions(result: Result) -> Result:
    """What `brute` knows of."""
    kvs, parts = result.kvs, result.results
    return msgspec.structs.replace(
        result,
        revision=UNSET,
        create_revision=UNSET,
        mod_revision=UNSET,
        kvs=kvs
        if kvs is UNSET
        else tuple(Record(r.key, r.value, version=r.version) for r in kvs),
        results=parts if parts is UNSET else tuple(map(without_revisions, parts)),
    )


# -- histories ----------------------------------------------------------------------------

keys = st.sampled_from(KEYS)
values = st.sampled_from(VALUES)
ends = st.sampled_from(["", "b", "c", "\0"])
gets = st.builds(Get, keys)
puts = st.builds(Put, keys, values)
deletes = st.builds(Delete, keys, ends)
ranges = st.builds(Range, keys, ends, st.sampled_from([0, 1]))
sets = st.builds(CompareAndSet, keys, st.one_of(st.none(), values), values)
relations = st.sampled_from(["=", "!=", "<", ">"])
compares = st.one_of(
    st.builds(Compare, keys, values, st.just("value"), relations, ends),
    st.builds(Compare, keys, st.integers(0, 3), st.just("version"), relations, ends),
)
compares_of_revisions = st.builds(
    Compare,
    keys,
    st.integers(0, 5),
    st.sampled_from(["create_revision", "mod_revision"]),
    relations,
)
# One put, or deletes, at most: more might put a key twice, which is refused.
steps = st.one_of(
    st.lists(st.one_of(gets, ranges, deletes), max_size=2),
    st.tuples(gets, puts, gets).map(list),
)


def transactions(conditions: st.SearchStrategy[Compare]) -> st.SearchStrategy[Transaction]:
    return st.builds(
        lambda c, s, f: Transaction(tuple(c), tuple(s), tuple(f)),
        st.lists(conditions, max_size=2),
        steps,
        steps,
    )


def calls(conditions: st.SearchStrategy[Compare]) -> st.SearchStrategy[Call]:
    return st.one_of(gets, puts, deletes, ranges, sets, transactions(conditions))


class Plan(msgspec.Struct, frozen=True):
    """One operation: how long before and after its moment it lasts, and what is known of it."""

    call: Call
    before: int
    after: int
    is_known: bool
    is_carried_out: bool


def plans(conditions: st.SearchStrategy[Compare], size: int) -> st.SearchStrategy[list[Plan]]:
    # An unknown outcome in one of eight, and half of those have happened.
    fates = st.sampled_from([(True, True)] * 6 + [(False, True), (False, False)])
    plan = st.builds(
        lambda call, before, after, fate: Plan(call, before, after, *fate),
        calls(conditions),
        st.integers(0, 25),
        st.integers(0, 25),
        fates,
    )
    return st.lists(plan, min_size=1, max_size=size)


def history(plans: Sequence[Plan], has_revisions: bool) -> list[Operation]:
    """Carried out one by one, at 10, 20, 30; as clients saw it."""
    store = Real()
    events: list[tuple[int, bool, int]] = []
    results: list[Result | None] = []
    for number, plan in enumerate(plans):
        result = store.carry_out(plan.call) if plan.is_carried_out else Result()
        if not has_revisions:
            result = without_revisions(result)
        results.append(result if plan.is_known else None)
        moment = 10 * number
        events.append((moment - plan.before, False, number))
        if plan.is_known:
            events.append((moment + plan.after, True, number))
    lines: dict[tuple[bool, int], int] = {}
    for line, (_, is_end, number) in enumerate(sorted(events), 1):
        lines[is_end, number] = line
    return [
        Operation(n, plan.call, results[n], lines[False, n], lines.get((True, n)))
        for n, plan in enumerate(plans)
    ]


def mutated(operations: Sequence[Operation], which: int, how: int) -> list[Operation]:
    """One answer, changed in one of its fields."""
    changed = list(operations)
    answered = [n for n, o in enumerate(operations) if o.result is not None]
    if not answered:
        return changed
    number = answered[which % len(answered)]
    operation = operations[number]
    assert operation.result is not None
    result = _other(operation.result, how)
    changed[number] = msgspec.structs.replace(operation, result=result)
    return changed


def _other(result: Result, how: int) -> Result:
    fields: dict[str, object] = {}
    value = result.value
    if value is not UNSET:
        choices: list[Scalar | None] = [None, *VALUES]
        fields["value"] = choices[(choices.index(value) + 1 + how % 3) % 4]
        fields["version"] = UNSET
    for name in ("created", "succeeded"):
        old = getattr(result, name)
        if old is not UNSET:
            fields[name] = not old
            fields["results"] = UNSET
    if result.count is not UNSET:
        fields["count"] = result.count + 1
        fields["kvs"] = UNSET
    if result.kvs is not UNSET and result.kvs and how % 2:
        fields["kvs"] = result.kvs[1:]
        fields["count"] = UNSET
    return msgspec.structs.replace(result, **fields)


SETTINGS = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class RealHistories(SynchronousTestCase):
    @SETTINGS
    @given(plans(st.one_of(compares, compares_of_revisions), 12))
    def test_what_the_store_did_is_accepted(self, plans: list[Plan]) -> None:
        """With all that it says of revisions and versions."""
        judgement = judge(History(history(plans, has_revisions=True)))
        self.assertTrue(judgement.is_good, judgement.reasons)

    @SETTINGS
    @given(plans(compares, 7))
    def test_every_order_agrees_that_it_is_good(self, plans: list[Plan]) -> None:
        operations = history(plans, has_revisions=False)
        self.assertTrue(has_order(operations))
        judgement = judge(History(operations))
        self.assertTrue(judgement.is_good, judgement.reasons)

    def test_with_one_answer_changed_it_is_what_every_order_says(self) -> None:
        verdicts = {True: 0, False: 0}

        @SETTINGS
        @given(plans(compares, 7), st.integers(0, 6), st.integers(0, 5))
        def check(plans: list[Plan], which: int, how: int) -> None:
            operations = mutated(history(plans, has_revisions=False), which, how)
            is_good = has_order(operations)
            verdicts[is_good] += 1
            self.assertEqual(judge(History(operations)).is_good, is_good)

        check()
        self.assertGreater(verdicts[True], 20)
        self.assertGreater(verdicts[False], 100)

    def test_registers_that_are_much_fought_over(self) -> None:
        """One key, two values, much at the same time, made up."""
        verdicts = {True: 0, False: 0}
        few = st.sampled_from(VALUES[:2])
        call = st.one_of(
            st.builds(Get, st.just("a")),
            st.builds(Put, st.just("a"), few),
            st.builds(CompareAndSet, st.just("a"), few, few),
        )
        lasting = st.tuples(call, st.integers(1, 8), st.integers(0, 5), st.integers(0, 5))

        @settings(SETTINGS, max_examples=1_000)
        @given(st.lists(lasting, min_size=2, max_size=7))
        def check(drawn: list[tuple[Call, int, int, int]]) -> None:
            operations = []
            for number, (call, length, fate, choice) in enumerate(drawn):
                result: Result | None = Result()
                if isinstance(call, Get):
                    result = Result(value=VALUES[choice % 2])
                elif isinstance(call, CompareAndSet):
                    result = Result(succeeded=choice % 2 == 0)
                if not fate and not isinstance(call, Get):
                    result = None
                begin = 20 * number
                end = None if result is None else begin + 20 * length - 10 + number
                operations.append(Operation(number, call, result, begin, end))
            is_good = has_order(operations)
            verdicts[is_good] += 1
            self.assertEqual(judge(History(operations)).is_good, is_good)

        check()
        self.assertGreater(verdicts[True], 20)
        self.assertGreater(verdicts[False], 100)
