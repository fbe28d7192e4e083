"""
The key-value state machine: revisions in the manner of etcd v3.

An empty store is at revision 1.  Whatever changes something makes one new
revision; whatever changes nothing keeps it.  Everything here is a function of
the commands applied so far and of nothing else, so that equal logs give equal
digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from itertools import islice

import msgspec
from zope.interface import implementer

from raftd.core.messages import Command
from raftd.interfaces import DeleteResult, IStateMachine, PutResult
from raftd.kv.operations import (
    EMPTY_KEY,
    LEASE_NOT_FOUND,
    DeleteRange,
    Put,
    Refusal,
    decode_operation,
    encode_result,
)

#: The revision of a store that nothing was ever written to.
FIRST_REVISION = 1

#: Keys looked at in one step of a range delete: about two milliseconds.
SCAN_KEYS = 20_000

#: As the end of a range: there is no end.
EVERY_KEY = b"\0"


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    A key as it is now.

    `create_revision` is that of the put that brought it into being,
    `mod_revision` that of the last put, and `version` counts the puts since it
    came into being.  `create_revision <= mod_revision <= Store.revision`.
    """

    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@implementer(IStateMachine)
class Store:
    """Keys and their records, changed only by `apply`."""

    def __init__(self) -> None:
        #: The last revision made; it never goes back.
        self.revision = FIRST_REVISION
        self._records: dict[bytes, Record] = {}

    # -- reading ---------------------------------------------------------------

    def get(self, key: bytes) -> Record | None:
        """The record of `key`, None if there is none."""
        return self._records.get(key)

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._records)

    def digest(self) -> bytes:
        """
        A SHA-256 over the whole state: equal states give equal digests.

        For comparing nodes; it reads everything and takes its time.
        """
        digest = hashlib.sha256()
        encode = msgspec.msgpack.Encoder().encode
        digest.update(encode(self.revision))
        for key in sorted(self._records):
            digest.update(encode((key, self._records[key])))
        return digest.digest()

    # -- changing --------------------------------------------------------------

    def apply(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        """
        Carry out an operation (`IStateMachine.apply`).

        The result is an encoded `PutResult` or `DeleteResult`, or a `Refusal`
        if the operation changed nothing because it cannot be carried out, as
        when its bytes mean nothing to this version (`raftd.kv.operations`).
        """
        operation = decode_operation(command.operation)
        if isinstance(operation, Put):
            return encode_result(self._put(operation))
        if isinstance(operation, Refusal):
            return encode_result(operation)
        if not operation.key:
            return encode_result(EMPTY_KEY)
        if not operation.range_end:
            keys = [operation.key] if operation.key in self._records else []
            return encode_result(self._delete(keys))
        return self._delete_range(operation)

    def _put(self, put: Put) -> PutResult | Refusal:
        key = put.key
        if not key:
            return EMPTY_KEY
        if put.lease:
            # None was ever granted, for there is no operation that grants one.
            return LEASE_NOT_FOUND
        self.revision = revision = self.revision + 1
        old = self._records.get(key)
        if old is None:
            self._records[key] = Record(put.value, revision, revision, 1)
            return PutResult(revision, True)
        self._records[key] = Record(put.value, old.create_revision, revision, old.version + 1)
        return PutResult(revision, False)

    def _delete_range(self, operation: DeleteRange) -> Generator[None, None, bytes]:
        """
        Find the keys step by step, then remove them all in the last one, so
        that a read between the steps sees either all or none of the change.
        """
        inside = _range(operation.key, operation.range_end)
        found: list[bytes] = []
        # Nothing else is applied meanwhile, so the keys stay as they are.
        remaining = iter(self._records)
        while step := list(islice(remaining, SCAN_KEYS)):
            found.extend(filter(inside, step))
            yield
        return encode_result(self._delete(found))

    def _delete(self, keys: list[bytes]) -> DeleteResult:
        """Remove `keys`, all of which exist; no keys, no new revision."""
        if keys:
            self.revision += 1
            for key in keys:
                del self._records[key]
        return DeleteResult(self.revision, len(keys))


def _range(start: bytes, end: bytes) -> Callable[[bytes], bool]:
    """Whether a key is in the range; no key is if `end` is not behind `start`."""
    if end == EVERY_KEY:
        return lambda key: start <= key
    return lambda key: start <= key < end
