"""
The other members, as a node talks to them: whom there is a connection to, what
becomes of a request that was sent, and whom a request of a client could reach.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from raftd.core.membership import Configuration
from raftd.core.messages import Member, MemberId, Response
from raftd.core.quorum import has_quorum
from raftd.core.raft import Raft
from raftd.core.ready import Outgoing
from raftd.errors import NoLeader, NoQuorum, NoSpace, RaftdError
from raftd.interfaces import IPeer, ITransport
from raftd.moving import MovingPeer


class Peers:
    """
    A peer for each other member, and for a while for former ones.

    Invariant: `members` has the other members of `followed`, and nobody
    else; `departing` has nobody who is in `members`.
    """

    def __init__(
        self,
        clock: IReactorTime,
        raft: Raft,
        transport: ITransport,
        member: Member,
        request_timeout_s: float,
        *,
        farewell_s: float,
        wake: Callable[[], None],
        defect: Callable[[Failure], None],
    ) -> None:
        """
        `member` is this node.  Former members are let go after `farewell_s`.
        `wake` asks for a turn; `defect` takes the errors that nobody expected.
        """
        self._clock = clock
        self._raft = raft
        self._transport = transport
        self._member = member
        self._request_timeout_s = request_timeout_s
        self._farewell_s = farewell_s
        self._wake = wake
        self._defect = defect
        #: The configuration that `members` is of.
        self.followed = Configuration()
        self.members: dict[MemberId, IPeer] = {}
        #: Former members that may owe answers.
        self.departing: dict[MemberId, IPeer] = {}
        #: When they are let go.
        self._farewells: dict[MemberId, IDelayedCall] = {}
        self._stopped = False

    def stop(self) -> None:
        """The core is told of nothing any more; what is sent yet may still leave."""
        self._stopped = True
        for farewell in self._farewells.values():
            if farewell.active():
                farewell.cancel()

    def close(self) -> list[Deferred[None]]:
        """Disconnect from everybody; each fires when it is done."""
        peers = [*self.members.values(), *self.departing.values()]
        self.members, self.departing = {}, {}
        return [peer.close() for peer in peers]

    # -- who they are --------------------------------------------------------

    def follow_configuration(self) -> None:
        """Have a peer for each other member that the core knows, and for nobody else."""
        self.followed = self._raft.configuration
        others = self.followed.members()
        others.pop(self._member.id, None)
        for member_id in self.members.keys() - others.keys():
            self.departing[member_id] = self.members.pop(member_id)
            self._let_go_later(member_id)
        for member in sorted(others.values()):
            if member.id in self.departing:  # its removal was taken back
                self.members[member.id] = self.departing.pop(member.id)
                self._farewells.pop(member.id).cancel()
            former = self.members.get(member.id)
            if former is None:
                self.members[member.id] = self._transport.peer(member)
            elif former.member != member:
                peer = self._transport.peer(member)
                self.members[member.id] = MovingPeer(
                    former, peer, self._clock, self._request_timeout_s
                )

    def _let_go_later(self, member_id: MemberId) -> None:
        farewell = self._clock.callLater(self._farewell_s, self._let_go, member_id)
        self._farewells[member_id] = farewell

    def _let_go(self, member_id: MemberId) -> None:
        """Disconnect from a former member, unless it still leads."""
        if member_id == self._raft.leader_id:
            self._let_go_later(member_id)
        else:
            del self._farewells[member_id]
            self.departing.pop(member_id).close()

    # -- what they are asked -------------------------------------------------

    def send(self, outgoing: Outgoing) -> None:
        """Send a request of the core; what becomes of it, the core is told."""
        peer = self.members.get(outgoing.to)
        if peer is None:
            self._raft.unreachable(outgoing.to)
            return
        sent = peer.send(outgoing.message)  # type: ignore[arg-type]
        sent.addCallbacks(
            partial(self._answered, outgoing.to), partial(self._lost, outgoing.to)
        )
        sent.addErrback(self._defect)

    def _answered(self, member_id: MemberId, response: Response) -> None:
        if not self._stopped:
            self._raft.receive_response(member_id, response, self._clock.seconds())
            if self._raft.wants_turn:
                self._wake()

    def _lost(self, member_id: MemberId, failure: Failure) -> None:
        failure.trap(RaftdError)
        if self._stopped:
            return
        if failure.check(NoSpace):
            self._raft.lacks_space(member_id, self._clock.seconds())
        else:
            self._raft.unreachable(member_id)
        self._wake()

    # -- whom a request could reach ------------------------------------------

    def leader(self) -> Member | None:
        """Who leads, as far as this node knows, which may be this node."""
        if self._raft.leader_id == self._member.id:
            return self._member
        return self.followed.members().get(self._raft.leader_id)

    def why_not(self) -> RaftdError:
        """Why a request that is still queued could not be carried out."""
        reached = {m for m, peer in self.members.items() if peer.connected} | {self._member.id}
        voters = self.followed.voter_ids()
        leader = self.leader()
        if not voters:
            return NoLeader(f"No leader has reached {self._member.name} yet. Try again.")
        if not has_quorum(self.followed.majorities(), reached):
            return NoQuorum(
                f"{self._member.name} reaches {len(voters & reached)} of {len(voters)} voters, "
                "which is not enough to decide anything; nothing was changed. Try again."
            )
        if leader is None:
            return NoLeader("There is no leader at the moment; nothing was changed. Try again.")
        if leader.id == self._member.id:
            return NoQuorum(
                f"{leader.name} leads, and could not confirm this with the other voters in "
                "time; nothing was changed. Try again."
            )
        return NoLeader(
            f"The leader, {leader.name}, could not be asked in time; nothing was changed. "
            "Try again."
        )
