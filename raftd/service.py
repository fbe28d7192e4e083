"""
Assembling a node: storage, peers and a state machine around a core, on a
reactor of the caller's choice.
"""

from __future__ import annotations

from collections.abc import Callable
from random import SystemRandom
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

from raftd.clock import warn_unless_monotonic
from raftd.core.messages import Member
from raftd.core.settings import Settings
from raftd.errors import Fatal
from raftd.interfaces import ILogStorage, IStateMachine
from raftd.names import split_name
from raftd.net.amp import PeerServerFactory
from raftd.net.handshake import LocalIdentity
from raftd.net.peers import CONNECT_TIMEOUT_S, PeerTransport
from raftd.node import Node


class NodeService:
    """
    A node and its side of the conversation with the other members.

    `peer_factory` answers them; it can be listened with before the node is
    started, and refuses everybody until then.
    """

    def __init__(self, reactor: Any, settings: Settings, request_timeout_ms: int) -> None:
        warn_unless_monotonic(reactor)
        self._reactor = reactor
        self._settings = settings
        self._request_timeout_s = request_timeout_ms / 1000
        self._identity = LocalIdentity()
        self.peer_factory = PeerServerFactory(reactor, self._identity)
        self.node: Node | None = None

    def endpoint_for(self, name: str) -> IStreamClientEndpoint:
        """Where the member called `name` listens."""
        host, port = split_name(name)
        return HostnameEndpoint(self._reactor, host, port, timeout=CONNECT_TIMEOUT_S)

    def start(
        self,
        member: Member,
        cluster_id: int,
        storage: ILogStorage,
        state_machine: IStateMachine,
        on_fatal: Callable[[Fatal], None],
    ) -> Node:
        """Start the node with what `storage` has recovered, and let peers in."""
        clock: IReactorTime = self._reactor
        random = SystemRandom()
        self._identity.member, self._identity.cluster_id = member, cluster_id
        transport = PeerTransport(
            clock,
            self._identity,
            self.endpoint_for,
            random,
            self._settings.election_timeout_ms,
        )
        self.node = node = Node(
            clock,
            member=member,
            cluster_id=cluster_id,
            storage=storage,
            transport=transport,
            state_machine=state_machine,
            random=random,
            settings=self._settings,
            request_timeout_s=self._request_timeout_s,
            on_fatal=on_fatal,
        )
        self.peer_factory.rpc = node
        self.peer_factory.heard_from = transport.connect_now
        node.start()
        return node

    def stop(self) -> Deferred[Any]:
        """Refuse peers and stop the node, if it was started; fires when it has."""
        self.peer_factory.close()
        return succeed(None) if self.node is None else self.node.stop()
