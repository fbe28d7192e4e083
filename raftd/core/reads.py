"""
ReadIndex: linearizable reads without writing to the log (thesis 6.4).

A read notes the index that it must see when it arrives, and is released when
a quorum has acknowledged a heartbeat round that began *after* it arrived: only
then is it certain that no other leader had committed more by that time.  All
reads that wait share the next round; one round is under way at a time.
"""

from __future__ import annotations

from collections import deque

#: Reads that may wait for their quorum round at once.
MAX_READS_WAITING = 65_536


class ReadQueue:
    """
    The reads of one term of leadership; it ends with the term.

    Invariant: `confirmed_round <= round`, and a read in `_confirming` arrived
    before its round began.
    """

    def __init__(self) -> None:
        #: The number of the round that was begun last; heartbeats carry it.
        self.round = 0
        self._arrived: list[tuple[int, int]] = []
        #: (round, read index, context), in the order of their rounds.
        self._confirming: deque[tuple[int, int, int]] = deque()

    def __len__(self) -> int:
        return len(self._arrived) + len(self._confirming)

    def add(self, context: int, read_index: int) -> None:
        """A read that must see everything up to `read_index`."""
        self._arrived.append((context, read_index))

    def begin_round(self) -> bool:
        """Begin a round for what has arrived, unless one is under way; true if begun."""
        if not self._arrived or self._confirming:
            return False
        self.round += 1
        self._confirming.extend(
            (self.round, index, context) for context, index in self._arrived
        )
        self._arrived.clear()
        return True

    def confirm(self, confirmed_round: int) -> list[tuple[int, int]]:
        """A quorum has acknowledged this round: the (context, read index) it releases."""
        released = []
        while self._confirming and self._confirming[0][0] <= confirmed_round:
            _, index, context = self._confirming.popleft()
            released.append((context, index))
        return released

    def contexts(self) -> list[int]:
        """All reads that wait, for when leadership is lost."""
        return [c for _, _, c in self._confirming] + [c for c, _ in self._arrived]
