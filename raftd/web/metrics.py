"""
`GET /metrics`: the figures of `/status` for Prometheus, in its text format 0.0.4.

Everything is a gauge: what a node is at this moment.  A figure whose name ends
in `_index` is a log index, in `_revision` a revision of the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from raftd.errors import RaftdError
from raftd.interfaces import INode, IRequest, NodeStatus
from raftd.kv.interfaces import IDatabase, StoreStatus
from raftd.web.answers import NO_CACHE, failed_read, is_offered
from raftd.web.parameters import no_parameters

PATH = b"/metrics"

ALLOW = b"GET, HEAD, OPTIONS"

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

ROLES = ("follower", "pre-candidate", "candidate", "leader", "learner")

#: What is measured: its labels and its value, perhaps several times.
Samples = Iterable[tuple[Mapping[str, str], float]]


def handle(request: IRequest, node: INode, database: IDatabase, version: str) -> None:
    """Answer a request for `PATH`."""
    if not is_offered(request, ALLOW):
        return
    try:
        no_parameters(request.query, "/metrics")
    except RaftdError as e:
        failed_read(request, e)
        return
    text = as_text(node.status(), database.status(), version)
    request.respond(200, text.encode("utf-8"), CONTENT_TYPE, (NO_CACHE,))


def as_text(node: NodeStatus, store: StoreStatus, version: str) -> str:
    """Every figure, with a line that says what it is."""
    parts = [
        _gauge(name, about, samples)
        for name, about, samples in (
            *_of_node(node, version),
            *_of_members(node),
            *_of_store(store),
        )
    ]
    return "".join(parts)


def _of_node(node: NodeStatus, version: str) -> Iterator[tuple[str, str, Samples]]:
    who = {
        "version": version,
        "name": node.member.name,
        "cluster_id": f"{node.cluster_id:016x}",
    }
    yield "info", "What runs here.", [(who, 1)]
    roles: list[tuple[Mapping[str, str], float]] = [
        ({"role": role}, role == node.role) for role in ROLES
    ]
    yield "role", "1 for the role that the node is in.", roles
    yield "has_leader", "Whether the node knows of a leader.", _one(node.leader is not None)
    yield "term", "The node's term.", _one(node.term)
    yield "log_first_index", "The first entry that the log still has.", _one(node.first_index)
    yield "log_last_index", "The last entry of the log.", _one(node.last_index)
    yield "commit_index", "The last entry known to be committed.", _one(node.commit_index)
    yield "applied_index", "The last entry applied to the store.", _one(node.applied_index)
    yield "snapshot_index", "The last entry in the newest snapshot.", _one(node.snapshot_index)
    yield "uptime_seconds", "Since the node was started.", _one(node.uptime_seconds)


def _of_members(node: NodeStatus) -> Iterator[tuple[str, str, Samples]]:
    """How far each member is; only a leader knows."""
    roles = [status.role for status in node.members]
    yield (
        "members",
        "Members of the cluster, as this node knows them.",
        [({"role": role}, roles.count(role)) for role in ("voter", "learner")],
    )
    if node.role != "leader":
        return
    known = [({"member": status.member.name}, status) for status in node.members]
    yield (
        "member_match_index",
        "Up to where a member's log is known to be the leader's.",
        [(who, s.match_index) for who, s in known if s.match_index is not None],
    )
    yield (
        "member_last_contact_seconds",
        "Since a member was last heard.",
        [(who, s.last_contact_ms / 1000) for who, s in known if s.last_contact_ms is not None],
    )


def _of_store(store: StoreStatus) -> Iterator[tuple[str, str, Samples]]:
    yield "store_revision", "The last complete revision.", _one(store.revision)
    yield (
        "store_compacted_revision",
        "The oldest revision that can be read.",
        _one(store.compacted_revision),
    )
    yield "store_keys", "Keys that are there.", _one(store.keys)
    yield "store_size_bytes", "What the quota counts.", _one(store.size_bytes)
    yield (
        "store_quota_bytes",
        "What the store may grow to; 0: no bound.",
        _one(store.quota_bytes),
    )
    yield "store_leases", "Leases that are there.", _one(store.leases)
    yield "watches", "Watches at this node.", _one(store.watches)
    yield "idempotency_keys", "Idempotency keys that are kept.", _one(store.idempotency_keys)
    digest = store.digest
    yield (
        "digest_agreed_index",
        "The last checkpoint at which this state was the leader's.",
        _one(digest.agreed_index),
    )
    yield (
        "digest_differs_index",
        "The first checkpoint at which this state was not the leader's; 0: none.",
        _one(digest.differs_index),
    )
    yield (
        "digest_differs",
        "1 if this state is not the leader's: an alarm.",
        _one(digest.differs_index != 0),
    )


def _one(value: float) -> Samples:
    return [({}, value)]


def _gauge(name: str, about: str, samples: Samples) -> str:
    name = f"raftd_{name}"
    lines = [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        # An int keeps all its digits; a bool is 0 or 1.
        lines.append(f"{name}{{{inside}}} {+value}" if inside else f"{name} {+value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
