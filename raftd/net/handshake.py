"""
Who may talk to whom: the rules of `Hello`, as functions of values.

Members are told apart by ids, never by names: a name is where a member can be
reached, and somebody else may answer there one day.  Every refusal is a
sentence for the person who has to mend it.
"""

from __future__ import annotations

from raftd.core.messages import NOBODY, Member
from raftd.errors import (
    IncompatibleVersion,
    NotReady,
    ProtocolViolation,
    WrongCluster,
    WrongMember,
)
from raftd.net.commands import (
    BULK,
    RAFT,
    VERSION_MAX,
    VERSION_MIN,
    HelloRequest,
    HelloResponse,
)

#: The longest name of a member, in bytes: a host name, a colon and a port.
MAX_NAME_BYTES = 260

#: `cluster_id` of a node that is in no cluster yet.
NO_CLUSTER = 0


class LocalIdentity:
    """
    Who this node is, as soon as it is somebody.

    One object for the whole process: the port is open before the node has
    joined, and refuses peers with `NotReady` until `member` is set.
    """

    def __init__(self, member: Member | None = None, cluster_id: int = NO_CLUSTER) -> None:
        self.member = member
        self.cluster_id = cluster_id

    @property
    def is_ready(self) -> bool:
        return self.member is not None and self.cluster_id != NO_CLUSTER


def hello_to(member: Member, identity: LocalIdentity, channel: str, to: Member) -> HelloRequest:
    """What `member` says first to `to`, whose id is `NOBODY` if it is not known."""
    return HelloRequest(
        version_min=VERSION_MIN,
        version_max=VERSION_MAX,
        cluster_id=identity.cluster_id,
        member_id=member.id,
        name=member.name,
        to_member_id=to.id,
        to_name=to.name,
        channel=channel,
    )


def check_name(name: str) -> None:
    """`ProtocolViolation` if `name` cannot be the name of a member."""
    if not 0 < len(name.encode("utf-8")) <= MAX_NAME_BYTES or not name.isprintable():
        raise ProtocolViolation(f"not a name of a member: {name[:80]!r}")


def answer_hello(identity: LocalIdentity, hello: HelloRequest) -> HelloResponse:
    """
    The answer to `hello`.

    A subclass of `PeerRefused` if the two must not talk to each other, and
    `ProtocolViolation` if no correct node says this.
    """
    check_name(hello.name)
    check_name(hello.to_name)
    # The version first: what follows may mean something else in a later one.
    version = _common_version(hello)
    _check_form(hello)
    me = identity.member
    if me is None or identity.cluster_id == NO_CLUSTER:
        raise NotReady(f"{hello.to_name} does not belong to a cluster yet.")
    if hello.cluster_id not in (identity.cluster_id, NO_CLUSTER):
        raise WrongCluster(
            f"{me.name} belongs to cluster {identity.cluster_id:016x} and {hello.name} to "
            f"cluster {hello.cluster_id:016x}; one of them runs in the wrong data directory "
            "or under the other's name."
        )
    if hello.to_member_id not in (me.id, NOBODY):
        raise WrongMember(
            f"{hello.name} looks for member {hello.to_member_id:016x} at {hello.to_name}, but "
            f"member {me.id:016x} answers there: the directory of {hello.to_name} was lost or "
            "replaced. Start it with its old directory, or let the new one join under "
            "another name."
        )
    if hello.member_id == me.id:
        raise WrongMember(
            f"{hello.name} and {me.name} both have the identity {me.id:016x}: the data "
            "directory of one is a copy of the other's. Only one of them may run."
        )
    return HelloResponse(version, identity.cluster_id, me.id, me.name)


def is_joiner(hello: HelloRequest) -> bool:
    """Whether the caller asks to be let in: all that it may do is join."""
    return hello.to_member_id == NOBODY


def check_answer(identity: LocalIdentity, to: Member, answer: HelloResponse) -> None:
    """The same from the other end: is `answer` that of the member that was meant?"""
    if not VERSION_MIN <= answer.version <= VERSION_MAX:
        raise ProtocolViolation(f"version {answer.version} was not offered")
    if identity.cluster_id not in (answer.cluster_id, NO_CLUSTER):
        raise WrongCluster(
            f"{to.name} belongs to cluster {answer.cluster_id:016x}, not to "
            f"{identity.cluster_id:016x}."
        )
    if to.id not in (answer.member_id, NOBODY):
        raise WrongMember(
            f"Member {answer.member_id:016x} answers at {to.name}, not {to.id:016x}: the "
            f"directory of {to.name} was lost or replaced."
        )


def _common_version(hello: HelloRequest) -> int:
    version = min(hello.version_max, VERSION_MAX)
    if version < max(hello.version_min, VERSION_MIN):
        raise IncompatibleVersion(
            f"{hello.to_name} speaks {_versions(VERSION_MIN, VERSION_MAX)} of the protocol "
            f"between nodes and {hello.name} "
            f"{_versions(hello.version_min, hello.version_max)}; upgrade the older of them."
        )
    return version


def _versions(first: int, last: int) -> str:
    return f"version {first}" if first == last else f"versions {first} to {last}"


def _check_form(hello: HelloRequest) -> None:
    """`ProtocolViolation` for what contradicts itself."""
    if hello.channel not in (RAFT, BULK):
        raise ProtocolViolation(f"no such channel: {hello.channel[:40]!r}")
    if hello.member_id == NOBODY:
        raise ProtocolViolation("a Hello without the sender's id")
    if is_joiner(hello):
        if hello.channel != BULK:
            raise ProtocolViolation("a joiner on another channel than bulk")
    elif hello.cluster_id == NO_CLUSTER:
        raise ProtocolViolation("a Hello of a member without a cluster")
