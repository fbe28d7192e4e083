"""
The asking side: connections to the other members, kept up for as long as they are members.

Two connections lead to each member, so that bulk never delays a heartbeat:
`raft` carries what elections, commits and reads wait for, `bulk` the rest, snapshots
included.  Nothing is
queued for a member that is not connected: Raft itself repeats what matters,
and what was true when it was queued may not be when it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd.core import messages
from raftd.core.membership import MAX_CHANGES, Change, Configuration
from raftd.core.messages import NOBODY, Member, MemberId, Request, Response
from raftd.errors import (
    NoLeader,
    NotReady,
    PeerRefused,
    PeerUnreachable,
    RaftdError,
    RemovedFromCluster,
    TooLarge,
)
from raftd.interfaces import MAX_QUESTION_BYTES, IPeer, ITransport
from raftd.net.arguments import MAX_FORWARDED_COMMANDS, MAX_PAYLOAD_BYTES
from raftd.net.boxes import BoxConnection, NotSent
from raftd.net.commands import (
    BULK,
    RAFT,
    AskRequest,
    AskResponse,
    ChangeMembershipRequest,
    ChangeMembershipResponse,
    ForwardRequest,
    ForwardResponse,
    HelloResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    TransferLeadershipRequest,
    TransferLeadershipResponse,
    Words,
)
from raftd.net.handshake import LocalIdentity, check_answer, hello_to

#: How long a connection may take to come about, and then the handshake.
CONNECT_TIMEOUT_S = 2.0
HELLO_TIMEOUT_S = 2.0

#: When to try again: soon, because a failover may wait for it; then half as
#: often each time; a refused node at a pace that a person can follow.
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0
RETRY_REFUSED_S = 2.0

#: A connection that lasts this long was a good one: the next retry is soon again.
RETRY_RESET_S = 1.0

#: The peer's disk is in an AppendEntries, and a slow disk is not a lost peer.
APPEND_TIMEOUT_S = 5.0

#: It is in a piece of a snapshot too, which may also come over a slow network.
#: After the last piece the peer reads the whole file again, and flushes it.
SNAPSHOT_PIECE_TIMEOUT_S = 10.0
SNAPSHOT_DONE_TIMEOUT_S = 60.0

#: A call that hands its timeout to the peer waits this much longer for the
#: peer to say that it has run out: a call that times out here costs the
#: connection.
GRACE_S = 1.0

#: What a command takes in a Forward beside itself; more than MessagePack needs.
_COMMAND_OVERHEAD_BYTES = 8


class Connector(Factory):
    """Makes the asking end of one connection."""

    noisy = False

    def __init__(
        self,
        clock: IReactorTime,
        name: str,
        report: Callable[[str], None],
        on_closed: Callable[[BoxConnection], None],
    ) -> None:
        self._arguments = (clock, name, report, on_closed)

    def buildProtocol(self, addr: IAddress | None) -> BoxConnection:
        return BoxConnection(*self._arguments)


class Channel:
    """
    One of the connections to a peer: makes it, greets, and begins again.

    Invariant: it is in exactly one of four states: connecting (`_attempt`),
    greeting (`_greeting`), connected (`connection`), or waiting (`_retry`);
    or it is closed.
    """

    def __init__(self, peer: Peer, kind: str, connected: Callable[[], None]) -> None:
        self.connection: BoxConnection | None = None
        self._peer = peer
        self._kind = kind
        self._connected = connected
        self._attempt: Deferred[IProtocol] | None = None
        self._attempt_timer: IDelayedCall | None = None
        self._greeting: BoxConnection | None = None
        self._retry: IDelayedCall | None = None
        self._retry_delay_s = RETRY_FIRST_S
        self._refused = False
        self._connected_at = 0.0
        self._closed = False

    def connect(self) -> None:
        """Try now, unless it is being tried or done already."""
        if self._closed or self._attempt or self._greeting or self.connection:
            return
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._retry = None
        self._refused = False
        settings, name = self._peer.settings, self._peer.member.name
        factory = Connector(settings.clock, name, self._peer.report, self._lost)
        try:
            attempt = settings.endpoint_for(name).connect(factory)
        except Exception:
            attempt = fail()
        self._attempt = attempt
        self._attempt_timer = settings.clock.callLater(CONNECT_TIMEOUT_S, attempt.cancel)
        attempt.addCallbacks(self._greet, self._not_connected)

    def close(self) -> Deferred[None]:
        """Disconnect for good; fires when the connection is gone."""
        self._closed = True
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        if self._attempt is not None:
            self._attempt.cancel()
        connection = self._greeting or self.connection
        if connection is None:
            return succeed(None)
        connection.drop("this node is closing the connection")
        return connection.disconnected

    # -- from one state to the next -------------------------------------------------

    def _greet(self, connection: IProtocol) -> None:
        self._attempt_is_over()
        assert isinstance(connection, BoxConnection)
        if connection.closed_because:
            self._try_later()
            return
        if self._closed:
            connection.drop("this node is closing the connection")
            return
        self._greeting = connection
        me = self._peer.settings.identity
        assert me.member is not None
        hello = hello_to(me.member, me, self._kind, self._peer.member)
        answer = connection.ask(hello, HELLO_TIMEOUT_S)
        answer.addCallback(self._check, connection)
        answer.addErrback(self._not_greeted, connection)

    def _check(self, answer: HelloResponse, connection: BoxConnection) -> None:
        check_answer(self._peer.settings.identity, self._peer.member, answer)
        self._greeting = None
        self.connection = connection
        self._connected_at = self._peer.settings.clock.seconds()
        self._connected()

    def _not_connected(self, failure: Failure) -> None:
        self._attempt_is_over()
        if not self._closed:
            self._peer.report(explain_connect_failure(failure.value, self._peer.member.name))
            self._try_later()

    def _not_greeted(self, failure: Failure, connection: BoxConnection) -> None:
        reason = connection.closed_because or str(failure.value)
        if isinstance(failure.value, PeerRefused):
            # Somebody who is only not ready yet will be soon.
            self._refused = not isinstance(failure.value, NotReady)
            self._peer.refused(reason, is_passing=not self._refused)
            if isinstance(failure.value, RemovedFromCluster):
                self._peer.settings.on_removed(reason)
        else:
            self._peer.report(reason)
        connection.drop(reason)

    def _lost(self, connection: BoxConnection) -> None:
        """The connection is closed, whoever did it."""
        was_connected = connection is self.connection
        if not was_connected and connection is not self._greeting:
            return
        self.connection = self._greeting = None
        if self._closed:
            return
        if was_connected:
            lasted_s = self._peer.settings.clock.seconds() - self._connected_at
            if lasted_s >= RETRY_RESET_S:
                self._retry_delay_s = RETRY_FIRST_S
            self._peer.lost(connection.closed_because)
        self._try_later()

    def _try_later(self) -> None:
        if self._closed:
            return
        delay_s = self._retry_delay_s
        self._retry_delay_s = min(delay_s * 2, RETRY_MAX_S)
        if self._refused:
            delay_s = RETRY_REFUSED_S
        # Peers that lost one another at the same moment must not meet again
        # and again at the same moment.
        delay_s *= self._peer.settings.random.uniform(0.5, 1.0)
        self._retry = self._peer.settings.clock.callLater(delay_s, self.connect)

    def _attempt_is_over(self) -> None:
        self._attempt = None
        if self._attempt_timer is not None and self._attempt_timer.active():
            self._attempt_timer.cancel()
        self._attempt_timer = None


@implementer(IPeer)
class Peer:
    """Another member, over two channels.  Made by `PeerTransport.peer`."""

    _log = Logger()

    def __init__(self, settings: PeerTransport, member: Member) -> None:
        self.member = member
        self.settings = settings
        self.connected: bool = False
        self.refusal: str = ""
        self._last_report = ""
        self._raft = Channel(self, RAFT, self._raft_connected)
        self._bulk = Channel(self, BULK, lambda: None)
        election_timeout_s = settings.election_timeout_ms / 1000
        self._timeouts_s = {
            messages.PreVote: election_timeout_s,
            # The other's disk is in it; and a late vote does no harm.
            messages.RequestVote: APPEND_TIMEOUT_S,
            messages.Heartbeat: election_timeout_s,
            messages.TimeoutNow: election_timeout_s,
            messages.AppendEntries: APPEND_TIMEOUT_S,
        }

    def connect(self) -> None:
        """Try both channels now, unless they are connected."""
        self._raft.connect()
        self._bulk.connect()

    # -- IPeer ---------------------------------------------------------------------

    def send(self, request: Request) -> Deferred[Response]:
        if isinstance(request, messages.InstallSnapshot):
            connection = self._bulk.connection
            timeout_s = SNAPSHOT_DONE_TIMEOUT_S if request.done else SNAPSHOT_PIECE_TIMEOUT_S
        else:
            connection = self._raft.connection
            timeout_s = self._timeouts_s[type(request)]
        if connection is None:
            return fail(self._unreachable())
        return connection.ask(request, timeout_s)

    def read_index(self, timeout_ms: int) -> Deferred[int]:
        # Not on the bulk channel: it is small, somebody waits for it, and it
        # would wait there behind megabytes of forwarded writes.
        connection = self._raft.connection
        if connection is None:
            return fail(self._unreachable())
        asked: Deferred[ReadIndexResponse] = connection.ask(
            ReadIndexRequest(timeout_ms), _with_grace(timeout_ms)
        )
        return asked.addCallback(lambda answer: answer.read_index)

    def forward(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        size = sum(map(len, commands)) + _COMMAND_OVERHEAD_BYTES * (len(commands) + 1)
        if size > MAX_PAYLOAD_BYTES or len(commands) > MAX_FORWARDED_COMMANDS:
            return fail(
                TooLarge(f"{len(commands)} commands of {size} bytes are too much at once.")
            )
        connection = self._bulk.connection
        sent: Deferred[ForwardResponse] = self._ask_leader(
            ForwardRequest([*commands], timeout_ms), timeout_ms
        )

        def check(answer: ForwardResponse) -> list[bytes | RaftdError]:
            if len(answer.outcomes) != len(commands):
                assert connection is not None
                connection.abort("a Forward was answered with another number of outcomes")
                raise PeerUnreachable(f"{self.member.name} gave no answer that can be used.")
            return answer.outcomes

        return sent.addCallback(check)

    def ask(self, question: bytes, timeout_ms: int) -> Deferred[bytes]:
        if len(question) > MAX_QUESTION_BYTES:
            return fail(TooLarge(f"A question of {len(question)} bytes is too much."))
        asked: Deferred[AskResponse] = self._ask_leader(
            AskRequest(Words(question), timeout_ms), timeout_ms
        )
        return asked.addCallback(lambda response: response.answer)

    def change_membership(
        self, changes: Sequence[Change], force: bool, timeout_ms: int
    ) -> Deferred[Configuration]:
        if len(changes) > MAX_CHANGES:
            return fail(TooLarge(f"{len(changes)} changes are too many at once."))
        asked: Deferred[ChangeMembershipResponse] = self._ask_leader(
            ChangeMembershipRequest([*changes], force, timeout_ms), timeout_ms
        )
        return asked.addCallback(lambda answer: answer.configuration)

    def transfer(self, successor: MemberId | None, timeout_ms: int) -> Deferred[None]:
        asked: Deferred[TransferLeadershipResponse] = self._ask_leader(
            TransferLeadershipRequest(successor or NOBODY, timeout_ms), timeout_ms
        )
        return asked.addCallback(lambda _: None)

    def close(self) -> Deferred[None]:
        self.connected = False
        self.settings.forget(self)
        closed = gatherResults([self._raft.close(), self._bulk.close()])
        return closed.addCallback(lambda _: None)

    def _ask_leader(self, request: msgspec.Struct, timeout_ms: int) -> Deferred[Any]:
        """Ask on the bulk channel; `NoLeader` if nothing was sent."""
        connection = self._bulk.connection
        if connection is None:
            return fail(self._not_sent())
        return connection.ask(request, _with_grace(timeout_ms)).addErrback(self._explain)

    def _explain(self, failure: Failure) -> Failure:
        return Failure(self._not_sent()) if isinstance(failure.value, NotSent) else failure

    def _unreachable(self) -> PeerUnreachable:
        return PeerUnreachable(self.refusal or f"{self.member.name} is not connected.")

    def _not_sent(self) -> NoLeader:
        return NoLeader(
            f"The leader, {self.member.name}, cannot be reached at the moment; "
            "nothing was changed."
        )

    # -- what the channels say ---------------------------------------------------------

    def report(self, reason: str, *, is_passing: bool = False) -> None:
        """Log why there is no connection, once for each change of reason."""
        if reason != self._last_report:
            self._last_report = reason
            log = self._log.info if is_passing else self._log.warn
            log("No connection to {name}: {reason}", name=self.member.name, reason=reason)

    def refused(self, reason: str, *, is_passing: bool) -> None:
        """A handshake was refused; perhaps only a moment too early."""
        self.refusal = reason
        self.report(reason, is_passing=is_passing)

    def lost(self, reason: str) -> None:
        """A connection that had been greeted is closed."""
        self.connected = self._raft.connection is not None
        self.report(reason)

    def _raft_connected(self) -> None:
        self.connected = True
        self.refusal = ""
        self._last_report = ""
        self._log.info("Connected to {name}", name=self.member.name)


@implementer(ITransport)
class PeerTransport:
    """
    Makes peers.

    `endpoint_for` turns the name of a member into where to connect to; it may
    raise.  `random` spreads retries.  `election_timeout_ms` is how long votes
    and heartbeats may take: after that, their answers are of no use.

    `on_removed`, if set, is called with a sentence, perhaps more than once,
    when a member of this cluster says that this node was removed from it.
    There is no way back, so the first to say so is believed: a member says it
    only of what is committed, and only after it has made sure that cluster
    and member are those that were meant.
    """

    def __init__(
        self,
        clock: IReactorTime,
        identity: LocalIdentity,
        endpoint_for: Callable[[str], IStreamClientEndpoint],
        random: Random,
        election_timeout_ms: int,
    ) -> None:
        self.clock = clock
        self.identity = identity
        self.endpoint_for = endpoint_for
        self.random = random
        self.election_timeout_ms = election_timeout_ms
        self.on_removed: Callable[[str], None] = lambda reason: None
        self._peers: dict[MemberId, Peer] = {}

    def peer(self, member: Member) -> IPeer:
        """See `ITransport`; this node's own identity must be complete."""
        if not self.identity.is_ready:
            raise ValueError("a node that is in no cluster has no peers")
        peer = self._peers[member.id] = Peer(self, member)
        peer.connect()
        return peer

    def connect_now(self, member_id: MemberId) -> None:
        """Do not wait any longer to connect to this member: it is up."""
        peer = self._peers.get(member_id)
        if peer is not None:
            peer.connect()

    def forget(self, peer: Peer) -> None:
        """`peer` is closed."""
        if self._peers.get(peer.member.id) is peer:
            del self._peers[peer.member.id]


def explain_connect_failure(error: BaseException | None, name: str) -> str:
    """Why nothing answers at `name`, as a sentence for a person."""
    if isinstance(error, ConnectionRefusedError):
        return f"nothing is listening at {name}."
    if isinstance(error, DNSLookupError):
        return f"the host of {name} is not known."
    if isinstance(error, TimeoutError | ConnectingCancelledError | CancelledError):
        return f"{name} does not answer."
    if isinstance(error, ConnectError):
        return f"{name} cannot be reached: {error.osError or error}."
    return f"{name} cannot be reached: {error}."


def _with_grace(timeout_ms: int) -> float:
    return timeout_ms / 1000 + GRACE_S
