"""
The answering side: what peers may ask of this node, once they have said who they are.

A connection is answered from a table of handlers, and the handshake decides
the table: before `Hello` it holds nothing else, and then what belongs on that
channel.  The order of requests is kept: each is handed to the node when its
last byte has arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.core import messages
from raftd.core.membership import AddLearner, Change, Rename
from raftd.core.messages import Member, MemberId, Response
from raftd.errors import BadAnswer, NotReady, PeerRefused, ProtocolViolation
from raftd.interfaces import INodeRPC
from raftd.names import split_name
from raftd.net.boxes import BoxConnection
from raftd.net.commands import (
    RAFT,
    AskRequest,
    AskResponse,
    ChangeMembershipRequest,
    ChangeMembershipResponse,
    ForwardRequest,
    ForwardResponse,
    HelloRequest,
    HelloResponse,
    JoinRequest,
    JoinResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    TransferLeadershipRequest,
    TransferLeadershipResponse,
    Words,
)
from raftd.net.handshake import LocalIdentity, answer_hello, is_joiner

#: How long a connection may take to say Hello.
HELLO_TIMEOUT_S = 5.0

#: Connections that have not said Hello yet; the oldest goes when one more comes.
MAX_STRANGERS = 64

#: Joiners that are being answered; the oldest goes when one more comes.
MAX_JOINERS = 64

#: Connections of one member for one channel, each made under another name of this
#: node: more than one while this node is given another name; the oldest goes then.
MAX_NAMES_OF_NODE = 4

#: Names of which the last refusal is remembered, so that each is logged once.
MAX_REFUSALS_REMEMBERED = 256

#: Two nodes have one identity if their connections take the place of one another
#: so many times within this time: one node whose connections break does not,
#: for the other end of a broken connection hears of it, or else only later.
TAKEOVERS_OF_A_COPY = 4
TAKEOVERS_WITHIN_S = 10.0
#: How often that is said.
COPY_REPORT_INTERVAL_S = 60.0

#: The longest time that a peer may ask this node to spend on its request.
MAX_TIMEOUT_MS = 10 * 60 * 1000


class PeerServerFactory(ServerFactory):
    """
    Makes the answering end of every connection from a peer.

    `identity` and `rpc` may be incomplete at first; until both are there,
    every handshake is refused with `NotReady`.  `heard_from`, if set, is
    called with the id of each member whose handshake succeeds: it is up, so
    this is the moment to connect to it.  Connections of members that
    `identity` says were removed are dropped.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self, clock: IReactorTime, identity: LocalIdentity, rpc: INodeRPC | None = None
    ) -> None:
        self.clock = clock
        self.identity = identity
        self.rpc = rpc
        self.heard_from: Callable[[MemberId], None] | None = None
        # In the order they came.
        self._strangers: dict[PeerServer, None] = {}
        # By member, channel, and the name of this node under which it was asked
        # for.  A member that connects again has lost the connection it had
        # before, whatever this end knows of it; but not one under another name.
        self._members: dict[tuple[MemberId, str, str], PeerServer] = {}
        self._joiners: dict[PeerServer, None] = {}
        self._refusals: dict[str, str] = {}
        self._closed = False
        identity.on_removed = self._drop_members

    def buildProtocol(self, addr: IAddress | None) -> PeerServer | None:
        if self._closed:
            return None
        server = PeerServer(self, str(getattr(addr, "host", None) or "a peer"))
        self._strangers[server] = None
        if len(self._strangers) > MAX_STRANGERS:
            next(iter(self._strangers)).abort("too many connections that have not said Hello")
        return server

    def close(self) -> None:
        """Drop every connection, and take no more."""
        self._closed = True
        for server in [*self._strangers, *self._joiners, *self._members.values()]:
            server.drop("the node is shutting down")

    def _drop_members(self, member_ids: Collection[MemberId]) -> None:
        """They were removed; when they connect again they are told."""
        for server in [*self._joiners, *self._members.values()]:
            if server.key[0] in member_ids:
                server.drop("the member was removed from the cluster")

    def greet(self, server: PeerServer, hello: HelloRequest) -> HelloResponse:
        """Answer `hello`, or raise the refusal; see `answer_hello`."""
        try:
            if self.rpc is None:
                raise NotReady(f"{hello.to_name} does not belong to a cluster yet.")
            answer = answer_hello(self.identity, hello)
        except PeerRefused as e:
            self._log_refusal(hello.name, e)
            raise
        self._refusals.pop(hello.name, None)
        del self._strangers[server]
        if is_joiner(hello):
            self._joiners[server] = None
            if len(self._joiners) > MAX_JOINERS:
                next(iter(self._joiners)).abort("too many nodes that want to join")
            return answer
        key = key_of(hello)
        former = self._members.pop(key, None)
        if former is not None:
            former.drop("the peer has made a new connection")
            if hello.channel == RAFT:
                self._look_for_copies(former, server, hello.name)
        under_other_names = [other for other in self._members if other[:2] == key[:2]]
        if len(under_other_names) >= MAX_NAMES_OF_NODE:
            self._members.pop(under_other_names[0]).drop("the peer asks for too many names")
        self._members[key] = server
        if self.heard_from is not None:
            self.heard_from(hello.member_id)
        return answer

    def _look_for_copies(self, former: PeerServer, server: PeerServer, name: str) -> None:
        """
        Whether two nodes connect in turn, each in the place of the other.

        The directory of one was copied then.  Both get as far as this: to
        every rule of the handshake they are the same member.
        """
        now = self.clock.seconds()
        recent = [at for at in former.takeovers if at > now - TAKEOVERS_WITHIN_S]
        server.takeovers = [*recent, now][-TAKEOVERS_OF_A_COPY:]
        server.copies_reported_at = former.copies_reported_at
        if (
            len(server.takeovers) < TAKEOVERS_OF_A_COPY
            or now < server.copies_reported_at + COPY_REPORT_INTERVAL_S
        ):
            return
        server.copies_reported_at = now
        self._log.error(
            "Two nodes have the identity {member_id} and connect in turn: {one} and {other}. "
            "The data directory of one is a copy of the other's. Stop the copy at once: "
            "together they may vote twice, and what was acknowledged can be lost.",
            member_id=f"{former.key[0]:016x}",
            one=f"{former.peer_name} from {former.host}",
            other=f"{name} from {server.host}",
        )

    def forget(self, server: PeerServer) -> None:
        """`server` is closed."""
        self._strangers.pop(server, None)
        self._joiners.pop(server, None)
        if self._members.get(server.key) is server:
            del self._members[server.key]

    def _log_refusal(self, name: str, refusal: PeerRefused) -> None:
        """One line for each change of reason: a refused peer tries again and again."""
        reason = str(refusal)
        if self._refusals.pop(name, None) != reason:
            # While a node joins, the others are often a moment too early.
            log = self._log.info if isinstance(refusal, NotReady) else self._log.warn
            log("Refused a connection of {name}: {reason}", name=name, reason=reason)
        self._refusals[name] = reason
        if len(self._refusals) > MAX_REFUSALS_REMEMBERED:
            del self._refusals[next(iter(self._refusals))]


def key_of(hello: HelloRequest) -> tuple[MemberId, str, str]:
    """Of two connections with the same key, the later one takes the place of the other."""
    return hello.member_id, hello.channel, hello.to_name


class PeerServer(BoxConnection):
    """One connection from a peer, of either channel."""

    def __init__(self, factory: PeerServerFactory, host: str) -> None:
        super().__init__(factory.clock, host, self._report_abort, self._ended)
        self.host = host
        #: Whose connection it is, what for, and to which name; set by the handshake.
        self.key: tuple[MemberId, str, str] = (messages.NOBODY, "", "")
        #: When it, and those before it, took the place of another; see `_look_for_copies`.
        self.takeovers: list[float] = []
        self.copies_reported_at = -math.inf
        self._factory = factory
        self._hello_timer: IDelayedCall | None = None
        self.handlers = {HelloRequest: self._hello}

    def connectionMade(self) -> None:
        super().connectionMade()
        self._hello_timer = self._clock.callLater(
            HELLO_TIMEOUT_S, self.abort, f"no Hello within {HELLO_TIMEOUT_S:.0f} s"
        )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._factory.forget(self)

    def _report_abort(self, reason: str) -> None:
        self._log.warn(
            "Closed a connection of {name}: {reason}.", name=self.peer_name, reason=reason
        )

    def _ended(self, _: BoxConnection) -> None:
        self._cancel(self._hello_timer)
        self._factory.forget(self)

    # -- the handshake -----------------------------------------------------------

    def _hello(self, hello: HelloRequest) -> Deferred[HelloResponse]:
        # Whatever comes of it, there is no second one.
        self.handlers = {}
        self._cancel(self._hello_timer)
        try:
            answer = self._factory.greet(self, hello)
        except PeerRefused as e:
            # The answer goes out when this returns; then the connection ends.
            reason = str(e)
            self._hello_timer = self._clock.callLater(0, self.finish, reason)
            raise
        self.peer_name = hello.name
        self.key = key_of(hello)
        self.greeted = True
        rpc = self._factory.rpc
        assert rpc is not None
        if is_joiner(hello):
            joiner = Member(hello.member_id, hello.name)
            self.handlers = _Joiner(rpc, self._factory.identity, joiner).handlers()
        elif hello.channel == RAFT:
            self.handlers = _RaftChannel(rpc, hello.member_id).handlers()
        else:
            self.handlers = _BulkChannel(rpc, hello.member_id).handlers()
        return succeed(answer)


class _RaftChannel:
    """
    The RPCs of Raft, and read indexes: small, and waited for.

    A read index is not on the other channel because it would wait there
    behind megabytes of forwarded writes.
    """

    def __init__(self, rpc: INodeRPC, sender: MemberId) -> None:
        self._rpc = rpc
        self._sender = sender

    def handlers(self) -> dict[Any, Any]:
        return {
            messages.PreVote: self.receive,
            messages.RequestVote: self.receive,
            messages.AppendEntries: self.receive,
            messages.Heartbeat: self.receive,
            messages.TimeoutNow: self.receive,
            ReadIndexRequest: self.read_index,
        }

    def receive(self, request: messages.Request) -> Deferred[Response]:
        return self._rpc.receive(self._sender, request)

    def read_index(self, request: ReadIndexRequest) -> Deferred[ReadIndexResponse]:
        answer = self._rpc.forwarded_read(_timeout_ms(request.timeout_ms))
        return answer.addCallback(ReadIndexResponse)


class _BulkChannel:
    """What a member sends on for others, to this node as the leader; and snapshots."""

    def __init__(self, rpc: INodeRPC, sender: MemberId) -> None:
        self._rpc = rpc
        self._sender = sender

    def handlers(self) -> dict[Any, Any]:
        return {
            messages.InstallSnapshot: self.receive,
            ForwardRequest: self.forward,
            AskRequest: self.ask,
            ChangeMembershipRequest: self.change_membership,
            TransferLeadershipRequest: self.transfer,
        }

    def receive(self, request: messages.InstallSnapshot) -> Deferred[Response]:
        return self._rpc.receive(self._sender, request)

    def forward(self, request: ForwardRequest) -> Deferred[ForwardResponse]:
        answer = self._rpc.forwarded(request.commands, _timeout_ms(request.timeout_ms))
        return answer.addCallback(ForwardResponse)

    def ask(self, request: AskRequest) -> Deferred[AskResponse]:
        answer = self._rpc.forwarded_question(request.question, _timeout_ms(request.timeout_ms))
        return answer.addCallback(lambda words: AskResponse(Words(words)))

    def change_membership(
        self, request: ChangeMembershipRequest
    ) -> Deferred[ChangeMembershipResponse]:
        for change in request.changes:
            _check_change(change)
        answer = self._rpc.change_membership(
            request.changes, request.force, _timeout_ms(request.timeout_ms), forwarded=True
        )
        return answer.addCallback(ChangeMembershipResponse)

    def transfer(
        self, request: TransferLeadershipRequest
    ) -> Deferred[TransferLeadershipResponse]:
        successor = None if request.successor == messages.NOBODY else request.successor
        answer = self._rpc.transfer(successor, _timeout_ms(request.timeout_ms), forwarded=True)
        return answer.addCallback(lambda _: TransferLeadershipResponse())


class _Joiner:
    """A node that is not a member yet: it may ask to become one, itself and no other."""

    def __init__(self, rpc: INodeRPC, identity: LocalIdentity, joiner: Member) -> None:
        self._rpc = rpc
        self._identity = identity
        self._joiner = joiner

    def handlers(self) -> dict[Any, Any]:
        return {JoinRequest: self.join}

    def join(self, request: JoinRequest) -> Deferred[JoinResponse]:
        if (request.member_id, request.name) != (self._joiner.id, self._joiner.name):
            raise ProtocolViolation("a joiner that asks for somebody else")
        _check_leads_somewhere(request.name)
        # Whoever is asked passes it on to the leader, so `forwarded` is false.
        answer = self._rpc.change_membership(
            [AddLearner(self._joiner)], False, _timeout_ms(request.timeout_ms), forwarded=False
        )
        cluster_id = self._identity.cluster_id
        return answer.addCallback(lambda found: JoinResponse(cluster_id, found))


def _check_change(change: Change) -> None:
    """`ProtocolViolation` if no correct node asks for this change."""
    member_id = change.member.id if isinstance(change, AddLearner) else change.member_id
    if not messages.NOBODY < member_id < 1 << 64:
        raise ProtocolViolation("a change of membership without an id")
    if isinstance(change, AddLearner):
        _check_leads_somewhere(change.member.name)
    elif isinstance(change, Rename):
        _check_leads_somewhere(change.name)


def _check_leads_somewhere(name: str) -> None:
    try:
        split_name(name)
    except BadAnswer as e:
        raise ProtocolViolation(f"the name of a member that leads nowhere: {e}") from None


def _timeout_ms(asked_ms: int) -> int:
    return min(asked_ms, MAX_TIMEOUT_MS)
