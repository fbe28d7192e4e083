"""The timing of Raft, the same for all members of a cluster by convention."""

from __future__ import annotations

import msgspec

#: An election timeout must hold this many heartbeats, so that one lost or late
#: heartbeat is not an election.
MIN_HEARTBEATS_PER_ELECTION_TIMEOUT = 5

#: A lease ends this much earlier than a follower could vote: how much faster
#: the clock of a follower may run than the leader's.
LEASE_SHARE = 0.8


class Settings(msgspec.Struct, frozen=True):
    """
    Intervals in milliseconds.

    A follower campaigns when it has not heard from a leader for a time drawn
    between one and two election timeouts (paper 5.2, 9.3).
    """

    heartbeat_interval_ms: int = 100
    election_timeout_ms: int = 600
    #: Entries kept in the log behind a snapshot, for followers that are slow; their
    #: data is bounded as well (`raftd.core.raft.MAX_TAIL_BYTES`).
    snapshot_tail_entries: int = 10_000
    #: Answer linearizable reads while a quorum's lease lasts, without asking
    #: it (thesis 6.4.1).  What that assumes: `docs/reads.md`.
    lease_reads: bool = False

    @property
    def heartbeat_interval_s(self) -> float:
        return self.heartbeat_interval_ms / 1000

    @property
    def lease_s(self) -> float:
        """How long a quorum's answer holds, from when it was asked."""
        return self.election_timeout_s * LEASE_SHARE

    @property
    def election_timeout_s(self) -> float:
        return self.election_timeout_ms / 1000
