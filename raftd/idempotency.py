"""
One answer for one key: a state machine that wraps another and carries a
command out once, however often it comes with the same idempotency key.

For clients that keep no session (`raftd.sessions`): a key, drawn by the client,
and whatever it asked for with it make `Command.idempotency_key`.  The first
command with a key is carried out and its result kept; another one with the
same key and the same request gets that result, from any node and after any
crash; one with another request is refused.

The table of keys is part of the replicated state: it changes only as commands
are applied, it is in every snapshot as of the same index as the state beneath
it, and its clock is the time in the log (`docs/idempotency.md`).

Commands without a key pass through and cost one comparison.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from struct import Struct
from weakref import ReferenceType, ref

import msgspec
from zope.interface import implementer

from raftd.core.messages import Command
from raftd.errors import (
    BadRequest,
    IdempotencyKeyReused,
    IdempotencyTableFull,
    ProtocolViolation,
    RaftdError,
)
from raftd.interfaces import IRestore, IStateMachine
from raftd.restoring import TableRestore
from raftd.slices import SLICE_BYTES, InTurn, frame

# The bounds are part of what the state machine is: nodes that differed in one
# would come to different states.  They change with the format of snapshots.

#: How long a key is kept, by the clock of the log.  Ten minutes: twice as long as a
#: client tries, and as a node lets its request wait; and short enough for the table
#: to carry 1,700 new keys a second for ever.
KEY_TTL_MS = 600_000
#: Keys that there may be at once; each takes about 200 bytes of memory beside its result.
MAX_KEYS = 1 << 20
#: Bytes of results kept in all; exceeded by less than one result.
MAX_RESULT_BYTES = 64 << 20
#: Expired keys that are cleared away with one command, so that it takes no longer.
MAX_EXPIRED_AT_ONCE = 16

_HASH_BYTES = 16
_KEY_BYTES = 2 * _HASH_BYTES


def retry_of(key: bytes, method: str, target: bytes, body: bytes) -> bytes:
    """
    `Command.idempotency_key` for a client's key and the request it came with;
    `target` is the path with the query.

    A hash of the key, and one of the request.  Two of 2**20 keys have the same
    hash by accident with a probability of 2**-89.  To make a key that meets
    another client's takes 2**128 attempts; a client that has found two of its
    own that meet, in 2**64, has fooled itself.
    """
    request = hashlib.blake2b(digest_size=_HASH_BYTES, person=b"raftd request")
    for part in (method.encode("utf-8"), target, body):
        request.update(len(part).to_bytes(8, "little"))
        request.update(part)
    name = hashlib.blake2b(key, digest_size=_HASH_BYTES, person=b"raftd key")
    return name.digest() + request.digest()


# -- results -------------------------------------------------------------------
#
# The first byte of what a command with a key comes to: 0 if the inner machine's
# result follows, or why there is none.

_RESULT = b"\0"
_REUSED = b"\1"
_FULL = b"\2"
_MALFORMED = b"\3"

_ERRORS: dict[bytes, Callable[[], RaftdError]] = {
    _REUSED: lambda: IdempotencyKeyReused(
        "This idempotency key came with another request before; this one was not carried out."
    ),
    _FULL: lambda: IdempotencyTableFull(
        "The cluster keeps as many idempotency keys as it can; the request was not carried "
        "out. Keys are kept for ten minutes. Try again later, or without a key."
    ),
    _MALFORMED: lambda: BadRequest(f"An idempotency key in the log has {_KEY_BYTES} bytes."),
}


def decode_result(data: bytes) -> bytes | RaftdError:
    """
    What a command with a key came to: the inner machine's result, or why it was
    not carried out.  `ProtocolViolation` raised if it is neither.
    """
    if data[:1] == _RESULT:
        return data[1:]
    error = _ERRORS.get(data)
    if error is None:
        raise ProtocolViolation("not a result of a command with an idempotency key")
    return error()


# -- the table -------------------------------------------------------------------

#: A kept key: the hash of its request, when it was used, its number, and the
#: result behind them.  One object that the garbage collector need not look at.
_head = Struct("<16sQQ")

#: Hashes in one block of the order in which keys came.
_BLOCK_KEYS = 4096


class _Order:
    """
    The hashes of keys in the order in which they came, numbered.

    Invariant: the numbers from `front` up to but not including `end` are there.
    """

    def __init__(self) -> None:
        self.front = 0
        self.end = 0
        #: The number at which the first of `_blocks` begins.
        self._base = 0
        # No list of a million objects, for the garbage collector.
        self._blocks: deque[bytearray] = deque()

    def append(self, name: bytes) -> int:
        """The number that it gets."""
        number = self.end
        if number == self._base + len(self._blocks) * _BLOCK_KEYS:
            self._blocks.append(bytearray())
        self._blocks[-1] += name
        self.end = number + 1
        return number

    def at(self, number: int) -> bytes:
        block, place = divmod(number - self._base, _BLOCK_KEYS)
        begin = place * _HASH_BYTES
        return bytes(self._blocks[block][begin : begin + _HASH_BYTES])

    def pop(self) -> None:
        """Forget the first."""
        self.front += 1
        if self.front == self._base + _BLOCK_KEYS:
            self._blocks.popleft()
            self._base += _BLOCK_KEYS


class _Records:
    """
    The records by the hashes of their keys, spread over 256 dictionaries by the
    first byte: one with a million entries, when it grows, moves them all at
    once, which takes 50 ms.
    """

    __slots__ = ("_count", "_shards")

    def __init__(self) -> None:
        self._shards: list[dict[bytes, bytes]] = [{} for _ in range(256)]
        self._count = 0

    def get(self, name: bytes) -> bytes | None:
        return self._shards[name[0]].get(name)

    def add(self, name: bytes, record: bytes) -> None:
        """`name` must not be there."""
        self._shards[name[0]][name] = record
        self._count += 1

    def remove(self, name: bytes) -> None:
        """`name` must be there."""
        del self._shards[name[0]][name]
        self._count -= 1

    def __len__(self) -> int:
        return self._count


class _Table:
    """
    The keys that are kept.

    Invariants: `records` has a record for each key, whose number is the place
    of its hash in `order`; a place whose record has another number, or none,
    is left over from a key that has expired.  Records are in the order of
    their times.  `size` is the sum of the lengths of their results.
    """

    def __init__(self) -> None:
        #: The greatest time of a command with a key that was applied.
        self.now_ms = 0
        self.size = 0
        self.records = _Records()
        self.order = _Order()
        self._drawn: ReferenceType[_Rows] | None = None

    def find(self, name: bytes) -> bytes | None:
        """The record of a key; None if there is none, or not any more."""
        record = self.records.get(name)
        if record is not None and self._is_over(record):
            self._drop(name, record)
            return None
        return record

    def add(self, name: bytes, fingerprint: bytes, time_ms: int, result: bytes) -> None:
        number = self.order.append(name)
        self.records.add(name, _head.pack(fingerprint, time_ms, number) + result)
        self.size += len(result)

    def expire(self) -> None:
        """
        Clear away some of the keys whose time is up.

        Those that remain are as good as gone: `find` looks at the time.
        """
        order, records = self.order, self.records
        left = MAX_EXPIRED_AT_ONCE
        while order.front < order.end:
            name = order.at(order.front)
            record = records.get(name)
            if record is not None and _head.unpack_from(record)[2] == order.front:
                if not left or not self._is_over(record):
                    break
                left -= 1
                self._drop(name, record)
            order.pop()

    def _is_over(self, record: bytes) -> bool:
        time_ms: int = _head.unpack_from(record)[1]
        return time_ms + KEY_TTL_MS <= self.now_ms

    def _drop(self, name: bytes, record: bytes) -> None:
        if self._drawn is not None:
            rows = self._drawn()
            if rows is None:
                self._drawn = None
            else:
                rows.keep(name, record)
        self.records.remove(name)
        self.size -= len(record) - _head.size

    def rows(self) -> _Rows:
        """All of it as of now, for a snapshot; one is drawn at a time."""
        rows = _Rows(self)
        # Only a weak reference: whoever drops an iterator half-way has given it up.
        self._drawn = ref(rows)
        return rows


@implementer(IStateMachine)
class Idempotency:
    """`machine` with idempotency keys: the state is the table and what `machine` holds."""

    def __init__(
        self, machine: IStateMachine, is_temporary: Callable[[bytes], bool] | None = None
    ) -> None:
        """
        `is_temporary` says of a result whether the command has changed nothing
        and may be carried out if it is sent again, as when there was no space:
        that is no answer to keep.  It is part of the state machine, and
        depends on nothing but the result.
        """
        self._machine = machine
        self._is_temporary = is_temporary
        self._table = _Table()

    def __len__(self) -> int:
        """How many keys there are; some may have expired and not be cleared away yet."""
        return len(self._table.records)

    # -- applying --------------------------------------------------------------

    def apply(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        """
        Apply a command unless its key was used before (`IStateMachine.apply`).

        Without a key the result is the inner machine's; with one, it is for
        `decode_result`.
        """
        if not command.idempotency_key:
            return self._machine.apply(index, time_ms, command)
        table = self._table
        if time_ms > table.now_ms:
            table.now_ms = time_ms
        table.expire()
        return self._apply_once(index, time_ms, command)

    def _apply_once(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        key, table = command.idempotency_key, self._table
        if len(key) != _KEY_BYTES:
            return _MALFORMED
        record = table.find(key[:_HASH_BYTES])
        if record is not None:
            is_same = record[:_HASH_BYTES] == key[_HASH_BYTES:]
            return _RESULT + record[_head.size :] if is_same else _REUSED
        # None is dropped early to make room, for then its retry would be
        # carried out again.
        if len(table.records) >= MAX_KEYS or table.size >= MAX_RESULT_BYTES:
            return _FULL
        result = self._machine.apply(index, time_ms, command)
        if isinstance(result, bytes):
            return self._keep(key, result)
        return self._keep_later(key, result)

    def _keep(self, key: bytes, result: bytes) -> bytes:
        if self._is_temporary is None or not self._is_temporary(result):
            table = self._table
            table.add(key[:_HASH_BYTES], key[_HASH_BYTES:], table.now_ms, result)
        return _RESULT + result

    def _keep_later(
        self, key: bytes, steps: Generator[None, None, bytes]
    ) -> Generator[None, None, bytes]:
        # Nothing else is applied meanwhile, so the table stays as it is.
        result = yield from steps
        return self._keep(key, result)

    # -- snapshots -------------------------------------------------------------

    def snapshot(self) -> Iterator[bytes]:
        """
        The table, then the inner machine's state, both as of this call.

        Nothing is copied at the call: kept keys never change, and those that
        are cleared away meanwhile are handed to the snapshot first.
        """
        return InTurn(self._table.rows(), self._machine.snapshot())

    def restore(self) -> IRestore:
        """Begin to take over a table and an inner state (`IStateMachine.restore`)."""
        return _Restore(self._machine.restore(), self._become)

    def _become(self, table: _Table) -> None:
        # A snapshot of the old table goes on with it; nobody changes that any more.
        self._table = table

    def digest(self) -> bytes:
        """A SHA-256 of the table and the inner machine's digest."""
        digest = hashlib.sha256()
        for content in _Rows(self._table):
            digest.update(content)
        digest.update(self._machine.digest())
        return digest.digest()


# -- the format (docs/idempotency.md) ----------------------------------------------


class _Head(msgspec.Struct, tag="raftd.idempotency/1", array_like=True, frozen=True, gc=False):
    """The first frame; frames of rows follow, `keys` rows in all, and an empty frame."""

    now_ms: int
    keys: int


class _Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A key that is kept; both hashes have 16 bytes."""

    name: bytes
    fingerprint: bytes
    time_ms: int
    result: bytes


#: Places of the order that one slice walks past at most.
_SLICE_PLACES = 4096
#: What a row takes beside its result, about.
_ROW_BYTES = 48

_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_Head).decode
_decode_rows = msgspec.msgpack.Decoder(list[_Row]).decode


class _Rows(Iterator[bytes]):
    """
    The slices of a table as it is now, the key that came first first.

    Invariant: each key that was there at the beginning and whose place is not
    below `_place` is either still in the table or in `_kept`, by its place.
    """

    def __init__(self, table: _Table) -> None:
        self._table: _Table | None = table
        self._head: bytes | None = frame(_encode(_Head(table.now_ms, len(table.records))))
        self._place = table.order.front
        self._end = table.order.end
        self._kept: dict[int, tuple[bytes, bytes]] = {}

    def keep(self, name: bytes, record: bytes) -> None:
        """The key is about to go."""
        number = _head.unpack_from(record)[2]
        if self._place <= number < self._end:
            self._kept[number] = (name, record)

    def close(self) -> None:
        """Give it up; nothing happens if it is at its end."""
        self._table = self._head = None
        self._place = self._end
        self._kept.clear()

    def __next__(self) -> bytes:
        if self._table is None:
            raise StopIteration
        if self._head is not None:
            content, self._head = self._head, None
            return content
        rows: list[_Row] = []
        while self._place < self._end and not rows:
            rows = self._walk(self._table)
        if rows:
            return frame(_encode(rows))
        self.close()
        return frame(b"")

    def _walk(self, table: _Table) -> list[_Row]:
        """The rows of a slice."""
        rows: list[_Row] = []
        size = 0
        place, front = self._place, table.order.front
        end = min(self._end, place + _SLICE_PLACES)
        while place < end and size < SLICE_BYTES:
            name, record = b"", self._kept.pop(place, None)
            found = None
            if record is not None:
                name, found = record
            elif place >= front:
                name = table.order.at(place)
                found = table.records.get(name)
            if found is not None:
                fingerprint, time_ms, number = _head.unpack_from(found)
                if number == place:
                    result = found[_head.size :]
                    rows.append(_Row(name, fingerprint, time_ms, result))
                    size += len(result) + _ROW_BYTES
            place += 1
        self._place = place
        return rows


class _Restore(TableRestore):
    """A table and an inner state on their way in."""

    what = "idempotency keys"

    def __init__(self, inner: IRestore, done: Callable[[_Table], None]) -> None:
        super().__init__(inner)
        self._done = done
        self._keys = 0
        self._table = _Table()
        self._last_ms = 0

    def _begin(self, head: bytes) -> None:
        decoded = _decode_head(head)
        if decoded.now_ms < 0 or not 0 <= decoded.keys <= MAX_KEYS:
            raise ValueError("The head of a table of idempotency keys makes no sense.")
        self._table.now_ms = decoded.now_ms
        self._keys = decoded.keys

    def _take(self, rows: bytes) -> None:
        for row in _decode_rows(rows):
            self._take_row(row)

    def _is_whole(self) -> bool:
        return len(self._table.records) == self._keys

    def _take_row(self, row: _Row) -> None:
        if len(row.name) != _HASH_BYTES or len(row.fingerprint) != _HASH_BYTES:
            raise ValueError("A hash of an idempotency key has another length.")
        if not self._last_ms <= row.time_ms <= self._table.now_ms:
            raise ValueError("The idempotency keys are not in the order of their times.")
        if self._table.records.get(row.name) is not None:
            raise ValueError("An idempotency key is there twice.")
        self._last_ms = row.time_ms
        self._table.add(row.name, row.fingerprint, row.time_ms, row.result)

    def _become(self) -> None:
        self._done(self._table)
