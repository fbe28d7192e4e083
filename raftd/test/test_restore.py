"""A cluster that begins with a backup of another: whole, or not at all."""

from __future__ import annotations

import json
import os

from twisted.internet.defer import Deferred

from raftd.errors import BadAnswer, Compacted, RaftdError, StorageFailed
from raftd.interfaces import Stage
from raftd.kv.interfaces import LOCAL
from raftd.kv.operations import GrantLease, Put, PutWith, Transaction
from raftd.kv.results import KeyValue
from raftd.server import Server
from raftd.test.servers import ServerTestCase, free_name, status_of

LEASE = 77


async def outcome_of_get(server: Server, key: bytes, revision: int) -> object:
    """The record of a key as this node had it at a revision, or why not."""
    answered: Deferred[KeyValue | RaftdError | None] = Deferred()
    server._store.database.get(key, LOCAL, answered.callback, revision)
    return await answered


class RestoreTests(ServerTestCase):
    async def backup(self) -> str:
        """A backup of a cluster with a history, at revision 5, and a lease."""
        server = await self.initialized()
        await self.put(server, b"k", b"first")
        await self.put(server, b"k", b"second")
        await self.put(server, b"other", b"\xff" * 100_000)
        granted = Transaction(
            (), (GrantLease(LEASE, 60_000), PutWith(b"leased", b"", lease=LEASE)), ()
        )
        await self.change(server, granted)
        status, data = await self.http_get(server, "/snapshot")
        self.assertEqual(status, 200)
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(data)
        await self.stop(server)
        return str(path)

    async def test_everything_is_there(self) -> None:
        """With its history, and in every member of the new cluster; also after a restart."""
        path = await self.backup()
        one = await self.initialized(restore=path)
        two = await self.joined(one)
        for server in (one, two):
            self.assertEqual(await self.get(server, b"k"), b"second")
            self.assertEqual(await self.get(server, b"other"), b"\xff" * 100_000)
            old = await outcome_of_get(server, b"k", 2)
            assert isinstance(old, KeyValue)
            self.assertEqual((old.value, old.mod_revision), (b"first", 2))
            lease = server._store.store.lease(LEASE)
            assert lease is not None
            self.assertEqual(lease.ttl_ms, 60_000)
        await self.change(one, Put(b"k", b"third"))
        self.assertEqual(one._store.database.revision, 6)
        self.assertEqual(await self.get(two, b"k"), b"third")
        self.assertEqual(one._store.store.digest(), two._store.store.digest())
        await self.stop(two)
        await self.stop(one)
        again = self.server(one._options.data_dir, restore=path)
        await again.take_name(again.recorded_name)
        await again.recover()
        two = await self.restarted(two)
        self.assertEqual(await self.get(again, b"k"), b"third")

    async def test_moved_on(self) -> None:
        """Nobody who has seen a revision of the old cluster is shown another one under it."""
        one = await self.initialized(restore=await self.backup(), restore_ahead=1000)
        self.assertEqual(await self.get(one, b"k"), b"second")
        self.assertEqual(one._store.database.revision, 1005)
        self.assertIsInstance(await outcome_of_get(one, b"k", 3), Compacted)
        await self.change(one, Put(b"k", b"third"))
        self.assertEqual(one._store.database.revision, 1006)

    async def test_another_cluster(self) -> None:
        one = await self.initialized(restore=await self.backup())
        two = await self.initialized()
        self.assertNotEqual(status_of(one).cluster_id, status_of(two).cluster_id)

    async def test_what_is_no_backup(self) -> None:
        """It is refused before anything is written."""
        path = await self.backup()
        with open(path, "r+b") as file:
            file.seek(100)
            file.write(b"?")
        for wrong, word in ((path, "damaged"), (self.mktemp(), "No such file")):
            server = self.server(restore=wrong)
            await server.take_name(free_name())
            await self.refused(server.initialize(), BadAnswer, word)
            self.assertEqual(os.listdir(server._options.data_dir), [])

    async def test_broken_off(self) -> None:
        """A restore that did not come to its end is never taken for an empty cluster."""
        path = await self.backup()
        for broken in ("_create_log", "_create_snapshot"):
            server = self.server(restore=path)
            await server.take_name(free_name())
            self.patch(server._replica, broken, _refused_by_the_disk)
            await self.refused(server.initialize(), StorageFailed)
            await self.stop(server)
            directory = server._options.data_dir
            with open(os.path.join(directory, "identity.json")) as file:
                self.assertTrue(json.load(file)["restoring"])

            again = self.server(directory)
            self.assertIs(again.stage, Stage.INITIALIZING)
            await again.take_name(again.recorded_name)
            await self.refused(again.initialize(), BadAnswer, "backup")
            await self.stop(again)

            third = self.server(directory, restore=path)
            await third.take_name(third.recorded_name)
            await third.initialize()
            self.assertEqual(await self.get(third, b"k"), b"second")
            with open(os.path.join(directory, "identity.json")) as file:
                self.assertNotIn("restoring", json.load(file))


def _refused_by_the_disk(*args: object) -> object:
    raise StorageFailed("The disk has had enough.")
