"""
A full disk: what a node still does, and what it leaves to others.

It follows, votes, and leads if it must, for storage keeps something aside for
that: terms and votes, and entries without commands, are written on.  It takes
no more commands: a leader refuses them, and a follower refuses AppendEntries
that hold any, so that it acknowledges nothing.  It does not lead for longer
than it must: a leader hands over to a voter that may have room, and a node
without room does not take leadership over.
"""

from __future__ import annotations

from collections.abc import Sequence

from raftd.core.messages import Entry, EntryKind
from raftd.errors import NoSpace

#: Bytes of commands that a follower without room still takes, from what is set
#: aside: as much as a leader may have in flight to it (`MAX_BYTES_IN_FLIGHT`).
#: Else entries that it had sent before they knew would be stuck in its log, and
#: with them everything behind them, the no-op of the next leader included.
MAX_SPARE_BYTES = 4 << 20

#: What a write takes at least.
WRITE_OVERHEAD_BYTES = 512

#: For so many election timeouts a member is taken to have no room after it
#: has said so, and a leader waits between two attempts to hand over.
NO_SPACE_TIMEOUTS = 10


class Space:
    """Whether the disk of this node has room, as storage has said last."""

    def __init__(self) -> None:
        self.is_left = True
        self._spare_bytes = MAX_SPARE_BYTES

    def changed(self, is_left: bool) -> None:
        self.is_left = is_left
        self._spare_bytes = MAX_SPARE_BYTES

    def check(self, what: str) -> None:
        """`NoSpace` if there is no room; `what` says what is therefore not done."""
        if not self.is_left:
            raise NoSpace(f"The disk of this node is full: {what}. Nothing was changed.")

    def take(self, entries: Sequence[Entry]) -> None:
        """`NoSpace` if there is no room for entries of the leader, which are new here."""
        if self.is_left or not any(e.kind == EntryKind.COMMAND for e in entries):
            return
        size = sum(len(e.data) for e in entries) + WRITE_OVERHEAD_BYTES
        if size > self._spare_bytes:
            self.check("it takes no entries of the leader")
        self._spare_bytes -= size
