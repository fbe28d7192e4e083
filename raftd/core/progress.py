"""What a leader knows of one member's log, and how much it may send it (thesis 10.2.1)."""

from __future__ import annotations

import enum
from collections import deque

#: AppendEntries with entries that may be unanswered at once, for each peer.
MAX_APPENDS_IN_FLIGHT = 32
#: Bytes of entries that may be unanswered at once, for each peer; one more
#: message may go beyond it.
MAX_BYTES_IN_FLIGHT = 4 << 20


class ProgressState(enum.Enum):
    """How AppendEntries are sent to a member."""

    #: Where the logs agree is not known: one message, then wait for its answer.
    PROBE = "probe"
    #: The logs agree up to `match_index`: many messages in flight.
    REPLICATE = "replicate"
    #: The log no longer holds what it lacks: a snapshot is on its way.
    SNAPSHOT = "snapshot"


class Progress:
    """
    One member, as the leader of this term sees it.

    Invariants:

    - `match_index < next_index`; `match_index` never decreases
    - in PROBE at most one AppendEntries is in flight
    - `commit_sent <= commit_index` of the leader
    """

    __slots__ = (
        "answered",
        "bytes_in_flight",
        "commit_sent",
        "in_flight",
        "last_contact",
        "lost",
        "match_index",
        "next_index",
        "probing",
        "retry_at",
        "round",
        "state",
    )

    def __init__(self, next_index: int, now: float) -> None:
        #: The highest entry known to be durable there.
        self.match_index = 0
        #: The next entry to send.
        self.next_index = next_index
        self.state = ProgressState.PROBE
        #: In PROBE: the one message is unanswered.
        self.probing = False
        #: In PROBE: the last message got no answer; wait for a sign of life.
        self.lost = False
        #: A sign of life before this time does not end that: it has refused what
        #: it was sent, and would again.
        self.retry_at = now
        #: The commit index that the member will know of when all arrives.
        self.commit_sent = 0
        #: The last read round that it acknowledged in this term.
        self.round = 0
        #: When it last answered; at first, when the term of leadership began,
        #: or when it became a member.
        self.last_contact = now
        #: Whether it has answered at all.
        self.answered = False
        #: (last index, bytes) of each AppendEntries that is unanswered.
        self.in_flight: deque[tuple[int, int]] = deque()
        self.bytes_in_flight = 0

    def may_send(self) -> bool:
        if self.state is ProgressState.PROBE:
            return not (self.probing or self.lost)
        if self.state is ProgressState.SNAPSHOT:
            return False
        return (
            len(self.in_flight) < MAX_APPENDS_IN_FLIGHT
            and self.bytes_in_flight < MAX_BYTES_IN_FLIGHT
        )

    def sent(self, last_index: int, size: int) -> None:
        """An AppendEntries up to `last_index` with `size` bytes of data went out."""
        if self.state is ProgressState.PROBE:
            self.probing = True
            return
        # Optimistic: if it is lost or refused, `probe` goes back.
        self.next_index = last_index + 1
        self.in_flight.append((last_index, size))
        self.bytes_in_flight += size

    def heard_from(self, now: float) -> None:
        """It has answered a request of this term."""
        self.last_contact = now
        self.answered = True

    def matched(self, match_index: int) -> None:
        """It holds the log up to `match_index`, durably."""
        while self.in_flight and self.in_flight[0][0] <= match_index:
            self.bytes_in_flight -= self.in_flight.popleft()[1]
        self.match_index = max(self.match_index, match_index)
        self.next_index = max(self.next_index, match_index + 1)
        if self.state is not ProgressState.REPLICATE:
            self.state = ProgressState.REPLICATE
            self.probing = self.lost = False

    def await_snapshot(self) -> None:
        """Send nothing until a snapshot has arrived, or has failed to."""
        self.probe(self.next_index, lost=False)
        self.state = ProgressState.SNAPSHOT

    def probe(self, next_index: int, *, lost: bool) -> None:
        """Go back to `next_index`, and forget what was in flight."""
        self.state = ProgressState.PROBE
        self.next_index = max(next_index, self.match_index + 1)
        self.probing = False
        self.lost = lost
        self.commit_sent = 0
        self.in_flight.clear()
        self.bytes_in_flight = 0
