"""`GET /status`: what a node knows of itself, its cluster and its store right now."""

from __future__ import annotations

from raftd.errors import RaftdError
from raftd.interfaces import INode, IRequest, MemberStatus, NodeStatus
from raftd.kv.interfaces import IDatabase, StoreStatus
from raftd.web.answers import NO_CACHE, failed_read, is_offered, json
from raftd.web.parameters import no_parameters

PATH = b"/status"

ALLOW = b"GET, HEAD, OPTIONS"


def handle(request: IRequest, node: INode, database: IDatabase, version: str) -> None:
    """Answer a request for `PATH`."""
    if not is_offered(request, ALLOW):
        return
    try:
        no_parameters(request.query, "/status")
    except RaftdError as e:
        failed_read(request, e)
        return
    json(request, 200, as_json(node.status(), database.status(), version), (NO_CACHE,))


def as_json(status: NodeStatus, store: StoreStatus, version: str) -> dict[str, object]:
    """
    The fields of the answer, in order.

    Ids are 16 hexadecimal digits, for they do not fit into a number of
    JavaScript's.  What only a leader knows of members is given by a leader only.
    A `digest` with a `differs_index` means that this member's state is not the
    leader's: the first checkpoint, a log index, at which that was seen.
    """
    is_leader = status.role == "leader"
    return {
        "name": status.member.name,
        "member_id": f"{status.member.id:016x}",
        "cluster_id": f"{status.cluster_id:016x}",
        "version": version,
        "role": status.role,
        "term": status.term,
        "leader": None if status.leader is None else status.leader.name,
        "first_index": status.first_index,
        "last_index": status.last_index,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "snapshot_index": status.snapshot_index,
        "revision": store.revision,
        "compacted_revision": store.compacted_revision,
        "keys": store.keys,
        "size_bytes": store.size_bytes,
        "quota_bytes": store.quota_bytes,
        "leases": store.leases,
        "watches": store.watches,
        "idempotency_keys": store.idempotency_keys,
        "digest": {
            "agreed_index": store.digest.agreed_index,
            "differs_index": store.digest.differs_index,
        },
        "uptime_seconds": round(status.uptime_seconds, 3),
        "members": [member_as_json(member, is_leader) for member in status.members],
    }


def member_as_json(status: MemberStatus, is_leader: bool) -> dict[str, object]:
    """One member, and how far it is if a leader says so."""
    value: dict[str, object] = {
        "name": status.member.name,
        "id": f"{status.member.id:016x}",
        "role": status.role,
    }
    if is_leader:
        value["match_index"] = status.match_index
        value["next_index"] = status.next_index
        value["last_contact_ms"] = status.last_contact_ms
    return value
