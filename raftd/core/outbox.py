"""
Nothing leaves before it is durable: the messages of a node, its writes, and
which waits for which.

Rule 1 of `raftd.core.raft` lives here: no message leaves before the term and
vote it was made under are durable.  Rule 2 is kept by whoever adds a message,
by saying which write it needs.
"""

from __future__ import annotations

from collections import deque

from raftd.core.messages import (
    AppendEntriesResponse,
    HardState,
    HeartbeatResponse,
    InstallSnapshotResponse,
    Message,
    PreVoteResponse,
    RequestVoteResponse,
    Response,
    TimeoutNowResponse,
)
from raftd.core.ready import Outgoing


class Outbox:
    """
    Invariants:

    - `persisted_write <= last_write`; `hard_state_write <= last_write + 1`
    - a held message needs a write above `persisted_write`
    - no held answer is of an earlier term than `hard_state`
    """

    def __init__(self, hard_state: HardState) -> None:
        """`hard_state` is as recovered, and so durable."""
        self.hard_state = hard_state
        #: The write that was handed out last.
        self.last_write = 0
        #: The last write that is durable, and all before it.
        self.persisted_write = 0
        #: The write that makes the present hard state durable.
        self.hard_state_write = 0
        #: (number, when it was handed out) of the writes under way.
        self._under_way: deque[tuple[int, float]] = deque()
        self._free: list[Outgoing] = []
        #: (write that must be durable first, message).
        self._held: list[tuple[int, Outgoing]] = []

    # -- hard state and writes -----------------------------------------------

    def set_hard_state(self, new: HardState) -> None:
        """It changes now, and is to be part of the next write."""
        old = self.hard_state
        if new.term > old.term:
            self._withdraw(new.term)
        if (new.term, new.voted_for) != (old.term, old.voted_for):
            self.hard_state = new
            self.hard_state_write = self.last_write + 1

    @property
    def has_new_hard_state(self) -> bool:
        """Whether the next write must hold the hard state."""
        return self.hard_state_write > self.last_write

    @property
    def is_hard_state_durable(self) -> bool:
        return self.hard_state_write <= self.persisted_write

    def begin_write(self, now: float) -> int:
        """The number of the write that is handed out now."""
        self.last_write += 1
        self._under_way.append((self.last_write, now))
        return self.last_write

    def persisted(self, number: int) -> bool:
        """All writes up to `number` are durable; false if that was known."""
        if number <= self.persisted_write:
            return False
        self.persisted_write = number
        while self._under_way and self._under_way[0][0] <= number:
            self._under_way.popleft()
        if self._held:
            self._free.extend(out for needs, out in self._held if needs <= number)
            self._held = [held for held in self._held if held[0] > number]
        return True

    def write_takes(self, now: float) -> float:
        """For how many seconds the oldest write has been under way."""
        return now - self._under_way[0][1] if self._under_way else 0.0

    # -- messages ------------------------------------------------------------

    def add(self, outgoing: Outgoing, needs_write: int) -> None:
        """Let a message leave once what it promises, its term included, is durable."""
        needs_write = max(needs_write, self.hard_state_write)
        if needs_write <= self.persisted_write:
            self._free.append(outgoing)
        else:
            self._held.append((needs_write, outgoing))

    @property
    def has_messages(self) -> bool:
        """Whether there are some that may leave."""
        return bool(self._free)

    def take(self) -> list[Outgoing]:
        """The messages that may leave now, in order."""
        free, self._free = self._free, []
        return free

    def _withdraw(self, term: int) -> None:
        """
        A later term begins while promises of an earlier one wait for the disk.

        They must not leave any more: what they acknowledge may be cut off
        before it is durable.  Whoever waits for them is told of the new term.
        """
        self._held = [
            (
                self.last_write + 1,
                Outgoing(out.to, _withdrawn(out.message, term), out.request_id),
            )
            for _, out in self._held
            if out.request_id is not None
        ]


def _withdrawn(message: Message, term: int) -> Response:
    """The refusal, in a later term, that takes the place of an answer."""
    match message:
        case AppendEntriesResponse(match_index=last):
            # Nothing is wrong with the log: a leader of `term` need not go far back.
            return AppendEntriesResponse(term, False, last, last, term)
        case HeartbeatResponse():
            return HeartbeatResponse(term, 0)
        case RequestVoteResponse():
            return RequestVoteResponse(term, False)
        case InstallSnapshotResponse():
            return InstallSnapshotResponse(term, 0, False)
        case TimeoutNowResponse():
            return TimeoutNowResponse(term)
        case _:
            return PreVoteResponse(term, False)
