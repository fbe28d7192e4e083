"""What the core hands out after a turn: values that say what is to be done."""

from __future__ import annotations

import msgspec

from raftd.core.messages import Entry, HardState, InstallSnapshot, MemberId, Message
from raftd.core.snapshot import SnapshotMetadata


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to send: a request, or the answer to the request `request_id`."""

    to: MemberId
    message: Message
    request_id: int | None = None


class Write(msgspec.Struct, frozen=True):
    """
    What storage must make durable next; `hard_state` is None if it did not change.

    `base`, an (index, term), says that the log begins anew behind it.
    `commit_index` is what is known of the log as this write leaves it: a
    restart may apply so much of it at once.
    """

    number: int
    hard_state: HardState | None
    entries: list[Entry]
    base: tuple[int, int] | None = None
    commit_index: int = 0


class Piece(msgspec.Struct, frozen=True):
    """A welcome piece of a snapshot, to be kept and then reported with `piece_kept`."""

    sender: MemberId
    request: InstallSnapshot
    request_id: int


class Ready(msgspec.Struct):
    """What there is to do after a turn of inputs; all parts may begin at once."""

    write: Write | None
    messages: list[Outgoing]
    #: Committed and durable here; to be applied in order.
    committed: list[Entry]
    #: (context, read index): to be answered once that index is applied.
    reads: list[tuple[int, int]]
    #: Contexts of reads that this node can no longer confirm.
    lost_reads: list[int]
    #: Members that need a snapshot: each ends in `snapshot_installed` or `unreachable`.
    lack_snapshot: list[MemberId]
    #: Pieces of a snapshot that the leader sends.
    pieces: list[Piece]
    #: To be restored before anything in `committed` is applied.
    restore: SnapshotMetadata | None
