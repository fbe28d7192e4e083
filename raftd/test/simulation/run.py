"""One seed, from its first event to the verdict."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Collection

import msgspec
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from raftd.core.leader import SNAPSHOT_RETRY_TIMEOUTS
from raftd.core.membership import Configuration
from raftd.core.messages import Member
from raftd.core.raft import Role
from raftd.disk import SPACE_RETRY_S
from raftd.test.judge import history_of, judge
from raftd.test.simulation.clients import Clients
from raftd.test.simulation.faults import Faults
from raftd.test.simulation.hosts import Host, Process
from raftd.test.simulation.invariants import Invariants
from raftd.test.simulation.net import SimulatedNetwork
from raftd.test.simulation.plan import Plan
from raftd.test.simulation.world import World

#: When nothing goes wrong any more, there is a leader within so many election
#: timeouts, by the slowest clock.  Who hears of no leader waits for one to two of
#: them, drawn at random: 0.6 to 1.2 s.  Messages take 2 ms, so one round in some
#: twenty is split, and three in a row are less than one in some thousands; each of
#: these must then be at its longest.  PreVote adds no round: who has heard of a leader
#: refuses for one timeout, and nobody asks sooner.
LEADER_WITHIN_TIMEOUTS = 6
#: All have what it has within so many more.  That takes a few messages, or a snapshot;
#: but a term begun before may come to be known only now, and the leader step down for
#: it: an election more, and one round of that may be split.
AGREE_WITHIN_TIMEOUTS = 4
#: How long clients go on when there is a leader again, in seconds.
PEACE_S = 0.7
#: By then whatever a client waits for has come, or run into its time.
CLIENTS_END_S = 5.0
#: How often it is looked whether something has come about.
STEP_S = 0.05
#: More work than this for the judge is no verdict, and so a failure.
MAX_CONFIGURATIONS = 300_000


class Outcome(msgspec.Struct):
    """What became of a seed."""

    seed: int
    violation: str = ""
    simulated_s: float = 0.0
    events: int = 0
    faults: dict[str, int] = {}
    elections: int = 0
    judged: int = 0
    checks: int = 0
    trace: int = 0
    #: The last of what has happened.
    notes: list[str] = []
    #: The numbers of the faults that it was run with; None for all.
    only: list[int] | None = None


@implementer(ILogObserver)
class _Log:
    """Errors that nobody has handled are found here."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.errors.append(repr(event["log_failure"].value))


class Simulation:
    """
    A cluster, its clients, and what befalls it.

    - `is_faulty`: things go wrong
    - `is_active`: clients begin operations
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.world = World(plan.seed)
        self.network = SimulatedNetwork(self.world)
        self.network.max_delay_s = plan.max_delay_s
        self.network.loss = plan.loss
        self.network.duplication = plan.duplication
        self.hosts: list[Host] = []
        self.counts = self.world.counts
        self.is_faulty = self.is_active = self.is_watched = True
        self.invariants = Invariants(self)
        self.clients = Clients(self)
        self.faults = Faults(self)
        self.judged = 0
        #: When the disk of a node that ran was full for the last time: the node looks
        #: for room now and then, and is sent a snapshot again some time later.
        self.space_since_s = -math.inf

    # -- for its parts ---------------------------------------------------------

    def note(self, text: str) -> None:
        self.world.note(text)

    def count(self, what: str, times: int = 1) -> None:
        self.counts[what] += times

    def require(self, holds: bool, rule: str) -> None:
        self.world.require(holds, rule)

    def look(self, process: Process) -> None:
        """After each event of a process."""
        self.invariants.look(process)
        process.check_stopped()

    def while_faulty(self, delay_s: float, act: Callable[[], object]) -> None:
        """Call `act` later, unless all has been made well by then."""

        def later() -> None:
            if self.is_faulty:
                act()

        self.world.callLater(delay_s, later)

    def make_room(self, host: Host) -> None:
        """Its disk is not full any more."""
        # A node that starts later finds that at once; one that was removed has ended.
        if host.disk.room is not None and host.process is not None:
            self.space_since_s = self.world.now
        host.disk.room = None

    def processes(self) -> list[Process]:
        return [host.process for host in self.hosts if host.process is not None]

    def add_host(self) -> Host:
        """A new host, which is no member yet."""
        host = self._new_host()
        host.install(None)
        host.start()
        return host

    def _new_host(self) -> Host:
        number = len(self.hosts) + 1
        host = Host(self, Member(number, f"n{number}"))
        self.hosts.append(host)
        self.invariants.host_added(host)
        return host

    # -- a run -----------------------------------------------------------------

    def run(self) -> None:
        """`AssertionError` if something does not hold."""
        log = _Log()
        globalLogPublisher.addObserver(log)
        try:
            self._begin()
            self.world.run(self.plan.faulty_s)
            self._make_well()
            self._await_leader()
            self._await_all()
            self.world.run(self.world.now + PEACE_S)
            self.is_active = False
            self.world.run(self.world.now + CLIENTS_END_S)
            self._await_agreement()
            self._check_end()
            gc.collect()  # so that errors that nobody has taken are logged
            self.require(not log.errors, f"errors were logged: {log.errors[:3]}")
        finally:
            globalLogPublisher.removeObserver(log)

    def _begin(self) -> None:
        hosts = [self._new_host() for _ in range(self.plan.size)]
        configuration = Configuration(voters=tuple(host.member for host in hosts))
        for host in hosts:
            host.install(configuration)
        for host in hosts:
            host.start()
        self.clients.start()
        for fault in self.plan.faults:
            self.world.callLater(fault.at, self.faults.befall, fault)

    def _make_well(self) -> None:
        """From here on nothing goes wrong."""
        self.note("all is made well")
        self.is_faulty = False
        network = self.network
        network.loss = network.duplication = 0.0
        network.max_delay_s = 0.002
        network.traps.clear()
        network.heal()
        for host in self.hosts:
            disk, process = host.disk, host.process
            self.make_room(host)
            disk.crash_in, disk.fails_flush = None, ""
            disk.slowness = 1.0
            if process is not None:
                for worker in process.workers:
                    worker.hurry()
                if process.clock.is_stopped:
                    process.clock.go_on()
        network.reset_broken()
        for host in self.hosts:
            # Who runs is given nothing back: what it reads yet it has to see to itself.
            if host.process is None:
                host.restore()
            host.start()

    # -- what must come about ----------------------------------------------------

    def _within(
        self, timeouts: float, condition: Callable[[], bool], what: str, retry_timeouts: int = 0
    ) -> None:
        """`retry_timeouts` is how much longer it may take behind a disk that was full."""
        slowest_rate = self.plan.slowest_rate
        timeout_s = self.plan.options.election_timeout_ms / 1000 / slowest_rate
        retry_s = max(SPACE_RETRY_S / slowest_rate, retry_timeouts * timeout_s)
        end = max(self.world.now, self.space_since_s + retry_s) + timeouts * timeout_s
        while not condition():
            self.require(self.world.now < end, f"not within {timeouts} timeouts: {what}")
            self.world.run(self.world.now + STEP_S)

    def _members(self) -> list[Process]:
        """Of the last committed configuration; none if one of them does not run."""
        running = {process.host.id: process for process in self.processes()}
        if not running:
            return []
        newest = max(running.values(), key=lambda process: process.node._raft.commit_index)
        configuration = newest.node.committed_configuration
        ids = configuration.members().keys()
        if configuration.is_joint or not ids <= running.keys():
            return []
        return [running[member_id] for member_id in ids]

    def _await_leader(self) -> None:
        def is_led() -> bool:
            members = self._members()
            leaders = {process.node._raft.leader_id for process in members}
            return len(leaders) == 1 and any(
                process.node._raft.role is Role.LEADER
                and process.node._raft.log.term_at(process.node._raft.commit_index)
                == process.node._raft.term
                for process in members
            )

        self._within(LEADER_WITHIN_TIMEOUTS, is_led, "a leader that all members follow")

    def _await_all(self) -> None:
        """All members have whatever any of them has now."""
        last = max(process.node._raft.commit_index for process in self.processes())

        def have_all() -> bool:
            members = self._members()
            return bool(members) and all(p.node._applier.applied_index >= last for p in members)

        what = f"all members have applied {last}"
        self._within(AGREE_WITHIN_TIMEOUTS, have_all, what, SNAPSHOT_RETRY_TIMEOUTS)

    def _await_agreement(self) -> None:
        def is_agreed() -> bool:
            members = self._members()
            found = {
                (p.node._raft.log.last_index, p.node._applier.applied_index) for p in members
            }
            return len(found) == 1 and all(last == applied for last, applied in found)

        what = "all members have applied the same"
        self._within(AGREE_WITHIN_TIMEOUTS, is_agreed, what, SNAPSHOT_RETRY_TIMEOUTS)

    def _check_end(self) -> None:
        members = self._members()
        digests = {process.machine.digest() for process in members}
        self.require(len(digests) == 1, "the members' states differ in the end")
        for process in members:
            status = process.service.database.status().digest
            self.require(not status.differs_index, f"{process.host.name} finds that it differs")
        revision = members[0].store.revision
        self.require(self.clients.revision <= revision, "an acknowledged revision is lost")
        # The watches of members know it all; others may be with one who was never let in.
        for watcher in self.clients.watchers:
            watcher.move_to(members[-1])
        self.world.run(self.world.now + 10 * STEP_S)
        for watcher in self.clients.watchers:
            watcher.check_complete(revision)
        self._judge()

    def _judge(self) -> None:
        judgement = judge(history_of(self.clients.lines), MAX_CONFIGURATIONS)
        self.judged = judgement.operations
        text = "; ".join(judgement.reasons[:3])
        self.require(judgement.is_good, f"the history is {judgement.verdict.value}: {text}")


def run_seed(seed: int, only: Collection[int] | None = None) -> Outcome:
    """Run a seed, with all its faults or `only` those with these numbers."""
    # When garbage is found must not depend on what ran before.
    gc.disable()
    simulation = Simulation(Plan(seed, only))
    outcome = Outcome(seed)
    try:
        simulation.run()
    except Exception as e:
        said = str(e) if isinstance(e, AssertionError) else repr(e)
        outcome.violation = simulation.world.violation or said or repr(e)
        outcome.notes = list(simulation.world.notes)
    finally:
        gc.enable()
    _report(simulation, outcome)
    return outcome


def _report(simulation: Simulation, outcome: Outcome) -> None:
    world, counts = simulation.world, simulation.counts
    network = simulation.network
    counts["message lost"] += network.lost
    counts["message twice"] += network.duplicated
    outcome.simulated_s = world.now
    outcome.events = world.events
    outcome.faults = {kind: count for kind, count in sorted(counts.items()) if count}
    outcome.elections = simulation.invariants.elections
    outcome.judged = simulation.judged
    outcome.checks = simulation.invariants.checks
    outcome.trace = world.trace
