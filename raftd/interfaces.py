"""
What the parts of raftd promise one another.

An interface here is a promise, not a shape: each method says when it returns,
what is durable by then, and what may have gone wrong.  Everything is called
in the reactor's thread and nothing blocks, unless it says otherwise.

*Outcomes.*  On the path of one request there are no Deferreds (they cost more
than the rest together); a caller hands over `done`, which is called exactly
once, perhaps before the call returns, with either the result or a
`RaftdError`.  It must not raise.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from raftd.core.membership import Configuration
from raftd.core.messages import (
    Command,
    Entry,
    HardState,
    Member,
    MemberId,
    Request,
    Response,
)
from raftd.errors import Fatal, RaftdError

T = TypeVar("T")

#: What `done` is called with.
Done = Callable[[T | RaftdError], None]


# -- below the node ----------------------------------------------------------


class IStateMachine(Interface):
    """
    What is replicated: a deterministic function of the commands applied so far.

    Nothing but the arguments and the state may influence it: no clock, no
    randomness, no set order, no setting of this one node.
    """

    def apply(
        index: int, time_ms: int, command: Command
    ) -> bytes | Generator[None, None, bytes]:
        """
        Apply a committed command and return its result.

        Called once for each command, in log order, by one caller.  An
        application that takes longer than a few milliseconds is a generator
        that yields between its steps and returns the result; nothing else is
        applied meanwhile.  `time_ms` is the leader's time, never less than
        that of an earlier call.  It must not raise: a command that cannot be
        carried out has a result that says so.
        """


class ILogStorage(Interface):
    """
    The durable log of one node.

    Writes are numbered by the caller from 1, without a gap, and reach the disk
    in that order.  After the first failure nothing more is written, ever.
    """

    hard_state: HardState = Attribute("The hard state that was recovered when opened.")
    entries: Sequence[Entry] = Attribute("The entries recovered when opened, from index 1.")

    def start(persisted: Callable[[int], None], failed: Callable[[Fatal], None]) -> None:
        """
        Begin; called once, before the first `write`.

        `persisted(number)` is called after every write up to `number` is
        durable, in growing order; numbers may be skipped.  `failed(reason)` is
        called at most once, and `persisted` never after it.
        """

    def write(number: int, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """
        Queue a write; returns at once.

        `hard_state` replaces the one before, None keeps it.  `entries` are
        consecutive; whatever the log holds at or behind the first of them is
        cut off by this very write.
        """

    def close() -> Deferred[None]:
        """Flush what is queued, release everything; fires when that is done."""


class IPeer(Interface):
    """
    Another member, as seen from here.

    Every Deferred fails with `PeerUnreachable` if no answer can be had, at
    once when there is no connection; it always fires within a bounded time.
    """

    connected: bool = Attribute("Whether a handshake has succeeded and the connection stands.")
    refusal: str = Attribute("Why the last handshake was refused, a sentence; or empty.")

    def send(request: Request) -> Deferred[Response]:
        """One RPC of Raft; its answer.  Requests arrive in the order sent."""

    def forward(
        commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        """
        Ask the peer, as the leader, to propose encoded commands.

        One outcome for each command, in order.  The Deferred fails with
        `NoLeader` if nothing was sent, and with `PeerUnreachable` if the
        commands went out and no answer came: their outcomes are unknown.
        """

    def read_index(timeout_ms: int) -> Deferred[int]:
        """Ask the peer, as the leader, for a read index (thesis 6.4)."""

    def join(member: Member, timeout_ms: int) -> Deferred[Configuration]:
        """Ask the peer, as the leader, to add a learner; the configuration that has it."""

    def promote(member_id: MemberId, timeout_ms: int) -> Deferred[None]:
        """Ask the peer, as the leader, to give a learner a vote."""

    def close() -> Deferred[None]:
        """Disconnect and stop reconnecting; fires when that is done."""


class ITransport(Interface):
    """How a node reaches the other members."""

    def peer(member: Member) -> IPeer:
        """Begin to connect to `member`, and keep trying until it is closed."""


# -- the node ----------------------------------------------------------------


class MemberStatus(msgspec.Struct, frozen=True):
    """A member as one node sees it; the last three are None but on the leader."""

    member: Member
    role: str
    match_index: int | None = None
    next_index: int | None = None
    last_contact_ms: int | None = None


class NodeStatus(msgspec.Struct, frozen=True):
    """A node at one moment.  Indexes are log indexes; 0 means none."""

    member: Member
    cluster_id: int
    role: str
    term: int
    leader: Member | None
    first_index: int
    last_index: int
    commit_index: int
    applied_index: int
    snapshot_index: int
    uptime_seconds: float
    members: tuple[MemberStatus, ...]


class INode(Interface):
    """A running member of a cluster, as its users and its faces see it."""

    def propose(data: bytes, done: Done[bytes]) -> None:
        """
        Replicate an encoded `Command` and apply it; the state machine's result.

        Goes to the leader wherever that is.  Waits for a leader until the
        request timeout.  `DidNotHappen` means just that; `OutcomeUnknown`
        that it may have happened or may happen yet.
        """

    def read(done: Done[None]) -> None:
        """
        Called when this node's state machine reflects every write that was
        acknowledged anywhere before the call (thesis 6.4).

        Never `OutcomeUnknown`.
        """

    def status() -> NodeStatus:
        """What the node knows of itself and its cluster right now."""


class INodeRPC(Interface):
    """What peers may ask of a node; `net` carries it."""

    def receive(sender: MemberId, request: Request) -> Deferred[Response]:
        """One RPC of Raft; fires when the answer may leave, its promises being durable."""

    def forwarded(
        commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        """Propose for a peer, if this is the leader; it is never forwarded again."""

    def forwarded_read(timeout_ms: int) -> Deferred[int]:
        """A confirmed read index, if this is the leader."""

    def join(member: Member, timeout_ms: int, *, forwarded: bool) -> Deferred[Configuration]:
        """
        Add a learner, here or, unless `forwarded`, at the leader; fires when
        that is committed, or at once if it is a member already.
        """

    def promote(member_id: MemberId, timeout_ms: int, *, forwarded: bool) -> Deferred[None]:
        """Give a learner a vote, likewise; `NotCaughtUp` if it must wait."""


# -- what HTTP stands on -----------------------------------------------------


class IRequest(Interface):
    """One HTTP request, complete; it is answered exactly once, at any later time."""

    method: str = Attribute("The method, in capitals.")
    path: bytes = Attribute("The path as sent, still percent-encoded, without the query.")
    query: bytes = Attribute("What follows the question mark, or empty.")
    headers: Sequence[tuple[bytes, bytes]] = Attribute("Names in lower case, in order.")
    body: bytes = Attribute("The whole body.")

    def respond(
        status: int,
        body: bytes = b"",
        content_type: bytes = b"application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Answer; nothing happens if the client is gone.  HEAD is answered without the body."""


class Value(msgspec.Struct, frozen=True, gc=False):
    """A key's value and the revision that last changed it."""

    value: bytes
    mod_revision: int


class PutResult(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The revision that a put made, and whether the key was new."""

    revision: int
    created: bool


class DeleteResult(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The store's revision after a delete, and how many keys it removed."""

    revision: int
    deleted: int


class IDatabase(Interface):
    """The replicated key-value store: a node and the state machine that it applies to."""

    revision: int = Attribute("The last revision applied at this node.")

    def put(key: bytes, value: bytes, done: Done[PutResult]) -> None:
        """Set `key`; outcomes as of `INode.propose`."""

    def delete(key: bytes, done: Done[DeleteResult]) -> None:
        """Remove `key`; outcomes as of `INode.propose`."""

    def get(key: bytes, linearizable: bool, done: Done[Value | None]) -> None:
        """
        The value of `key`, None if there is none.

        Linearizable: outcomes as of `INode.read`.  Otherwise this node's own
        state, which may be behind; it then needs no leader.
        """


# -- what the dialogue and the options stand on --------------------------------


class Stage(enum.Enum):
    """How far a data directory has come; recorded in it, so that a restart goes on."""

    #: Nothing of ours is in the directory.
    NEW = "new"
    #: It was to become a new cluster; nothing was acknowledged yet.
    INITIALIZING = "initializing"
    #: It has an id and is on its way into a cluster.
    JOINING = "joining"
    #: It is a member; it only ever restarts.
    MEMBER = "member"


class Recovered(msgspec.Struct, frozen=True):
    """What a restarted node found in its directory."""

    name: str
    term: int
    entries: int


class ISetup(Interface):
    """
    The way from a data directory to a running node, one step at a time.

    The prompts and the command-line options both drive it, and nothing else
    does.  The directory is locked before the first step.
    """

    stage: Stage = Attribute("How far the directory has come.")
    recorded_name: str = Attribute("The name that the directory belongs to; empty if NEW.")

    def take_name(name: str) -> Deferred[None]:
        """
        Check `name`, resolve its host and bind its port.

        `BadAnswer` if it is no `host:port`, not the recorded name, not an
        address of this machine, beyond loopback without leave, or in use.
        Nothing is written.  After a failure it may be called again.
        """

    def initialize() -> Deferred[None]:
        """For NEW and INITIALIZING: become a new cluster of one; fires when it serves."""

    def join(servers: Sequence[str]) -> Deferred[None]:
        """
        For NEW and JOINING: join the cluster of which `servers`, tried in
        order, are members; without any, those recorded last.

        Fires when this node is a voter whose log has caught up.  `JoinFailed`
        says why not; it may then be called again, with the same or others.
        """

    def recover() -> Deferred[Recovered]:
        """For MEMBER: start from what the directory holds; fires when it serves."""


class IServer(ISetup):
    """A server as the command runs it: everything between a directory and a port."""

    def open() -> None:
        """
        Lock the data directory and see how far it has come; called once, first.

        `DirectoryInUse`, `DirectoryDamaged` or another `RaftdError` if there
        is no going on; nothing has been written then.
        """

    def stop() -> Deferred[None]:
        """
        Give up whatever step is under way, stop serving, flush and unlock.

        Fires when that is done; it may be called at any stage, once.
        """
