"""The timing of Raft, the same for all members of a cluster by convention."""

from __future__ import annotations

import msgspec

#: An election timeout must hold this many heartbeats, so that one lost or late
#: heartbeat is not an election.
MIN_HEARTBEATS_PER_ELECTION_TIMEOUT = 5


class Settings(msgspec.Struct, frozen=True):
    """
    Intervals in milliseconds.

    A follower campaigns when it has not heard from a leader for a time drawn
    between one and two election timeouts (paper 5.2, 9.3).
    """

    heartbeat_interval_ms: int = 100
    election_timeout_ms: int = 600

    @property
    def heartbeat_interval_s(self) -> float:
        return self.heartbeat_interval_ms / 1000

    @property
    def election_timeout_s(self) -> float:
        return self.election_timeout_ms / 1000
