"""The client over TCP: its own connections to servers on loopback, on the real reactor."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from raftd.client import Client, Unreachable
from raftd.client.recipes import Lock
from raftd.errors import Stopped
from raftd.test.servers import ServerTestCase, _reactor, free_name


class OverTCP(ServerTestCase):
    def client(self, *servers: str, timeout_s: float = 12.0) -> Client:
        client = Client(_reactor, servers, timeout_s=timeout_s)
        self.addCleanup(client.close)
        return client

    async def test_everything_once(self) -> None:
        server = await self.initialized()
        name = server._name
        # The first of them is not there.
        async with Client(_reactor, [free_name(), name]) as client:
            key = bytes(range(256)) * 2
            large = bytes(range(256)) * 4000
            written = await client.put(key, large)
            record: Any = await client.get(key)
            self.assertEqual((record.key, record.value), (key, large))
            async with client.watch(prefix="w/") as watch:
                await watch.started()
                await gatherResults([client.put(f"w/{i}", str(i)) for i in range(50)])
                seen: list[int] = []
                async for changes in watch:
                    seen.append(changes.revision)
                    if len(seen) == 50:
                        break
            self.assertEqual(seen, list(range(written.revision + 1, written.revision + 51)))
            async with Lock(client, "lock", ttl_s=2) as held:
                self.assertTrue(held.is_held)
                self.assertIsNone(await Lock(client, "lock").acquire(wait=False))
            self.assertEqual((await client.page("lock/")).count, 0)

    async def test_nobody_is_there(self) -> None:
        client = self.client(free_name(), "name.invalid:4001", timeout_s=0.6)
        for asking in (client.get("k"), client.put("k", "v")):
            try:
                await asking
            except Unreachable as e:
                self.assertIn("cannot be reached", str(e))
            else:
                self.fail("somebody was there")

    async def test_closed_with_everything_under_way(self) -> None:
        server = await self.initialized()
        client = self.client(server._name)
        lease = await client.lease(5)
        lost = lease.lost()
        watch = client.watch("k")
        await watch.started()
        asked: list[Deferred[Any]] = [client.put("k", "v"), client.get("k")]
        await client.close()
        await lost
        # Their connections were being made: nothing was sent.
        for each in asked:
            self.failureResultOf(each, Stopped)

    async def test_a_server_that_is_stopped_and_comes_back(self) -> None:
        server = await self.initialized()
        client = self.client(server._name)
        watch = client.watch(prefix="", revision=2)
        await client.put("k", "1")
        first = await watch.__anext__()
        await self.stop(server)
        writing = client.put("k", "2")
        await self.restarted(server)
        await writing
        second = await watch.__anext__()
        self.assertEqual([first.revision, second.revision], [2, 3])
        watch.close()

    async def test_cancelled(self) -> None:
        server = await self.initialized()
        client = self.client(server._name)
        asking: Deferred[Any] = client.get("k")
        asking.addTimeout(0, _reactor)
        with self.assertRaises(Exception):  # noqa: B017
            await asking
        self.assertIsNone(await client.get("k"))
