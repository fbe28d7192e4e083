"""
A cluster of key-value servers in memory, for tests of programs on `raftd.client`.

    cluster = StoreCluster(3, seed=1)
    leader = cluster.await_leader()
    client = cluster.client()
    cluster.result(client.put("greeting", "hello"))
    cluster.crash(leader)
    assert cluster.result(client.get("greeting")).value == b"hello"

It is `raftd.testing.Cluster`, with the store that ships and with its HTTP:
what the client sends goes through the client's own code, connections in
memory, and the server's own code.  See `docs/testing.md`.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from raftd import __version__
from raftd.client import Client
from raftd.client.client import TIMEOUT_S
from raftd.core.messages import MemberId
from raftd.idempotency import Idempotency
from raftd.memory_streams import MemoryEndpoint
from raftd.net.http1 import HTTPFactory
from raftd.node import Node
from raftd.replica import ReplicaOptions
from raftd.store_service import StoreOptions, StoreService
from raftd.testing import PATIENCE_S, Cluster
from raftd.web.routes import Routes, Site

T = TypeVar("T")

#: Where all of them listen.
PORT = 4001
#: The addresses of clients: no member's id comes so far.
_FIRST_CLIENT = 1_000_000


class _Server(NamedTuple):
    """What one start of a node has beside the node."""

    service: StoreService
    routes: Routes
    http: HTTPFactory


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """How one client connects."""

    def __init__(self, cluster: StoreCluster, me: MemberId) -> None:
        self._cluster = cluster
        self._me = me

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See `IAgentEndpointFactory`."""
        cluster, name = self._cluster, uri.host.decode("ascii")

        def listening() -> IProtocolFactory | None:
            server = cluster.servers.get(name) if uri.port == PORT else None
            return None if server is None else server.http

        target = cluster.members[name].id
        return MemoryEndpoint(cluster.network, self._me, target, listening)


class StoreCluster(Cluster[Idempotency]):
    """
    Nodes `n1`, `n2`, ... with a store each, and clients `c1`, `c2`, ...

    Everything of `Cluster` is here; `partition` takes the names of clients,
    too.  `services[name].database` is the store as the node itself sees it.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        options: ReplicaOptions | None = None,
        store: StoreOptions | None = None,
    ) -> None:
        """`store` is what the leader does for the store, and `options` is of the nodes."""
        self.servers: dict[str, _Server] = {}
        self.clients: dict[str, Client] = {}
        self._addresses: dict[str, MemberId] = {}
        self._store_options = msgspec.structs.replace(
            store or StoreOptions(),
            election_timeout_ms=(options or ReplicaOptions()).election_timeout_ms,
        )
        self._made: StoreService | None = None
        super().__init__(size, self._make, seed=seed, options=options)

    @property
    def services(self) -> dict[str, StoreService]:
        """The stores of the nodes that run."""
        return {name: server.service for name, server in self.servers.items()}

    def _make(self) -> Idempotency:
        self._made = service = StoreService(self.clock, self._store_options)
        return service.machine

    def _start(self, name: str) -> Node:
        node = super()._start(name)
        service, self._made = self._made, None
        assert service is not None
        service.run(node)
        routes = Routes(__version__, self.clock)
        routes.site = Site(node, service.database)
        http = HTTPFactory(routes.handle, self.clock, self.clock.seconds)
        self.servers[name] = _Server(service, routes, http)
        return node

    def _dies(self, name: str, node: Node, *, kept: int = 0, power_lost: bool = False) -> None:
        server = self.servers.pop(name)
        # The connections go first: what comes of requests is told to nobody.
        super()._dies(name, node, kept=kept, power_lost=power_lost)
        server.service.stop()

    def stop(self, name: str) -> None:
        """Stop a node in order, as `Cluster.stop`: requests in hand are finished first."""
        server = self.servers.pop(name)
        server.routes.watching.stop()
        self.result(server.http.stop())
        super().stop(name)
        server.service.stop()

    def _address(self, name: str) -> MemberId:
        address = self._addresses.get(name)
        return super()._address(name) if address is None else address

    # -- clients ---------------------------------------------------------------------

    def client(self, *names: str, timeout_s: float = TIMEOUT_S) -> Client:
        """
        A client that knows these nodes, or all that there are by now.

        Its own name is `c1`, `c2` and so on, in the order of these calls.
        """
        number = len(self.clients) + 1
        self._addresses[f"c{number}"] = me = _FIRST_CLIENT + number
        client = self.clients[f"c{number}"] = Client(
            self.clock,
            [f"{name}:{PORT}" for name in names or self.members],
            timeout_s=timeout_s,
            endpoints=_Endpoints(self, me),
            draw=self.random.random,
        )
        return client

    def start(self, coroutine: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        """Begin a coroutine; what it comes to."""
        return Deferred.fromCoroutine(coroutine)

    def run(
        self, coroutine: Coroutine[Deferred[Any], Any, T], timeout_s: float = PATIENCE_S
    ) -> T:
        """What a coroutine comes to, letting time pass until it does; its error is raised."""
        return self.result(self.start(coroutine), timeout_s)
