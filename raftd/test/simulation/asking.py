"""One operation of a client, in the words of the judge and in those of the store."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from raftd.kv.database import Database
from raftd.kv.interfaces import LINEARIZABLE
from raftd.kv.operations import (
    CREATE_REVISION,
    EQUAL,
    GREATER,
    VALUE,
    VERSION,
    Compare,
    DeleteRange,
    DeleteRangeWith,
    Operation,
    Put,
    PutWith,
    Range,
    Step,
    Transaction,
)
from raftd.kv.results import DeleteResult, KeyValue, PutResult, RangeResult, TransactionResult
from raftd.test.judge import calls

KEYS = ("ka", "kb", "kc")
#: All of them.
FIRST, END = "k", "l"

#: What clients do, and how often in comparison.
_KINDS = {"get": 4, "put": 5, "cas": 3, "delete": 1, "range": 2, "txn": 2}


class Asked(NamedTuple):
    """
    `call` is for the judge; `ask` puts it to a database, and `result` says
    what came of it.  `must_change`: it makes a new revision for certain.
    """

    call: calls.Call
    ask: Callable[..., None]
    result: Callable[[Any], calls.Result]
    is_read: bool = False
    must_change: bool = False


def draw(random: Random, number: int) -> Asked:
    """The next operation of a client; `number` is a value that nobody else writes."""
    (kind,) = random.choices(list(_KINDS), list(_KINDS.values()))
    key, value = random.choice(KEYS), str(number)
    if kind == "get":
        return _get(key)
    if kind == "put":
        operation = Put(key.encode(), value.encode())
        return Asked(calls.Put(key, value), _change(operation), _put_result, must_change=True)
    if kind == "cas":
        # Among so few values one is right now and then.
        expected = random.choice((None, *(str(max(1, number - i)) for i in range(1, 9))))
        return _compare_and_set(key, expected, value)
    if kind == "delete":
        delete = DeleteRange(key.encode())
        return Asked(calls.Delete(key), _change(delete), _delete_result)
    if kind == "range":
        return _range()
    return _transaction(random, key, value)


def _change(operation: Operation) -> Callable[..., None]:
    def ask(database: Database, done: Callable[[Any], None], retry: bytes = b"") -> None:
        database.change(operation, done, retry)

    return ask


def _get(key: str) -> Asked:
    def ask(database: Database, done: Callable[[Any], None], retry: bytes = b"") -> None:
        database.get(key.encode(), LINEARIZABLE, done)

    def result(found: KeyValue | None) -> calls.Result:
        if found is None:
            return calls.Result(value=None)
        return calls.Result(
            value=found.value.decode(),
            create_revision=found.create_revision,
            mod_revision=found.mod_revision,
            version=found.version,
        )

    return Asked(calls.Get(key), ask, result, is_read=True)


def _range() -> Asked:
    def ask(database: Database, done: Callable[[Any], None], retry: bytes = b"") -> None:
        database.range(Range(FIRST.encode(), END.encode()), LINEARIZABLE, done)

    return Asked(calls.Range(FIRST, END), ask, _range_result, is_read=True)


def _compare_and_set(key: str, expected: str | None, value: str) -> Asked:
    operation = Transaction((_is(key, expected),), (PutWith(key.encode(), value.encode()),))

    def result(outcome: TransactionResult) -> calls.Result:
        return calls.Result(succeeded=outcome.succeeded, revision=outcome.revision)

    return Asked(calls.CompareAndSet(key, expected, value), _change(operation), result)


def _is(key: str, expected: str | None) -> Compare:
    if expected is None:
        return Compare(key.encode(), b"", CREATE_REVISION, EQUAL, 0)
    return Compare(key.encode(), b"", VALUE, EQUAL, expected.encode())


def _transaction(random: Random, key: str, value: str) -> Asked:
    """Two keys at once: what only one of them shows has been torn."""
    other = random.choice([k for k in KEYS if k != key])
    compare = calls.Compare(key, 0, "version", random.choice(("=", ">")))
    success: tuple[calls.Call, ...] = (calls.Put(key, value), calls.Put(other, value))
    failure: tuple[calls.Call, ...] = (calls.Get(other), calls.Delete(key))
    call = calls.Transaction((compare,), success, failure)
    relation = EQUAL if compare.relation == "=" else GREATER
    operation = Transaction(
        (Compare(key.encode(), b"", VERSION, relation, 0),),
        tuple(map(_step, success)),
        tuple(map(_step, failure)),
    )
    return Asked(call, _change(operation), _transaction_result)


def _step(call: calls.Call) -> Step:
    if isinstance(call, calls.Put):
        return PutWith(call.key.encode(), str(call.value).encode())
    if isinstance(call, calls.Delete):
        return DeleteRangeWith(call.key.encode())
    assert isinstance(call, calls.Get)
    return Range(call.key.encode())


def _put_result(outcome: PutResult) -> calls.Result:
    return calls.Result(created=outcome.created, revision=outcome.revision)


def _delete_result(outcome: DeleteResult) -> calls.Result:
    return calls.Result(count=outcome.deleted, revision=outcome.revision)


def _range_result(outcome: RangeResult) -> calls.Result:
    kvs = tuple(
        calls.Record(
            kv.key.decode(),
            kv.value.decode(),
            create_revision=kv.create_revision,
            mod_revision=kv.mod_revision,
            version=kv.version,
        )
        for kv in outcome.kvs
    )
    return calls.Result(kvs=kvs, count=outcome.count, revision=outcome.revision)


def _transaction_result(outcome: TransactionResult) -> calls.Result:
    results = []
    for step in outcome.results:
        if isinstance(step, PutResult):
            results.append(_put_result(step))
        elif isinstance(step, DeleteResult):
            results.append(_delete_result(step))
        else:
            assert isinstance(step, RangeResult)
            value = step.kvs[0].value.decode() if step.kvs else None
            results.append(calls.Result(value=value))
    return calls.Result(
        succeeded=outcome.succeeded, results=tuple(results), revision=outcome.revision
    )
