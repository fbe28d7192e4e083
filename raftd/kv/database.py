"""The replicated store as its users see it: a node, and the state machine beneath it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from zope.interface import implementer

from raftd.core.messages import Command, encode_command
from raftd.errors import BadRequest, OutcomeUnknown, ProtocolViolation, RaftdError, TooLarge
from raftd.interfaces import DeleteResult, Done, IDatabase, INode, PutResult, Value
from raftd.kv.operations import (
    DeleteRange,
    Operation,
    Put,
    decode_delete_result,
    decode_put_result,
    encode_operation,
)
from raftd.kv.store import Store

#: The longest key, in bytes.  A key is held in memory several times over and
#: fits into a URL.
MAX_KEY_BYTES = 4096

#: The largest value, in bytes.
MAX_VALUE_BYTES = 1024 * 1024

R = TypeVar("R")


@implementer(IDatabase)
class Database:
    """
    Puts and deletes go through the log; reads come from this node's own store,
    after the node has made sure that it is fresh enough.

    A key is 1 to `MAX_KEY_BYTES` bytes, else the outcome is `BadRequest`; a
    value above `MAX_VALUE_BYTES` is `TooLarge`.  Neither reaches the log.
    """

    def __init__(self, node: INode, store: Store) -> None:
        self._node = node
        self._store = store

    @property
    def revision(self) -> int:
        return self._store.revision

    def put(self, key: bytes, value: bytes, done: Done[PutResult]) -> None:
        if len(value) > MAX_VALUE_BYTES:
            done(TooLarge(f"The value is larger than {MAX_VALUE_BYTES} bytes."))
        elif refusal := _unusable(key):
            done(refusal)
        else:
            self._propose(Put(key, value), decode_put_result, done)

    def delete(self, key: bytes, done: Done[DeleteResult]) -> None:
        if refusal := _unusable(key):
            done(refusal)
        else:
            self._propose(DeleteRange(key), decode_delete_result, done)

    def get(self, key: bytes, linearizable: bool, done: Done[Value | None]) -> None:
        if refusal := _unusable(key):
            done(refusal)
        elif linearizable:

            def may_read(outcome: RaftdError | None) -> None:
                done(self._value(key) if outcome is None else outcome)

            self._node.read(may_read)
        else:
            done(self._value(key))

    def _value(self, key: bytes) -> Value | None:
        record = self._store.get(key)
        return None if record is None else Value(record.value, record.mod_revision)

    def _propose(
        self, operation: Operation, decode: Callable[[bytes], R | RaftdError], done: Done[R]
    ) -> None:
        def applied(outcome: bytes | RaftdError) -> None:
            if isinstance(outcome, RaftdError):
                done(outcome)
                return
            try:
                result = decode(outcome)
            except ProtocolViolation as e:
                result = OutcomeUnknown(f"What came of the write cannot be told: {e}.")
            done(result)

        self._node.propose(encode_command(Command(encode_operation(operation))), applied)


def _unusable(key: bytes) -> BadRequest | None:
    """Why `key` cannot be one; None if it can."""
    if not key:
        return BadRequest("A key must have at least one byte.")
    if len(key) > MAX_KEY_BYTES:
        return BadRequest(f"The key is longer than {MAX_KEY_BYTES} bytes.")
    return None
