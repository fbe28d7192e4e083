"""
The values that Raft is made of: entries, hard state, and one pair of messages
for each RPC.

Names are those of the Raft thesis (Ongaro, 2014).  Everything here is plain
data; nothing here decides anything.  Entries, configurations and command
envelopes are written to disk and sent between nodes, so their field order is
a format: fields may be added at the end, with a default, and never moved
(`docs/log-format.md`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import msgspec

from raftd.errors import ProtocolViolation

#: Identity of a member: 64 random bits, never reused.  0 means "nobody".
MemberId = int

#: What `voted_for`, `leader_id` and unset ids hold.
NOBODY: MemberId = 0

#: The most data of one InstallSnapshot, in bytes: a small part of what a
#: connection may hold, so that what comes behind it does not wait long.
MAX_SNAPSHOT_PIECE_BYTES = 256 * 1024


class EntryKind(enum.IntEnum):
    """What the data of an entry is."""

    #: Empty: appended by a new leader, so that it can commit (thesis 6.4).
    NOOP = 0
    #: A `Command`, encoded, for the state machine.
    COMMAND = 1
    #: A `Configuration`, encoded (thesis 4.1).
    CONFIGURATION = 2


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    One entry of the replicated log.

    `time_ms` is the leader's time when it appended the entry: milliseconds of
    the cluster's own clock, which never goes backwards in the log.
    """

    index: int
    term: int
    kind: int
    time_ms: int
    data: bytes


class HardState(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a node must not forget between two messages (Raft paper, figure 2)."""

    term: int = 0
    voted_for: MemberId = NOBODY


class Member(msgspec.Struct, array_like=True, frozen=True, gc=False, order=True):
    """A node in the configuration: an immutable id and a name, `host:port`."""

    id: MemberId
    name: str


class Command(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """
    The envelope of what a client asks of the state machine.

    `operation` is the state machine's own encoding; the rest is what makes a
    retry recognisable.  `client_id` 0 means no session; `idempotency_key` is
    empty when there is none.
    """

    operation: bytes
    client_id: int = 0
    sequence: int = 0
    first_unacknowledged: int = 0
    idempotency_key: bytes = b""


# -- the RPCs ----------------------------------------------------------------
#
# Every message carries the sender's term.  Who sent it is not a field: the
# connection's handshake has established that.


class PreVote(msgspec.Struct, frozen=True, gc=False):
    """Would you vote for me in `term`?  Changes nothing at either end (thesis 9.6)."""

    term: int
    last_log_index: int
    last_log_term: int


class PreVoteResponse(msgspec.Struct, frozen=True, gc=False):
    """`term` is the term asked for when granted, the voter's own when refused."""

    term: int
    granted: bool


class RequestVote(msgspec.Struct, frozen=True, gc=False):
    """
    Thesis 3.4.

    `transfer` tells the voter that the present leader asked for this election,
    so that its having heard from that leader is no reason to refuse (4.2.3).
    """

    term: int
    last_log_index: int
    last_log_term: int
    transfer: bool = False


class RequestVoteResponse(msgspec.Struct, frozen=True, gc=False):
    term: int
    granted: bool


class AppendEntries(msgspec.Struct, frozen=True, gc=False):
    """Thesis 3.5.  `entries` follow `prev_log_index` without a gap; may be empty."""

    term: int
    prev_log_index: int
    prev_log_term: int
    leader_commit: int
    entries: tuple[Entry, ...]


class AppendEntriesResponse(msgspec.Struct, frozen=True, gc=False):
    """
    On success, `match_index` is the last entry that this very request carried
    or verified, and it is durable.

    On refusal, `match_index` is the `prev_log_index` that did not match, and
    (`hint_index`, `hint_term`) an earlier entry where the logs may agree.
    """

    term: int
    success: bool
    match_index: int
    hint_index: int = 0
    hint_term: int = 0


class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """
    AppendEntries without a log check, for keeping authority and for reads.

    `leader_commit` is at most the peer's `match_index`; `round` numbers the
    leader's quorum rounds for ReadIndex (thesis 6.4).
    """

    term: int
    leader_commit: int
    round: int


class HeartbeatResponse(msgspec.Struct, frozen=True, gc=False):
    """Acknowledges `term` and `round`; says nothing about the log."""

    term: int
    round: int


class InstallSnapshot(msgspec.Struct, frozen=True, gc=False):
    """
    One piece of a snapshot file, at `offset` bytes from its beginning (thesis 5.3).

    The file says itself what configuration and state it holds.  `data` has at
    most `MAX_SNAPSHOT_PIECE_BYTES`; `done` marks the last piece.
    """

    term: int
    last_included_index: int
    last_included_term: int
    offset: int
    data: bytes
    done: bool


class InstallSnapshotResponse(msgspec.Struct, frozen=True, gc=False):
    """
    `next_offset` is where the sender should go on.

    `installed`: the receiver holds, durably, everything up to the snapshot's
    last included index; nothing more is to be sent.
    """

    term: int
    next_offset: int
    installed: bool


class TimeoutNow(msgspec.Struct, frozen=True, gc=False):
    """The leader asks its successor to stand for election at once (thesis 3.10)."""

    term: int


class TimeoutNowResponse(msgspec.Struct, frozen=True, gc=False):
    term: int


Request = PreVote | RequestVote | AppendEntries | Heartbeat | InstallSnapshot | TimeoutNow
Response = (
    PreVoteResponse
    | RequestVoteResponse
    | AppendEntriesResponse
    | HeartbeatResponse
    | InstallSnapshotResponse
    | TimeoutNowResponse
)
Message = Request | Response


# -- encoding ----------------------------------------------------------------

_encode = msgspec.msgpack.Encoder().encode

#: Entries as one MessagePack array: what the log and AppendEntries hold.
encode_entries: Callable[[Sequence[Entry]], bytes] = _encode
#: The data of an entry of kind `COMMAND`.
encode_command: Callable[[Command], bytes] = _encode

_decode_entries = msgspec.msgpack.Decoder(tuple[Entry, ...]).decode
_decode_command = msgspec.msgpack.Decoder(Command).decode


def decode_entries(data: bytes) -> tuple[Entry, ...]:
    """The reverse of `encode_entries`; `ProtocolViolation` for anything else."""
    try:
        return _decode_entries(data)
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ProtocolViolation(f"not a list of log entries: {e}") from None


def decode_command(data: bytes) -> Command:
    """The reverse of `encode_command`; `ProtocolViolation` for anything else."""
    try:
        return _decode_command(data)
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ProtocolViolation(f"not a command: {e}") from None
