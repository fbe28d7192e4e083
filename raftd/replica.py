"""
A member of a cluster inside a Twisted program: a data directory, a node, and
the state machine that the program gives it.

    replica = Replica(reactor, "data", Counter())
    await replica.start("localhost:4001")                            # a new cluster, or
    await replica.start("localhost:4002", join=["localhost:4001"])   # into that one
    print(await replica.propose(b"1"))

Started again with the same arguments, it goes on where it was.  What each
step leaves on disk is such that a crash at any point only means that the
step is taken again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IDelayedCall,
    IListeningPort,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.bursts import Burst
from raftd.clock import warn_unless_monotonic
from raftd.core.membership import (
    Configuration,
    configurations_in,
    encode_configuration,
)
from raftd.core.messages import Entry, EntryKind, HardState, Member
from raftd.core.settings import Settings
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import BadAnswer, Fatal, JoinFailed, Removed, Stopped, StorageFailed
from raftd.events import Event, MembershipChanged
from raftd.handle import Handle
from raftd.interfaces import IStateMachine, Recovered, Stage
from raftd.joining import Probe, ask_to_join, become_member, confirm_name, pause
from raftd.listening import check_exposure, close, listen, resolve
from raftd.names import canonical_name, split_name
from raftd.net.amp import PeerServerFactory
from raftd.net.handshake import LocalIdentity
from raftd.net.peers import CONNECT_TIMEOUT_S, PeerTransport
from raftd.node import FAREWELL_S, Node
from raftd.session_client import Session
from raftd.sessions import Sessions
from raftd.snapshotting import DEFAULT_THRESHOLD_BYTES, write_snapshot
from raftd.steps import begin
from raftd.storage.directory import DataDirectory, Identity, draw_id
from raftd.storage.snapshots import SnapshotStore
from raftd.storage.wal import Wal

T = TypeVar("T")

#: Of the entry, or the snapshot, that every cluster begins with.
FIRST_INDEX = 1
FIRST_TERM = 1


class ReplicaOptions(msgspec.Struct, frozen=True):
    """
    The timing and the bounds of a member; the same for all, by convention.

    Intervals in milliseconds.  A snapshot is taken at the latest when the log
    has grown by `snapshot_threshold_bytes`, and by the size of the last one
    (`raftd.snapshotting.LEAST_SHARE`); this many entries stay in the log behind
    it for members that are slow.
    """

    heartbeat_interval_ms: int = 100
    election_timeout_ms: int = 600
    request_timeout_ms: int = 5_000
    snapshot_threshold_bytes: int = DEFAULT_THRESHOLD_BYTES
    snapshot_tail_entries: int = 10_000
    #: See `docs/reads.md` for what leases assume.
    lease_reads: bool = False

    def settings(self) -> Settings:
        """What the core needs of it."""
        return Settings(
            self.heartbeat_interval_ms,
            self.election_timeout_ms,
            self.snapshot_tail_entries,
            self.lease_reads,
        )


class Replica(Handle):
    """
    Invariant: the node runs only with a locked directory whose identity and
    log are durable.

    `peer_factory` answers the other members.  `listen` puts it on a port of
    its own; a program with a port of its own lets it build the protocol of
    each connection that begins with a zero byte (AMP).
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        data_dir: str,
        state_machine: IStateMachine,
        options: ReplicaOptions | None = None,
        *,
        on_running: Callable[[Node], None] | None = None,
        on_fatal: Callable[[Fatal], None] | None = None,
        probe: Probe | None = None,
    ) -> None:
        """
        `on_running` is called as soon as there is a node.  `on_fatal` is called
        when it has stopped because going on would put data at risk, or because
        it was removed; by default it is logged.
        `probe` looks at a server before joining it, for better sentences.
        """
        super().__init__()
        warn_unless_monotonic(reactor)
        self._reactor = reactor
        #: What all connections of this member take part in.
        self.burst = Burst(reactor)
        self._options = options or ReplicaOptions()
        self._on_running = on_running or (lambda node: None)
        self._on_fatal = on_fatal or (lambda reason: None)
        self._probe = probe
        self._machine = Sessions(state_machine)
        self._directory = DataDirectory(data_dir)
        self._wal: Wal | None = None
        self._snapshots: SnapshotStore | None = None
        self._ports: list[IListeningPort] = []
        #: The step that was begun last, and whether it is too late for any.
        self._step: Deferred[Any] | None = None
        self._is_stopping = False
        #: What the log calls this member until it has the change of its name.
        self._former_name = ""
        #: When the members that were removed last are turned away.
        self._farewell: IDelayedCall | None = None
        self._peer_identity = LocalIdentity()
        self.peer_factory = PeerServerFactory(reactor, self._peer_identity)

    # -- the directory -----------------------------------------------------------

    def open(self) -> None:
        """
        Lock the data directory and see how far it has come; `start` does so itself.

        `DirectoryInUse`, `DirectoryDamaged`, or `BadAnswer` if it cannot be one.
        """
        self._directory.open()

    @property
    def stage(self) -> Stage:
        """How far the directory has come."""
        return self._directory.stage

    @property
    def recorded_name(self) -> str:
        """Whose directory it is; empty if it is nobody's yet."""
        identity = self._directory.identity
        return "" if identity is None else identity.name

    def check_name(self, name: str) -> Deferred[None]:
        """
        Make sure that the directory may be used as `name`: it is nobody's, or
        belongs to that member.

        It may have been given that name while it was down: the other members
        are asked, and it is recorded.  `BadAnswer` if it is no name, or not
        its own, or if nobody could say so.
        """
        return self._take(self._check_name(name))

    async def _check_name(self, name: str) -> None:
        name = canonical_name(name)
        if name == self.recorded_name or not self.recorded_name:
            return
        if self.stage is not Stage.MEMBER:
            raise BadAnswer(
                f"This directory belongs to {self.recorded_name}; it cannot be used as {name}."
            )
        me = self._member()
        # Before it takes part: it may be the copy of a directory, and a second
        # node under one id could give a second vote.
        await confirm_name(
            self._reactor,
            self._endpoint_for,
            self._known_names(),
            me,
            name,
            self._identity.cluster_id,
        )
        self._former_name = me.name
        self._record(name=name)
        self._log.info("{old} is called {name} now.", old=me.name, name=name)

    def _known_names(self) -> list[str]:
        """The names of the other members, as far as the disk knows; the latest first."""
        log = self._recovered_log()
        newest = self._recovered_snapshots(log).latest
        known = [] if newest is None else [newest.configuration]
        known += [configuration for _, configuration in configurations_in(log.entries)]
        names = dict.fromkeys(
            member.name
            for configuration in reversed(known)
            for member in configuration.members().values()
            if member.id != self._identity.member_id
        )
        return list(names)

    # -- all at once ---------------------------------------------------------------

    def start(
        self,
        name: str,
        join: Sequence[str] = (),
        *,
        learner: bool = False,
        insecure: bool = False,
        listen: bool = True,
    ) -> Deferred[None]:
        """
        Become a member called `name`, or go on being one; fires when it serves.

        In a new directory: of a new cluster, or, with `join`, of the one that
        has these members.  `listen` false: the program puts `peer_factory` on a
        port itself, before.  Errors as of the single steps; `Stopped` if `stop`
        was called meanwhile.
        """
        return self._take(self._start(name, join, learner, insecure, listen))

    async def _start(
        self, name: str, join: Sequence[str], learner: bool, insecure: bool, listen: bool
    ) -> None:
        self.open()
        await self._check_name(name)
        if listen:
            await self._listen(name, insecure)
        if self.stage is Stage.MEMBER:
            await self._recover()
        elif self.stage is Stage.JOINING or join:
            await self._join(name, join, learner)
        else:
            await self._initialize(name)

    def _take(self, step: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        """Take a step, which `stop` breaks off."""
        taken = self._step = begin(step)

        def ended(result: T | Failure) -> T | Failure:
            if isinstance(result, Failure) and self._is_stopping:
                result.trap(CancelledError, Stopped)
                raise Stopped("This node is stopping.")
            return result

        return taken.addBoth(ended)

    def listen(self, name: str, *, insecure: bool = False) -> Deferred[None]:
        """
        Listen for other members where `name` leads, and for nothing else.

        `BadAnswer` if that is not possible, or, unless `insecure`, if others
        than this machine could connect: nothing is encrypted.
        """
        return self._take(self._listen(name, insecure))

    async def _listen(self, name: str, insecure: bool) -> None:
        host, port = split_name(name)
        pool = self._reactor.getThreadPool()
        addresses = await deferToThreadPool(self._reactor, pool, resolve, host)
        check_exposure(name, addresses, insecure)
        self._ports = listen(self._reactor, addresses, port, self.peer_factory, self.burst)

    # -- a new cluster -------------------------------------------------------------

    def initialize(self, name: str, *, with_state: bool = False) -> Deferred[None]:
        """
        For NEW and INITIALIZING: become a new cluster of one.

        `with_state`: it begins with what the state machine holds already, as
        one that was restored from a backup; if that was broken off, it has to
        be asked for again, else `BadAnswer`.
        """
        return self._take(self._initialize(name, with_state))

    async def _initialize(self, name: str, with_state: bool = False) -> None:
        identity = self._directory.identity
        if identity is None:
            name = canonical_name(name)
            identity = Identity(
                Stage.INITIALIZING,
                name,
                draw_id(),
                cluster_id=draw_id(),
                restoring=with_state,
            )
            self._directory.save(identity)
        elif identity.restoring and not with_state:
            raise BadAnswer(
                "This directory was to become a cluster that begins with a backup, and that "
                "was broken off: say again which, or begin in another directory."
            )
        self._record(restoring=with_state)
        configuration = Configuration(voters=(self._member(),))
        self._directory.discard_log()
        if with_state:
            await self._create_snapshot(
                SnapshotMetadata(FIRST_INDEX, FIRST_TERM, configuration, 0)
            )
            self._create_log(HardState(FIRST_TERM), (), (FIRST_INDEX, FIRST_TERM))
        else:
            data = encode_configuration(configuration)
            first = Entry(FIRST_INDEX, FIRST_TERM, EntryKind.CONFIGURATION, 0, data)
            self._create_log(HardState(FIRST_TERM), (first,))
        self._record(stage=Stage.MEMBER, log_created=True, restoring=False)
        node = self._run_node()
        while node.status().applied_index == 0:
            await pause(self._reactor)

    # -- a new member --------------------------------------------------------------

    def join(
        self, name: str, servers: Sequence[str], *, learner: bool = False
    ) -> Deferred[None]:
        """
        For NEW and JOINING: join the cluster of `servers`, or of those recorded.

        Fires when this node is a voter, or a learner, whose log has caught
        up.  `JoinFailed` says why not; it may then be called again.
        """
        return self._take(self._join(name, servers, learner))

    async def _join(self, name: str, servers: Sequence[str], learner: bool) -> None:
        name, asked = canonical_name(name), tuple(map(canonical_name, servers))
        recorded = self._directory.identity
        if recorded is not None and recorded.cluster_id:
            # It may be a voter already, and must not be silent while it asks.
            self._run_node()
        if not asked and recorded is not None:
            asked = recorded.join_servers
        if not asked:
            raise JoinFailed("no server to join is recorded.")
        try:
            answer = await ask_to_join(
                self._reactor,
                self._endpoint_for,
                asked,
                name,
                lambda: self._begin_join(name, asked),
                self._probe,
            )
            self._record(cluster_id=answer.cluster_id, join_servers=asked)
        except JoinFailed:
            # If it is a member, it can go on without the server that let it in.
            if self._node is None or not self._node.is_member:
                raise
        await become_member(self._reactor, self._run_node(), learner=learner)
        self._record(stage=Stage.MEMBER)

    def _begin_join(self, name: str, servers: tuple[str, ...]) -> tuple[Member, int]:
        """An identity and a log, durable before anyone hears of this node."""
        if self._directory.identity is None:
            self._directory.save(Identity(Stage.JOINING, name, draw_id(), join_servers=servers))
        if not self._identity.log_created:
            self._directory.discard_log()
            self._create_log(HardState(), ())
            self._record(log_created=True)
        return self._member(), self._identity.cluster_id

    # -- a restart -----------------------------------------------------------------

    def recover(self) -> Deferred[Recovered]:
        """For MEMBER: start from what the directory holds."""
        return self._take(self._recover())

    async def _recover(self) -> Recovered:
        log = self._recovered_log()
        recovered = Recovered(self.recorded_name, log.hard_state.term, len(log.entries))
        self._run_node()
        return recovered

    # -- the log and the node ------------------------------------------------------

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

    def _create_log(
        self, hard_state: HardState, entries: Sequence[Entry], base: tuple[int, int] = (0, 0)
    ) -> None:
        """Whatever log was there held no promise, and has been discarded."""
        self._wal = Wal.create(
            self._directory.log_path,
            self._identity.member_id,
            hard_state,
            entries,
            base=base,
            reactor=self._reactor,
        )

    async def _create_snapshot(self, metadata: SnapshotMetadata) -> None:
        """The first snapshot of a cluster, of what the state machine holds."""
        snapshots = SnapshotStore(self._directory.snapshots_path, self._reactor)
        snapshots.recover(self._machine)
        await write_snapshot(
            self._reactor,
            snapshots.create(metadata),
            self._machine.snapshot(),
            # Nobody is served yet.
            lambda: deferLater(self._reactor, 0, lambda: True),
        )
        self._snapshots = snapshots

    def _recovered_log(self) -> Wal:
        if self._wal is None:
            self._wal = Wal.open(
                self._directory.log_path, self._identity.member_id, reactor=self._reactor
            )
        return self._wal

    def _recovered_snapshots(self, log: Wal) -> SnapshotStore:
        if self._snapshots is None:
            snapshots = SnapshotStore(self._directory.snapshots_path, self._reactor)
            snapshots.recover(self._machine, log.base_index, log.entries)
            self._snapshots = snapshots
        return self._snapshots

    def _endpoint_for(self, name: str) -> IStreamClientEndpoint:
        """Where the member called `name` listens."""
        host, port = split_name(name)
        return HostnameEndpoint(self.burst.connecting, host, port, timeout=CONNECT_TIMEOUT_S)

    def _run_node(self) -> Node:
        """The node, started if it is not running."""
        if self._node is not None:
            return self._node
        log = self._recovered_log()
        snapshots = self._recovered_snapshots(log)
        clock: IReactorTime = self._reactor
        random = Random()  # begun by the system's
        member, options = self._member(), self._options
        self._peer_identity.member = member
        self._peer_identity.cluster_id = self._identity.cluster_id
        transport = PeerTransport(
            clock,
            self._peer_identity,
            self._endpoint_for,
            random,
            options.election_timeout_ms,
        )
        self._node = node = Node(
            clock,
            member=member,
            cluster_id=self._identity.cluster_id,
            storage=log,
            snapshots=snapshots,
            transport=transport,
            state_machine=self._machine,
            random=random,
            settings=options.settings(),
            request_timeout_s=options.request_timeout_ms / 1000,
            snapshot_threshold_bytes=options.snapshot_threshold_bytes,
            on_fatal=self._on_fatal,
            soon=self.burst.soon,
        )
        transport.on_removed = lambda reason: node.fail(Removed(reason))
        self._peer_identity.removed = frozenset(node.committed_configuration.removed)
        node.on_question = self.on_question
        node.observe(self._follow_membership)
        self.peer_factory.rpc = node
        self.peer_factory.heard_from = transport.connect_now
        node.start()
        self._on_running(node)
        return node

    def _follow_membership(self, event: Event) -> None:
        """Turn removed members away, and note this member's own new name for a restart."""
        if not isinstance(event, MembershipChanged):
            return
        configuration = event.configuration
        removed = frozenset(configuration.removed)
        news = removed != self._peer_identity.removed
        if news and self._farewell is None and not self._is_stopping:
            # Not at once: it may be the leader, with answers to give.
            self._farewell = self._reactor.callLater(FAREWELL_S, self._turn_away)
        me = configuration.members().get(self._identity.member_id)
        if me is None or me.name == self._former_name:
            return
        self._former_name = ""
        if me.name != self._identity.name:
            try:
                self._record(name=me.name)
            except StorageFailed as e:
                # As on a full disk.  Under its new name it will ask the others for it.
                self._log.error("The new name is not recorded: {reason}", reason=str(e))
            self._log.warn(
                "This member is called {name} now: start it again under that name.",
                name=me.name,
            )

    def _turn_away(self) -> None:
        self._farewell = None
        self._peer_identity.removed = frozenset(self.node.committed_configuration.removed)

    def open_session(self) -> Deferred[Session]:
        """A session, for operations that must be applied exactly once (thesis 6.3)."""
        return Session.open(self.node, self._reactor)

    def stop(self) -> Deferred[None]:
        """Hand leadership over, flush, disconnect and unlock; fires when that is done."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._is_stopping = True
        if self._step is not None:
            self._step.cancel()
        if self._farewell is not None:
            self._farewell.cancel()
            self._farewell = None
        ports, self._ports = self._ports, []
        await close(ports)
        if self._node is not None:
            await self._node.stop()
        else:
            if self._snapshots is not None:
                await self._snapshots.close()
            if self._wal is not None:
                await self._wal.close()
        self.peer_factory.close()
        self._directory.close()
