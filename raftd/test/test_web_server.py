"""What HTTP offers, from a real server of one, as a client of today meets it."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from typing import Any
from urllib.parse import quote_from_bytes

import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import HTTPConnectionPool
from twisted.web.http_headers import Headers

from raftd.kv.interfaces import MAX_BACKUPS
from raftd.test.contract import check
from raftd.test.servers import ServerTestCase
from raftd.test.webs import Answer

#: Fields that no handler gives; treq itself adds the last.
OF_THE_PROTOCOL = {
    b"Connection", b"Content-Length", b"Content-Type", b"Date", b"Server", b"Content-Encoding"
}  # fmt: skip


class SlowReader(Protocol):
    """Asks, and takes nothing more once something has come."""

    transport: Any

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.begun: Deferred[bytes] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        self.transport.pauseProducing()
        if not self.begun.called:
            self.begun.callback(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)


class OverTCP(ServerTestCase):
    """Port, protocol, routes, database, log and store."""

    async def begin(self) -> None:
        self.pool = HTTPConnectionPool(reactor)
        self.pool.maxPersistentPerHost = 1
        self.addCleanup(self.pool.closeCachedConnections)
        self.served = await self.initialized()

    async def ask(
        self, method: str, target: str, body: bytes | object = b"", **headers: str
    ) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await treq.request(
            method,
            f"http://{self.served._name}{target}",
            data=data,
            headers=Headers(
                {name.replace("_", "-"): [value] for name, value in headers.items()}
            ),
            pool=self.pool,
            persistent=True,
        )
        content = await response.content()
        fields = {
            name.decode(): values[0].decode()
            for name, values in response.headers.getAllRawHeaders()
            if name not in OF_THE_PROTOCOL
        }
        kind = response.headers.getRawHeaders("content-type", [""])[0]
        check(method, target.encode(), response.code, kind, fields, content)
        return Answer(response.code, content, kind, fields)

    async def json(self, method: str, target: str, *args: Any, **headers: str) -> Any:
        answer = await self.ask(method, target, *args, **headers)
        self.assertIn(answer.status, (200, 201), answer.body)
        return answer.json()

    def assertCode(self, answer: Answer, status: int, code: str) -> None:
        self.assertEqual((answer.status, answer.json()["error"]), (status, code))

    async def test_a_key_through_its_life(self) -> None:
        await self.begin()
        key = "/db/a%2Fb"
        self.assertEqual((await self.ask("GET", key + "?consistency=local")).status, 404)
        self.assertEqual(await self.json("PUT", key, b"1"), {"key": "a/b", "revision": 2})
        await self.json("POST", "/db/a/b", b"2" * 2**20)
        found = await self.ask("GET", key)
        self.assertEqual((found.status, found.body), (200, b"2" * 2**20))
        self.assertEqual(found.headers["ETag"], '"3"')
        self.assertEqual((await self.ask("GET", key, if_none_match='"3"')).status, 304)
        self.assertEqual((await self.ask("HEAD", key)).body, b"")
        self.assertEqual((await self.ask("GET", key + "?revision=2")).body, b"1")
        before = await self.json("DELETE", key + "?prev")
        self.assertEqual(before["previous"]["mod_revision"], 3)
        self.assertCode(await self.ask("DELETE", key), 404, "not_found")
        self.assertCode(await self.ask("GET", key), 404, "not_found")
        self.assertCode(await self.ask("GET", key + "?revision=99"), 400, "future_revision")

    async def test_bounds(self) -> None:
        await self.begin()
        self.assertCode(await self.ask("PUT", "/db/k", b"x" * (2**20 + 1)), 413, "too_large")
        self.assertEqual((await self.ask("PUT", "/db/" + "%6b" * 4096)).status, 201)
        self.assertCode(await self.ask("PUT", "/db/" + "%6b" * 4097), 400, "bad_request")
        # In base64 a value of a mebibyte fits into a transaction; two do not.
        value = b64encode(b"\xff" * 2**20).decode()
        put = {"put": {"key": "k", "value_base64": value}}
        result = await self.json("POST", "/txn", {"then": [put]})
        self.assertEqual(result["results"], [{"put": {"created": True}}])
        self.assertEqual((await self.ask("GET", "/db/k")).body, b"\xff" * 2**20)
        self.assertCode(await self.ask("POST", "/txn", {"then": [put, put]}), 413, "too_large")

    async def test_compare_and_set(self) -> None:
        await self.begin()
        created = await self.ask("PUT", "/db/k", b"1", if_none_match="*")
        self.assertEqual((created.status, created.headers["ETag"]), (201, '"2"'))
        again = await self.ask("PUT", "/db/k", b"2", if_none_match="*")
        self.assertCode(again, 412, "precondition_failed")
        self.assertEqual((again.headers["ETag"], again.json()["mod_revision"]), ('"2"', 2))
        replaced = await self.ask("PUT", "/db/k", b"2", if_match='"2"')
        self.assertEqual((replaced.status, replaced.headers["ETag"]), (200, '"3"'))
        for method in ("PUT", "DELETE"):
            late = await self.ask(method, "/db/k", b"", if_match='"2"')
            self.assertCode(late, 412, "precondition_failed")
        missing = await self.ask("DELETE", "/db/other", if_match="*")
        self.assertEqual((missing.status, missing.json()["mod_revision"]), (412, 0))
        self.assertEqual((await self.ask("DELETE", "/db/k", if_match='"3"')).status, 200)

    async def test_pages_of_one_moment(self) -> None:
        """What is written meanwhile is not in the later ones."""
        await self.begin()
        keys = [b"p/%04d" % i + (b"\xff" if i % 7 == 0 else b"") for i in range(1100)]
        for i in range(0, len(keys), 100):
            puts = [
                {"put": {"key_base64": b64encode(key).decode(), "value": "v" * 300}}
                for key in keys[i : i + 100]
            ]
            await self.json("POST", "/txn", {"then": puts})
        for order in ("asc", "desc"):
            target, found, pages = f"/db/?prefix=p&limit=500&order={order}", [], 0
            while target:
                page = await self.json("GET", target)
                found += [record["mod_revision"] for record in page["kvs"]]
                target, pages = page.get("next", ""), pages + 1
                self.assertEqual(page["more"], bool(target))
                await self.json("PUT", f"/db/p/new{order}{pages}", b"")
            self.assertEqual((len(found), pages), (1100 + 3 * (order == "desc"), 3))
        count = await self.json("GET", "/db/?prefix=p&count_only")
        self.assertEqual((count["count"], count["kvs"]), (1106, []))
        end = quote_from_bytes(b"p/0003")
        deleted = await self.json("DELETE", f"/db/?start=p&end={end}")
        self.assertEqual(deleted["deleted"], 3)
        self.assertEqual((await self.json("DELETE", "/db/?end=%00"))["deleted"], 0)
        self.assertEqual((await self.json("DELETE", "/db/?prefix="))["deleted"], 1103)

    async def test_transactions(self) -> None:
        await self.begin()
        await self.json("PUT", "/db/a", b"1")
        body = {
            "compare": [{"key": "a", "value": "1"}, {"prefix": "b/", "version": 0}],
            "then": [
                {"put": {"key": "a", "value": "2", "prev": True}},
                {"get": {"key": "a"}},
                {"delete": {"key": "x"}},
            ],
            "else": [{"get": {"key": "a", "keys_only": True}}],
        }
        first = await self.json("POST", "/txn", body)
        self.assertEqual((first["succeeded"], first["revision"]), (True, 3))
        put, get, delete = first["results"]
        self.assertEqual(put["put"]["previous"]["value"], "1")
        self.assertEqual(get["get"]["kvs"][0]["value"], "2")
        self.assertEqual(delete, {"delete": {"deleted": 0}})
        second = await self.json("POST", "/txn", body)
        self.assertEqual((second["succeeded"], second["revision"]), (False, 3))
        self.assertNotIn("value", second["results"][0]["get"]["kvs"][0])
        twice = {"then": [{"put": {"key": "a", "value": ""}}] * 2}
        self.assertCode(await self.ask("POST", "/txn", twice), 400, "duplicate_key")

    async def test_leases(self) -> None:
        await self.begin()
        granted = await self.ask("POST", "/lease", {"ttl": 100})
        self.assertEqual(granted.status, 201)
        lease = granted.json()["id"]
        path = granted.headers["Location"]
        self.assertEqual((granted.json()["ttl"], path), (100, f"/lease/{lease}"))
        taken = await self.ask("POST", "/lease", {"ttl": 5, "id": lease})
        self.assertCode(taken, 409, "lease_exists")
        await self.json("PUT", f"/db/%ff?lease={lease}", b"v")
        self.assertEqual((await self.ask("GET", "/db/%ff")).headers["Raftd-Lease"], lease)
        self.assertEqual((await self.json("POST", f"{path}/keepalive"))["ttl"], 100)
        status = await self.json("GET", path)
        self.assertEqual((status["keys"], status["more"]), ([{"key_base64": "/w=="}], False))
        self.assertTrue(90 < status["ttl_left"] <= 100)
        own = await self.json("PUT", "/db/k?ttl=50.5", b"v")
        leases = (await self.json("GET", "/lease"))["leases"]
        expected = sorted([{"id": lease, "ttl": 100}, {"id": own["lease"], "ttl": 51}],
                          key=lambda found: str(found["id"]))  # fmt: skip
        self.assertEqual(leases, expected)
        self.assertEqual((await self.json("DELETE", path))["deleted"], 1)
        self.assertCode(await self.ask("GET", path), 404, "lease_not_found")
        gone = await self.ask("PUT", f"/db/k?lease={lease}", b"")
        self.assertCode(gone, 404, "lease_not_found")

    async def test_retries(self) -> None:
        await self.begin()
        key = {"idempotency_key": "first-1"}
        first = await self.ask("PUT", "/db/k?ttl=60", b"v", **key)
        again = await self.ask("PUT", "/db/k?ttl=60", b"v", **key)
        self.assertEqual((first.status, first.body), (201, again.body))
        self.assertEqual(again.status, 201)
        other = await self.ask("PUT", "/db/k?ttl=60", b"w", **key)
        self.assertCode(other, 422, "idempotency_key_reused")
        self.assertEqual((await self.json("GET", "/status"))["revision"], 2)
        lease = {"idempotency_key": "first-2"}
        ids = [(await self.json("POST", "/lease", {"ttl": 60}, **lease))["id"] for _ in "12"]
        self.assertEqual(len(set(ids)), 1)
        for _ in range(2):
            refused = await self.ask("PUT", "/db/k", b"", if_match='"9"', idempotency_key="3")
            self.assertCode(refused, 412, "precondition_failed")

    async def test_compaction_and_backup(self) -> None:
        await self.begin()
        for i in range(5):
            await self.json("PUT", "/db/k", b"%d" % i)
        kept = await self.json("POST", "/compact", {"keep": 2})
        self.assertEqual(kept, {"compacted_revision": 5})
        self.assertEqual(await self.json("POST", "/compact", {"keep": 2}), kept)
        for answer in (
            await self.ask("POST", "/compact", {"revision": 5}),
            await self.ask("GET", "/db/k?revision=4"),
            await self.ask("GET", "/db/?revision=4"),
        ):
            self.assertCode(answer, 410, "compacted")
            self.assertEqual(answer.json()["compacted_revision"], 5)
        self.assertEqual((await self.ask("GET", "/db/k?revision=5")).body, b"3")
        backup = await self.ask("GET", "/snapshot")
        self.assertEqual(backup.headers["Raftd-Revision"], "6")
        self.assertTrue(backup.body.startswith(b"raftd backup 1\r\n"))
        self.assertEqual(hashlib.sha256(backup.body[:-32]).digest(), backup.body[-32:])

    async def test_backups_that_nobody_reads(self) -> None:
        """Each holds memory, so there is a bound; whoever goes makes room."""
        await self.begin()
        value = b"x" * 2**20
        for i in range(16):
            await self.json("PUT", f"/db/{i}", value)
        readers = [await self.slow_reader() for _ in range(MAX_BACKUPS)]
        for _ in range(2):
            refused = await self.ask("GET", "/snapshot")
            self.assertCode(refused, 503, "overloaded")
            self.assertEqual(refused.headers["Retry-After"], "1")
        self.assertEqual((await self.ask("GET", "/db/1")).body, value)
        readers[0].transport.abortConnection()
        await readers[0].ended
        while (backup := await self.ask("GET", "/snapshot")).status == 503:
            pass
        self.assertEqual(hashlib.sha256(backup.body[:-32]).digest(), backup.body[-32:])
        # That one is over, and one was free before it.
        readers.append(await self.slow_reader())
        self.assertCode(await self.ask("GET", "/snapshot"), 503, "overloaded")
        for reader in readers[1:]:
            reader.transport.abortConnection()
            await reader.ended

    async def slow_reader(self) -> SlowReader:
        """Asks for a backup, and reads no more than its head."""
        host, _, port = self.served._name.rpartition(":")
        reader = SlowReader(b"GET /snapshot HTTP/1.1\r\nHost: a\r\n\r\n")
        point = TCP4ClientEndpoint(reactor, host, int(port))
        await point.connect(Factory.forProtocol(lambda: reader))
        self.assertTrue((await reader.begun).startswith(b"HTTP/1.1 200 "))
        return reader

    async def test_figures(self) -> None:
        await self.begin()
        await self.json("PUT", "/db/k", b"v")
        status = await self.json("GET", "/status")
        self.assertEqual((status["keys"], status["revision"]), (1, 2))
        self.assertGreater(status["size_bytes"], 0)
        metrics = (await self.ask("GET", "/metrics")).body.decode()
        self.assertIn("\nraftd_store_keys 1\n", metrics)
        self.assertIn('\nraftd_role{role="leader"} 1\n', metrics)
