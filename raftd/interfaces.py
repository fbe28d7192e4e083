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
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

import msgspec
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from raftd.core.membership import Change, Configuration
from raftd.core.messages import (
    Command,
    Entry,
    HardState,
    Member,
    MemberId,
    Request,
    Response,
)
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import Fatal, RaftdError

T = TypeVar("T")

#: What `done` is called with: once, perhaps before the call that was given it
#: returns.  It may ask the same node for something else.
Done = Callable[[T | RaftdError], None]

#: The longest question to the leader's program, and the longest answer, in bytes.
MAX_QUESTION_BYTES = 256 * 1024


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

    def snapshot() -> Iterator[bytes]:
        """
        The whole state as of this call, in slices, whatever is applied while
        they are drawn.

        Called between two applications.  A slice has at most about 64 KiB and
        takes a few milliseconds at most to make.  The iterator may be given up
        half-way (`close`, if it has one).  One is drawn at a time.
        """

    def restore() -> IRestore:
        """
        Begin to take over a state that `snapshot` has given, somewhere.

        Until `finish` the present state stays, and may be read.
        """

    def digest() -> bytes:
        """
        A checksum of the whole state: equal states, and only those, have equal ones.

        It may take as long as the state is large.
        """


class IRestore(Interface):
    """A state on its way in."""

    def write(data: bytes) -> None:
        """
        The next bytes of what `snapshot` gave, cut as it may be.

        `ValueError` if they are no state of this kind; the rest is then not written.
        """

    def finish() -> None:
        """
        That was all: it is the state now, at once.

        `ValueError` if something is missing; then nothing has changed.
        """


class ILogStorage(Interface):
    """
    The durable log of one node.

    Writes are numbered by the caller from 1, without a gap, and reach the disk
    in that order.  After the first failure nothing more is written, ever.
    """

    hard_state: HardState = Attribute("The hard state that was recovered when opened.")
    base_index: int = Attribute("The index before the first of `entries`; 0 at first.")
    base_term: int = Attribute("The term of the entry at `base_index`; 0 at first.")
    entries: Sequence[Entry] = Attribute("The entries recovered when opened; see `start`.")
    commit_index: int = Attribute("The greatest that any recovered write carried; 0 if none.")

    def start(
        persisted: Callable[[int], None],
        failed: Callable[[Fatal], None],
        space: Callable[[bool], None] | None = None,
    ) -> None:
        """
        Begin; called once, before the first `write`.

        Whoever needs `entries` has them by now: they are let go, so that they
        do not outlive a compaction, and the attribute is empty from here on.
        `persisted(number)` is called after every write up to `number` is
        durable, in growing order; numbers may be skipped.  `failed(reason)` is
        called at most once, and `persisted` never after it.

        `space(False)` is called when there is no room for more than what is
        set aside already, and `space(True)` when there is room again.  What is
        set aside is for the hard state and entries without commands; writes
        beyond it wait for room, neither durable nor failed.  Without `space`
        they fail.
        """

    def look_for_space() -> None:
        """Look again for room; returns at once, and what was found comes by `space`."""

    def write(
        number: int,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        base: tuple[int, int] | None = None,
        commit_index: int = 0,
    ) -> None:
        """
        Queue a write; returns at once.

        `hard_state` replaces the one before, None keeps it.  `base`, an
        (index, term), drops the whole log and begins it anew behind that
        index.  `entries` are consecutive; whatever the log holds at or behind
        the first of them is cut off by this very write.  `commit_index` says
        up to where the log, as this write leaves it, is known to be committed.
        """

    def compact(base_index: int) -> None:
        """
        Entries up to `base_index` are not needed any more: a durable snapshot
        has their effect.

        Returns at once.  They go when it is convenient; after a restart some
        of them may still be there, and `base_index` may be less.
        """

    def close() -> Deferred[None]:
        """Flush what is queued, release everything; fires when that is done."""


class ISnapshotStore(Interface):
    """
    The snapshots of one node, each a file: a head with its `SnapshotMetadata`,
    and a state.  A snapshot is durable, whole and checked, or not there.

    The last two are kept, and any that is being read.  No method blocks the
    reactor but `recover`.
    """

    latest: SnapshotMetadata | None = Attribute("Of the newest snapshot there is.")
    latest_size: int = Attribute("Its length in bytes; 0 if there is none.")
    is_damaged: bool = Attribute(
        "Whether the newest was found damaged by who read it, to send it.  It cannot "
        "be opened to be sent any more, and goes when another one is durable."
    )

    def recover(
        machine: IStateMachine,
        log_base_index: int | None = None,
        log_entries: Sequence[Entry] = (),
    ) -> None:
        """
        Restore `machine` from the newest snapshot, if there is one.  Blocks.

        Called once, before the reactor does anything else with the node.
        `DirectoryDamaged` if it cannot be read, or if the log, whose base
        index and entries may be given, begins behind it.  A damaged snapshot
        is passed over only if it is known that the log leads from the one
        before to its last entry.
        """

    def create(metadata: SnapshotMetadata) -> ISnapshotWriter:
        """Begin to write a snapshot of this node's own state; one at a time."""

    def receive(last_included_index: int, last_included_term: int) -> ISnapshotReceiver:
        """
        Begin, or go on, to receive the snapshot with this index and term.

        A part of another one, if there is any, is given up.
        """

    def open(metadata: SnapshotMetadata | None = None) -> ISnapshotReader:
        """
        Read the newest snapshot, or this one of the last two, from the
        beginning; it must be there.
        """

    def close() -> Deferred[None]:
        """
        Give up what is under way; fires when no file is open any more.

        Whatever is waited for then fails with `Stopped`.
        """


class ISnapshotWriter(Interface):
    """A snapshot on its way to disk."""

    pending_bytes: int = Attribute("Written and not yet taken by the disk.")

    def write(data: bytes) -> None:
        """The next slice of the state; queued, and returns at once."""

    def finish() -> Deferred[None]:
        """
        That was all.  Fires when the snapshot is durable and `latest`; fails
        with `StorageFailed` if the disk refuses, and then it is not there.
        """

    def abort() -> None:
        """Give it up, and leave nothing behind."""


class ISnapshotReceiver(Interface):
    """A snapshot on its way from the leader: pieces of its file, by offset."""

    def write(offset: int, data: bytes) -> Deferred[int]:
        """
        Keep a piece.  Fires with the offset at which the sender should go on:
        behind this piece, or elsewhere if it does not fit what is here.
        """

    def finish() -> Deferred[SnapshotMetadata]:
        """
        That was the last.  Fires when the file is checked, durable and
        `latest`; fails with `SnapshotDamaged` if it is not what a node writes,
        and then it has to be sent from the beginning.
        """


class ISnapshotReader(Interface):
    """A snapshot file that is being read; it is not deleted meanwhile."""

    metadata: SnapshotMetadata = Attribute("What it is a snapshot of.")
    size: int = Attribute("The length of the file in bytes.")

    def read(offset: int, size: int) -> Deferred[bytes]:
        """
        At most `size` bytes of the file, for sending it; fewer only at its end.

        They are checked, with all before them.  `SnapshotDamaged` says where
        the file is not what was written, or that it cannot be read; the store
        knows it then.  Who begins again has all of it checked again.
        """

    def restore(machine: IStateMachine) -> Deferred[None]:
        """
        Restore `machine` from it, in steps that keep the reactor for a few
        milliseconds each; fires when that is the state.
        """

    def close() -> None:
        """It may be deleted now."""


class IPeer(Interface):
    """
    Another member, as seen from here.

    Every Deferred fails with `PeerUnreachable` if no answer can be had, at
    once when there is no connection; it always fires within a bounded time.
    """

    member: Member = Attribute("Who it is.")
    connected: bool = Attribute("Whether a handshake has succeeded and the connection stands.")
    refusal: str = Attribute("Why the last handshake was refused, a sentence; or empty.")

    def send(request: Request) -> Deferred[Response]:
        """
        One RPC of Raft; its answer.

        Requests arrive in the order sent, except that an InstallSnapshot, which
        is large, neither delays nor awaits any other.
        """

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
        """
        Ask the peer, as the leader, for a read index (thesis 6.4).

        An error that it answers with; `NoLeader` and `PeerUnreachable`.
        """

    def ask(question: bytes, timeout_ms: int) -> Deferred[bytes]:
        """
        Ask the peer, as the leader, what only its program knows (`INode.ask_leader`).

        An error that it answers with; `NoLeader` and `PeerUnreachable`.
        """

    def change_membership(
        changes: Sequence[Change], force: bool, timeout_ms: int
    ) -> Deferred[Configuration]:
        """
        Ask the peer, as the leader, to change the configuration; the one that results.

        `NoLeader` and `PeerUnreachable` as of `forward`.
        """

    def transfer(successor: MemberId | None, timeout_ms: int) -> Deferred[None]:
        """
        Ask the peer, as the leader, to let another lead; None: whoever it thinks best.

        `NoLeader` and `PeerUnreachable` as of `forward`.
        """

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

    def change_membership(changes: Sequence[Change], force: bool) -> Deferred[Configuration]:
        """
        Change who is a member, and in which role, wherever the leader is; all of
        `changes` together.

        Fires within the request timeout, or a little later, with the
        configuration that results when it is committed; at once if it says
        nothing new.  `ChangeRefused`, or a subclass, says why it may not be;
        `force` overrides only what is refused for want of voters that answer.
        Other outcomes as of `propose`.
        """

    def transfer(successor: MemberId | None) -> Deferred[None]:
        """
        Let another voter lead; None: whoever is best prepared.

        Fires when another leads.  `TransferFailed` if it does not come about,
        `ChangeRefused` if it cannot; other outcomes as of `propose`.
        """

    def read_recent(max_staleness_s: float, done: Done[None]) -> None:
        """
        Like `read`, but writes acknowledged within the last `max_staleness_s`
        seconds may be missing; often answered at once.

        `TooStale` if what is here is older and cannot be confirmed within the
        request timeout; it says how old it is.
        """

    def ask_leader(question: bytes, done: Done[bytes]) -> None:
        """
        What the leader's own program has to say to `question` (`Node.on_question`).

        It may be asked more than once, so a question must change nothing that
        may not be changed twice.  `NoLeader` and the like if it was not
        answered in time, `TooLarge` above `MAX_QUESTION_BYTES`; never
        `OutcomeUnknown`.
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

    def forwarded_question(question: bytes, timeout_ms: int) -> Deferred[bytes]:
        """Answer a question, if this is the leader; `NotLeader` if not."""

    def change_membership(
        changes: Sequence[Change], force: bool, timeout_ms: int, *, forwarded: bool
    ) -> Deferred[Configuration]:
        """
        Change the configuration, here or, unless `forwarded`, at the leader.

        Fires with the configuration that results when it is committed; at once
        if it says nothing new.  Errors as of `Raft.change_membership`.
        """

    def transfer(
        successor: MemberId | None, timeout_ms: int, *, forwarded: bool
    ) -> Deferred[None]:
        """
        Let another voter lead, likewise; fires when another leads.

        `TransferFailed` if it does not come about within an election timeout.
        """


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

    def stream(
        status: int,
        body: IBodySource,
        content_type: bytes,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> IBodySink | None:
        """
        Answer with a body of unknown length.

        A later request of the same connection waits until the body is over.
        None if there is nobody to make it for: the client is gone, or it is a
        HEAD, or the server is stopping, which is then answered 503.
        """


class IBodySink(Interface):
    """Where the body of an answer goes, piece by piece."""

    has_room: bool = Attribute("Whether the transport takes more without keeping much of it.")

    def write(data: bytes) -> None:
        """
        The next piece, not empty.  It is kept in memory until the client takes
        it, so that whoever has much to say asks `has_room` first.
        """

    def finish() -> None:
        """That was all; called once."""

    def abort() -> None:
        """Close the connection, so that the client sees that the body is not complete."""


class IBodySource(Interface):
    """Where the body of an answer comes from."""

    def resume() -> None:
        """There is room again, after there was none."""

    def stop(patient: bool) -> None:
        """
        Nobody wants more; called at most once, and nothing is called after it.

        `patient` false: the client is gone, or did not take anything for too
        long, and nothing can be written.  True: the server is stopping, and
        last words may be written and `finish` called before this returns.
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

        `BadAnswer` if it is no `host:port`, neither the recorded name nor the
        one that the cluster has given to this member since, not an address of
        this machine, beyond loopback without leave, or in use.  Nothing is
        written but such a new name.  After a failure it may be called again.
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
