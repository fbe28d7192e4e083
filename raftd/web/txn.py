"""
`POST /txn`: if all compares hold, carry out `then`, else `else`, in one revision.

    {"compare": [{"key": "a", "value": "1"}, {"prefix": "b/", "version": 0}],
     "then": [{"put": {"key": "a", "value": "2"}}, {"delete": {"prefix": "c/"}}],
     "else": [{"get": {"key": "a"}}]}

This module makes a `Transaction` of such a body, and JSON of its result.
What is wrong with a body is told with its place in it, like `then[0].put`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from json import loads
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from raftd.errors import BadRequest, RaftdError, TooLarge
from raftd.interfaces import IRequest
from raftd.kv.interfaces import IDatabase
from raftd.kv.operations import (
    CREATE_REVISION,
    EQUAL,
    GREATER,
    LEASE,
    LESS,
    MAX_DECODED_NESTING,
    MOD_REVISION,
    NOT_EQUAL,
    VALUE,
    VERSION,
    Compare,
    DeleteRangeWith,
    PutWith,
    Range,
    Step,
    Transaction,
)
from raftd.kv.results import (
    DeleteResult,
    PutResult,
    RangeResult,
    Result,
    StepResult,
    TransactionResult,
)
from raftd.web import bodies, spans, streams
from raftd.web.answers import JSON, failed_read, failed_result, is_offered
from raftd.web.fields import read_unconditional_retry
from raftd.web.parameters import MAX_NUMBER, no_parameters
from raftd.web.ranges import MAX_LIMIT, SORTS
from raftd.web.records import either, parse_lease_id, record, slices
from raftd.web.spans import Span

PATH = b"/txn"

ALLOW = b"POST, OPTIONS"

#: The longest body, in bytes.
MAX_BODY_BYTES = 3 * 512 * 1024

#: Elements of a list in it.  The store counts operations once more, with
#: nested ones; this bounds the work before.
MAX_LIST = 128

_RELATIONS = {"=": EQUAL, "!=": NOT_EQUAL, "<": LESS, ">": GREATER}
_NUMBERS = {
    "version": VERSION,
    "create_revision": CREATE_REVISION,
    "mod_revision": MOD_REVISION,
}
_NO_LEASE = "0" * 16

_encode = msgspec.json.Encoder().encode

# -- the body --------------------------------------------------------------------

Text = str | UnsetType
#: Comes as base64.
Octets = bytes | UnsetType
Number = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """What has no other fields."""


class _Compare(_Strict):
    key: Text = UNSET
    key_base64: Octets = UNSET
    end: Text = UNSET
    end_base64: Octets = UNSET
    prefix: Text = UNSET
    prefix_base64: Octets = UNSET
    op: Literal["=", "!=", "<", ">"] = "="
    value: Text = UNSET
    value_base64: Octets = UNSET
    version: Number | UnsetType = UNSET
    create_revision: Number | UnsetType = UNSET
    mod_revision: Number | UnsetType = UNSET
    lease: Text = UNSET


class _Put(_Strict):
    key: Text = UNSET
    key_base64: Octets = UNSET
    value: Text = UNSET
    value_base64: Octets = UNSET
    lease: Text = UNSET
    prev: bool = False
    keep_value: bool = False
    keep_lease: bool = False


class _Keys(_Strict):
    """A key, or a range."""

    key: Text = UNSET
    key_base64: Octets = UNSET
    prefix: Text = UNSET
    prefix_base64: Octets = UNSET
    start: Text = UNSET
    start_base64: Octets = UNSET
    end: Text = UNSET
    end_base64: Octets = UNSET


class _Get(_Keys):
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] | UnsetType = UNSET
    keys_only: bool = False
    count_only: bool = False
    order: Literal["asc", "desc"] = "asc"
    sort: Literal["key", "version", "create_revision", "mod_revision", "value"] = "key"
    revision: Annotated[int, Meta(ge=1, le=MAX_NUMBER)] | UnsetType = UNSET


class _Delete(_Keys):
    prev: bool = False


class _Operation(_Strict):
    put: _Put | UnsetType = UNSET
    get: _Get | UnsetType = UNSET
    delete: _Delete | UnsetType = UNSET
    txn: _Transaction | UnsetType = UNSET


class _Transaction(_Strict):
    compare: Annotated[list[_Compare], Meta(max_length=MAX_LIST)] = []
    then: Annotated[list[_Operation], Meta(max_length=MAX_LIST)] = []
    otherwise: Annotated[list[_Operation], Meta(max_length=MAX_LIST)] = msgspec.field(
        default_factory=list, name="else"
    )


_decode = msgspec.json.Decoder(_Transaction).decode

#: How msgspec says where something is wrong.
_place = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL).fullmatch


_TOO_DEEP = "Transactions are nested too deeply."


def parse(body: bytes) -> Transaction:
    """The transaction that `body` is; `BadRequest`, `TooLarge`."""
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge(f"A transaction has at most {MAX_BODY_BYTES} bytes.")
    try:
        wanted = _decode(body)
        # Of a field that occurs twice the last would be carried out.
        loads(body, object_pairs_hook=bodies.distinct)
    except msgspec.ValidationError as e:
        found = _place(str(e))
        why, where = found.groups() if found else (str(e), "the body")
        raise BadRequest(f"In {where}: {why[:1].lower()}{why[1:]}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        why = str(e).removeprefix("JSON is malformed: ")
        raise BadRequest(f"The body is not JSON: {why[:1].lower()}{why[1:]}.") from None
    except RecursionError:
        raise BadRequest(_TOO_DEEP) from None
    return _transaction(wanted, "", 0)


def _transaction(wanted: _Transaction, where: str, nesting: int) -> Transaction:
    """`where` is the place in the body, with the dot that follows it."""
    if nesting > MAX_DECODED_NESTING:
        # How deep the decoder goes depends on Python, and may be deeper than this can.
        raise BadRequest(_TOO_DEEP)
    return Transaction(
        tuple(
            _compare(compare, f"{where}compare[{i}]")
            for i, compare in enumerate(wanted.compare)
        ),
        _steps(wanted.then, f"{where}then", nesting),
        _steps(wanted.otherwise, f"{where}else", nesting),
    )


def _steps(operations: Sequence[_Operation], where: str, nesting: int) -> tuple[Step, ...]:
    return tuple(
        _step(operation, f"{where}[{i}]", nesting) for i, operation in enumerate(operations)
    )


def _step(operation: _Operation, where: str, nesting: int) -> Step:
    given = [
        (name, wanted)
        for name in ("put", "get", "delete", "txn")
        if (wanted := getattr(operation, name)) is not UNSET
    ]
    if len(given) != 1:
        raise BadRequest(f"{where} must have exactly one of 'put', 'get', 'delete' and 'txn'.")
    ((name, wanted),) = given
    where = f"{where}.{name}"
    if isinstance(wanted, _Put):
        return _put(wanted, where)
    if isinstance(wanted, _Get):
        return _get(wanted, where)
    if isinstance(wanted, _Delete):
        return DeleteRangeWith(*_keys(wanted, where), wanted.prev)
    return _transaction(wanted, f"{where}.", nesting + 1)


def _put(wanted: _Put, where: str) -> PutWith:
    value = either(wanted.value, wanted.value_base64, "value", where)
    if (value is None) is not wanted.keep_value:
        raise BadRequest(f"{where} must have either a 'value' or 'keep_value'.")
    if wanted.lease is not UNSET and wanted.keep_lease:
        raise BadRequest(f"{where} has either a 'lease' or 'keep_lease'.")
    return PutWith(
        _key(wanted, where),
        value or b"",
        0 if wanted.lease is UNSET else parse_lease_id(wanted.lease),
        wanted.prev,
        wanted.keep_value,
        wanted.keep_lease,
    )


def _get(wanted: _Get, where: str) -> Range:
    return Range(
        *_keys(wanted, where),
        0 if wanted.revision is UNSET else wanted.revision,
        MAX_LIMIT if wanted.limit is UNSET else wanted.limit,
        wanted.keys_only,
        wanted.count_only,
        SORTS[wanted.sort],
        descending=wanted.order == "desc",
    )


def _compare(wanted: _Compare, where: str) -> Compare:
    relation = _RELATIONS[wanted.op]
    operands: list[tuple[int, bytes | int]] = [
        (target, number)
        for name, target in _NUMBERS.items()
        if (number := getattr(wanted, name)) is not UNSET
    ]
    value = either(wanted.value, wanted.value_base64, "value", where)
    if value is not None:
        operands.append((VALUE, value))
    if wanted.lease is not UNSET:
        none = wanted.lease == _NO_LEASE
        operands.append((LEASE, 0 if none else parse_lease_id(wanted.lease)))
    if len(operands) != 1:
        names = ", ".join(map(repr, ("value", *_NUMBERS)))
        raise BadRequest(f"{where} must have exactly one of {names} and 'lease'.")
    key, range_end = _compared(wanted, where)
    return Compare(key, range_end, operands[0][0], relation, operands[0][1])


def _compared(wanted: _Compare, where: str) -> Span:
    """The key or the range that is compared."""
    prefix = either(wanted.prefix, wanted.prefix_base64, "prefix", where)
    end = either(wanted.end, wanted.end_base64, "end", where)
    if prefix is None:
        key = _key(wanted, where)
        return Span(key, b"") if end is None else spans.up_to(key, end)
    if not (wanted.key is UNSET and wanted.key_base64 is UNSET and end is None):
        raise BadRequest(f"{where} has a 'prefix', or a 'key' and perhaps an 'end'.")
    return spans.with_prefix(prefix)


def _keys(wanted: _Keys, where: str) -> Span:
    """The key or the range that is read or deleted."""
    key = either(wanted.key, wanted.key_base64, "key", where)
    whole = spans.span(
        either(wanted.prefix, wanted.prefix_base64, "prefix", where),
        either(wanted.start, wanted.start_base64, "start", where),
        either(wanted.end, wanted.end_base64, "end", where),
        where,
    )
    if (key is None) is (whole is None):
        raise BadRequest(
            f"{where} must have a 'key', or a 'prefix', or a 'start' and an 'end'."
        )
    if key is not None:
        # An empty one is the store's to refuse.
        return Span(key, b"")
    assert whole is not None
    return whole


def _key(wanted: _Compare | _Put, where: str) -> bytes:
    key = either(wanted.key, wanted.key_base64, "key", where)
    if key is None:
        raise BadRequest(f"{where} must have a 'key', or a 'key_base64'.")
    return key


# -- the answer ------------------------------------------------------------------


def _as_json(transaction: Transaction, result: TransactionResult) -> Iterator[bytes]:
    """The whole answer, in pieces."""
    yield b'{"succeeded":%s,"revision":%d,"results":' % (
        _encode(result.succeeded),
        result.revision,
    )
    yield from _results(transaction, result)
    yield b"}\n"


def _results(transaction: Transaction, result: TransactionResult) -> Iterator[bytes]:
    steps = transaction.success if result.succeeded else transaction.failure
    before = b"["
    for step, step_result in zip(steps, result.results, strict=True):
        yield before
        yield from _result(step, step_result)
        before = b","
    yield b"]" if result.results else b"[]"


def _result(step: Step, result: StepResult) -> Iterator[bytes]:
    if isinstance(result, PutResult):
        put: dict[str, object] = {"created": result.created}
        if result.previous is not None:
            put["previous"] = record(result.previous)
        yield _encode({"put": put})
    elif isinstance(result, DeleteResult):
        yield b'{"delete":{"deleted":%d' % result.deleted
        if isinstance(step, DeleteRangeWith) and step.previous:
            yield b',"previous":['
            yield from slices(result.previous)
            yield b"]"
        yield b"}}"
    elif isinstance(result, RangeResult):
        keys_only = isinstance(step, Range) and step.keys_only
        more = _encode(result.more)
        yield b'{"get":{"count":%d,"more":%s,"kvs":[' % (result.count, more)
        yield from slices(result.kvs, keys_only)
        yield b"]}}"
    elif isinstance(result, TransactionResult) and isinstance(step, Transaction):
        yield b'{"txn":{"succeeded":%s,"results":' % _encode(result.succeeded)
        yield from _results(step, result)
        yield b"}}"


# -- the request -----------------------------------------------------------------


def handle(request: IRequest, database: IDatabase) -> None:
    """Answer a request for `PATH`."""
    if not is_offered(request, ALLOW):
        return
    try:
        _post(request, database)
    except RaftdError as e:
        # Nothing was asked of the database yet.
        failed_read(request, e)


def _post(request: IRequest, database: IDatabase) -> None:
    no_parameters(request.query, "/txn")
    retry = read_unconditional_retry(request)
    transaction = parse(request.body)

    def done(outcome: Result | RaftdError) -> None:
        if isinstance(outcome, TransactionResult):
            streams.respond(request, 200, _as_json(transaction, outcome), JSON)
        else:
            failed_result(request, outcome)

    database.change(transaction, done, retry)
