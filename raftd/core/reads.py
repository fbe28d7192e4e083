"""
ReadIndex: linearizable reads without writing to the log (thesis 6.4).

A read notes the index that it must see when it arrives, and is released when
a quorum has acknowledged a heartbeat round that began *after* it arrived: only
then is it certain that no other leader had committed more by that time.  All
reads that wait share the next round.

Lease reads (thesis 6.4.1), if they are asked for, need no round of their own:
a follower that has acknowledged a round votes for nobody else for an election
timeout from then on, so until that is over no other leader can have committed
anything.  What this assumes of clocks is in `docs/reads.md`.
"""

from __future__ import annotations

import math
from collections import deque

#: Reads that may wait for their quorum round at once.
MAX_READS_WAITING = 65_536
#: Rounds of which the beginning is remembered, for the lease.
MAX_ROUNDS_REMEMBERED = 64


class ReadQueue:
    """
    The reads of one term of leadership; it ends with the term.

    Invariant: a read in `_confirming` arrived before its round began.
    """

    def __init__(self) -> None:
        #: The number of the round that was begun last; heartbeats carry it.
        self.round = 0
        #: When the last round began that a quorum has acknowledged.
        self.confirmed_at = -math.inf
        self._begun: deque[tuple[int, float]] = deque(maxlen=MAX_ROUNDS_REMEMBERED)
        self._arrived: list[tuple[int, int]] = []
        #: (round, read index, context), in the order of their rounds.
        self._confirming: deque[tuple[int, int, int]] = deque()

    def __len__(self) -> int:
        return len(self._arrived) + len(self._confirming)

    def add(self, context: int, read_index: int) -> None:
        """A read that must see everything up to `read_index`."""
        self._arrived.append((context, read_index))

    @property
    def wants_round(self) -> bool:
        """Whether a read waits for a round, and none is under way for others."""
        return bool(self._arrived) and not self._confirming

    def begin_round(self, now: float) -> None:
        """A round begins: it serves whatever has arrived by now."""
        self.round += 1
        self._begun.append((self.round, now))
        self._confirming.extend(
            (self.round, index, context) for context, index in self._arrived
        )
        self._arrived.clear()

    def confirm(self, confirmed_round: int) -> list[tuple[int, int]]:
        """A quorum has acknowledged this round: the (context, read index) it releases."""
        while self._begun and self._begun[0][0] <= confirmed_round:
            _, self.confirmed_at = self._begun.popleft()
        released = []
        while self._confirming and self._confirming[0][0] <= confirmed_round:
            _, index, context = self._confirming.popleft()
            released.append((context, index))
        return released

    def contexts(self) -> list[int]:
        """All reads that wait, for when leadership is lost."""
        return [c for _, _, c in self._confirming] + [c for c, _ in self._arrived]
