"""
The key-value server: a data directory, a port, and the node between them.

`Server` takes the steps from one to the other in the order in which the
dialogue, or the options in its place, ask for them.  What each step leaves on
disk is such that a crash at any point only means that the step is taken
again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd import __version__
from raftd.core.membership import Configuration, encode_configuration
from raftd.core.messages import Entry, EntryKind, HardState, Member
from raftd.core.settings import Settings
from raftd.errors import BadAnswer, Fatal, JoinFailed
from raftd.interfaces import IServer, Recovered, Stage
from raftd.joining import ask_to_join, become_voter, pause
from raftd.kv.database import Database
from raftd.kv.store import Store
from raftd.listening import check_exposure, close, listen, resolve
from raftd.names import canonical_name, split_name
from raftd.net.http1 import HTTPFactory
from raftd.net.port import PortFactory
from raftd.node import Node
from raftd.service import NodeService
from raftd.storage.directory import DataDirectory, Identity, draw_id
from raftd.storage.wal import Wal
from raftd.web.routes import Routes, Site

T = TypeVar("T")

#: The term and index of the entry that every cluster begins with.
FIRST_TERM = 1


class ServerOptions(msgspec.Struct, frozen=True):
    """What a server is told besides the answers to its prompts."""

    data_dir: str
    listen: str | None = None
    insecure: bool = False
    heartbeat_interval_ms: int = 100
    election_timeout_ms: int = 600
    request_timeout_ms: int = 5_000


#: Of one step, far above the number of servers that anybody names.
MAX_WAITS_BROKEN_OFF = 1_000


@implementer(IServer)
class Server:
    """
    See `IServer` and `ISetup`, whose promises these methods keep.

    Invariant: the node runs only with a locked directory whose identity is
    durable, and on a port that is bound.
    """

    def __init__(
        self, reactor: Any, options: ServerOptions, on_fatal: Callable[[Fatal], None]
    ) -> None:
        self._reactor = reactor
        self._options = options
        self._on_fatal = on_fatal
        self._directory = DataDirectory(options.data_dir)
        self._name = ""
        #: The step that was begun last.
        self._step: Deferred[Any] | None = None
        self._ports: list[IListeningPort] = []
        self._log: Wal | None = None
        self._store = Store()
        settings = Settings(options.heartbeat_interval_ms, options.election_timeout_ms)
        self._service = NodeService(reactor, settings, options.request_timeout_ms)
        self._routes = Routes(__version__)
        self._http_factory = HTTPFactory(self._routes.handle, reactor)
        self._port_factory = PortFactory(
            self._service.peer_factory, self._http_factory, reactor
        )

    def open(self) -> None:
        """See `IServer.open`."""
        self._directory.open()

    @property
    def stage(self) -> Stage:
        identity = self._directory.identity
        return Stage.NEW if identity is None else identity.stage

    @property
    def recorded_name(self) -> str:
        identity = self._directory.identity
        return "" if identity is None else identity.name

    def _take(self, step: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        """Take a step, which whoever waits for it, or `stop`, can break off."""

        running = Deferred.fromCoroutine(step)
        over = False

        def break_off(taken: Deferred[T]) -> None:
            taken.errback(CancelledError())
            # Part of what it may wait for takes this for a failure, and the
            # step goes on to the next server: until there is none.
            for _ in range(MAX_WAITS_BROKEN_OFF):
                if over:
                    break
                running.cancel()

        def ended(result: T | Failure) -> None:
            nonlocal over
            over = True
            if not taken.called:
                taken.callback(result)

        self._step = taken = Deferred[T](break_off)
        running.addBoth(ended)
        return taken

    # -- the name and its port -------------------------------------------------

    def take_name(self, name: str) -> Deferred[None]:
        """See `ISetup.take_name`."""
        return self._take(self._take_name(name))

    async def _take_name(self, name: str) -> None:
        name = canonical_name(name)
        host, port = split_name(name)
        if self.recorded_name and name != self.recorded_name:
            raise BadAnswer(
                f"This directory belongs to {self.recorded_name}; it cannot be used as {name}."
            )
        if self._options.listen is not None:
            host, port = split_name(self._options.listen)
        pool = self._reactor.getThreadPool()
        addresses = await deferToThreadPool(self._reactor, pool, resolve, host)
        check_exposure(self._options.listen or name, addresses, self._options.insecure)
        await close(self._ports)
        self._ports = listen(self._reactor, addresses, port, self._port_factory)
        self._name = name

    # -- a new cluster ----------------------------------------------------------

    def initialize(self) -> Deferred[None]:
        """See `ISetup.initialize`."""
        return self._take(self._initialize())

    async def _initialize(self) -> None:
        if self._directory.identity is None:
            self._directory.save(
                Identity(Stage.INITIALIZING, self._name, draw_id(), cluster_id=draw_id())
            )
        configuration = Configuration(voters=(self._member(),))
        data = encode_configuration(configuration)
        first = Entry(1, FIRST_TERM, EntryKind.CONFIGURATION, 0, data)
        self._create_log(HardState(FIRST_TERM), (first,))
        self._record(stage=Stage.MEMBER, log_created=True)
        node = self._run_node()
        while node.status().applied_index == 0:
            await pause(self._reactor)

    # -- a new member ------------------------------------------------------------

    def join(self, servers: Sequence[str]) -> Deferred[None]:
        """See `ISetup.join`."""
        return self._take(self._join(tuple(servers)))

    async def _join(self, servers: tuple[str, ...]) -> None:
        recorded = self._directory.identity
        if recorded is not None and recorded.cluster_id:
            # It may be a voter already, and must not be silent while it asks.
            self._run_node()
        if not servers and recorded is not None:
            servers = recorded.join_servers
        if not servers:
            raise JoinFailed("no server to join is recorded.")
        try:
            answer = await ask_to_join(
                self._reactor,
                self._service.endpoint_for,
                servers,
                self._name,
                lambda: self._begin_join(servers),
            )
            self._record(cluster_id=answer.cluster_id, join_servers=servers)
        except JoinFailed:
            # If it is a member, it can go on without the server that let it in.
            if self._service.node is None or not self._service.node.is_member:
                raise
        await become_voter(self._reactor, self._run_node())
        self._record(stage=Stage.MEMBER)

    def _begin_join(self, servers: tuple[str, ...]) -> tuple[Member, int]:
        """An identity and a log, durable before anyone hears of this node."""
        if self._directory.identity is None:
            self._directory.save(
                Identity(Stage.JOINING, self._name, draw_id(), join_servers=servers)
            )
        if not self._identity.log_created:
            self._create_log(HardState(), ())
            self._record(log_created=True)
        return self._member(), self._identity.cluster_id

    # -- a restart ---------------------------------------------------------------

    def recover(self) -> Deferred[Recovered]:
        """See `ISetup.recover`."""
        return self._take(self._recover())

    async def _recover(self) -> Recovered:
        log = self._recovered_log()
        recovered = Recovered(self.recorded_name, log.hard_state.term, len(log.entries))
        self._run_node()
        return recovered

    # -- the log and the node ---------------------------------------------------

    @property
    def _identity(self) -> Identity:
        identity = self._directory.identity
        assert identity is not None, "the directory has been given an identity before"
        return identity

    def _member(self) -> Member:
        return Member(self._identity.member_id, self._identity.name)

    def _record(self, **changes: Any) -> None:
        """Make changes to the identity durable, if they are any."""
        changed = msgspec.structs.replace(self._identity, **changes)
        if changed != self._identity:
            self._directory.save(changed)

    def _create_log(self, hard_state: HardState, entries: Sequence[Entry]) -> None:
        """Whatever log is there holds no promise yet, and is made anew."""
        self._directory.discard_log()
        self._log = Wal.create(
            self._directory.log_path,
            self._identity.member_id,
            hard_state,
            entries,
            reactor=self._reactor,
        )

    def _recovered_log(self) -> Wal:
        if self._log is None:
            self._log = Wal.open(
                self._directory.log_path, self._identity.member_id, reactor=self._reactor
            )
        return self._log

    def _run_node(self) -> Node:
        """The node, started if it is not running."""
        if self._service.node is not None:
            return self._service.node
        node = self._service.start(
            self._member(),
            self._identity.cluster_id,
            self._recovered_log(),
            self._store,
            self._on_fatal,
        )
        self._routes.site = Site(node, Database(node, self._store))
        return node

    def stop(self) -> Deferred[None]:
        """See `IServer.stop`."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._step is not None:
            self._step.cancel()
        ports, self._ports = self._ports, []
        await close(ports)
        # Requests in hand are finished first: they need the node.
        await self._http_factory.stop()
        await self._service.stop()
        await self._port_factory.close_all()
        if self._log is not None and self._service.node is None:
            await self._log.close()
        self._directory.close()
