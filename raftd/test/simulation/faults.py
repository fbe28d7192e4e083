"""What each kind of fault does, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from twisted.python.failure import Failure

from raftd.core.membership import AddLearner, Change, Demote, Promote, Remove, Rename
from raftd.errors import RaftdError
from raftd.test.simulation.disk import LOG, SNAPSHOTS
from raftd.test.simulation.hosts import Host
from raftd.test.simulation.plan import FLIP, KINDS, Fault

if TYPE_CHECKING:
    from raftd.test.simulation.run import Simulation

#: There are never more hosts than these, those included that were removed.
MAX_HOSTS = 9
#: How long a host is down, and how long other things last, in seconds.
DOWN_S = (0.01, 2.5)
LASTING_S = (0.1, 2.5)
#: How long a process stops: others may elect a leader meanwhile, and more.
PAUSE_S = (0.1, 4.0)
#: How often whom a fault meets is a leader, if there is one.
LEADER_SHARE = 0.4
#: Within how many operations of its disk, or messages, a process crashes.
MAX_STEPS = 40
#: What a disk may have left when it gets full, in bytes.
MAX_ROOM = 8_192
#: How often a joiner asks for its vote, and every how many seconds.
MAX_PROMOTIONS = 5
PROMOTE_EVERY_S = 0.4
#: How often a host is given back its disk, when that is damaged; else it is replaced.
RESTORED_SHARE = 0.4
#: How often it is asked for that, and every how many seconds.
MAX_REPLACEMENTS = 8
REPLACE_EVERY_S = 0.5


class Faults:
    """Does to a cluster what its plan says."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._renamed = 0
        #: What there was of each kind; some find nobody whom they could meet.
        self._acts: dict[str, Callable[[Random], object]] = {
            "kill": partial(self._crash, False),
            "power loss": partial(self._crash, True),
            "crash at operation": self._crash_at_operation,
            "crash at message": self._crash_at_message,
            "power loss of all": self._crash_all,
            "stop": self._stop,
            "cut": self._cut,
            "one-way cut": self._cut_one_way,
            "chain": self._chain,
            "partial cut": self._cut_partly,
            "loss": self._lose,
            "delay": self._delay,
            "duplication": self._duplicate,
            "flush error": partial(self._fail_flush, LOG),
            "snapshot error": partial(self._fail_flush, SNAPSHOTS),
            "full disk": self._fill,
            "slow disk": self._slow,
            "pause": partial(self._pause, False),
            "suspension": partial(self._pause, True),
            "transfer": self._transfer,
            "add": self._add,
            "promote": partial(self._change, Promote),
            "demote": partial(self._change, Demote),
            "remove": partial(self._change, Remove),
            "replace": self._replace,
            "reshape": self._reshape,
            "rename": self._rename,
            FLIP: self._flip,
        }
        assert self._acts.keys() == {*KINDS, FLIP}

    def befall(self, fault: Fault) -> None:
        simulation = self._simulation
        if not simulation.is_faulty:
            return
        simulation.note(f"fault {fault.number}: {fault.kind}")
        if self._acts[fault.kind](Random(fault.salt)) is not False:
            simulation.count(fault.kind)

    # -- whom ------------------------------------------------------------------

    def _running(self, random: Random) -> Host | None:
        """One that runs; rather often one that leads, for there is more to break."""
        running = [host for host in self._simulation.hosts if host.process is not None]
        leading = [host for host in running if host.leads]
        if leading and random.random() < LEADER_SHARE:
            running = leading
        return random.choice(running) if running else None

    def _any(self, random: Random) -> Host:
        """One that runs, or any if none does."""
        return self._running(random) or random.choice(self._simulation.hosts)

    def _later(
        self,
        random: Random,
        act: Callable[[], object],
        lasting_s: tuple[float, float] = LASTING_S,
    ) -> None:
        """When it is over; not if all has been made well before."""
        self._simulation.while_faulty(random.uniform(*lasting_s), act)

    # -- crashes ---------------------------------------------------------------

    def _crash(self, power_lost: bool, random: Random) -> bool:
        host = self._running(random)
        if host is not None:
            host.crash(power_lost, random.uniform(*DOWN_S))
        return host is not None

    def _crash_at_operation(self, random: Random) -> bool:
        host = self._any(random)
        host.crash_at_operation(
            random.randrange(MAX_STEPS), random.random() < 0.7, random.uniform(*DOWN_S)
        )
        return True

    def _crash_at_message(self, random: Random) -> bool:
        host = self._any(random)
        power_lost, down_s = random.random() < 0.5, random.uniform(*DOWN_S)

        def crash() -> None:
            if host.process is not None:
                host.crash(power_lost, down_s)

        self._simulation.network.traps[host.id] = random.randrange(MAX_STEPS), crash
        return True

    def _crash_all(self, random: Random) -> None:
        for host in self._simulation.hosts:
            if host.process is not None:
                host.crash(True, random.uniform(*DOWN_S))

    def _stop(self, random: Random) -> bool:
        host = self._running(random)
        if host is not None:
            host.stop(random.uniform(*DOWN_S))
        return host is not None

    # -- the network -----------------------------------------------------------

    def _cut_links(self, random: Random, links: list[tuple[int, int]]) -> None:
        network = self._simulation.network
        for source, target in links:
            network.cut(source, target)
        resets = random.random() < 0.5

        def mend() -> None:
            for source, target in links:
                network.mend(source, target)
            if resets:
                network.reset_broken()

        self._later(random, mend)

    def _ids(self, random: Random) -> list[int]:
        ids = [host.id for host in self._simulation.hosts]
        random.shuffle(ids)
        return ids

    def _cut(self, random: Random) -> None:
        """Two groups, neither of which hears the other."""
        ids = self._ids(random)
        at = random.randrange(len(ids) + 1)
        one, other = ids[:at], ids[at:]
        self._cut_links(random, [link for a in one for b in other for link in ((a, b), (b, a))])

    def _cut_one_way(self, random: Random) -> None:
        """Some are not heard by some others, and hear them."""
        ids = self._ids(random)
        sources = ids[: random.randrange(1, len(ids) + 1)]
        targets = [i for i in ids if random.random() < 0.7]
        self._cut_links(random, [(a, b) for a in sources for b in targets if a != b])

    def _chain(self, random: Random) -> None:
        """Each reaches only the one before it and the one behind it."""
        ids = self._ids(random)
        places = range(len(ids))
        links = [(ids[i], ids[j]) for i in places for j in places if abs(i - j) > 1]
        self._cut_links(random, links)

    def _cut_partly(self, random: Random) -> None:
        """One reaches only some of the others; those reach all."""
        lonely = self._any(random).id
        others = [other for other in self._ids(random) if other != lonely]
        lost = [other for other in others if random.random() < 0.6]
        self._cut_links(random, [link for b in lost for link in ((lonely, b), (b, lonely))])

    def _lose(self, random: Random) -> None:
        network, before = self._simulation.network, self._simulation.plan.loss
        network.loss = random.choice((0.02, 0.1, 0.3))
        self._later(random, lambda: setattr(network, "loss", before))

    def _delay(self, random: Random) -> None:
        network, before = self._simulation.network, self._simulation.plan.max_delay_s
        network.max_delay_s = random.choice((0.1, 0.4))
        self._later(random, lambda: setattr(network, "max_delay_s", before))

    def _duplicate(self, random: Random) -> None:
        network, before = self._simulation.network, self._simulation.plan.duplication
        network.duplication = 0.5
        self._later(random, lambda: setattr(network, "duplication", before))

    # -- disks -----------------------------------------------------------------

    def _fail_flush(self, folder: str, random: Random) -> bool:
        host = self._running(random)
        if host is not None:
            host.disk.fails_flush = folder
        return host is not None

    def _fill(self, random: Random) -> None:
        host = self._any(random)
        self._later(random, lambda: self._simulation.make_room(host))
        host.disk.room = random.choice((0, random.randrange(MAX_ROOM)))

    def _slow(self, random: Random) -> None:
        host = self._any(random)
        host.disk.slowness = random.choice((10.0, 100.0, 1000.0))

        def hurry() -> None:
            host.disk.slowness = 1.0

        self._later(random, hurry)

    def _flip(self, random: Random) -> bool:
        """One bit, of a host that is down, or goes down as a rule; none else would look."""
        host = random.choice([host for host in self._simulation.hosts if not host.is_removed])
        where = host.disk.flip(random)
        self._simulation.note(f"{host.name}: {where} flips")
        if where and host.process is not None and random.random() < 0.7:
            host.crash(random.random() < 0.5, random.uniform(*DOWN_S))
        return bool(where)

    def damaged(self, host: Host) -> None:
        """A host refuses to start: its disk is given back, or another takes its place."""
        random = Random(f"damaged {self._simulation.plan.seed} {host.id} {host.incarnation}")
        is_full = len(self._simulation.hosts) >= MAX_HOSTS
        if is_full or random.random() < RESTORED_SHARE:

            def give_back() -> None:
                self._simulation.count("damage restored")
                host.restore()
                host.start()

            self._later(random, give_back)
        else:
            self._simulation.count("damage replaced")
            new = self._simulation.add_host()
            self._replace_by(host, new, random, MAX_REPLACEMENTS)
            self._promote(new.id, random, MAX_REPLACEMENTS)

    def _replace_by(self, old: Host, new: Host, random: Random, times: int) -> None:
        """Ask for it until it is done: there may be no leader, or another change under way."""

        def ask() -> None:
            self._ask(random, [Remove(old.id), AddLearner(new.member)])
            if times > 1:
                self._replace_by(old, new, random, times - 1)

        self._simulation.while_faulty(REPLACE_EVERY_S, ask)

    # -- time ------------------------------------------------------------------

    def _pause(self, with_clock: bool, random: Random) -> bool:
        host = self._running(random)
        if host is None or host.process is None or host.process.clock.is_stopped:
            return False
        clock = host.process.clock
        clock.stop(with_clock)

        def go_on() -> None:
            if clock.is_stopped:
                clock.go_on()

        self._later(random, go_on, PAUSE_S)
        return True

    # -- members ---------------------------------------------------------------

    def _transfer(self, random: Random) -> bool:
        host = self._running(random)
        if host is None or host.process is None:
            return False
        node = host.process.node
        target = random.choice((None, random.choice(self._simulation.hosts).id))
        host.process.clock.enter(lambda: node.transfer(target).addErrback(_explained))
        return True

    def _ask(self, random: Random, changes: list[Change]) -> bool:
        """Ask any node for a change."""
        host = self._running(random)
        if host is None or host.process is None:
            return False
        simulation, node = self._simulation, host.process.node

        def changed(_: object) -> None:
            simulation.count("change made")

        def ask() -> None:
            simulation.note(f"{host.name} is asked for {changes}")
            node.change_membership(changes).addCallbacks(changed, _explained)

        host.process.clock.enter(ask)
        return True

    def _change(self, make: Callable[[int], Change], random: Random) -> bool:
        return self._ask(random, [make(random.choice(self._simulation.hosts).id)])

    def _add(self, random: Random) -> bool:
        if len(self._simulation.hosts) >= MAX_HOSTS:
            return False
        host = self._simulation.add_host()
        self._promote(host.id, random, MAX_PROMOTIONS)
        return self._ask(random, [AddLearner(host.member)])

    def _promote(self, member_id: int, random: Random, times: int) -> None:
        """Ask that it be given a vote; nobody knows when it has caught up."""

        def ask() -> None:
            self._ask(random, [Promote(member_id)])
            if times > 1:
                self._promote(member_id, random, times - 1)

        self._simulation.while_faulty(PROMOTE_EVERY_S, ask)

    def _replace(self, random: Random) -> bool:
        if len(self._simulation.hosts) >= MAX_HOSTS:
            return False
        old = random.choice(self._simulation.hosts)
        host = self._simulation.add_host()
        self._promote(host.id, random, MAX_PROMOTIONS)
        return self._ask(random, [Remove(old.id), AddLearner(host.member)])

    def _reshape(self, random: Random) -> bool:
        """Votes of several are given and taken at once: by a joint configuration."""
        hosts = self._simulation.hosts
        chosen = random.sample(hosts, min(len(hosts), random.choice((2, 3, 3))))
        makes = (Promote, Promote, Demote, Demote, Remove)
        return self._ask(random, [random.choice(makes)(host.id) for host in chosen])

    def _rename(self, random: Random) -> bool:
        self._renamed += 1
        host = random.choice(self._simulation.hosts)
        return self._ask(random, [Rename(host.id, f"moved{self._renamed}")])


def _explained(failure: Failure) -> None:
    """A change may fail in any way that is explained."""
    failure.trap(RaftdError)
