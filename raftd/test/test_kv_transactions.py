"""Transactions, line by line: compares, sides, nesting, what is refused and why."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import Compacted, FutureRevision, RaftdError
from raftd.kv import execution, leases
from raftd.kv.operations import (
    CREATE_REVISION,
    EQUAL,
    GREATER,
    LEASE,
    LESS,
    MOD_REVISION,
    NOT_EQUAL,
    VALUE,
    VERSION,
    Compact,
    Compare,
    DeleteRangeWith,
    GrantLease,
    Put,
    PutWith,
    Range,
    SetQuota,
    Step,
    Transaction,
    encode_operation,
)
from raftd.kv.records import VERSION_OVERHEAD_BYTES
from raftd.kv.results import (
    DeleteResult,
    KeyValue,
    LeaseResult,
    PutResult,
    RangeResult,
    StepResult,
    TransactionResult,
)
from raftd.kv.store import Store
from raftd.test.kvrig import apply, apply_bytes, code_of, make_small

THEN, ELSE = PutWith(b"then", b""), PutWith(b"else", b"")


def put(key: bytes, value: bytes = b"") -> PutWith:
    return PutWith(key, value)


class TransactionCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store()

    def succeeds(self, *compares: Compare) -> bool:
        result = apply(self.store, Transaction(compares, ()))
        assert isinstance(result, TransactionResult), result
        return result.succeeded

    def run_steps(self, *steps: Step) -> TransactionResult:
        result = apply(self.store, Transaction((), steps))
        assert isinstance(result, TransactionResult), result
        return result

    def refused(self, *steps: Step) -> str:
        """Its code; whether in the one list, the other, or nested: nothing is changed."""
        before = self.store.digest()
        codes = {
            code_of(apply(self.store, transaction))
            for transaction in (
                Transaction((), steps),
                Transaction((Compare(b"?", b"", VERSION, GREATER, 0),), (), steps),
                Transaction((), (put(b"other"), Transaction((), steps))),
            )
        }
        self.assertEqual(self.store.digest(), before)
        (code,) = codes
        return code


class Compares(TransactionCase):
    def setUp(self) -> None:
        super().setUp()
        apply(self.store, GrantLease(7, 1000))
        apply(self.store, Put(b"k", b"m", 7))
        apply(self.store, Put(b"other", b""))
        apply(self.store, Put(b"k", b"m", 7))

    def test_each_target_and_each_relation(self) -> None:
        """Created at 2, changed at 4, version 2, lease 7, value m."""
        lower: dict[int, bytes | int] = {VALUE: b"a", VERSION: 1, CREATE_REVISION: 1}
        equal: dict[int, bytes | int] = {VALUE: b"m", VERSION: 2, CREATE_REVISION: 2}
        higher: dict[int, bytes | int] = {VALUE: b"ma", VERSION: 3, CREATE_REVISION: 3}
        lower |= {MOD_REVISION: 3, LEASE: 6}
        equal |= {MOD_REVISION: 4, LEASE: 7}
        higher |= {MOD_REVISION: 5, LEASE: 8}
        for target in equal:
            for operands, true in (
                (lower, {NOT_EQUAL, GREATER}),
                (equal, {EQUAL}),
                (higher, {NOT_EQUAL, LESS}),
            ):
                for relation in (EQUAL, NOT_EQUAL, LESS, GREATER):
                    compare = Compare(b"k", b"", target, relation, operands[target])
                    self.assertEqual(self.succeeds(compare), relation in true)

    def test_all_must_hold(self) -> None:
        good = Compare(b"k", b"", VERSION, EQUAL, 2)
        bad = Compare(b"k", b"", VERSION, EQUAL, 1)
        self.assertTrue(self.succeeds())
        self.assertTrue(self.succeeds(good, good))
        for compares in ((good, bad), (bad, good), (bad, bad)):
            self.assertFalse(self.succeeds(*compares))

    def test_one_of_two_lists_is_carried_out(self) -> None:
        for operand, expected in ((2, b"then"), (1, b"else")):
            compare = Compare(b"k", b"", VERSION, EQUAL, operand)
            result = apply(self.store, Transaction((compare,), (THEN,), (ELSE,)))
            revision = self.store.revision
            self.assertEqual(
                result,
                TransactionResult(revision, operand == 2, [PutResult(revision, True)]),
            )
            self.assertEqual(list(self.store.changed_keys(revision)), [expected])

    def test_of_a_missing_key_a_compare_of_its_value_is_false(self) -> None:
        for relation in (EQUAL, NOT_EQUAL, LESS, GREATER):
            for operand in (b"", b"m"):
                self.assertFalse(self.succeeds(Compare(b"?", b"", VALUE, relation, operand)))

    def test_of_a_missing_key_the_others_compare_with_0(self) -> None:
        for target in (VERSION, CREATE_REVISION, MOD_REVISION, LEASE):
            self.assertTrue(self.succeeds(Compare(b"?", b"", target, EQUAL, 0)))
            self.assertTrue(self.succeeds(Compare(b"?", b"", target, LESS, 1)))
            self.assertFalse(self.succeeds(Compare(b"?", b"", target, NOT_EQUAL, 0)))
            self.assertTrue(self.succeeds(Compare(b"?", b"", target, GREATER, -1)))

    def test_a_range_compare_must_hold_for_every_key(self) -> None:
        def of(start: bytes, end: bytes, least: int) -> bool:
            return self.succeeds(Compare(start, end, VERSION, GREATER, least))

        self.assertTrue(of(b"a", b"\0", 0))
        self.assertFalse(of(b"a", b"\0", 1))
        self.assertTrue(of(b"a", b"l", 1))
        make_small(self.patch, 1)
        self.assertTrue(of(b"a", b"\0", 0))
        self.assertFalse(of(b"a", b"\0", 1))

    def test_an_empty_range_compares_once_with_zeros(self) -> None:
        for start, end in ((b"x", b"z"), (b"z", b"x"), (b"p", b"\0")):
            self.assertTrue(self.succeeds(Compare(start, end, VERSION, EQUAL, 0)))
            self.assertFalse(self.succeeds(Compare(start, end, VERSION, GREATER, 0)))
            self.assertFalse(self.succeeds(Compare(start, end, VALUE, NOT_EQUAL, b"m")))

    def test_all_compares_see_the_state_before_nested_ones_too(self) -> None:
        absent = Compare(b"new", b"", VERSION, EQUAL, 0)
        nested = Transaction((absent,), (THEN,), (ELSE,))
        result = self.run_steps(put(b"new"), nested)
        inner = result.results[1]
        assert isinstance(inner, TransactionResult)
        self.assertTrue(inner.succeeded)
        self.assertIsNotNone(self.store.get(b"then"))


class Steps(TransactionCase):
    def test_ranges_inside_see_the_writes_before_them(self) -> None:
        apply(self.store, Put(b"b", b"1"))
        look = Range(b"\0", b"\0", keys_only=True)
        result = self.run_steps(look, put(b"a"), look, DeleteRangeWith(b"b"), look)
        seen = [
            [record.key for record in r.kvs]
            for r in result.results
            if isinstance(r, RangeResult)
        ]
        self.assertEqual(seen, [[b"b"], [b"a", b"b"], [b"a"]])

    def test_a_range_inside_at_a_revision_does_not(self) -> None:
        apply(self.store, Put(b"b", b"1"))
        for revision in (2, 1):
            result = self.run_steps(
                put(b"a"), DeleteRangeWith(b"b"), Range(b"a", b"\0", revision)
            ).results[2]
            assert isinstance(result, RangeResult)
            self.assertEqual([record.key for record in result.kvs], [b"b"][: revision - 1])

    def test_results_come_in_order_and_have_one_revision(self) -> None:
        apply(self.store, Put(b"b", b"1"))
        result = self.run_steps(
            Range(b"a"),
            put(b"a", b"2"),
            GrantLease(5, 1000),
            Transaction((), (Range(b"a"), DeleteRangeWith(b"b", b"", True))),
        )
        a, b = KeyValue(b"a", b"2", 3, 3, 1), KeyValue(b"b", b"1", 2, 2, 1)
        inner = TransactionResult(
            3, True, [RangeResult(3, 1, False, [a]), DeleteResult(3, 1, [b])]
        )
        expected: list[StepResult] = [
            RangeResult(3, 0, False, []),
            PutResult(3, True),
            LeaseResult(5, 1000),
            inner,
        ]
        self.assertEqual(result, TransactionResult(3, True, expected))

    def test_one_that_changes_nothing_keeps_the_revision(self) -> None:
        apply(self.store, Put(b"b", b"1"))
        result = self.run_steps(Range(b"b"), DeleteRangeWith(b"x", b"\0"))
        self.assertEqual((result.revision, self.store.revision), (2, 2))
        self.assertEqual([r.revision for r in result.results if hasattr(r, "revision")], [2, 2])

    def test_a_lease_that_is_granted_on_the_way_can_be_used(self) -> None:
        self.run_steps(GrantLease(5, 1000), PutWith(b"k", b"", 5))
        self.assertEqual(self.store.lease_keys(5, 10), [b"k"])
        self.assertEqual(
            self.refused(PutWith(b"j", b"", 6), GrantLease(6, 1000)), "lease_not_found"
        )

    def test_what_is_refused_changes_nothing(self) -> None:
        """Whatever comes before it, and whoever refuses it."""
        apply(self.store, GrantLease(1, 1000))
        for n in range(3):
            apply(self.store, Put(b"%d" % n, b""))
        apply(self.store, Compact(3))
        before: list[Step] = [put(b"a"), DeleteRangeWith(b"0", b"2"), GrantLease(2, 1000)]
        refusals: list[tuple[Step, str]] = [
            (PutWith(b"b", b"", keep_value=True), "key_not_found"),
            (PutWith(b"b", b"", keep_lease=True), "key_not_found"),
            (PutWith(b"b", b"", 9), "lease_not_found"),
            (GrantLease(1, 1000), "lease_exists"),
            (GrantLease(2, 1000), "lease_exists"),
            (Range(b"a", b"", 2), "compacted"),
            (Range(b"a", b"", 5), "future_revision"),
            (put(b""), "empty_key"),
            (DeleteRangeWith(b"", b"\0"), "empty_key"),
            (Range(b"", b"\0"), "empty_key"),
            (Transaction((Compare(b"", b"", VERSION, EQUAL, 0),), ()), "empty_key"),
        ]
        for step, code in refusals:
            self.assertEqual(self.refused(*before, step), code)
            self.assertIsNone(self.store.lease(2))

    def test_refusals_say_what_revision_there_is(self) -> None:
        apply(self.store, Put(b"k", b""))
        apply(self.store, Put(b"k", b""))
        apply(self.store, Compact(3))
        for revision, kind in ((2, Compacted), (4, FutureRevision)):
            error = apply(self.store, Transaction((), (put(b"a"), Range(b"a", b"", revision))))
            assert isinstance(error, Compacted | FutureRevision)
            self.assertEqual((type(error), error.revision), (kind, 3))

    def test_the_list_that_is_not_chosen_may_be_impossible(self) -> None:
        """By what the state is; not by itself."""
        steps = (
            PutWith(b"b", b"", 9),
            Range(b"a", b"", 99),
            PutWith(b"c", b"", keep_value=True),
        )
        result = apply(self.store, Transaction((), (put(b"a"),), steps))
        self.assertNotIsInstance(result, RaftdError)
        for never in ((put(b""),), (put(b"a"), put(b"a"))):
            result = apply(self.store, Transaction((), (put(b"a"),), never))
            self.assertIsInstance(result, RaftdError)

    def test_leases_are_bounded_within_it_too(self) -> None:
        self.patch(execution, "MAX_LEASES", 2)
        self.assertEqual(leases.MAX_LEASES, 100_000)
        self.assertEqual(
            self.refused(*(GrantLease(id, 1000) for id in (1, 2, 3))), "too_many_leases"
        )
        self.run_steps(GrantLease(1, 1000), GrantLease(2, 1000))


class Duplicates(TransactionCase):
    """The same key put twice, or put and deleted, is an error; deleted twice is not."""

    def allowed(self, *steps: Step) -> None:
        self.assertIsInstance(apply(self.store, Transaction((), steps)), TransactionResult)

    def duplicate(self, *steps: Step) -> None:
        self.assertEqual(self.refused(*steps), "duplicate_key")

    def test_put_twice(self) -> None:
        self.duplicate(put(b"k"), put(b"k", b"other"))
        self.duplicate(put(b"k"), put(b"j"), put(b"k"))

    def test_put_and_deleted(self) -> None:
        for delete in (
            DeleteRangeWith(b"k"),
            DeleteRangeWith(b"a", b"z"),
            DeleteRangeWith(b"k", b"k\0"),
            DeleteRangeWith(b"a", b"\0"),
            DeleteRangeWith(b"k", b"\0"),
        ):
            self.duplicate(put(b"k"), delete)
            self.duplicate(delete, put(b"k"))
        for delete in (
            DeleteRangeWith(b"a", b"k"),
            DeleteRangeWith(b"k\0", b"\0"),
            DeleteRangeWith(b"z", b"a"),
            DeleteRangeWith(b"kk"),
        ):
            self.allowed(put(b"k"), delete)
            self.allowed(delete, put(b"k"))

    def test_deleted_twice_is_no_error(self) -> None:
        apply(self.store, Put(b"k", b""))
        result = self.run_steps(DeleteRangeWith(b"k"), DeleteRangeWith(b"a", b"z"))
        self.assertEqual(result.results, [DeleteResult(3, 1), DeleteResult(3, 0)])

    def test_nested_ones_are_held_against_all_around_them(self) -> None:
        for one, other in (
            (put(b"k"), put(b"k")),
            (put(b"k"), DeleteRangeWith(b"a", b"z")),
            (DeleteRangeWith(b"a", b"z"), put(b"k")),
        ):
            self.duplicate(one, Transaction((), (other,)))
            self.duplicate(Transaction((), (one,)), other)
            self.duplicate(Transaction((), (), (one,)), other)
            self.duplicate(Transaction((), (one,)), Transaction((), (other,)))
            self.duplicate(Transaction((), (one,)), Transaction((), (), (other,)))
            self.duplicate(Transaction((), (Transaction((), (one, other)),)))
            self.duplicate(
                Transaction((), (Transaction((), (one,)),)),
                put(b"x"),
                Transaction((), (other,)),
            )

    def test_the_two_lists_of_one_are_not_held_against_each_other(self) -> None:
        for one, other in (
            (put(b"k"), put(b"k")),
            (put(b"k"), DeleteRangeWith(b"a", b"z")),
        ):
            self.allowed(Transaction((), (one,), (other,)))
            self.allowed(Transaction((), (other,), (one,)))
        self.assertIsInstance(
            apply(self.store, Transaction((), (put(b"k"),), (put(b"k"),))), TransactionResult
        )


class Bounds(TransactionCase):
    def of(self, count: int) -> tuple[Step, ...]:
        return tuple(put(b"%d" % n) for n in range(count))

    def test_at_most_128_operations(self) -> None:
        self.assertEqual(len(self.run_steps(*self.of(128)).results), 128)
        self.assertEqual(self.refused(*self.of(129)), "too_many_operations")

    def test_nested_ones_included(self) -> None:
        """The nested transaction is an operation itself."""
        outer = tuple(put(b"x%d" % n) for n in range(60))
        self.assertEqual(len(self.run_steps(*outer, Transaction((), self.of(67))).results), 61)
        for nested in (
            Transaction((), self.of(68)),
            Transaction((), (), self.of(68)),
            Transaction((), (Transaction((), self.of(67)),)),
        ):
            self.assertEqual(self.refused(*outer, nested), "too_many_operations")

    def test_of_the_two_lists_the_longer_counts(self) -> None:
        result = apply(self.store, Transaction((), self.of(128), self.of(128)))
        self.assertIsInstance(result, TransactionResult)

    def test_compares_are_bounded_too(self) -> None:
        compare = Compare(b"k", b"", VERSION, EQUAL, 0)
        self.assertTrue(self.succeeds(*[compare] * 128))
        result = apply(self.store, Transaction((compare,) * 129, ()))
        self.assertEqual(code_of(result), "too_many_operations")

    def test_all_sides_are_bounded_together(self) -> None:
        """Nested ones on both sides could make it as large as a request may be."""
        compare = Compare(b"k", b"", VERSION, EQUAL, 0)

        def of_parts(count: int) -> Transaction:
            nested = Transaction((compare,) * (count - 511), self.of(127), self.of(127))
            return Transaction((compare,) * 128, (nested,), self.of(128))

        self.assertIsInstance(apply(self.store, of_parts(512)), TransactionResult)
        self.assertEqual(code_of(apply(self.store, of_parts(513))), "too_many_operations")

    def test_the_quota_is_for_the_whole(self) -> None:
        """It is refused before anything is changed."""
        each = VERSION_OVERHEAD_BYTES + 2
        apply(self.store, SetQuota(3 * each))
        four = [put(b"%d" % n, b"v") for n in range(4)]
        self.assertEqual(self.refused(*four), "quota_reached")
        self.run_steps(*(put(b"%d" % n, b"v") for n in range(3)))
        self.assertEqual(self.store.size_bytes, 3 * each)
        self.assertEqual(self.refused(put(b"0", b"")), "quota_reached")
        self.assertEqual(self.refused(PutWith(b"0", b"", keep_value=True)), "quota_reached")
        # What does not put goes on.
        result = self.run_steps(Range(b"0"), DeleteRangeWith(b"0", b"2"), GrantLease(1, 1000))
        self.assertEqual(result.results[1], DeleteResult(3, 2))

    def test_the_answer_is_bounded(self) -> None:
        """Together; ranges are cut, with `more`, and deletes answer less of what was."""
        self.patch(execution, "MAX_RESULT_BYTES", 500)
        for n in range(6):
            apply(self.store, Put(b"%d" % n, b"v" * 100))
        look = Range(b"\0", b"\0")
        results = self.run_steps(look, look, DeleteRangeWith(b"\0", b"\0", True)).results
        first, second, delete = results
        assert isinstance(first, RangeResult)
        assert isinstance(second, RangeResult)
        assert isinstance(delete, DeleteResult)
        self.assertEqual((len(first.kvs), first.count, first.more), (4, 6, True))
        self.assertEqual((len(second.kvs), second.count, second.more), (0, 6, True))
        self.assertEqual((delete.deleted, delete.previous), (6, []))

    def test_records_before_that_are_too_large_together_are_refused(self) -> None:
        """For a put has all of it or none."""
        self.patch(execution, "MAX_RESULT_BYTES", 1000)
        for n in range(4):
            apply(self.store, Put(b"%d" % n, b"v" * 100))
        steps = [PutWith(b"%d" % n, b"", previous=True) for n in range(4)]
        self.assertEqual(self.refused(*steps), "result_too_large")
        results = self.run_steps(*steps[:2], Range(b"2", b"\0")).results
        self.assertEqual(results[1], PutResult(6, False, KeyValue(b"1", b"v" * 100, 3, 3, 1)))

    def test_53_many_ranges_that_are_small_take_several_steps(self) -> None:
        """Each alone is looked at, read or deleted in none."""
        make_small(self.patch, 11)
        for n in range(90):
            apply(self.store, Put(b"%d" % (n + 10), b""))
        spans = [(b"%d" % n, b"%d" % (n + 1)) for n in range(1, 9)]
        for transaction in (
            Transaction(tuple(Compare(*span, VERSION, EQUAL, 1) for span in spans), ()),
            Transaction((), tuple(Range(*span) for span in spans)),
            Transaction((), tuple(DeleteRangeWith(*span) for span in spans)),
        ):
            _, steps = apply_bytes(self.store, encode_operation(transaction))
            self.assertGreaterEqual(steps, len(spans))

    def test_53_a_small_one_takes_no_steps_and_a_large_one_several(self) -> None:
        make_small(self.patch, 10)
        _, steps = apply_bytes(self.store, encode_operation(Transaction((), self.of(100))))
        self.assertEqual(steps, 0)
        compare = Compare(b"\0", b"\0", VERSION, GREATER, 0)
        large = Transaction((compare,), (Range(b"\0", b"\0"), DeleteRangeWith(b"\0", b"\0")))
        before = self.store.revision, len(self.store), self.store.size_bytes
        seen = []

        def look() -> None:
            seen.append((self.store.revision, len(self.store), self.store.size_bytes))
            self.assertEqual(self.store.range(Range(b"\0", b"\0", count_only=True)).count, 100)
            self.assertIsNotNone(self.store.get(b"0"))

        result = apply(self.store, large, look)
        assert isinstance(result, TransactionResult)
        self.assertGreater(len(seen), 25)
        self.assertEqual(set(seen), {before})
        self.assertEqual(result.results[1], DeleteResult(before[0] + 1, 100))
        self.assertEqual(len(self.store), 0)
