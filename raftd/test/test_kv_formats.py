"""Operations are in the log and results travel: their bytes must never change."""

from __future__ import annotations

import sys

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from raftd.kv import operations
from raftd.kv.operations import (
    EQUAL,
    GREATER,
    LEASE,
    VALUE,
    VERSION,
    Checkpoint,
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
    Transaction,
    decode_operation,
    encode_operation,
)
from raftd.kv.refusals import REFUSALS, Refusal
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
    TransactionResult,
    decode_result,
    encode_result,
)
from raftd.kv.store import Store
from raftd.test.kvrig import apply, apply_bytes, code_of

K = "c4016b"
OPERATIONS: list[tuple[Operation, str]] = [
    (Put(b"k", b"v"), f"94 01 {K} c40176 00"),
    (Put(b"k", b"", 7), f"94 01 {K} c400 07"),
    (DeleteRange(b"k"), f"93 02 {K} c400"),
    (DeleteRange(b"k", b"l"), f"93 02 {K} c4016c"),
    (
        Transaction(
            (Compare(b"k", b"", VALUE, EQUAL, b"v"), Compare(b"k", b"\0", LEASE, GREATER, 3)),
            (PutWith(b"k", b"w"),),
            (Range(b"k"),),
        ),
        f"94 03 92 95 {K} c400 01 01 c40176 95 {K} c40100 05 04 03"
        f"91 97 07 {K} c40177 00 c2 c2 c2  91 9d 09 {K} c400 00 00 c2 c2 00 c2 00 00 00 00",
    ),
    (Compact(300), "92 04 cd012c"),
    (GrantLease(9, 5000), "93 05 09 cd1388"),
    (RevokeLease(2**63 - 1), "92 06 cf7fffffffffffffff"),
    (PutWith(b"k", b"v", 1, True, False, True), f"97 07 {K} c40176 01 c3 c2 c3"),
    (DeleteRangeWith(b"k", b"\0", True), f"94 08 {K} c40100 c3"),
    (SetQuota(1 << 32), "92 0a cf0000000100000000"),
    (Checkpoint(5, b"d"), "93 0b 05 c40164"),
    (ExpireLease(9, 300), "93 0c 09 cd012c"),
]

RECORD = KeyValue(b"k", b"v", 2, 3, 2, 1)
RESULTS: list[tuple[Result | Refusal, str]] = [
    (PutResult(5, True), "94 01 05 c3 c0"),
    (PutResult(5, False, RECORD), f"94 01 05 c2 96 {K} c40176 02 03 02 01"),
    (DeleteResult(5, 2), "94 02 05 02 90"),
    (
        TransactionResult(5, True, [PutResult(5, True), RangeResult(5, 1, False, [RECORD])]),
        f"94 03 05 c3 92 94 01 05 c3 c0 95 09 05 01 c2 91 96 {K} c40176 02 03 02 01",
    ),
    (CompactResult(4), "92 04 04"),
    (LeaseResult(9, 1000), "93 05 09 cd03e8"),
    (RevokeResult(5, 1), "93 06 05 01"),
    (NoResult(), "91 0a"),
    (Refusal("c", "m", 3), "83 a4636f6465 a163 a76d657373616765 a16d a87265766973696f6e 03"),
]


class Formats(SynchronousTestCase):
    def test_operations(self) -> None:
        for operation, expected in OPERATIONS:
            self.assertEqual(encode_operation(operation).hex(), expected.replace(" ", ""))
            self.assertEqual(decode_operation(bytes.fromhex(expected)), operation)

    def test_results(self) -> None:
        """A result is an array when carried out and a map when refused."""
        for result, expected in RESULTS:
            self.assertEqual(encode_result(result).hex(), expected.replace(" ", ""))
            if not isinstance(result, Refusal):
                self.assertEqual(decode_result(bytes.fromhex(expected)), result)

    def test_every_refusal_has_its_code(self) -> None:
        for code, refusal in REFUSALS.items():
            self.assertEqual(code_of(decode_result(encode_result(refusal))), code)


def nested(depth: int, bottom: bytes = b"\x94\x03\x90\x90\x90") -> bytes:
    """A transaction in so many others, as bytes."""
    return b"\x94\x03\x90\x91" * depth + bottom + b"\x90" * depth


class UnknownOperations(SynchronousTestCase):
    """A committed command that this version cannot decode changes nothing, anywhere."""

    def refused(self, operation: bytes) -> None:
        store = Store()
        apply(store, Put(b"k", b"v"))
        before = store.digest()
        result, _ = apply_bytes(store, operation)
        self.assertEqual(code_of(decode_result(result)), "unknown_operation")
        self.assertEqual(store.digest(), before)

    def test_a_kind_of_a_later_version(self) -> None:
        self.refused(msgspec.msgpack.encode([99, b"k"]))
        # A range is no operation of its own.
        self.refused(msgspec.msgpack.encode(Range(b"k")))

    def test_a_field_of_a_later_version(self) -> None:
        """What it would mean is not known, so the rest is not carried out either."""
        for _, data in OPERATIONS:
            fields = msgspec.msgpack.decode(bytes.fromhex(data))
            self.refused(msgspec.msgpack.encode([*fields, True]))

    def test_numbers_out_of_bounds(self) -> None:
        encode = msgspec.msgpack.encode
        for id in (0, -1, 2**63, 2**64 - 1):
            self.refused(encode([5, id, 1000]))
        for ttl_ms in (0, -1, 2**63):
            self.refused(encode([5, 1, ttl_ms]))
        for quota in (-1, 2**63):
            self.refused(encode([10, quota]))
        for target, relation in ((0, 1), (6, 1), (1, 0), (1, 5)):
            self.refused(encode([3, [[b"k", b"", target, relation, b"v"]], [], []]))
        for sort_by in (-1, 6):
            step = [9, b"k", b"", 0, 0, False, False, sort_by]
            self.refused(encode([3, [], [step], []]))

    def test_a_compare_with_an_operand_of_another_kind(self) -> None:
        for target, operand in ((VALUE, 1), (VERSION, b"1")):
            compare = Compare(b"k", b"", target, EQUAL, operand)
            self.refused(encode_operation(Transaction((compare,), (PutWith(b"k", b"w"),))))
            inner = Transaction((compare,), ())
            self.refused(encode_operation(Transaction((), (), (inner,))))

    def test_garbage(self) -> None:
        for operation in (b"", b"\xc1", b"\x94\x01", b"\x91" * 100_000, b"\x93\x01\x91\x91"):
            self.refused(operation)

    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(st.binary(max_size=40))
    def test_any_bytes_have_a_result(self, operation: bytes) -> None:
        store = Store()
        result, _ = apply_bytes(store, operation)
        other, _ = apply_bytes(Store(), operation)
        self.assertEqual(result, other)
        self.assertIn(type(msgspec.msgpack.decode(result)), (list, dict))

    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(st.sampled_from(OPERATIONS), st.integers(0, 200), st.binary(min_size=1, max_size=3))
    def test_a_damaged_operation_has_a_result(
        self, operation: tuple[Operation, str], position: int, put: bytes
    ) -> None:
        data = bytes.fromhex(operation[1])
        position %= len(data)
        damaged = data[:position] + put + data[position + len(put) :]
        result, _ = apply_bytes(Store(), damaged)
        self.assertIn(type(msgspec.msgpack.decode(result)), (list, dict))


class Nesting(SynchronousTestCase):
    """How deep the stack is when an operation is decoded must not decide anything."""

    def result_of(self, operation: bytes, frames: int = 0) -> bytes:
        if frames:
            return self.result_of(operation, frames - 1)
        return apply_bytes(Store(), operation)[0]

    def test_up_to_the_bound_it_is_carried_out(self) -> None:
        deepest = nested(operations.MAX_DECODED_NESTING)
        used = 0
        frame = sys._getframe()
        while frame.f_back is not None:
            frame, used = frame.f_back, used + 1
        room = sys.getrecursionlimit() - used
        for frames in (0, room // 2):
            result = decode_result(self.result_of(deepest, frames))
            self.assertIsInstance(result, TransactionResult)

    def test_beyond_the_bound_it_is_refused_alike(self) -> None:
        """Whether or not the decoder could have gone so deep, and what is at the bottom."""
        results = {
            self.result_of(nested(depth, bottom))
            for depth in (operations.MAX_DECODED_NESTING + 1, 100, 300, 1000, 100_000)
            for bottom in (b"\x94\x03\x90\x90\x90", b"\xc1")
        }
        self.assertEqual(results, {encode_result(REFUSALS["unknown_operation"])})
        wide = msgspec.msgpack.decode(nested(operations.MAX_DECODED_NESTING + 1))
        wide[2] = [msgspec.msgpack.decode(nested(0)), *wide[2]]
        self.assertIn(self.result_of(msgspec.msgpack.encode(wide)), results)
