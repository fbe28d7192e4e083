"""The server on the real reactor: from a directory to a member, and back again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred

from raftd import joining, probing
from raftd import replica as replica_module
from raftd import server as server_module
from raftd.core.membership import Rename
from raftd.errors import (
    BadAnswer,
    DirectoryInUse,
    JoinFailed,
    NoQuorum,
    OutcomeUnknown,
    RaftdError,
    Stopped,
    StorageFailed,
)
from raftd.interfaces import Stage
from raftd.server import Server
from raftd.storage.files import Files
from raftd.test.processes import free_ports
from raftd.test.servers import (
    ServerTestCase,
    free_name,
    name_of,
    node_of,
    roles_of,
    status_of,
    until,
)


class NewClusterTests(ServerTestCase):
    async def test_initialize_write_and_restart(self) -> None:
        server = self.server()
        self.assertEqual((server.stage, server.recorded_name), (Stage.NEW, ""))
        name = free_name()
        await server.take_name(name)
        await server.initialize()
        self.assertEqual((server.stage, server.recorded_name), (Stage.MEMBER, name))
        self.assertEqual(status_of(server).role, "leader")
        await self.put(server, b"k", b"v")
        await self.stop(server)

        again = self.server(server._options.data_dir)
        self.assertEqual((again.stage, again.recorded_name), (Stage.MEMBER, name))
        await again.take_name(name)
        recovered = await again.recover()
        self.assertEqual(recovered.name, name)
        self.assertGreaterEqual(recovered.term, 2)
        self.assertEqual(recovered.entries, 3)  # the configuration, a no-op, a put
        self.assertEqual(await self.get(again, b"k"), b"v")
        self.assertEqual(self.fatal, [])

    async def test_localhost(self) -> None:
        server = self.server()
        (port,) = free_ports(1)
        await server.take_name(f"localhost:{port}")
        await server.initialize()
        status, body = await self.http_get(server, "/status")
        self.assertEqual(status, 200)
        self.assertEqual(msgspec.json.decode(body)["role"], "leader")

    async def test_broken_off_initialization_begins_again(self) -> None:
        """A crash between any two steps: here, with the log made and not recorded."""
        server = self.server()
        await server.take_name(free_name())
        self.patch(server._replica, "_record", _broken_record)
        await self.refused(server.initialize(), StorageFailed)
        await self.stop(server)

        again = self.server(server._options.data_dir)
        self.assertIs(again.stage, Stage.INITIALIZING)
        await again.take_name(again.recorded_name)
        await again.initialize()
        await self.put(again, b"k", b"v")

    async def test_40_three_restarted_at_once(self) -> None:
        one = await self.initialized()
        two = await self.joined(one)
        three = await self.joined(two)
        for i in range(20):
            await self.put((one, two, three)[i % 3], b"%d" % i, b"v%d" % i)
        for server in (one, two, three):
            await self.stop(server)
        servers = [await self.restarted(s) for s in (one, two, three)]
        for server in servers:
            for i in range(20):
                self.assertEqual(await self.get(server, b"%d" % i), b"v%d" % i)
        self.assertEqual(self.fatal, [])


class NameTests(ServerTestCase):
    async def test_address_in_use(self) -> None:
        taken = self.listen(b"")
        server = self.server()
        await self.refused(server.take_name(taken), BadAnswer, "already", taken.split(":")[1])
        self.assertEqual(os.listdir(server._options.data_dir), [])
        await server.take_name(free_name())
        await server.initialize()

    async def test_other_name_in_a_recorded_directory(self) -> None:
        server = await self.initialized()
        await self.stop(server)
        again = self.server(server._options.data_dir)
        await self.refused(again.take_name(free_name()), BadAnswer, again.recorded_name)
        await again.take_name(again.recorded_name)
        await again.recover()

    async def test_name_that_was_given_to_it_while_it_was_down(self) -> None:
        one = await self.initialized()
        two = await self.joined(one)
        three = await self.joined(one)
        await self.put(one, b"key", b"value")
        member_id = status_of(three).member.id
        await self.stop(three)
        again, name = self.server(three._options.data_dir), free_name()
        await self.refused(again.take_name(name), BadAnswer, name_of(three), "PATCH")
        await node_of(two).change_membership([Rename(member_id, name)])
        # At the prompt it may simply be typed again.
        await again.take_name(name)
        self.assertEqual((await again.recover()).name, name)
        self.assertEqual(await self.get(again, b"key"), b"value")
        self.assertEqual(set(roles_of(one)), {name_of(one), name_of(two), name})

    async def test_no_name_at_all(self) -> None:
        server = self.server()
        await self.refused(server.take_name("nonsense"), BadAnswer, "host:port")
        await self.refused(server.take_name("127.0.0.1:70000"), BadAnswer, "65535")

    async def test_beyond_loopback_only_with_leave(self) -> None:
        (port,) = free_ports(1)
        listen = f"0.0.0.0:{port}"
        server = self.server(listen=listen)
        await self.refused(server.take_name(free_name()), BadAnswer, "--insecure")
        self.assertEqual(server._ports, [])
        allowed = self.server(listen=listen, insecure=True)
        await allowed.take_name(f"127.0.0.1:{port}")
        await allowed.initialize()
        status, _ = await self.http_get(allowed, "/status")
        self.assertEqual(status, 200)

    async def test_address_of_another_machine(self) -> None:
        server = self.server(insecure=True)
        # For documentation only (RFC 5737).
        await self.refused(server.take_name("192.0.2.1:4001"), BadAnswer, "--listen")

    async def test_listen_elsewhere_than_at_the_name(self) -> None:
        (port,) = free_ports(1)
        server = self.server(listen=f"127.0.0.1:{port}")
        await server.take_name("localhost:4001")
        await server.initialize()
        self.assertEqual([p.getHost().port for p in server._ports], [port])  # type: ignore[attr-defined]

    async def test_second_name_gives_the_first_back(self) -> None:
        server, name = self.server(), free_name()
        await server.take_name(name)
        await server.take_name(free_name())
        other = self.server()
        await other.take_name(name)

    async def test_directory_in_use(self) -> None:
        server = self.server()
        other = self.closed_server(server._options.data_dir)
        self.assertRaises(DirectoryInUse, other.open)
        await self.stop(server)
        other.open()
        await other.stop()


class JoinTests(ServerTestCase):
    async def test_39_join_through_leader_and_follower(self) -> None:
        one = await self.initialized()
        await self.put(one, b"before", b"1")
        two = await self.joined(one)
        # The second is a follower, and the third knows no other.
        three = await self.joined(two)
        self.assertIs(three.stage, Stage.MEMBER)
        voters = dict.fromkeys(map(name_of, (one, two, three)), "voter")
        self.assertEqual(roles_of(three), voters)
        self.assertEqual(await self.get(three, b"before", linearizable=False), b"1")
        await self.put(three, b"after", b"2")
        for server in (one, two):
            self.assertEqual(await self.get(server, b"after"), b"2")
        await self.delete(two, b"after")
        self.assertIsNone(await self.get(one, b"after"))

    async def test_servers_are_tried_in_order(self) -> None:
        one = await self.initialized()
        server = self.server()
        await server.take_name(free_name())
        await server.join([free_name(), self.listen(b"nonsense"), name_of(one)])
        self.assertEqual(len(roles_of(one)), 2)

    async def test_38_wiped_directory_under_an_old_name(self) -> None:
        one = await self.initialized()
        two = await self.joined(one)
        await self.joined(one, two)
        await self.stop(two)
        shutil.rmtree(two._options.data_dir)
        os.makedirs(two._options.data_dir)
        again = self.server(two._options.data_dir)
        await again.take_name(name_of(two))
        await self.refused(again.join([name_of(one)]), JoinFailed, name_of(two))
        self.assertEqual(len(roles_of(one)), 3)
        # The refusal has not made it a member of anything.
        self.assertIs(again.stage, Stage.JOINING)

    async def test_node_of_another_cluster(self) -> None:
        one = await self.initialized()
        two = await self.joined(one)
        await self.stop(two)
        stranger = self.server()
        await stranger.take_name(name_of(two))
        await stranger.initialize()
        (peer,) = node_of(one)._peers.members.values()
        await until(lambda: peer.refusal, "a refusal")
        self.assertIn("cluster", peer.refusal)
        self.assertIn(name_of(two), peer.refusal)
        self.assertFalse(peer.connected)

    async def test_join_of_another_cluster_than_the_first_time(self) -> None:
        one, other = await self.initialized(), await self.initialized()
        joiner = self.server()
        await joiner.take_name(free_name())
        self.patch(replica_module, "become_member", _never)
        waiting = joiner.join([name_of(one)])
        await until(lambda: len(roles_of(one)) == 2, "a learner")
        await until(lambda: joiner._replica._node is not None, "its node")
        await self.broken_off(waiting)
        await self.refused(joiner.join([name_of(other)]), JoinFailed, "cluster")
        self.assertEqual(len(roles_of(other)), 1)

    async def test_joiner_that_stops_half_way(self) -> None:
        """It counts for no quorum, and goes on with the same id."""
        one = await self.initialized()
        joiner = self.server()
        await joiner.take_name(free_name())
        restore = self.patch(replica_module, "become_member", _never)
        waiting = joiner.join([name_of(one)])
        waiting.addErrback(lambda failure: failure.trap(CancelledError))
        await until(lambda: len(roles_of(one)) == 2, "a learner")
        await until(lambda: joiner._replica._node is not None, "its node")
        member_id = node_of(joiner).member.id
        await self.stop(joiner)
        restore.restore()
        self.assertEqual(roles_of(one)[name_of(joiner)], "learner")
        await self.put(one, b"alone", b"1")

        again = self.server(joiner._options.data_dir)
        self.assertIs(again.stage, Stage.JOINING)
        await again.take_name(again.recorded_name)
        await again.join(())
        self.assertEqual(node_of(again).member.id, member_id)
        self.assertEqual(set(roles_of(again).values()), {"voter"})
        self.assertEqual(await self.get(again, b"alone", linearizable=False), b"1")
        self.assertEqual(len(roles_of(one)), 2)

    async def test_voter_that_does_not_know_it_yet(self) -> None:
        """A crash between the vote and its record: the cluster needs it to go on."""
        one = await self.initialized()
        joiner = self.server()
        await joiner.take_name(free_name())
        record = joiner._replica._record

        def forgetful(**changes: Any) -> None:
            if changes.get("stage") is Stage.MEMBER:
                raise StorageFailed("The disk is gone.")
            record(**changes)

        self.patch(joiner._replica, "_record", forgetful)
        await self.refused(joiner.join([name_of(one)]), StorageFailed)
        self.assertEqual(roles_of(one)[name_of(joiner)], "voter")
        await self.stop(joiner)
        await until(lambda: status_of(one).leader is None, "the loss of the quorum")
        again = self.server(joiner._options.data_dir)
        self.assertIs(again.stage, Stage.JOINING)
        await again.take_name(again.recorded_name)
        await again.join(())
        self.assertIs(again.stage, Stage.MEMBER)
        await self.put(one, b"k", b"v")

    async def test_voter_that_does_not_know_it_yet_needs_no_other_server(self) -> None:
        """The server that let it in is gone, and its vote is needed."""
        one = await self.initialized()
        two = await self.joined(one)
        joiner = self.server()
        await joiner.take_name(free_name())
        record = joiner._replica._record

        def forgetful(**changes: Any) -> None:
            if changes.get("stage") is Stage.MEMBER:
                raise StorageFailed("The disk is gone.")
            record(**changes)

        self.patch(joiner._replica, "_record", forgetful)
        await self.refused(joiner.join([name_of(one)]), StorageFailed)
        await until(lambda: len(roles_of(two)) == 3, "three members")
        await self.stop(joiner)
        await self.stop(one)
        again = self.server(joiner._options.data_dir)
        await again.take_name(again.recorded_name)
        await again.join(())
        self.assertIs(again.stage, Stage.MEMBER)
        await self.put(two, b"k", b"v")


class JoinFailureTests(ServerTestCase):
    """Each failure is told apart, and may be followed by another try."""

    async def _fails(self, server: str, *parts: str) -> None:
        joiner = self.server()
        await joiner.take_name(free_name())
        await self.refused(joiner.join([server]), JoinFailed, server, *parts)
        # Nobody has heard of it yet, and it can become something else.
        self.assertIs(joiner.stage, Stage.NEW)
        self.assertEqual(os.listdir(joiner._options.data_dir), [])
        one = await self.initialized()
        await joiner.join([name_of(one)])
        self.assertIs(joiner.stage, Stage.MEMBER)

    async def test_nothing_listens(self) -> None:
        await self._fails(free_name(), "nothing is listening")

    async def test_foreign_program(self) -> None:
        await self._fails(self.listen(b"220 mail.example ESMTP\r\n"), "not a raftd server")

    async def test_silent_program(self) -> None:
        self.patch(probing, "PROBE_TIMEOUT_S", 0.3)
        await self._fails(self.listen(None, close=False), "does not answer")

    async def test_server_without_a_cluster(self) -> None:
        self.patch(joining, "LEADER_PATIENCE_S", 0.2)
        other = self.server()
        await other.take_name(free_name())
        await self._fails(name_of(other), "does not belong to a cluster yet")

    async def test_cluster_without_a_leader(self) -> None:
        self.patch(joining, "LEADER_PATIENCE_S", 0.2)
        one = await self.initialized()
        two = await self.joined(one)
        await self.stop(two)
        await until(lambda: status_of(one).leader is None, "the loss of the quorum")
        await self._fails(name_of(one), "no leader", "enough of its members")

    async def test_itself(self) -> None:
        server = self.server()
        await server.take_name(free_name())
        await self.refused(server.join([name_of(server)]), JoinFailed, "this node itself")

    async def test_all_reasons_are_told(self) -> None:
        server, nobody = self.server(), free_name()
        await server.take_name(free_name())
        foreign = self.listen(b"nonsense")
        await self.refused(server.join([nobody, foreign]), JoinFailed, nobody, foreign)

    async def test_half_of_http(self) -> None:
        """A raftd that answers HTTP, and something else that answers peers."""
        one = await self.initialized()

        async def probed(*_: object) -> None:
            return None

        self.patch(server_module, "probe", probed)
        self.patch(joining, "JOIN_TIMEOUT_S", 2.0)
        server = self.server()
        await server.take_name(free_name())
        foreign = self.listen(b"nonsense")
        await self.refused(server.join([foreign]), JoinFailed, foreign)
        # It was asked: from here on the id is kept, and so are the servers that answered.
        self.assertIs(server.stage, Stage.JOINING)
        await server.join([name_of(one)])
        self.assertEqual(server._replica._identity.join_servers, (name_of(one),))

    async def test_by_an_ipv6_address(self) -> None:
        one = self.server()
        (port,) = free_ports(1)
        await one.take_name(f"[::1]:{port}")
        await one.initialize()
        two = await self.joined(one)
        self.assertEqual(set(roles_of(two).values()), {"voter"})


class StopTests(ServerTestCase):
    async def test_stop_at_every_stage(self) -> None:
        for begin in (
            self._nothing,
            self._name_under_way,
            self._join_under_way,
            self._joining_several,
            self._serving,
        ):
            server = self.server()
            step = await begin(server)
            ended: list[object] = []
            if step is not None:
                step.addBoth(ended.append)
            name = server._name
            await self.stop(server)
            if step is not None:
                (failure,) = ended
                failure.trap(CancelledError)  # type: ignore[attr-defined]
            # Directory and port are free again.
            again = self.server(server._options.data_dir)
            if name:
                await again.take_name(name)
            await self.stop(again)

    async def _nothing(self, server: Server) -> None:
        return None

    async def _name_under_way(self, server: Server) -> Deferred[Any]:
        return server.take_name(free_name())

    async def _join_under_way(self, server: Server) -> Deferred[Any]:
        await server.take_name(free_name())
        return server.join([self.listen(None, close=False)])

    async def _joining_several(self, server: Server) -> Deferred[Any]:
        await server.take_name(free_name())
        return server.join([self.listen(None, close=False) for _ in range(3)])

    async def _serving(self, server: Server) -> None:
        await server.take_name(free_name())
        await server.initialize()

    async def test_cancelled_join_asks_nobody_else(self) -> None:
        server = self.server()
        await server.take_name(free_name())
        one = await self.initialized()
        joining = server.join([self.listen(None, close=False), name_of(one)])
        await self.broken_off(joining)
        self.assertEqual(len(roles_of(one)), 1)
        self.assertIsNone(server._replica._node)

    async def test_47_disk_that_fails(self) -> None:
        server = await self.initialized()
        await self.put(server, b"k", b"v")

        def broken(*_: object) -> None:
            raise OSError(5, "Input/output error")

        self.patch(Files, "flush", broken)
        self.patch(Files, "write_and_flush", broken)
        await self._fails(self.put(server, b"k", b"lost"), OutcomeUnknown)
        await until(lambda: self.fatal, "the end")
        self.assertEqual(len(self.fatal), 1)
        self.assertIsInstance(self.fatal[0], StorageFailed)
        await self._fails(self.get(server, b"k"), Stopped)
        await self._fails(self.put(server, b"k", b"late"), Stopped)

    async def _fails(self, request: Awaitable[object], error: type[RaftdError]) -> None:
        try:
            await request
        except error:
            return
        raise AssertionError(f"it did not end in {error.__name__}")

    async def test_two_members_with_one_down(self) -> None:
        one = await self.initialized()
        two = await self.joined(one)
        await self.put(two, b"k", b"v")
        await self.stop(two)
        await until(lambda: status_of(one).leader is None, "the loss of the quorum")
        await self._fails(self.put(one, b"k", b"w"), NoQuorum)
        self.assertEqual(await self.get(one, b"k", linearizable=False), b"v")


async def _never(*_: object, **__: object) -> None:
    await Deferred()


def _broken_record(**_: object) -> None:
    raise StorageFailed("The disk is gone.")
