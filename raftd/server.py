"""
The key-value server: a replica of the store, and one port for peers and HTTP.

It is a user of `raftd.replica` like any other, and takes its steps in the
order in which the dialogue, or the options in its place, ask for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from zope.interface import implementer

from raftd import __version__
from raftd.errors import Fatal
from raftd.interfaces import IServer, Recovered, Stage
from raftd.listening import check_exposure, close, listen, resolve
from raftd.names import canonical_name, split_name
from raftd.net.http1 import HTTPFactory
from raftd.net.port import PortFactory
from raftd.node import Node
from raftd.probing import probe
from raftd.replica import Replica, ReplicaOptions
from raftd.steps import begin
from raftd.store_service import StoreOptions, StoreService
from raftd.web.routes import MAX_BODY_BYTES_AT, Routes, Site

T = TypeVar("T")


class ServerOptions(msgspec.Struct, frozen=True):
    """What a server is told besides the answers to its prompts."""

    data_dir: str
    listen: str | None = None
    insecure: bool = False
    learner: bool = False
    #: A backup for a new cluster to begin with, and how many revisions further.
    restore: str | None = None
    restore_ahead: int = 0
    replica: ReplicaOptions = ReplicaOptions()
    #: The election timeout in it is taken from `replica`.
    store: StoreOptions = StoreOptions()


@implementer(IServer)
class Server:
    """See `IServer` and `ISetup`, whose promises these methods keep."""

    def __init__(
        self, reactor: Any, options: ServerOptions, on_fatal: Callable[[Fatal], None]
    ) -> None:
        self._reactor = reactor
        self._options = options
        self._name = ""
        #: The step that was begun last.
        self._step: Deferred[Any] | None = None
        self._ports: list[IListeningPort] = []
        election_timeout_ms = options.replica.election_timeout_ms
        self._store = StoreService(
            reactor,
            msgspec.structs.replace(options.store, election_timeout_ms=election_timeout_ms),
        )
        self._replica = Replica(
            reactor,
            options.data_dir,
            self._store.machine,
            options.replica,
            on_running=self._show,
            on_fatal=on_fatal,
            probe=probe,
        )
        self._routes = Routes(__version__, reactor)
        self._http_factory = HTTPFactory(
            self._routes.handle, reactor, max_body_bytes_at=MAX_BODY_BYTES_AT
        )
        self._port_factory = PortFactory(
            self._replica.peer_factory, self._http_factory, reactor
        )

    def open(self) -> None:
        """See `IServer.open`."""
        self._replica.open()

    @property
    def stage(self) -> Stage:
        return self._replica.stage

    @property
    def recorded_name(self) -> str:
        return self._replica.recorded_name

    def _take(self, step: Deferred[T]) -> Deferred[T]:
        """Keep a step that was begun, which `stop` can break off."""
        self._step = step
        return step

    def take_name(self, name: str) -> Deferred[None]:
        """See `ISetup.take_name`."""
        return self._take(begin(self._take_name(name)))

    async def _take_name(self, name: str) -> None:
        name = canonical_name(name)
        await self._replica.check_name(name)
        host, port = split_name(self._options.listen or name)
        pool = self._reactor.getThreadPool()
        addresses = await deferToThreadPool(self._reactor, pool, resolve, host)
        check_exposure(self._options.listen or name, addresses, self._options.insecure)
        await close(self._ports)
        self._ports = listen(
            self._reactor, addresses, port, self._port_factory, self._replica.burst
        )
        self._name = name

    def initialize(self) -> Deferred[None]:
        """See `ISetup.initialize`."""
        return self._take(begin(self._initialize()))

    async def _initialize(self) -> None:
        path = self._options.restore
        if path is not None:
            self._store.restore(path, self._options.restore_ahead)
        await self._replica.initialize(self._name, with_state=path is not None)

    def join(self, servers: Sequence[str]) -> Deferred[None]:
        """See `ISetup.join`."""
        joining = self._replica.join(self._name, servers, learner=self._options.learner)
        return self._take(joining)

    def recover(self) -> Deferred[Recovered]:
        """See `ISetup.recover`."""
        return self._take(self._replica.recover())

    def _show(self, node: Node) -> None:
        """Let the store's duties begin, and HTTP see the node."""
        self._store.run(node)
        self._routes.site = Site(node, self._store.database)

    def stop(self) -> Deferred[None]:
        """See `IServer.stop`."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._step is not None:
            self._step.cancel()
        ports, self._ports = self._ports, []
        await close(ports)
        # Requests in hand are finished first: they need the node.
        self._routes.watching.stop()
        await self._http_factory.stop()
        await self._replica.stop()
        self._store.stop()
        await self._port_factory.close_all()
