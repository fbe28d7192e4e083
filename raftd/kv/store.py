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
from weakref import ReferenceType, ref

import msgspec
from zope.interface import implementer

from raftd.core.messages import Command
from raftd.interfaces import DeleteResult, IStateMachine, PutResult
from raftd.kv.keys import SortedKeys
from raftd.kv.operations import (
    EMPTY_KEY,
    LEASE_NOT_FOUND,
    DeleteRange,
    Put,
    Refusal,
    decode_operation,
    encode_result,
)
from raftd.kv.records import FIRST_REVISION, Record
from raftd.kv.snapshots import Restore, Snapshot, State

#: Keys found, or removed, in one step of a range delete: a few milliseconds.
STEP_KEYS = 4096

#: As the end of a range: there is no end.
EVERY_KEY = b"\0"


@implementer(IStateMachine)
class Store:
    """Keys and their records, changed only by `apply`."""

    def __init__(self) -> None:
        #: The last revision made; it never goes back.
        self.revision = FIRST_REVISION
        self._records: dict[bytes, Record] = {}
        #: The keys of `_records`, in order.
        self._keys = SortedKeys()
        #: The snapshot that is being drawn, unless it was dropped.
        self._snapshot: ReferenceType[Snapshot] | None = None
        #: The range that is being deleted: what is left of it in `_records`, and
        #: not in `_keys`, is there for nobody any more.
        self._going: Callable[[bytes], bool] | None = None
        self._going_keys = 0

    # -- reading ---------------------------------------------------------------

    def get(self, key: bytes) -> Record | None:
        """The record of `key`, None if there is none."""
        if self._going is not None and self._going(key):
            return None
        return self._records.get(key)

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._records) - self._going_keys

    def digest(self) -> bytes:
        """
        A SHA-256 over the whole state: equal states give equal digests.

        For comparing nodes; it reads everything and takes its time.
        """
        digest = hashlib.sha256()
        encode = msgspec.msgpack.Encoder().encode
        digest.update(encode(self.revision))
        for key in self._keys:
            digest.update(encode((key, self._records[key])))
        return digest.digest()

    # -- snapshots -------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """
        The state as of this call (`IStateMachine.snapshot`, `raftd.kv.snapshots`).

        One is drawn at a time: a new one ends the one before, which then
        raises `RuntimeError` if it is drawn on.
        """
        before = self._drawn()
        if before is not None:
            before.supersede()
        snapshot = Snapshot(State(self.revision, self._records, self._keys))
        # Only a weak one: whoever drops an iterator half-way has given it up.
        self._snapshot = ref(snapshot)
        return snapshot

    def restore(self) -> Restore:
        """Begin to take over another store's state (`IStateMachine.restore`)."""
        return Restore(self._become)

    def _become(self, state: State) -> None:
        # A snapshot of the old state goes on with the old keys and records,
        # which nobody changes any more.
        self._snapshot = None
        self.revision, self._records, self._keys = state.revision, state.records, state.keys

    def _drawn(self) -> Snapshot | None:
        """The snapshot that is being drawn, if there is one."""
        snapshot = None if self._snapshot is None else self._snapshot()
        if snapshot is None or snapshot.done:
            self._snapshot = None
            return None
        return snapshot

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
            return encode_result(self._delete(operation.key))
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
        if self._snapshot is not None and (snapshot := self._drawn()) is not None:
            snapshot.keep(key, old)
        if old is None:
            self._keys.add(key)
            self._records[key] = Record(put.value, revision, revision, 1)
            return PutResult(revision, True)
        self._records[key] = Record(put.value, old.create_revision, revision, old.version + 1)
        return PutResult(revision, False)

    def _delete(self, key: bytes) -> DeleteResult:
        old = self._records.get(key)
        if old is None:
            return DeleteResult(self.revision, 0)
        if (snapshot := self._drawn()) is not None:
            snapshot.keep(key, old)
        self.revision += 1
        del self._records[key]
        self._keys.remove(key)
        return DeleteResult(self.revision, 1)

    def _delete_range(self, operation: DeleteRange) -> Generator[None, None, bytes]:
        """
        Find the keys step by step, make them all invisible at once, and remove
        them step by step: a read in between sees either all or none of the change.
        """
        start = operation.key
        end = None if operation.range_end == EVERY_KEY else operation.range_end
        found: list[bytes] = []
        # Nothing else is applied meanwhile, so the keys stay as they are.
        while step := self._keys.range(start, end, STEP_KEYS):
            if (snapshot := self._drawn()) is not None:
                for key in step:
                    snapshot.keep(key, self._records[key])
            found += step
            start = step[-1] + b"\0"
            yield
        if found:
            self.revision += 1
            self._keys.remove_range(operation.key, end)
            self._going, self._going_keys = _inside(operation.key, end), len(found)
            for begin in range(0, len(found), STEP_KEYS):
                step = found[begin : begin + STEP_KEYS]
                for key in step:
                    del self._records[key]
                self._going_keys -= len(step)
                yield
            self._going = None
        return encode_result(DeleteResult(self.revision, len(found)))


def _inside(start: bytes, end: bytes | None) -> Callable[[bytes], bool]:
    """Whether a key is in the range."""
    if end is None:
        return lambda key: start <= key
    return lambda key: start <= key < end
