"""
Hosts, and the process on each: a whole node, put together as `raftd.replica` does it.

What a process is made of is what ships: node, log, snapshots, sessions,
idempotency keys, and the store with all that runs beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from raftd.core.membership import Configuration, encode_configuration
from raftd.core.messages import Entry, EntryKind, HardState, Member
from raftd.errors import DirectoryDamaged, Fatal, Removed, StorageFailed
from raftd.events import Event, MembershipChanged, SnapshotRestored, SnapshotTaken
from raftd.node import FAREWELL_S, Node
from raftd.sessions import Sessions
from raftd.storage.snapshots import SnapshotStore
from raftd.storage.wal import Wal
from raftd.store_service import StoreOptions, StoreService
from raftd.test.cores import check
from raftd.test.simulation.disk import (
    LOG,
    SNAPSHOTS,
    Crashed,
    DiskWorker,
    Durable,
    HostDisk,
    WatchedLog,
)
from raftd.test.simulation.net import SimulatedTransport
from raftd.test.simulation.promises import WatchedNode
from raftd.test.simulation.world import ProcessClock

if TYPE_CHECKING:
    from raftd.test.simulation.run import Simulation

CLUSTER_ID = 1
#: After a start that the disk has refused, the next one comes so much later.
RETRY_START_S = 0.5
#: A node whose disk could not flush must have stopped by then, in its own time.
STOP_WITHIN_S = 0.5


class Host:
    """
    A machine with a disk, and at most one process.

    `process` is None while it is down.  `durable` is what its log has promised.
    """

    def __init__(self, simulation: Simulation, member: Member) -> None:
        self.simulation = simulation
        self.member = member
        self.disk = HostDisk(simulation.world)
        self.durable = Durable(HardState(), ())
        self.process: Process | None = None
        self.incarnation = 0
        #: It was removed from the cluster, and will not start again.
        self.is_removed = False
        #: It has refused to start with files that are not what it wrote.
        self.is_damaged = False
        self._restarts = 0

    @property
    def id(self) -> int:
        return self.member.id

    @property
    def name(self) -> str:
        return f"n{self.member.id}"

    @property
    def leads(self) -> bool:
        """Whether its node takes itself for the leader."""
        return self.process is not None and self.process.node._raft.leadership is not None

    def install(self, configuration: Configuration | None) -> None:
        """An empty disk, or one with the log that a cluster begins with."""
        hard_state, entries = HardState(), ()
        if configuration is not None:
            data = encode_configuration(configuration)
            hard_state = HardState(1)
            entries = (Entry(1, 1, EntryKind.CONFIGURATION, 0, data),)  # type: ignore[assignment]
        world, plan = self.simulation.world, self.simulation.plan
        clock: Any = ProcessClock(world, 1.0, 0.0, lambda: None)
        Wal.create(
            LOG,
            self.id,
            hard_state,
            entries,
            reactor=clock,
            segment_bytes=plan.segment_bytes,
            files=self.disk,
            start_worker=lambda name: DiskWorker(clock, self.disk),
            random_source=Random(f"salt {plan.seed} {self.id}").randbytes,
        )
        self.disk = self.disk.after_kill()
        self.durable = Durable(hard_state, entries)

    def start(self) -> None:
        """Start the process, unless it runs or may not."""
        if self.process is not None or self.is_removed or self.is_damaged:
            return
        if not self.simulation.is_faulty:
            self.restore()
        self.incarnation += 1
        disk = self.disk
        try:
            process = self.process = Process(self)
            process.start()
        except Crashed:
            pass
        except DirectoryDamaged as e:
            self.refuse(e)
        except StorageFailed as e:
            check(disk.refused > 0, f"{self.name} cannot start: {e}")
            self.simulation.note(f"{self.name} cannot start: {e}")
            self.die()
            self.restart_in(RETRY_START_S)

    def refuse(self, reason: DirectoryDamaged) -> None:
        """It will not run with what it has found; somebody has to see to it."""
        simulation = self.simulation
        simulation.require(
            self.disk.is_damaged(str(reason)), f"{self.name} refuses what it wrote: {reason}"
        )
        simulation.note(f"{self.name} refuses: {reason}")
        simulation.count("damage refused")
        self.die()
        if simulation.is_faulty:
            self.is_damaged = True
            simulation.faults.damaged(self)
        else:
            self.restart_in(RETRY_START_S)

    def restore(self) -> None:
        """Its disk is what it was, and it can be started."""
        self.disk.restore()
        self.is_damaged = False

    def restart_in(self, delay_s: float) -> None:
        self._restarts += 1
        self.simulation.world.callLater(delay_s, self._restart, self._restarts)

    def _restart(self, number: int) -> None:
        if number == self._restarts:
            self.start()

    def crash_at_operation(self, count: int, power_lost: bool, down_s: float) -> None:
        """Crash ahead of the disk operation that many from now on, and come back."""
        if self.disk.crash_in is None:
            self.disk.crash_in = count
            self.disk.on_crash = partial(self.crash, power_lost, down_s)

    def crash(self, power_lost: bool, down_s: float) -> None:
        """The process is gone, now, and comes back after a while."""
        self.simulation.note(f"{self.name} {'loses power' if power_lost else 'is killed'}")
        self.die(power_lost)
        self.restart_in(down_s)

    def die(self, power_lost: bool = False) -> None:
        """The process is gone; of the disk there is what is left."""
        simulation, process = self.simulation, self.process
        if process is not None:
            self.process = None
            process.clock.is_dead = True
            simulation.network.ended(self.id, power_lost=power_lost)
            simulation.clients.lost(process)
        if power_lost:
            self.disk = self.disk.after_power_loss(simulation.world.random)
        else:
            self.disk = self.disk.after_kill()

    def stop(self, down_s: float) -> None:
        """Stop in order, and come back."""
        process = self.process
        if process is None or process.is_stopping:
            return
        process.is_stopping = True
        self.simulation.note(f"{self.name} is stopped")

        def stopped(_: object) -> None:
            if self.process is process:
                process.service.stop()
                self.die()
                self.restart_in(down_s)

        process.clock.enter(lambda: process.node.stop().addBoth(stopped))


class Machine(Sessions):
    """The state machine of a process; of each snapshot it is noted what it is of."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.service.machine)
        self._process = process

    def snapshot(self) -> Iterator[bytes]:
        self._process.simulation.invariants.snapshot_begins(self._process)
        if self._process.snapshots.is_damaged:
            self._process.simulation.count("snapshot replaced")
        return super().snapshot()


class Process:
    """One start of a node."""

    def __init__(self, host: Host) -> None:
        self.host = host
        simulation = self.simulation = host.simulation
        plan, world = simulation.plan, simulation.world
        rate = plan.rate(host.id, host.incarnation)
        self.clock = ProcessClock(world, rate, plan.creep_s, partial(simulation.look, self))
        self.service = StoreService(
            self.reactor,
            StoreOptions(
                election_timeout_ms=plan.options.election_timeout_ms,
                check_interval_s=plan.check_interval_s,
            ),
        )
        self.machine = Machine(self)
        self.is_stopping = False
        self.workers: list[DiskWorker] = []
        self.node: Node
        self.snapshots: SnapshotStore
        simulation.network.clocks[host.id] = self.clock

    @property
    def reactor(self) -> Any:
        """Its clock, for who asks for a reactor."""
        return self.clock

    @property
    def store(self) -> Any:
        return self.service.store

    def _worker(self, name: str) -> DiskWorker:
        worker = DiskWorker(self.clock, self.host.disk)
        self.workers.append(worker)
        return worker

    def start(self) -> None:
        host, simulation = self.host, self.simulation
        plan, disk = simulation.plan, host.disk
        log = Wal.open(
            LOG,
            host.id,
            reactor=self.reactor,
            segment_bytes=plan.segment_bytes,
            files=disk,
            start_worker=self._worker,
        )
        host.durable.recovered(log)
        snapshots = self.snapshots = SnapshotStore(
            SNAPSHOTS, self.reactor, files=disk, start_worker=self._worker
        )
        snapshots.recover(self.machine, log.base_index, log.entries)
        settings, network = plan.options.settings(), simulation.network
        transport = SimulatedTransport(network, host.id, settings.election_timeout_s)
        self.node = node = WatchedNode(
            self.reactor,
            member=host.member,
            cluster_id=CLUSTER_ID,
            storage=WatchedLog(log, host.durable, disk),
            snapshots=snapshots,
            transport=transport,
            state_machine=self.machine,
            random=Random(f"node {plan.seed} {host.id} {host.incarnation}"),
            settings=settings,
            request_timeout_s=plan.options.request_timeout_ms / 1000,
            snapshot_threshold_bytes=plan.options.snapshot_threshold_bytes,
            on_fatal=self._fatal,
        )
        node.host = host
        transport.on_removed = lambda reason: node.fail(Removed(reason))
        node.observe(self._observe)
        network.began(host.id, node)
        simulation.invariants.started(self)
        node.start()
        self.service.run(node)
        simulation.note(f"{host.name} starts in term {log.hard_state.term}")

    def _observe(self, event: Event) -> None:
        simulation = self.simulation
        if isinstance(event, SnapshotTaken):
            simulation.count("snapshot taken")
        elif isinstance(event, SnapshotRestored):
            simulation.count("snapshot installed")
            simulation.invariants.restored(self)
        elif isinstance(event, MembershipChanged):
            configuration, host = event.configuration, self.host
            network = simulation.network
            if configuration.removed:
                self.clock.callLater(
                    FAREWELL_S, network.turn_away, host.id, configuration.removed
                )
            host.member = configuration.members().get(host.id, host.member)

    def _fatal(self, reason: Fatal) -> None:
        """The node has stopped by itself: its process ends."""
        host, simulation = self.host, self.simulation
        if isinstance(reason, DirectoryDamaged):
            host.refuse(reason)
            return
        expected = isinstance(reason, Removed) or (
            isinstance(reason, StorageFailed) and host.disk.refused > 0
        )
        simulation.require(expected, f"{host.name} has stopped: {reason!r}")
        simulation.note(f"{host.name} has stopped: {reason.code}")
        if isinstance(reason, Removed):
            host.is_removed = True
            simulation.invariants.removed(host)
        host.die()
        if not host.is_removed:
            host.restart_in(RETRY_START_S)

    def check_stopped(self) -> None:
        """A node must not go on for long after a flush of its log has failed."""
        failed_at = self.host.disk.failed_at
        if failed_at is not None and not self.clock.is_stopped:
            late = self.simulation.world.now - failed_at > STOP_WITHIN_S
            check(
                not late or self.is_stopping, f"{self.host.name} goes on after a failed flush"
            )
