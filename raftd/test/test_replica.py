"""
Replicas as programs run them: several in one process and one reactor, each
with a directory and a port of its own.
"""

from __future__ import annotations

import errno
import inspect
import os
import shutil
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from raftd import (
    BadAnswer,
    Event,
    Fatal,
    JoinFailed,
    LeaderChanged,
    MembershipChanged,
    NoQuorum,
    PortFactory,
    Remove,
    Removed,
    Rename,
    Replica,
    ReplicaOptions,
    Stopped,
)
from raftd.errors import DirectoryInUse, NotRunning
from raftd.listening import close, listen
from raftd.test.drivers import Journal
from raftd.test.processes import free_ports

OPTIONS = ReplicaOptions(
    heartbeat_interval_ms=50, election_timeout_ms=500, request_timeout_ms=5_000
)
#: How often to look, and for how long at most.
STEP_S = 0.02
PATIENCE_S = 30.0

clock: Any = reactor


class ReplicaTestCase(TestCase):
    """Replicas that are stopped when the test is over, however it ends."""

    timeout = 120

    def setUp(self) -> None:
        self.root = self.mktemp()
        os.mkdir(self.root)
        self.machines: dict[Replica, Journal] = {}
        self.fatal: dict[Replica, Fatal] = {}
        self.running: list[Replica] = []
        self.addCleanup(lambda: Deferred.fromCoroutine(self.stop_all()))

    async def stop_all(self) -> None:
        """All at once, so that nobody waits for a successor that has gone."""
        running, self.running = self.running, []
        await gatherResults([r.stop() for r in running])

    def replica(self, name: str, options: ReplicaOptions = OPTIONS) -> Replica:
        """A replica with the directory of this name."""
        machine = Journal()

        def failed(reason: Fatal) -> None:
            self.fatal[replica] = reason

        directory = os.path.join(self.root, name)
        os.makedirs(directory, exist_ok=True)
        replica = Replica(reactor, directory, machine, options, on_fatal=failed)
        self.machines[replica] = machine
        self.running.append(replica)
        return replica

    async def stop(self, replica: Replica) -> None:
        self.running.remove(replica)
        await replica.stop()

    async def cluster(
        self, size: int, options: ReplicaOptions = OPTIONS
    ) -> tuple[list[Replica], list[str]]:
        """That many members, in directories that are called `0` and so on, and their names."""
        names = [f"localhost:{port}" for port in free_ports(size)]
        replicas = []
        for i, name in enumerate(names):
            replica = self.replica(str(i), options)
            await replica.start(name, names[:i])
            replicas.append(replica)
        return replicas, names

    async def until(self, condition: Any) -> None:
        """Look until it is so."""
        give_up_at = clock.seconds() + PATIENCE_S
        while not condition():
            if clock.seconds() > give_up_at:
                raise AssertionError(f"not within {PATIENCE_S} s")
            await deferLater(clock, STEP_S, lambda: None)

    async def leader(self, replicas: list[Replica]) -> Replica:
        """The one that all of them follow, when there is one."""

        def followed() -> set[int]:
            leaders = (replica.status().leader for replica in replicas)
            return {0 if leader is None else leader.id for leader in leaders}

        await self.until(lambda: len(followed()) == 1 and 0 not in followed())
        (leader_id,) = followed()
        return next(r for r in replicas if r.status().member.id == leader_id)

    async def fails(self, awaitable: Any, error: type[BaseException]) -> str:
        """What the error says that it must fail with."""
        try:
            await awaitable
        except error as e:
            return str(e)
        raise AssertionError(f"it did not fail with {error}")


class LifeTests(ReplicaTestCase):
    def test_what_takes_time_gives_deferreds(self) -> None:
        """All of it: nobody need remember which has to be awaited to begin at all."""
        for name, function in inspect.getmembers(Replica, inspect.isfunction):
            if not name.startswith("_"):
                self.assertFalse(inspect.iscoroutinefunction(function), name)
        begun = self.replica("a").start("no name")
        self.failureResultOf(begun, BadAnswer)

    async def test_new_cluster_joiners_and_a_restart(self) -> None:
        replicas, names = await self.cluster(3)
        for i, replica in enumerate(replicas, 1):
            self.assertEqual(await replica.propose(b"w"), b"%d" % i)
        for replica in replicas:
            await replica.read()
            self.assertEqual(len(self.machines[replica].operations), 3)
        self.assertEqual(len(replicas[1].status().members), 3)

        # The same arguments as at first: it goes on where it was.
        await self.stop(replicas[1])
        self.assertEqual(await replicas[2].propose(b"meanwhile"), b"4")
        again = self.replica("1")
        await again.start(names[1], names[:1])
        await again.read()
        self.assertEqual(self.machines[again].operations[-1], b"meanwhile")
        self.assertEqual(await again.propose(b"w"), b"5")
        self.assertEqual(again.recorded_name, names[1])

    async def test_all_restarted_at_once(self) -> None:
        replicas, names = await self.cluster(3)
        await replicas[1].propose(b"kept")
        await self.stop_all()
        replicas = [self.replica(str(i)) for i in range(3)]
        for replica, name in zip(replicas, names, strict=True):
            await replica.start(name)
        self.assertEqual(await replicas[2].propose(b"w"), b"2")
        for replica in replicas:
            await replica.read()
            self.assertEqual(self.machines[replica].operations, [b"kept", b"w"])

    async def test_stop_hands_over_first(self) -> None:
        replicas, _ = await self.cluster(3)
        leader = await self.leader(replicas)
        others = [r for r in replicas if r is not leader]
        await self.stop(leader)
        # Not a moment later: when `stop` is done, there is another leader.
        for replica in others:
            seen = replica.status().leader
            assert seen is not None
            self.assertNotEqual(seen.id, leader.status().member.id)
        self.assertEqual(await others[0].propose(b"w"), b"1")
        await self.fails(leader.propose(b"w"), Stopped)

    async def test_stop_is_possible_at_any_stage(self) -> None:
        never_started = self.replica("a")
        await self.stop(never_started)
        opened = self.replica("b")
        opened.open()
        await self.stop(opened)
        (port,) = free_ports(1)
        failed = self.replica("c")
        await self.fails(failed.start("no name"), BadAnswer)
        await self.stop(failed)
        again = self.replica("c")
        await again.start(f"localhost:{port}")

    async def test_stop_breaks_off_a_start(self) -> None:
        """A joiner that finds nobody to give it a vote would wait for long."""
        replicas, names = await self.cluster(2)
        leader = await self.leader(replicas)
        (port,) = free_ports(1)
        joiner = self.replica("joiner")
        # Nobody can reach it, so it never catches up.
        starting = joiner.start(f"localhost:{port}", names, listen=False)
        await self.until(lambda: len(leader.status().members) == 3)
        await self.stop(joiner)
        self.failureResultOf(starting, Stopped)

    async def test_mistakes_are_told_in_sentences(self) -> None:
        (running,), names = await self.cluster(1)
        free, nobody = (f"localhost:{port}" for port in free_ports(2))

        fresh = self.replica("fresh")
        self.assertIn("not running", str(self.assertRaises(NotRunning, fresh.status)))
        for asked in (fresh.propose(b"1"), fresh.read(), fresh.transfer()):
            self.failureResultOf(asked, NotRunning)
        said = await self.fails(fresh.start(free, [nobody]), JoinFailed)
        self.assertIn(f"nothing is listening at {nobody}", said)
        # It may be tried again, with others.
        await fresh.join(free, names)
        self.assertEqual(await fresh.propose(b"w"), b"1")

        said = await self.fails(self.replica("0").start(names[0]), DirectoryInUse)
        self.assertIn("in use", said)
        said = await self.fails(self.replica("missing/deep").start(free), BadAnswer)
        self.assertIn("listening on port", said)
        await self.stop(running)
        said = await self.fails(self.replica("0").start(free), BadAnswer)
        self.assertIn(f"belongs to {names[0]}", said)

    async def test_session_applies_once_whoever_leads(self) -> None:
        replicas, _ = await self.cluster(3)
        leader = await self.leader(replicas)
        other = next(r for r in replicas if r is not leader)
        session = await other.open_session()
        results = [session.propose(b"%d" % i) for i in range(50)]
        await self.stop(leader)
        results += [session.propose(b"%d" % i) for i in range(50, 100)]
        self.assertEqual(
            sorted([int(r) for r in await gatherResults(results)]), [*range(1, 101)]
        )
        await other.read()
        self.assertEqual(len(set(self.machines[other].operations)), 100)
        await session.close()


class MemberTests(ReplicaTestCase):
    async def test_transfer_is_told_to_observers(self) -> None:
        replicas, _ = await self.cluster(3)
        leader = await self.leader(replicas)
        successor = next(r for r in replicas if r is not leader)
        told: list[Event] = []
        end = successor.observe(told.append)
        await leader.transfer(successor.status().member.id)
        self.assertIs(await self.leader(replicas), successor)
        led = [e.leader for e in told if isinstance(e, LeaderChanged)]
        self.assertEqual(led[-1], successor.status().member)
        end()

    async def test_removed_member_is_told_so_for_good(self) -> None:
        replicas, names = await self.cluster(3)
        leader = await self.leader(replicas)
        others = [r for r in replicas if r is not leader]
        await others[0].change_membership([Remove(leader.status().member.id)])
        await self.until(lambda: leader in self.fatal)
        self.assertIsInstance(self.fatal[leader], Removed)
        await self.stop(leader)
        self.assertEqual(await others[1].propose(b"w"), b"1")
        number = str(replicas.index(leader))
        again = self.replica(number)
        await again.start(names[int(number)])
        await self.until(lambda: again in self.fatal)
        self.assertIn("removed", str(self.fatal[again]))

    async def test_member_that_missed_its_removal_is_turned_away(self) -> None:
        replicas, names = await self.cluster(3)
        await self.stop(replicas[2])
        member_id = replicas[2].status().member.id
        await replicas[0].change_membership([Remove(member_id)])
        again = self.replica("2")
        await again.start(names[2])
        await self.until(lambda: again in self.fatal)
        self.assertIn("removed from this cluster, says", str(self.fatal[again]))

    async def test_moved_to_another_address(self) -> None:
        replicas, names = await self.cluster(3)
        moving = replicas[2]
        (port,) = free_ports(1)
        told: list[Event] = []
        moving.observe(told.append)
        new_name = f"localhost:{port}"
        await replicas[0].change_membership([Rename(moving.status().member.id, new_name)])
        await self.until(lambda: any(isinstance(e, MembershipChanged) for e in told))
        await self.stop(moving)

        again = self.replica("2")
        said = await self.fails(again.start(names[2]), BadAnswer)
        self.assertIn(new_name, said)
        await self.stop(again)
        again = self.replica("2")
        await again.start(new_name)
        self.assertEqual(await again.propose(b"w"), b"1")
        leader = await self.leader([*replicas[:2], again])
        if leader is not again:
            await leader.transfer(again.status().member.id)
        self.assertIs(await self.leader([*replicas[:2], again]), again)

    async def test_48_moved_while_its_disk_is_full(self) -> None:
        """It cannot record its new name, and goes on; started under it, it asks for it."""
        replicas, _ = await self.cluster(3)
        moving = replicas[2]

        def full(path: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patched = self.patch(moving._directory._files, "create", full)
        (port,) = free_ports(1)
        new_name = f"localhost:{port}"
        with capturedLogs() as events:
            await replicas[0].change_membership([Rename(moving.status().member.id, new_name)])
            await self.until(
                lambda: any("start it again" in str(formatEvent(e)) for e in events)
            )
        self.assertIn("No space left", " ".join(str(formatEvent(e)) for e in events))
        self.assertEqual(await moving.propose(b"w"), b"1")
        patched.restore()
        await self.stop(moving)
        self.assertEqual(self.fatal, {})
        again = self.replica("2")
        await again.start(new_name)
        self.assertEqual(again.recorded_name, new_name)
        self.assertEqual(await again.propose(b"w"), b"2")

    async def test_moved_while_it_was_down(self) -> None:
        replicas, names = await self.cluster(3)
        member_id = replicas[2].status().member.id
        await self.stop(replicas[2])
        (port,) = free_ports(1)
        await replicas[0].change_membership([Rename(member_id, f"localhost:{port}")])
        again = self.replica("2")
        ports = listen(reactor, ["127.0.0.1", "::1"], port, again.peer_factory)
        self.addCleanup(close, ports)
        await again.start(names[2], listen=False)
        await self.until(lambda: again.recorded_name == f"localhost:{port}")
        self.assertEqual(await again.propose(b"w"), b"1")

    async def test_moved_while_it_was_down_and_started_under_its_new_name(self) -> None:
        replicas, names = await self.cluster(3)
        member_id = replicas[2].status().member.id
        await self.stop(replicas[2])
        new_name, other_name = (f"localhost:{port}" for port in free_ports(2))
        # Not before it was given that name.
        said = await self.fails(self.replica("2").start(new_name), BadAnswer)
        self.assertIn(f"has the name {names[2]}", said)
        self.assertIn("PATCH /members/", said)
        await self.stop(self.running[-1])
        await replicas[0].change_membership([Rename(member_id, new_name)])
        # Nor under any other.
        said = await self.fails(self.replica("2").start(other_name), BadAnswer)
        self.assertIn(f"has the name {new_name}", said)
        await self.stop(self.running[-1])

        again = self.replica("2")
        with capturedLogs() as events:
            await again.start(new_name)
            await self.until(
                lambda: new_name in {m.member.name for m in again.status().members}
            )
            await again.read()
        # Its own log calls it by its former name at first, and is not listened to.
        lines = [str(formatEvent(event)) for event in events]
        self.assertEqual([line for line in lines if "start it again" in line], [])
        self.assertEqual(again.recorded_name, new_name)
        self.assertEqual(again.status().member.id, member_id)
        self.assertEqual(await again.propose(b"w"), b"1")
        self.assertEqual(await replicas[0].propose(b"w"), b"2")
        await again.read()
        # From here on it is an ordinary restart, for which nobody need be there.
        await self.stop_all()
        again = self.replica("2")
        await again.start(new_name)
        self.assertEqual(again.recorded_name, new_name)

    async def test_a_copied_directory_under_a_name_of_its_own_takes_no_part(self) -> None:
        replicas, names = await self.cluster(2)
        await self.stop(replicas[1])
        shutil.copytree(os.path.join(self.root, "1"), os.path.join(self.root, "copy"))
        original = self.replica("1")
        await original.start(names[1])
        (port,) = free_ports(1)
        copy = self.replica("copy")
        said = await self.fails(copy.start(f"localhost:{port}"), BadAnswer)
        self.assertIn(f"belongs to {names[1]}", said)
        self.assertRaises(NotRunning, copy.status)
        self.assertEqual(len(original.status().members), 2)

    async def test_a_new_name_that_nobody_can_confirm(self) -> None:
        _, names = await self.cluster(2)
        new_names = [f"localhost:{port}" for port in free_ports(2)]
        await self.stop_all()
        moved = self.replica("1")
        said = await self.fails(moved.start(new_names[1]), BadAnswer)
        self.assertIn(f"nothing is listening at {names[0]}", said)
        self.assertIn(f"start it as {names[1]}", said)
        # As it says: it may be asked again.
        said = await self.fails(moved.check_name(new_names[1]), BadAnswer)
        await moved.check_name(names[1])
        await self.stop(moved)

    async def test_a_new_name_of_who_is_alone(self) -> None:
        (alone,), (name,) = await self.cluster(1)
        await self.stop(alone)
        (port,) = free_ports(1)
        said = await self.fails(self.replica("0").start(f"localhost:{port}"), BadAnswer)
        self.assertIn("only member", said)
        self.assertIn(f"PATCH /members/{name}", said)

    async def test_learner(self) -> None:
        replicas, names = await self.cluster(1)
        (port,) = free_ports(1)
        learner = self.replica("learner")
        await learner.start(f"localhost:{port}", names, learner=True)
        self.assertEqual(learner.status().role, "learner")
        self.assertEqual(await learner.propose(b"w"), b"1")
        await learner.read()
        self.assertEqual(self.machines[learner].operations, [b"w"])
        await self.stop(learner)
        self.assertEqual(await replicas[0].propose(b"alone"), b"2")

    async def test_too_few_voters(self) -> None:
        options = ReplicaOptions(50, 500, request_timeout_ms=1_000)
        replicas, _ = await self.cluster(2, options)
        await self.stop(replicas[1])
        await self.until(lambda: replicas[0].status().role != "leader")
        said = await self.fails(replicas[0].propose(b"w"), NoQuorum)
        self.assertIn("1 of 2 voters", said)
        await self.fails(replicas[0].read(), NoQuorum)


class SnapshotTests(ReplicaTestCase):
    async def test_who_was_away_comes_back_by_snapshot_and_restarts_from_it(self) -> None:
        options = ReplicaOptions(
            50, 500, snapshot_threshold_bytes=2_000, snapshot_tail_entries=10
        )
        replicas, names = await self.cluster(3, options)
        await self.stop(replicas[2])
        for batch in range(10):
            await gatherResults([replicas[0].propose(b"%d" % i) for i in range(40)])
            del batch
        await self.until(lambda: replicas[0].status().first_index > 100)
        for _ in range(2):
            again = self.replica("2", options)
            await again.start(names[2])
            await again.read()
            self.assertEqual(len(self.machines[again].operations), 400)
            self.assertGreater(again.status().first_index, 1)
            await self.stop(again)


class Lines(Protocol):
    """Sends a line, and keeps what comes back until the connection is closed."""

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"HELLO\n")

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(self.received)


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)
        self.transport.loseConnection()


class SharedPortTests(ReplicaTestCase):
    async def test_one_port_for_peers_and_for_a_protocol_of_ones_own(self) -> None:
        names = [f"localhost:{port}" for port in free_ports(2)]
        for i, name in enumerate(names):
            replica = self.replica(str(i))
            factory = PortFactory(replica.peer_factory, Factory.forProtocol(Echo), clock)
            port = int(name.partition(":")[2])
            ports = listen(reactor, ["127.0.0.1", "::1"], port, factory)
            self.addCleanup(factory.close_all)
            self.addCleanup(close, ports)
            await replica.start(name, names[:i], listen=False)
        self.assertEqual(await self.running[1].propose(b"w"), b"1")
        for name in names:
            endpoint = HostnameEndpoint(reactor, "localhost", int(name.partition(":")[2]))
            client = await connectProtocol(endpoint, Lines())
            self.assertEqual(await client.closed, b"HELLO\n")
