"""
Every exception that raftd raises on purpose.

The docstring of each says what it means to the person who sees it; the
argument is the whole sentence that is shown.  The three families matter to a
client: `DidNotHappen` may be tried again, `OutcomeUnknown` may not be hidden,
and everything under `Fatal` stops the node.
"""

from __future__ import annotations


class RaftdError(Exception):
    """Something that raftd can explain in one sentence, its only argument."""

    #: The field's word for it, as HTTP answers and peers carry it.
    code = "error"


# -- requests ----------------------------------------------------------------


class DidNotHappen(RaftdError):
    """The request certainly changed nothing; it is safe to send it again."""

    code = "did_not_happen"


class NoLeader(DidNotHappen):
    """The cluster has no leader that this node knows of; nothing was changed."""

    code = "no_leader"


class NotLeader(NoLeader):
    """The node that was asked is not the leader; nothing was changed there."""

    code = "not_leader"


class NoQuorum(DidNotHappen):
    """Too few voters can be reached to decide anything; nothing was changed."""

    code = "no_quorum"


class TooStale(DidNotHappen):
    """A read that may be somewhat old: what this node has is older, and nobody confirms it."""

    code = "too_stale"


class Overloaded(DidNotHappen):
    """A named bound on waiting work was reached; nothing was changed."""

    code = "overloaded"


class NoSpace(DidNotHappen):
    """The disk of a node that is needed for it is full; nothing was changed."""

    code = "no_space"


class Superseded(DidNotHappen):
    """Another leader's entry was committed in this one's place; nothing was changed."""

    code = "superseded"


class TooLarge(DidNotHappen):
    """The request is larger than the cluster accepts; nothing was changed."""

    code = "too_large"


class BadRequest(DidNotHappen):
    """The request can never be carried out as it stands; nothing was changed."""

    code = "bad_request"


class Stopped(DidNotHappen):
    """The node is shutting down and takes no more requests."""

    code = "stopped"


class NotRunning(DidNotHappen):
    """The program has not started this node yet, or the start is not finished."""

    code = "not_running"


class OutcomeUnknown(RaftdError):
    """
    The request may have happened, may still happen, or may never happen.

    Only a write can end so: it timed out after it was proposed, or the
    connection to the leader broke after it was forwarded.
    """

    code = "outcome_unknown"


# -- the store ---------------------------------------------------------------


class Compacted(DidNotHappen):
    """What was asked for was compacted: only revisions from `revision` on are there."""

    code = "compacted"

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class FutureRevision(BadRequest):
    """A revision that the store has not come to yet; it is at `revision`."""

    code = "future_revision"

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class LeaseNotFound(DidNotHappen):
    """There is no such lease, or not any more; nothing was changed."""

    code = "lease_not_found"


class LeaseExists(DidNotHappen):
    """There is a lease with this id already; nothing was changed."""

    code = "lease_exists"


class TooManyLeases(Overloaded):
    """The cluster has as many leases as it keeps; none was granted."""

    code = "too_many_leases"


class QuotaReached(DidNotHappen):
    """The store has reached its quota and takes nothing that makes it grow."""

    code = "quota_reached"


class IdempotencyKeyReused(DidNotHappen):
    """The key came with another request before; nothing was changed now."""

    code = "idempotency_key_reused"


class IdempotencyTableFull(DidNotHappen):
    """The cluster keeps as many idempotency keys as it can; nothing was changed."""

    code = "idempotency_table_full"


# -- sessions ----------------------------------------------------------------


class SessionTableFull(Overloaded):
    """The cluster has as many client sessions as it keeps; none was opened."""

    code = "session_table_full"


class SessionWindowFull(Overloaded):
    """Too many of the session's commands are unanswered; this one was never applied."""

    code = "session_window_full"


class SessionResultsFull(Overloaded):
    """Too many results wait for their clients to acknowledge them; nothing was changed."""

    code = "session_results_full"


class SessionClosed(DidNotHappen):
    """The session is over, and this command was never applied; open another session."""

    code = "session_closed"


class SessionExpired(OutcomeUnknown):
    """
    The cluster does not know the session, or not any more; nothing was changed now.

    If the command was sent before, that may have been applied, and nobody can
    tell any more: so this is no `DidNotHappen`.
    """

    code = "session_expired"


class StaleSequence(OutcomeUnknown):
    """
    The client had said that it needs no answer to this command; nothing was changed now.

    Whether the command was applied before was forgotten when the client said so.
    """

    code = "stale_sequence"


# -- membership --------------------------------------------------------------


class ChangeRefused(DidNotHappen):
    """A membership change that would be wrong in the present configuration."""

    code = "change_refused"


class ChangeInProgress(ChangeRefused):
    """Another membership change is not yet committed; wait for it."""

    code = "change_in_progress"


class NotCaughtUp(ChangeRefused):
    """The learner's log is still too far behind for it to become a voter."""

    code = "not_caught_up"


class TransferFailed(DidNotHappen):
    """Leadership was not handed over; the leader leads on, or another is elected."""

    code = "transfer_failed"


class NameTaken(ChangeRefused):
    """A member with another identity already has this name."""

    code = "name_taken"


# -- peers -------------------------------------------------------------------


class PeerRefused(RaftdError):
    """The handshake between two nodes failed: they must not talk to each other."""

    code = "peer_refused"


class WrongCluster(PeerRefused):
    """The two nodes belong to different clusters."""

    code = "wrong_cluster"


class WrongMember(PeerRefused):
    """Another member answers under this name: its directory was lost or replaced."""

    code = "wrong_member"


class RemovedFromCluster(PeerRefused):
    """The member was removed from the cluster, and is turned away for good."""

    code = "removed"


class IncompatibleVersion(PeerRefused):
    """The two nodes speak no common version of the protocol."""

    code = "incompatible_version"


class NotReady(PeerRefused):
    """The node is running but does not belong to a cluster yet."""

    code = "not_ready"


class PeerUnreachable(RaftdError):
    """No answer came from the peer: not connected, connection lost, or timed out."""

    code = "peer_unreachable"


class ProtocolViolation(RaftdError):
    """A peer sent what no correct peer sends; its connection is closed."""

    code = "protocol_violation"


# -- people ------------------------------------------------------------------


class BadAnswer(RaftdError):
    """An option or an answer to a prompt that raftd cannot use; it says why."""

    code = "bad_answer"


class JoinFailed(RaftdError):
    """The node could not join; the reason is one that a person can act on."""

    code = "join_failed"


class NoLeaderYet(JoinFailed):
    """The cluster is there and has no leader: it may have one a moment later."""

    code = "no_leader_yet"


# -- the node must stop ------------------------------------------------------


class Fatal(RaftdError):
    """The node cannot go on without risking data; it stops and says why."""

    code = "fatal"


class DirectoryInUse(Fatal):
    """Another process has this data directory open."""

    code = "directory_in_use"


class DirectoryDamaged(Fatal):
    """
    A file in the data directory is not what raftd wrote there.

    The message names the file and, inside one, the offset in bytes.
    """

    code = "directory_damaged"


class Removed(Fatal):
    """This member was removed from its cluster and has nothing more to do."""

    code = "removed_from_cluster"


class SnapshotDamaged(RaftdError):
    """
    A snapshot is not what a node writes: one that was received, which is sent
    again, or one of this node's own, in whose place a new one is taken.
    """

    code = "snapshot_damaged"


class StorageFailed(Fatal):
    """
    The log could not be written or flushed.

    It is never retried: after a failed flush the kernel may have dropped the
    data and report success the next time.
    """

    code = "storage_failed"


class InvariantViolated(Fatal):
    """A rule that Raft's safety rests on does not hold: a defect, here or in a peer."""

    code = "invariant_violated"
