"""
What a message says about its sender is on the sender's disk when it leaves.

A promise that is not kept yet is found when it is made, and not only when a
crash happens to break it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftd.core.messages import (
    AppendEntriesResponse,
    HardState,
    MemberId,
    Message,
    PreVote,
    PreVoteResponse,
    RequestVote,
    RequestVoteResponse,
)
from raftd.core.ready import Ready
from raftd.node import Node

if TYPE_CHECKING:
    from raftd.test.simulation.hosts import Host


class WatchedNode(Node):
    """The node that ships, each of whose turns is looked at."""

    host: Host

    def _carry_out(self, ready: Ready) -> None:
        check_promises(self.host, self, ready)
        super()._carry_out(ready)


def check_promises(host: Host, node: Node, ready: Ready) -> None:
    """Before anything of a turn is done: what is said, and what is applied, is durable."""
    require = host.simulation.require
    for out in ready.messages:
        _check(host, node, out.message, out.to)
    for entry in ready.committed:
        require(host.durable.holds(entry), f"{host.name} applies {entry.index} too early")


def _check(host: Host, node: Node, message: Message, to: MemberId) -> None:
    require, durable = host.simulation.require, host.durable.hard_state
    if isinstance(message, PreVote | PreVoteResponse):
        return
    term = message.term
    require(term <= durable.term, f"{host.name} speaks of term {term} before it is durable")
    if isinstance(message, RequestVote):
        own = durable == HardState(term, host.id)
        require(own, f"{host.name} asks for votes before its own is durable")
    elif isinstance(message, RequestVoteResponse) and message.granted:
        given = durable == HardState(term, to)
        require(given, f"{host.name} gives a vote before it is durable")
    elif isinstance(message, AppendEntriesResponse) and message.success:
        _check_holds(host, node, message)


def _check_holds(host: Host, node: Node, message: AppendEntriesResponse) -> None:
    """The last entry that is acknowledged is on the disk, and with it those before."""
    raft, last = node._raft, message.match_index
    if message.term == raft.term and raft.log.base_index < last:
        require = host.simulation.require
        require(last <= raft.log.last_index, f"{host.name} acknowledges what it has not")
        (entry,) = raft.log.entries(last, last)
        require(
            host.durable.holds(entry), f"{host.name} acknowledges {last} before it is durable"
        )
