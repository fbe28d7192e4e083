"""
The way of a new node into a cluster.

    probe -> Join (a learner) -> catch up -> Promote (a voter) -> voter, applied

Each step is idempotent under the node's id, so a join that was broken off
anywhere begins again from the front.  Until the node itself asks for its vote
it counts for no quorum.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import deferLater

from raftd.core.membership import Promote
from raftd.core.messages import Member
from raftd.errors import (
    BadAnswer,
    ChangeInProgress,
    ChangeRefused,
    Fatal,
    JoinFailed,
    NoLeaderYet,
    NotCaughtUp,
    RaftdError,
    RemovedFromCluster,
)
from raftd.net.join import JoinAnswer, request_join
from raftd.node import Node

#: Where to connect to for a name.
EndpointFor = Callable[[str], IStreamClientEndpoint]
#: Looks at a server before it is asked: `JoinFailed` if it cannot help, or
#: `NoLeaderYet` if it may in a moment.
Probe = Callable[[Any, str, IStreamClientEndpoint], Awaitable[object]]

#: How long a cluster may take to elect a leader before the join is given up.
LEADER_PATIENCE_S = 5.0
#: How long a server may take to answer Join, an election included.
JOIN_TIMEOUT_S = 10.0
#: How long no entry may arrive, while catching up, before the join is given up.
STALL_TIMEOUT_S = 15.0
#: How often to look whether a step has come to its end.
POLL_INTERVAL_S = 0.05
#: Entries that a member may have to apply yet when it asks for a vote: what it
#: applies in a tenth of a second.  With more, it would be counted for quorums and
#: might be elected, and then nobody would be served until all is applied.
MAX_UNAPPLIED = 10_000
#: How long one request to be promoted may take.
PROMOTE_TIMEOUT_MS = 5_000


async def ask_to_join(
    reactor: IReactorTime,
    endpoint_for: EndpointFor,
    servers: Sequence[str],
    name: str,
    prepare: Callable[[], tuple[Member, int]],
    probe: Probe | None,
) -> JoinAnswer:
    """
    Become a learner, called `name`, of the cluster of `servers`, tried in order.

    `prepare` makes this node's identity durable and returns it, with the id of
    its cluster or 0; it is called before anybody is asked, and not before
    there is somebody to ask.  `JoinFailed` with what each server said.
    """
    reasons = []
    for server in servers:
        try:
            if server == name:
                raise JoinFailed(f"{server} is this node itself.")
            if probe is not None:
                await _probe_for_leader(reactor, server, endpoint_for, probe)
            member, cluster_id = prepare()
            return await request_join(
                reactor, endpoint_for(server), server, member, cluster_id, JOIN_TIMEOUT_S
            )
        except Fatal:
            raise
        except RaftdError as e:
            reasons.append(str(e))
    raise JoinFailed(" ".join(dict.fromkeys(reasons)))


async def confirm_name(
    reactor: IReactorTime,
    endpoint_for: EndpointFor,
    servers: Sequence[str],
    me: Member,
    name: str,
    cluster_id: int,
) -> None:
    """
    Make sure that the cluster calls the member `me` by another `name` now.

    `servers` are the other members, or were once; they are asked in order, and
    the leader answers.  `BadAnswer` if it is not so, or if none could say.
    """
    mine = f"This directory belongs to {me.name}"
    renaming = f'PATCH /members/{me.name} with {{"name": "{name}"}}'
    if not servers:
        raise BadAnswer(
            f"{mine}, the only member of its cluster; it cannot be used as {name}. Start it "
            f"as {me.name}, and give it the new name then: {renaming}."
        )
    reasons = []
    for server in servers:
        # To join under the name that one has already changes nothing.
        renamed = Member(me.id, name)
        try:
            await request_join(
                reactor, endpoint_for(server), server, renamed, cluster_id, JOIN_TIMEOUT_S
            )
            return
        except RemovedFromCluster as e:
            raise BadAnswer(f"{mine}. {e}") from None
        except ChangeInProgress as e:
            reasons.append(str(e))
        except ChangeRefused as e:
            raise BadAnswer(
                f"{mine}; it cannot be used as {name}. {e} To move a member, give it its new "
                f"name first, at any member that runs: {renaming}."
            ) from None
        except RaftdError as e:
            reasons.append(str(e))
    raise BadAnswer(
        f"{mine}, and no other member could say whether it is called {name} now. "
        f"{' '.join(dict.fromkeys(reasons))} Try again; or start it as {me.name}, listening "
        "at its new address: it takes note of its new name by itself."
    )


async def _probe_for_leader(
    reactor: IReactorTime, server: str, endpoint_for: EndpointFor, probe: Probe
) -> None:
    """Probe until there is a leader, for the time that an election may take."""
    give_up_at = reactor.seconds() + LEADER_PATIENCE_S
    while True:
        try:
            await probe(reactor, server, endpoint_for(server))
            return
        except NoLeaderYet:
            if reactor.seconds() >= give_up_at:
                raise
        await pause(reactor)


async def become_member(reactor: IReactorTime, node: Node, *, learner: bool) -> None:
    """
    Catch up, ask for a vote, and return when the entry that gives it is applied.

    A learner asks for none: it returns when it has caught up.

    `JoinFailed` when the leader does not reach this node, or refuses.
    """
    progress, stalled_at = -1, 0.0
    while not (node.is_settled_learner if learner else node.is_settled_voter):
        status = node.status()
        if status.last_index + status.applied_index > progress:
            progress = status.last_index + status.applied_index
            stalled_at = reactor.seconds() + STALL_TIMEOUT_S
        elif reactor.seconds() >= stalled_at:
            raise JoinFailed(_why_stalled(node))
        unapplied = status.commit_index - status.applied_index
        has_begun = status.leader is not None and status.commit_index > 0
        if not learner and has_begun and unapplied <= MAX_UNAPPLIED:
            # Whether it has received enough, the leader knows best.
            await _ask_for_vote(node)
        await pause(reactor)


async def _ask_for_vote(node: Node) -> None:
    try:
        promotion = [Promote(node.member.id)]
        await node.change_membership(promotion, timeout_ms=PROMOTE_TIMEOUT_MS)
    except (NotCaughtUp, ChangeInProgress):
        pass  # a little later, then
    except ChangeRefused as e:
        raise JoinFailed(str(e)) from None
    except RaftdError:
        # The leader may have changed, or the answer may have been lost: the
        # log will tell, and asking again does no harm.
        pass


def _why_stalled(node: Node) -> str:
    name = node.member.name
    if node.status().leader is None:
        return (
            f"no leader has reached this node at {name} for {STALL_TIMEOUT_S:.0f} s. "
            f"Can the other members connect to {name}?"
        )
    return f"the leader has sent nothing for {STALL_TIMEOUT_S:.0f} s."


def pause(reactor: IReactorTime) -> Deferred[None]:
    """Fires after one polling interval."""
    return deferLater(reactor, POLL_INTERVAL_S, lambda: None)
