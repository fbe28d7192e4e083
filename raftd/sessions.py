"""
Exactly once: a state machine that wraps another and knows a retry when it sees one.

A client opens a session and numbers its commands.  The table of sessions is
part of the replicated state: it changes only as commands are applied, it is in
every snapshot as of the same index as the state beneath it, and its clock is
the time in the log.  So a command that was sent twice, because its answer was
lost with a leader, is applied once and answered twice, with the same result
(Raft thesis 6.3; `docs/sessions.md`).

Commands without a session pass through and cost one comparison.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator

import msgspec
from zope.interface import implementer

from raftd.core.messages import Command
from raftd.errors import (
    ProtocolViolation,
    RaftdError,
    SessionExpired,
    SessionResultsFull,
    SessionTableFull,
    SessionWindowFull,
    StaleSequence,
)
from raftd.interfaces import IRestore, IStateMachine
from raftd.restoring import TableRestore
from raftd.slices import SLICE_BYTES, InTurn, frame

#: As `client_id`: open a session.  The result is its id (`decode_opened`).
OPEN_SESSION = 2**64 - 1
#: As `client_id`: close the session whose id is in `sequence`.
CLOSE_SESSION = 2**64 - 2

# The bounds are part of what the state machine is: nodes that differed in one
# would come to different states.  They change with the format of snapshots.

#: Sessions that there may be at once.
MAX_SESSIONS = 65_536
#: Commands of a session that may be unacknowledged at once: sequence numbers
#: from `first_unacknowledged` up to but not including this many more.
WINDOW = 256
#: A session of which no command was applied for so long expires.  One hour.
SESSION_TTL_MS = 3_600_000
#: Bytes of results kept for one session; its oldest command may exceed this,
#: for only then can the session go on.
MAX_SESSION_RESULT_BYTES = 1 << 20
#: Bytes of results kept in all.  Either is exceeded by less than one result.
MAX_RESULT_BYTES = 64 << 20
#: What a kept result takes beside its own bytes, about.
RESULT_OVERHEAD_BYTES = 128
#: Expired sessions that are cleared away with one command, so that it takes no longer.
MAX_EXPIRED_AT_ONCE = 16

# -- results -------------------------------------------------------------------
#
# The first byte of what a session's command comes to: 0 if a result follows,
# or why there is none.

_RESULT = b"\0"
_EXPIRED = b"\1"
_TABLE_FULL = b"\2"
_STALE = b"\3"
_WINDOW_FULL = b"\4"
_RESULTS_FULL = b"\5"

_ERRORS: dict[bytes, Callable[[], RaftdError]] = {
    _EXPIRED: lambda: SessionExpired(
        "The cluster does not know this session, or not any more. The command was not "
        "applied now; if it was sent before, that may have been applied."
    ),
    _TABLE_FULL: lambda: SessionTableFull(
        f"The cluster has {MAX_SESSIONS} sessions open and keeps no more; none was opened. "
        "Try again later."
    ),
    _STALE: lambda: StaleSequence(
        "The client had said that it needs no answer to this command any more. It was not "
        "applied now; if it was sent before, that may have been applied."
    ),
    _WINDOW_FULL: lambda: SessionWindowFull(
        f"The session has {WINDOW} commands unacknowledged; this one was not applied. "
        "Try again when the first of them is answered."
    ),
    _RESULTS_FULL: lambda: SessionResultsFull(
        "The cluster keeps too many results that clients have not acknowledged; "
        "the command was not applied. Try again."
    ),
}

_ID_BYTES = 8


def decode_result(data: bytes) -> bytes | RaftdError:
    """
    What a session's command came to: the inner machine's result, or the error
    that its sender is given.  `ProtocolViolation` raised if it is neither.
    """
    if data[:1] == _RESULT:
        return data[1:]
    error = _ERRORS.get(data)
    if error is None:
        raise ProtocolViolation("not a result of a session's command")
    return error()


def decode_opened(data: bytes) -> int | RaftdError:
    """Likewise of `OPEN_SESSION`: the id of the new session."""
    result = decode_result(data)
    if isinstance(result, RaftdError):
        return result
    if len(result) != _ID_BYTES:
        raise ProtocolViolation("not the id of a session")
    return int.from_bytes(result, "little")


# -- the table -------------------------------------------------------------------


class _Session:
    """
    One client's session.

    Invariants: every sequence number in `results` is at least
    `first_unacknowledged` and less than `WINDOW` more.  `size` is what
    `results` take.  Once `epoch` is not that of the table, a snapshot may
    hold this object, and it does not change any more.
    """

    __slots__ = ("epoch", "first_unacknowledged", "id", "last_active_ms", "results", "size")

    def __init__(
        self,
        id: int,
        last_active_ms: int,
        first_unacknowledged: int,
        results: dict[int, bytes],
        size: int,
        epoch: int,
    ) -> None:
        self.id = id
        self.last_active_ms = last_active_ms
        self.first_unacknowledged = first_unacknowledged
        #: Sequence number -> what the command came to, as it was answered.
        self.results = results
        self.size = size
        self.epoch = epoch

    def acknowledge(self, first_unacknowledged: int) -> None:
        """Forget the results that the client says it has."""
        before = self.first_unacknowledged
        if first_unacknowledged > before:
            self.first_unacknowledged = first_unacknowledged
            for sequence in range(before, min(first_unacknowledged, before + WINDOW)):
                result = self.results.pop(sequence, None)
                if result is not None:
                    self.size -= len(result) + RESULT_OVERHEAD_BYTES


@implementer(IStateMachine)
class Sessions:
    """
    `machine` with sessions: the state is the table and what `machine` holds.

    Invariants: `_table` is in the order of `last_active_ms`, which is at most
    `_now_ms`.  `_size` is the sum of the sessions' `size`.
    """

    def __init__(self, machine: IStateMachine) -> None:
        self._machine = machine
        self._table: OrderedDict[int, _Session] = OrderedDict()
        #: The greatest time of a session's command that was applied.
        self._now_ms = 0
        self._size = 0
        #: Raised by each snapshot; a session is copied before its first change
        #: in a new epoch.
        self._epoch = 0

    def __len__(self) -> int:
        """How many sessions there are; some may have expired and not be cleared away yet."""
        return len(self._table)

    # -- applying --------------------------------------------------------------

    def apply(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        """
        Apply a command unless it was applied before (`IStateMachine.apply`).

        Without a session the result is the inner machine's; with one, it is
        for `decode_result`.
        """
        client_id = command.client_id
        if not client_id:
            return self._machine.apply(index, time_ms, command)
        self._now_ms = max(self._now_ms, time_ms)
        self._expire()
        if client_id == OPEN_SESSION:
            return self._open(index)
        if client_id == CLOSE_SESSION:
            self._drop(command.sequence)
            return _RESULT
        return self._apply_once(index, time_ms, command)

    def _open(self, index: int) -> bytes:
        if len(self._table) >= MAX_SESSIONS:
            return _TABLE_FULL
        self._table[index] = _Session(index, self._now_ms, 1, {}, 0, self._epoch)
        return _RESULT + index.to_bytes(_ID_BYTES, "little")

    def _apply_once(
        self, index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        session = self._active(command.client_id)
        if session is None:
            return _EXPIRED
        sequence = command.sequence
        self._size -= session.size
        session.acknowledge(command.first_unacknowledged)
        self._size += session.size

        if sequence < session.first_unacknowledged:
            return _STALE
        kept = session.results.get(sequence)
        if kept is not None:
            return kept
        # It was never applied: its result would be here.
        if sequence >= session.first_unacknowledged + WINDOW:
            return _WINDOW_FULL
        if self._size >= MAX_RESULT_BYTES or (
            session.size >= MAX_SESSION_RESULT_BYTES and sequence > session.first_unacknowledged
        ):
            return _RESULTS_FULL
        result = self._machine.apply(index, time_ms, command)
        if isinstance(result, bytes):
            return self._keep(session, sequence, result)
        return self._keep_later(session, sequence, result)

    def _active(self, client_id: int) -> _Session | None:
        """The session, now its table's most recent and free to change; None if it is over."""
        session = self._table.get(client_id)
        if session is None:
            return None
        if session.last_active_ms + SESSION_TTL_MS <= self._now_ms:
            self._drop(client_id)
            return None
        if session.epoch != self._epoch:
            session = self._table[client_id] = _Session(
                client_id,
                session.last_active_ms,
                session.first_unacknowledged,
                session.results.copy(),
                session.size,
                self._epoch,
            )
        session.last_active_ms = self._now_ms
        self._table.move_to_end(client_id)
        return session

    def _keep(self, session: _Session, sequence: int, result: bytes) -> bytes:
        kept = session.results[sequence] = _RESULT + result
        size = len(kept) + RESULT_OVERHEAD_BYTES
        session.size += size
        self._size += size
        return kept

    def _keep_later(
        self, session: _Session, sequence: int, steps: Generator[None, None, bytes]
    ) -> Generator[None, None, bytes]:
        # Nothing else is applied meanwhile, so the session stays as it is.
        result = yield from steps
        return self._keep(session, sequence, result)

    def _expire(self) -> None:
        """
        Clear away some of the sessions whose time is up.

        Those that remain are as good as gone: `_active` looks at the time.
        """
        for _ in range(MAX_EXPIRED_AT_ONCE):
            if not self._table:
                break
            oldest = next(iter(self._table.values()))
            if oldest.last_active_ms + SESSION_TTL_MS > self._now_ms:
                break
            self._drop(oldest.id)

    def _drop(self, client_id: int) -> None:
        session = self._table.pop(client_id, None)
        if session is not None:
            self._size -= session.size

    # -- snapshots -------------------------------------------------------------

    def snapshot(self) -> Iterator[bytes]:
        """
        The table, then the inner machine's state, both as of this call.

        The call copies a list of the sessions, not the sessions: one that
        changes while they are written is replaced by a copy of itself.
        """
        self._epoch += 1
        return InTurn(
            _table_slices(self._now_ms, list(self._table.values())), self._machine.snapshot()
        )

    def restore(self) -> IRestore:
        """Begin to take over a table and an inner state (`IStateMachine.restore`)."""
        return _Restore(self._machine.restore(), self._become)

    def _become(self, now_ms: int, table: OrderedDict[int, _Session]) -> None:
        self._now_ms = now_ms
        self._table = table
        self._size = sum(session.size for session in table.values())
        # Nothing that was restored is held by a snapshot.
        self._epoch = 0

    def digest(self) -> bytes:
        """A SHA-256 of the table and the inner machine's digest."""
        digest = hashlib.sha256()
        for content in _table_slices(self._now_ms, list(self._table.values())):
            digest.update(content)
        digest.update(self._machine.digest())
        return digest.digest()


# -- the format (docs/sessions.md) -------------------------------------------------


class _Head(msgspec.Struct, tag="raftd.sessions/1", array_like=True, frozen=True, gc=False):
    """The first frame; frames of rows follow, for `sessions` sessions, and an empty frame."""

    now_ms: int
    sessions: int


class _Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    A session and some of its results, by sequence number.

    A session with many bytes of results takes several rows, one after the other.
    """

    id: int
    last_active_ms: int
    first_unacknowledged: int
    results: list[tuple[int, bytes]]


#: A row that has grown to so many bytes takes no more results.
_MAX_ROW_BYTES = SLICE_BYTES // 4
#: What a row, and what a result, takes beside the bytes of results, about.
_ROW_BYTES = 32
_ROW_RESULT_BYTES = 16

_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_Head).decode
_decode_rows = msgspec.msgpack.Decoder(list[_Row]).decode


def _table_slices(now_ms: int, sessions: list[_Session]) -> Iterator[bytes]:
    """The table in slices, the session that was active least recently first."""
    yield frame(_encode(_Head(now_ms, len(sessions))))
    rows: list[_Row] = []
    size = 0
    for session in sessions:
        for row, row_size in _rows(session):
            rows.append(row)
            size += row_size
            if size >= SLICE_BYTES:
                yield frame(_encode(rows))
                rows, size = [], 0
    if rows:
        yield frame(_encode(rows))
    yield frame(b"")


def _rows(session: _Session) -> Iterator[tuple[_Row, int]]:
    """The rows of a session, each with its size; results in the order of their numbers."""
    id, last_active_ms = session.id, session.last_active_ms
    first_unacknowledged = session.first_unacknowledged
    results: list[tuple[int, bytes]] = []
    size = _ROW_BYTES
    for item in sorted(session.results.items()):
        results.append(item)
        size += len(item[1]) + _ROW_RESULT_BYTES
        if size >= _MAX_ROW_BYTES:
            yield _Row(id, last_active_ms, first_unacknowledged, results), size
            results, size = [], _ROW_BYTES
    if results or not session.results:
        yield _Row(id, last_active_ms, first_unacknowledged, results), size


class _Restore(TableRestore):
    """A table and an inner state on their way in."""

    what = "sessions"

    def __init__(
        self, inner: IRestore, done: Callable[[int, OrderedDict[int, _Session]], None]
    ) -> None:
        super().__init__(inner)
        self._done = done
        self._now_ms = self._sessions = 0
        self._table: OrderedDict[int, _Session] = OrderedDict()

    def _begin(self, head: bytes) -> None:
        decoded = _decode_head(head)
        self._now_ms, self._sessions = decoded.now_ms, decoded.sessions

    def _take(self, rows: bytes) -> None:
        for row in _decode_rows(rows):
            self._take_row(row)

    def _is_whole(self) -> bool:
        return len(self._table) == self._sessions

    def _take_row(self, row: _Row) -> None:
        last = next(reversed(self._table.values()), None)
        session = self._table.get(row.id)
        if session is None:
            before_ms = 0 if last is None else last.last_active_ms
            if not before_ms <= row.last_active_ms <= self._now_ms:
                raise ValueError("The sessions are not in the order of their activity.")
            session = self._table[row.id] = _Session(
                row.id, row.last_active_ms, row.first_unacknowledged, {}, 0, 0
            )
        elif session is not last:
            raise ValueError(f"The session {row.id} is there twice.")
        first = session.first_unacknowledged
        for sequence, result in row.results:
            if sequence in session.results or not first <= sequence < first + WINDOW:
                raise ValueError(f"A result of the session {row.id} makes no sense.")
            session.results[sequence] = result
            session.size += len(result) + RESULT_OVERHEAD_BYTES

    def _become(self) -> None:
        self._done(self._now_ms, self._table)
