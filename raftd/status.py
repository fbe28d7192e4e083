"""What a node says of itself and, as the leader, of the others: `INode.status`."""

from __future__ import annotations

from raftd.core.messages import Member
from raftd.core.raft import Raft, Role
from raftd.interfaces import MemberStatus, NodeStatus


def node_status(
    raft: Raft,
    member: Member,
    cluster_id: int,
    *,
    leader: Member | None,
    snapshot_index: int,
    now: float,
    uptime_seconds: float,
) -> NodeStatus:
    """The status of `member`, whose core is `raft`; members are in the order of their names."""
    members = sorted(raft.configuration.members().values(), key=lambda other: other.name)
    return NodeStatus(
        member=member,
        cluster_id=cluster_id,
        role=_role(raft),
        term=raft.term,
        leader=leader,
        first_index=raft.log.first_index,
        last_index=raft.log.last_index,
        commit_index=raft.commit_index,
        applied_index=raft.applied_index,
        snapshot_index=snapshot_index,
        uptime_seconds=uptime_seconds,
        members=tuple(_member_status(raft, other, now) for other in members),
    )


def _role(raft: Raft) -> str:
    if raft.role is Role.FOLLOWER and not raft.configuration.is_voter(raft.member_id):
        return "learner"
    return str(raft.role.value)


def _member_status(raft: Raft, member: Member, now: float) -> MemberStatus:
    """How far a member is, as the leader knows; only that it is one, to anybody else."""
    role = "voter" if raft.configuration.is_voter(member.id) else "learner"
    if raft.leadership is None:
        return MemberStatus(member, role)
    progress = raft.leadership.progress.get(member.id)
    if progress is None:
        last = raft.log.last_index
        return MemberStatus(member, role, raft.log.persisted_index, last + 1, 0)
    contact_ms = int((now - progress.last_contact) * 1000)
    return MemberStatus(member, role, progress.match_index, progress.next_index, contact_ms)
