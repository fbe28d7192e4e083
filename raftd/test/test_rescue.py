"""The way out when a quorum is lost for good, on real directories."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults

from raftd import replica, rescue
from raftd.core.membership import Configuration
from raftd.errors import (
    BadAnswer,
    DirectoryDamaged,
    DirectoryInUse,
    InvariantViolated,
    JoinFailed,
    NoQuorum,
    RaftdError,
    StorageFailed,
)
from raftd.interfaces import Stage
from raftd.rescue import Survivor, main
from raftd.server import Server
from raftd.storage import recovery
from raftd.storage.directory import (
    IDENTITY_NAME,
    LOG_NAME,
    SNAPSHOTS_NAME,
    DataDirectory,
    Identity,
    decode_identity,
    encode_identity,
)
from raftd.storage.files import Files
from raftd.test.servers import (
    ServerTestCase,
    free_name,
    name_of,
    node_of,
    roles_of,
    status_of,
    until,
)

#: Snapshots come early, and leave little of the log.
EARLY = {"snapshot_threshold_bytes": 2_000, "snapshot_tail_entries": 10}
KEYS = 60
#: Bytes until a snapshot, more than any test here writes.
NEVER = 1 << 20


def contents(directory: str) -> dict[str, str]:
    """Every file in it, and the digest of what it holds."""
    found = {}
    for root, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(root, name)
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            found[os.path.relpath(path, directory)] = digest
    return found


def stamps(directory: str) -> dict[str, tuple[int, int]]:
    """When each file and directory in it was changed last, and its length."""
    found = {}
    for root, _, names in os.walk(directory):
        for path in (root, *(os.path.join(root, name) for name in names)):
            about = os.stat(path)
            found[path] = (about.st_mtime_ns, about.st_size)
    return found


def rewrite_identity(directory: str, **changes: Any) -> None:
    """Put another identity there, as an earlier step had left it."""
    path = os.path.join(directory, IDENTITY_NAME)
    with open(path, "rb") as file:
        identity = decode_identity(file.read(), path)
    with open(path, "wb") as file:
        file.write(encode_identity(msgspec.structs.replace(identity, **changes)))


def recorded_stage(directory: str) -> Stage:
    path = os.path.join(directory, IDENTITY_NAME)
    with open(path, "rb") as file:
        return decode_identity(file.read(), path).stage


def leave_torn(directory: str) -> None:
    """Let the log end as a crash in the middle of a write leaves it."""
    with open(os.path.join(directory, IDENTITY_NAME), "rb") as file:
        identity = decode_identity(file.read(), directory)
    copy = directory + ".copy"
    shutil.copytree(os.path.join(directory, LOG_NAME), copy)
    found = recovery.recover(Files(), copy, identity.member_id)
    for segment in (found.segment, *found.unused):
        os.close(segment.fd)
    path = os.path.join(directory, LOG_NAME, os.path.basename(found.segment.path))
    with open(path, "r+b") as file:
        file.seek(found.offset)
        file.write(b"rfr")
    shutil.rmtree(copy)


async def _never(*_: object, **__: object) -> None:
    await Deferred()


class RescueCase(ServerTestCase):
    timeout = 60

    def setUp(self) -> None:
        super().setUp()
        self.said = ""

    async def survivor(self, size: int = 3, **options: Any) -> tuple[str, list[Server]]:
        """The directory of one of `size` members, all of which have stopped; and them."""
        options = {**EARLY, **options}
        servers = [await self.initialized(**options)]
        for _ in range(size - 1):
            servers.append(await self.joined(servers[0], **options))
        for i in range(KEYS):
            await self.put(servers[0], b"%d" % i, b"v%d" % i + b"x" * 50)
        last = servers[-1]
        if options["snapshot_threshold_bytes"] < NEVER:
            await until(lambda: status_of(last).snapshot_index > 0, "a snapshot")
        await until(lambda: status_of(last).applied_index > KEYS, "all that was written")
        await self.stop_all(servers)
        return last._options.data_dir, servers

    async def stop_all(self, servers: list[Server]) -> None:
        """Together, for nobody is to wait for a successor that has gone."""
        stops = [Deferred.fromCoroutine(self.stop(server)) for server in servers]
        await gatherResults(stops)

    async def joiner(self) -> Server:
        """A server that was broken off on its way into some cluster."""
        one, joiner = await self.initialized(), self.server()
        await joiner.take_name(free_name())
        patched = self.patch(replica, "become_member", _never)
        waiting = joiner.join([name_of(one)])
        await until(lambda: len(roles_of(one)) == 2, "a learner")
        await until(lambda: joiner._replica._node is not None, "its node")
        await self.broken_off(waiting)
        patched.restore()
        self.assertIs(joiner.stage, Stage.JOINING)
        return joiner

    def rescue(self, directory: str, *options: str, answer: str | None = None) -> int:
        """Run the command; its exit status."""
        asked: list[str] = []

        def ask(question: str) -> str:
            asked.append(question)
            if answer is None:
                raise EOFError
            return answer

        self.said = ""
        status = main([*options, directory], ask, self._say)
        self.assertEqual(
            len(asked), 0 if "--yes" in options or "raftd-rescue:" in self.said else 1
        )
        return status

    def _say(self, text: object) -> None:
        self.said += f"{text}\n"

    async def start(self, directory: str, **options: Any) -> Server:
        """A server in a member's directory."""
        server = self.server(directory, **{**EARLY, **options})
        await server.take_name(server.recorded_name)
        await server.recover()
        return server

    async def assert_all_there(self, server: Server) -> None:
        for i in range(KEYS):
            self.assertEqual(await self.get(server, b"%d" % i), b"v%d" % i + b"x" * 50)


class GoOnAloneTests(RescueCase):
    async def test_survivor_goes_on_with_all_that_it_had(self) -> None:
        directory, (one, two, _) = await self.survivor()
        former = status_of(one).cluster_id
        self.assertEqual(self.rescue(directory, answer="yes"), 0)
        # Whoever is asked must know what it is about.
        for part in (f"{former:016x}", name_of(one), name_of(two), "lost", "of its own now"):
            self.assertIn(part, self.said)
        server = await self.start(directory)
        await self.assert_all_there(server)
        self.assertEqual(status_of(server).role, "leader")
        self.assertEqual(roles_of(server), {name_of(server): "voter"})
        self.assertNotEqual(status_of(server).cluster_id, former)
        self.assertIn(f"{status_of(server).cluster_id:016x}", self.said)
        await self.put(server, b"new", b"1")
        # It takes members, and restarts, as any other.
        joined = await self.joined(server, **EARLY)
        self.assertEqual(await self.get(joined, b"59", linearizable=False), b"v59" + b"x" * 50)
        await self.stop(joined)
        await self.stop(server)
        again, other = await self.start(directory), await self.restarted(joined)
        await self.assert_all_there(again)
        self.assertEqual(await self.get(other, b"new"), b"1")
        self.assertEqual(self.fatal, [])

    async def test_entries_that_were_not_committed_happen(self) -> None:
        """A member cannot know of the last whether they were."""
        directory, _ = await self.survivor(2)
        survivor = Survivor(directory)
        last = survivor._log.last_index
        survivor.go_on_alone()
        survivor.close()
        server = await self.start(directory)
        await until(lambda: status_of(server).applied_index > last, "all of it")
        await self.assert_all_there(server)

    async def test_with_the_log_alone_and_with_an_empty_one_behind_a_snapshot(self) -> None:
        for options in (
            {"snapshot_threshold_bytes": NEVER},
            {"snapshot_threshold_bytes": 100, "snapshot_tail_entries": 0},
        ):
            servers = [await self.initialized(**options)]
            servers.append(await self.joined(servers[0], **options))
            for i in range(KEYS):
                await self.put(servers[0], b"%d" % i, b"v%d" % i + b"x" * 50)
            await until(lambda: status_of(servers[1]).applied_index > KEYS, "all")  # noqa: B023
            await self.stop_all(servers)
            directory = servers[1]._options.data_dir
            self.assertEqual(self.rescue(directory, "--yes"), 0)
            server = await self.start(directory, **options)
            await self.assert_all_there(server)
            await self.stop(server)

    async def test_twice(self) -> None:
        directory, _ = await self.survivor(2)
        self.assertEqual(self.rescue(directory, "--yes"), 0)
        first = self.said
        self.assertEqual(self.rescue(directory, "--yes"), 0)
        self.assertNotEqual(self.said, first)
        self.assertIn("as far as it knows: none", self.said)
        server = await self.start(directory)
        await self.assert_all_there(server)

    async def test_leader_of_one_is_no_worse_for_it(self) -> None:
        directory, _ = await self.survivor(1)
        self.assertEqual(self.rescue(directory, "--yes"), 0)
        server = await self.start(directory)
        await self.assert_all_there(server)

    async def test_learner_may_survive(self) -> None:
        """It has all that was committed, and never had a vote."""
        one = await self.initialized(**EARLY)
        learner = await self.joined(one, learner=True, **EARLY)
        for i in range(KEYS):
            await self.put(one, b"%d" % i, b"v%d" % i + b"x" * 50)
        await until(lambda: status_of(learner).applied_index > KEYS, "all that was written")
        await self.stop(one)
        await self.stop(learner)
        self.assertEqual(self.rescue(learner._options.data_dir, "--yes"), 0)
        server = await self.start(learner._options.data_dir)
        await self.assert_all_there(server)
        self.assertEqual(status_of(server).role, "leader")


class NotYetRecordedTests(RescueCase):
    """A voter that crashed before it had recorded that it is a member may be all there is."""

    async def rescued(self, **options: Any) -> None:
        directory, (one, *_) = await self.survivor(**options)
        rewrite_identity(directory, stage=Stage.JOINING, join_servers=(name_of(one),))
        self.assertEqual(self.rescue(directory, answer="yes"), 0, self.said)
        # As a joiner, it would go on looking for its former cluster.
        self.assertIs(recorded_stage(directory), Stage.MEMBER)
        server = await self.start(directory)
        await self.assert_all_there(server)
        self.assertEqual(roles_of(server), {name_of(server): "voter"})
        await self.put(server, b"new", b"1")
        self.assertEqual(self.fatal, [])

    async def test_its_log_gives_it_a_vote(self) -> None:
        await self.rescued(snapshot_threshold_bytes=NEVER)

    async def test_its_snapshot_gives_it_a_vote(self) -> None:
        await self.rescued(snapshot_threshold_bytes=100, snapshot_tail_entries=0)

    async def test_crash_on_the_way(self) -> None:
        """Between the two steps it is a member of a cluster of nobody; the rest can follow."""
        directory, _ = await self.survivor(2)
        rewrite_identity(directory, stage=Stage.JOINING)
        survivor = Survivor(directory)

        def crash(*_: object) -> None:
            raise Crash

        self.patch(survivor, "_write", crash)
        self.assertRaises(Crash, survivor.go_on_alone)
        survivor.close()
        self.assertEqual(self.rescue(directory, "--yes"), 0)
        await self.assert_all_there(await self.start(directory))

    async def test_one_that_has_no_vote_yet_is_refused(self) -> None:
        """It may lack anything: its log says that it is still being caught up."""
        one = await self.initialized(**EARLY)
        learner = await self.joined(one, learner=True, **EARLY)
        await self.put(one, b"k", b"v")
        await self.stop(one)
        await self.stop(learner)
        directory = learner._options.data_dir
        rewrite_identity(directory, stage=Stage.JOINING)
        before = contents(directory)
        self.assertEqual(self.rescue(directory, answer="yes"), 1)
        self.assertIn("is not the directory of a member", self.said)
        self.assertEqual(contents(directory), before)


class FormerMembersTests(RescueCase):
    async def test_they_refuse_and_are_refused(self) -> None:
        """Should they come back after all: there are two clusters, and they do not mix."""
        directory, (one, two, _) = await self.survivor()
        self.assertEqual(self.rescue(directory, "--yes"), 0)
        rescued = await self.start(directory)
        former = [await self.restarted(one), await self.restarted(two)]
        await until(lambda: status_of(former[0]).leader, "their leader")
        for server in former:
            peer = node_of(server)._peers.members[status_of(rescued).member.id]
            await until(lambda: peer.refusal, "a refusal")  # noqa: B023
            self.assertIn("cluster", peer.refusal)
            self.assertFalse(peer.connected)
        await self.put(former[0], b"theirs", b"1")
        await self.put(rescued, b"own", b"1")
        self.assertIsNone(await self.get(rescued, b"theirs"))
        self.assertIsNone(await self.get(former[1], b"own"))
        self.assertEqual(len(roles_of(rescued)), 1)
        self.assertEqual(len(roles_of(former[1])), 3)
        self.assertEqual(self.fatal, [])

    async def test_they_join_anew_when_they_have_been_emptied(self) -> None:
        directory, (one, two, _) = await self.survivor()
        self.assertEqual(self.rescue(directory, "--yes"), 0)
        rescued = await self.start(directory)
        for server in (one, two):
            shutil.rmtree(server._options.data_dir)
            os.makedirs(server._options.data_dir)
            again = self.server(server._options.data_dir, **EARLY)
            await again.take_name(name_of(server))
            await again.join([name_of(rescued)])
            await self.assert_all_there(again)
        self.assertEqual(len(roles_of(rescued)), 3)

    async def test_joiner_that_knew_the_former_cluster_is_refused(self) -> None:
        directory, (one, _) = await self.survivor(2)
        former = status_of(one).cluster_id
        self.assertEqual(self.rescue(directory, "--yes"), 0)
        rescued = await self.start(directory)
        # Broken off when its identity was on the disk, and before it had any entry.
        joiner, name = self.server(), free_name()
        await joiner.take_name(name)
        joiner._replica._begin_join(name, (name_of(rescued),))
        joiner._replica._record(cluster_id=former)
        await self.refused(joiner.join([name_of(rescued)]), JoinFailed, "cluster")
        self.assertEqual(len(roles_of(rescued)), 1)


class NothingChangesTests(RescueCase):
    async def test_any_answer_but_yes(self) -> None:
        directory, servers = await self.survivor(2)
        before = contents(directory)
        for answer in ("no", "", "y", "YES", "yes please", None):
            self.assertEqual(self.rescue(directory, answer=answer), 1, answer)
            self.assertIn("Nothing was changed.", self.said)
            self.assertEqual(contents(directory), before, answer)
        for server in servers:
            again = await self.restarted(server)
        await self.assert_all_there(again)

    async def test_nothing_is_repaired_before_it_is_agreed_to(self) -> None:
        """A torn tail, leftovers and a damaged snapshot stay as they are until then."""
        directory, _ = await self.survivor(2, snapshot_tail_entries=10_000)
        leave_torn(directory)
        snapshots = os.path.join(directory, SNAPSHOTS_NAME)
        newest = max(name for name in os.listdir(snapshots) if name.endswith(".snapshot"))
        with open(os.path.join(snapshots, newest), "r+b") as file:
            file.seek(100)
            file.write(b"????")
        leftovers = [
            os.path.join(snapshots, newest.replace("snapshot", "part")),
            os.path.join(directory, LOG_NAME, f"{99:020}.tmp"),
        ]
        for path in leftovers:
            with open(path, "wb") as file:
                file.write(b"left over")
        before, when = contents(directory), stamps(directory)
        for answer in ("no", None):
            self.assertEqual(self.rescue(directory, answer=answer), 1)
            self.assertIn("Nothing was changed.", self.said)
            self.assertEqual(contents(directory), before)
            self.assertEqual(stamps(directory), when)
        self.assertEqual(self.rescue(directory, answer="yes"), 0)
        for path in leftovers:
            self.assertFalse(os.path.exists(path))
        self.assertIn(newest.replace("snapshot", "damaged"), os.listdir(snapshots))
        await self.assert_all_there(await self.start(directory))

    async def test_directory_in_use(self) -> None:
        server = await self.initialized()
        await self.put(server, b"k", b"v")
        directory = server._options.data_dir
        self.assertEqual(self.rescue(directory, answer="yes"), 1)
        self.assertIn("in use", self.said)
        self.assertRaises(DirectoryInUse, Survivor, directory)
        await self.put(server, b"k", b"w")

    async def test_directory_of_no_member(self) -> None:
        empty = self.mktemp()
        os.makedirs(empty)
        joiner = await self.joiner()
        await self.stop(joiner)
        for directory in (empty, joiner._options.data_dir):
            before = contents(directory)
            self.assertEqual(self.rescue(directory, answer="yes"), 1)
            self.assertIn("is not the directory of a member", self.said)
            self.assertRaises(BadAnswer, Survivor, directory)
            self.assertEqual(contents(directory), before)
        # It is not held, either.
        again = self.server(joiner._options.data_dir)
        await again.take_name(again.recorded_name)
        await again.join(())

    async def test_no_directory_or_too_many(self) -> None:
        self.assertEqual(main([], self.fail, self._say), 1)
        self.assertIn("one directory", self.said)
        self.assertEqual(main(["a", "b"], self.fail, self._say), 1)
        self.assertEqual(main(["--what", "a"], self.fail, self._say), 1)
        missing = self.mktemp()
        self.assertEqual(self.rescue(missing, answer="yes"), 1)
        self.assertFalse(os.path.exists(missing))

    async def test_damaged_directory_is_left_to_a_person(self) -> None:
        directory, _ = await self.survivor(2)
        segment = min(name for name in contents(directory) if name.startswith("log"))
        with open(os.path.join(directory, segment), "r+b") as file:
            file.seek(1_000)
            file.write(b"?" * 8)
        before = contents(directory)
        self.assertEqual(self.rescue(directory, answer="yes"), 1)
        self.assertIn("is damaged", self.said)
        self.assertEqual(contents(directory), before)
        # The lock was let go of: it is the damage that is told again.
        self.assertRaises(DirectoryDamaged, Survivor, directory)


class Crash(Exception):
    """The process ends here."""


class CrashTests(RescueCase):
    """Two things become durable, one after the other, and a crash may come anywhere."""

    def _state(self, directory: str) -> tuple[int, Configuration]:
        survivor = Survivor(directory)
        try:
            return survivor.identity.cluster_id, survivor.configuration
        finally:
            survivor.close()

    def _crash_at(self, call: int) -> Callable[[], bool]:
        """Let everything that changes the disk fail from this call on; whether it did."""
        calls = 0

        def patched(name: str) -> Callable[..., Any]:
            real = getattr(Files, name)

            def method(files: Files, *args: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls >= call:
                    raise OSError(5, "The process is gone")
                return real(files, *args)

            return method

        restores = [
            self.patch(Files, name, patched(name))
            for name in ("create", "write", "flush", "rename", "remove", "flush_directory")
        ]

        def end() -> bool:
            for restore in restores:
                restore.restore()
            return calls >= call

        return end

    async def test_at_every_change_of_the_disk(self) -> None:
        directory, _ = await self.survivor(3)
        seen = set()
        for call in range(1, 100):
            copy = f"{directory}.{call}"
            shutil.copytree(directory, copy)
            former, configuration = self._state(copy)
            survivor = Survivor(copy)
            end = self._crash_at(call)
            try:
                survivor.go_on_alone()
                finished = True
            except RaftdError as e:
                self.assertIsInstance(e, StorageFailed)
                finished = False
            crashed = end()
            survivor.close()
            cluster_id, now = self._state(copy)
            self.assertEqual(len(configuration.voters), 3)
            seen.add((cluster_id != former, len(now.voters)))
            if not crashed:
                self.assertTrue(finished)
                break
            # Never alone under the id of the former cluster.
            self.assertTrue(cluster_id != former or len(now.voters) == 3)
            self.assertEqual(self.rescue(copy, "--yes"), 0)
            self.assertEqual(len(self._state(copy)[1].voters), 1)
            shutil.rmtree(copy)
        else:
            self.fail("it never came to an end")
        self.assertEqual(seen, {(False, 3), (True, 3), (True, 1)})

    async def test_started_between_the_two(self) -> None:
        """It belongs to nobody: the former others refuse it, and it decides nothing alone."""
        directory, (one, two, three) = await self.survivor()
        survivor = Survivor(directory)

        def crash(*_: object) -> None:
            raise Crash

        self.patch(survivor, "_write", crash)
        self.assertRaises(Crash, survivor.go_on_alone)
        survivor.close()
        former = [await self.restarted(one), await self.restarted(two)]
        await until(lambda: status_of(former[0]).leader, "their leader")
        lost = await self.start(directory, request_timeout_ms=500)
        for peer in node_of(lost)._peers.members.values():
            await until(lambda: peer.refusal, "a refusal")  # noqa: B023
            self.assertIn("cluster", peer.refusal)
        with self.assertRaises(NoQuorum):
            await self.put(lost, b"k", b"v")
        self.assertEqual(await self.get(lost, b"5", linearizable=False), b"v5" + b"x" * 50)
        await self.stop(lost)
        # The rest is made good by doing it again.
        self.assertEqual(self.rescue(directory, "--yes"), 0)
        rescued = await self.start(directory)
        await self.assert_all_there(rescued)
        await self.put(rescued, b"k", b"v")
        self.assertEqual(self.fatal, [])
        del three

    async def test_disk_that_refuses(self) -> None:
        directory, _ = await self.survivor(2)
        end = self._crash_at(1)
        self.assertEqual(self.rescue(directory, "--yes"), 1)
        end()
        self.assertIn("raftd-rescue: ", self.said)
        self.assertEqual(self.rescue(directory, "--yes"), 0)
        await self.assert_all_there(await self.start(directory))


class DirectoryTests(RescueCase):
    async def test_change_of_cluster_is_for_members_only(self) -> None:
        joiner = await self.joiner()
        await self.stop(joiner)
        directory = DataDirectory(joiner._options.data_dir)
        directory.open()
        self.assertRaises(InvariantViolated, directory.change_cluster, 7)
        before = contents(directory.path)
        # Whoever asks must have seen that it has a vote.
        self.assertRaises(InvariantViolated, directory.change_cluster, 7, has_vote=False)
        self.assertEqual(contents(directory.path), before)
        directory.change_cluster(7, has_vote=True)
        directory.close()
        directory.open()
        assert directory.identity is not None
        self.assertEqual(
            (directory.identity.stage, directory.identity.cluster_id), (Stage.MEMBER, 7)
        )
        directory.close()
        self.assertEqual(rescue.CONFIRMATION, "yes")

    def test_one_that_belongs_to_nobody_yet_has_no_vote(self) -> None:
        """Whatever is said: no promise was ever made there."""
        for stage in (Stage.INITIALIZING, Stage.JOINING):
            path = self.mktemp()
            os.makedirs(path)
            directory = DataDirectory(path)
            directory.open()
            self.assertRaises(InvariantViolated, directory.change_cluster, 7, has_vote=True)
            directory.save(Identity(stage, "localhost:4001", 1, cluster_id=2))
            self.assertRaises(InvariantViolated, directory.change_cluster, 7, has_vote=True)
            directory.close()
