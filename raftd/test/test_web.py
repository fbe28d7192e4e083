"""What HTTP offers: `/db/KEY` and `/status`."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import quote_from_bytes

import treq
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IReactorTCP, IReactorTime
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import HTTPConnectionPool
from zope.interface import implementer
from zope.interface.verify import verifyObject

from raftd.core.messages import Member
from raftd.errors import (
    BadRequest,
    NoLeader,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PeerUnreachable,
    RaftdError,
    Stopped,
    StorageFailed,
    Superseded,
    TooLarge,
)
from raftd.interfaces import (
    DeleteResult,
    Done,
    IDatabase,
    INode,
    IRequest,
    MemberStatus,
    NodeStatus,
    PutResult,
    Value,
)
from raftd.kv.database import Database
from raftd.kv.store import Store
from raftd.net.http1 import HTTPFactory
from raftd.net.port import PortFactory
from raftd.test import test_kv
from raftd.test.drivers import IdleNode
from raftd.web.routes import Routes, Site

ALLOW_DB = "GET, HEAD, PUT, POST, DELETE, OPTIONS"


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


@implementer(IRequest)
class FakeRequest:
    """A request that keeps its answer."""

    def __init__(self, method: str, target: bytes, body: bytes = b"") -> None:
        self.method = method
        self.path, _, self.query = target.partition(b"?")
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self.body = body
        self.answers: list[Answer] = []

    def respond(
        self,
        status: int,
        body: bytes = b"",
        content_type: bytes = b"application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        fields = {name.decode(): value.decode() for name, value in headers}
        self.answers.append(Answer(status, body, content_type.decode(), fields))


@implementer(IDatabase)
class FakeDatabase:
    """Remembers what it was asked, and answers what the test wants."""

    def __init__(self) -> None:
        self.revision = 41
        self.calls: list[tuple[Any, ...]] = []
        self.outcome: Any = None
        self.waiting: list[Done[Any]] | None = None

    def _answer(self, done: Done[Any]) -> None:
        if self.waiting is None:
            done(self.outcome)
        else:
            self.waiting.append(done)

    def put(self, key: bytes, value: bytes, done: Done[PutResult]) -> None:
        self.calls.append(("put", key, value))
        self._answer(done)

    def delete(self, key: bytes, done: Done[DeleteResult]) -> None:
        self.calls.append(("delete", key))
        self._answer(done)

    def get(self, key: bytes, linearizable: bool, done: Done[Value | None]) -> None:
        self.calls.append(("get", key, linearizable))
        self._answer(done)


ME = Member(0x1234, "localhost:4001")
OTHER = Member(2**64 - 1, "localhost:4002")


class FakeNode(IdleNode):
    """A node that has a status and nothing else."""

    def __init__(self) -> None:
        self.now = NodeStatus(
            ME, 0xABC, "leader", 7, ME, 3, 20, 19, 18, 2, 12.34567,
            (MemberStatus(ME, "voter", 20, 21, None), MemberStatus(OTHER, "learner", 5, 6, 30)),
        )  # fmt: skip

    def status(self) -> NodeStatus:
        return self.now


class WebCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.database = FakeDatabase()
        self.node = FakeNode()
        self.routes = Routes("26.11.0")
        self.routes.site = Site(self.node, self.database)

    def ask(self, method: str, target: bytes, body: bytes = b"", outcome: Any = None) -> Answer:
        self.database.outcome = outcome
        request = FakeRequest(method, target, body)
        self.routes.handle(request)
        (answer,) = request.answers
        return answer

    def assertError(self, answer: Answer, status: int, code: str) -> None:
        self.assertEqual(answer.status, status)
        self.assertEqual(answer.content_type, "application/json")
        value = answer.json()
        self.assertEqual(set(value), {"error", "message"})
        self.assertEqual(value["error"], code)
        self.assertTrue(value["message"].endswith("."), value["message"])


class Fakes(WebCase):
    def test_they_are_what_they_stand_for(self) -> None:
        self.assertTrue(verifyObject(IRequest, FakeRequest("GET", b"/")))
        self.assertTrue(verifyObject(IDatabase, self.database))
        self.assertTrue(verifyObject(INode, self.node))


class Writes(WebCase):
    def test_a_new_key(self) -> None:
        for method in ("PUT", "POST"):
            answer = self.ask(method, b"/db/k", b"value", PutResult(5, True))
            self.assertEqual(self.database.calls.pop(), ("put", b"k", b"value"))
            self.assertEqual((answer.status, answer.body), (201, b'{"key":"k","revision":5}\n'))
            self.assertEqual(answer.content_type, "application/json")
            self.assertEqual(answer.headers, {"ETag": '"5"'})

    def test_a_replaced_key(self) -> None:
        answer = self.ask("PUT", b"/db/k", b"", PutResult(6, False))
        self.assertEqual((answer.status, answer.headers["ETag"]), (200, '"6"'))

    def test_a_delete(self) -> None:
        answer = self.ask("DELETE", b"/db/k", outcome=DeleteResult(7, 1))
        self.assertEqual(self.database.calls, [("delete", b"k")])
        self.assertEqual((answer.status, answer.json()), (200, {"key": "k", "revision": 7}))
        self.assertEqual(answer.headers, {"ETag": '"7"'})

    def test_a_delete_that_finds_nothing(self) -> None:
        answer = self.ask("DELETE", b"/db/k", outcome=DeleteResult(7, 0))
        self.assertError(answer, 404, "not_found")

    def test_an_answer_that_comes_later(self) -> None:
        self.database.waiting = []
        request = FakeRequest("PUT", b"/db/k", b"v")
        self.routes.handle(request)
        self.assertEqual(request.answers, [])
        self.database.waiting.pop()(PutResult(5, True))
        self.assertEqual(request.answers[0].status, 201)

    def test_a_write_has_no_parameters(self) -> None:
        for method in ("PUT", "POST", "DELETE"):
            for query in (b"consistency=local", b"x", b"=", b"a=b"):
                self.assertError(self.ask(method, b"/db/k?" + query), 400, "bad_request")
        self.assertEqual(self.database.calls, [])


class Reads(WebCase):
    def test_a_value(self) -> None:
        answer = self.ask("GET", b"/db/k", outcome=Value(b"\0\xffraw", 5))
        self.assertEqual(self.database.calls, [("get", b"k", True)])
        self.assertEqual(
            answer,
            Answer(
                200,
                b"\0\xffraw",
                "application/octet-stream",
                {
                    "ETag": '"5"',
                    "Cache-Control": "no-cache",
                    "X-Content-Type-Options": "nosniff",
                },
            ),
        )

    def test_head_is_answered_alike(self) -> None:
        """The protocol leaves the body out."""
        outcome = Value(b"v", 5)
        get, head = (self.ask(m, b"/db/k", outcome=outcome) for m in ("GET", "HEAD"))
        self.assertEqual(get, head)

    def test_a_missing_key(self) -> None:
        for method in ("GET", "HEAD"):
            answer = self.ask(method, b"/db/k")
            self.assertError(answer, 404, "not_found")
            self.assertEqual(answer.headers, {"Cache-Control": "no-cache"})

    def test_consistency(self) -> None:
        for query, linearizable in (
            (b"", True),
            (b"?", True),
            (b"?consistency=linearizable", True),
            (b"?consistency=local", False),
        ):
            self.ask("GET", b"/db/k" + query)
            self.assertEqual(self.database.calls.pop(), ("get", b"k", linearizable))

    def test_other_parameters(self) -> None:
        """A misspelt wish for freshness must not be taken for another."""
        for query in (
            b"consistency=Local",
            b"consistency=",
            b"consistency",
            b"consistancy=local",
            b"consistency=local&consistency=local",
            b"consistency=local&x=1",
            b"x=1",
        ):
            for method in ("GET", "HEAD"):
                answer = self.ask(method, b"/db/k?" + query)
                self.assertError(answer, 400, "bad_request")
        self.assertEqual(self.database.calls, [])


class Keys(WebCase):
    def key(self, path: bytes) -> bytes:
        self.ask("GET", b"/db/" + path)
        _, key, _ = self.database.calls.pop()
        return cast(bytes, key)

    def test_the_key_is_everything_after_the_prefix(self) -> None:
        for path, key in (
            (b"a", b"a"),
            (b"a/b%2Fc", b"a/b/c"),
            (b"/", b"/"),
            (b"a+b", b"a+b"),
            (b"a%2Bb%20c", b"a+b c"),
            (b"%00%FF%ff", b"\0\xff\xff"),
            (b"..", b".."),
            (b"a/../b", b"a/../b"),
            (b"%25%34%31", b"%41"),
            (b"a;b=c", b"a;b=c"),
            (b"%3F", b"?"),
        ):
            self.assertEqual(self.key(path), key)

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(st.binary(min_size=1, max_size=40))
    def test_any_bytes_can_be_a_key(self, key: bytes) -> None:
        self.assertEqual(self.key(quote_from_bytes(key, safe="").encode()), key)
        everything = "".join(f"%{byte:02x}" for byte in key)
        self.assertEqual(self.key(everything.encode()), key)

    def test_a_key_that_is_not_utf_8(self) -> None:
        for method, outcome in (("PUT", PutResult(5, True)), ("DELETE", DeleteResult(5, 1))):
            value = self.ask(method, b"/db/%ff%00", outcome=outcome).json()
            self.assertEqual(set(value), {"key_base64", "revision"})
            self.assertEqual(b64decode(value["key_base64"]), b"\xff\0")

    def test_a_key_in_utf_8(self) -> None:
        answer = self.ask("PUT", b"/db/%C3%A9%22%0A", outcome=PutResult(5, True))
        self.assertEqual(answer.json()["key"], 'é"\n')

    def test_no_key(self) -> None:
        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            self.assertError(self.ask(method, b"/db/"), 400, "bad_request")
        self.assertEqual(self.database.calls, [])

    def test_a_malformed_percent_sign(self) -> None:
        for path in (b"%", b"a%2", b"%zz", b"%%41", b"a%2-"):
            for method in ("GET", "PUT", "DELETE"):
                self.assertError(self.ask(method, b"/db/" + path), 400, "bad_request")
        self.assertEqual(self.database.calls, [])


class Methods(WebCase):
    def test_other_methods(self) -> None:
        for method in ("PATCH", "TRACE", "PROPFIND"):
            answer = self.ask(method, b"/db/k")
            self.assertError(answer, 405, "method_not_allowed")
            self.assertEqual(answer.headers["Allow"], ALLOW_DB)
        for method in ("PUT", "POST", "DELETE", "PATCH"):
            answer = self.ask(method, b"/status")
            self.assertError(answer, 405, "method_not_allowed")
            self.assertEqual(answer.headers["Allow"], "GET, HEAD, OPTIONS")
        self.assertEqual(self.database.calls, [])

    def test_options(self) -> None:
        for target, allow in (
            (b"/db/k", ALLOW_DB),
            (b"*", "GET, HEAD, PUT, POST, PATCH, DELETE, OPTIONS"),
            (b"/status", "GET, HEAD, OPTIONS"),
        ):
            answer = self.ask("OPTIONS", target)
            self.assertEqual((answer.status, answer.body), (204, b""))
            self.assertEqual(answer.headers, {"Allow": allow})

    def test_elsewhere(self) -> None:
        for path in (b"/", b"/db", b"/dbx", b"/DB/k", b"/status/", b"/%64b/k", b"//db/k"):
            self.assertError(self.ask("GET", path), 404, "not_found")


#: Whatever says that a request did not happen, and the code it is given.
DID_NOT_HAPPEN: list[tuple[RaftdError, str]] = [
    (NoLeader("a."), "no_leader"),
    (NotLeader("b."), "no_leader"),
    (NoQuorum("c."), "no_quorum"),
    (Overloaded("d."), "overloaded"),
    (Superseded("e."), "superseded"),
    (Stopped("f."), "stopped"),
]


class Failures(WebCase):
    def everything(self) -> list[tuple[str, Callable[[RaftdError], Answer]]]:
        return [
            (method, lambda error, method=method: self.ask(method, b"/db/k", outcome=error))  # type: ignore[misc]
            for method in ("GET", "HEAD", "PUT", "POST", "DELETE")
        ]

    def test_what_did_not_happen_may_be_tried_again(self) -> None:
        for error, code in DID_NOT_HAPPEN:
            for _, ask in self.everything():
                answer = ask(error)
                self.assertError(answer, 503, code)
                self.assertEqual(answer.json()["message"], str(error))
                self.assertEqual(answer.headers["Retry-After"], "1")

    def test_what_can_never_happen_may_not(self) -> None:
        for _, ask in self.everything():
            self.assertError(ask(TooLarge("a.")), 413, "too_large")
            self.assertError(ask(BadRequest("a.")), 400, "bad_request")
            self.assertNotIn("Retry-After", ask(BadRequest("a.")).headers)

    def test_30_an_unknown_outcome_is_its_own_answer(self) -> None:
        """Also when something broke that nobody thought of."""
        unexpected = (OutcomeUnknown("a."), PeerUnreachable("b."), StorageFailed("c."))
        for error in (*unexpected, RaftdError("d.")):
            for method, ask in self.everything():
                answer = ask(error)
                if method in ("GET", "HEAD"):
                    self.assertEqual(answer.status, 503)
                    self.assertNotEqual(answer.json()["error"], "outcome_unknown")
                else:
                    self.assertError(answer, 504, "outcome_unknown")
                    self.assertNotIn("Retry-After", answer.headers)

    def test_before_there_is_a_cluster(self) -> None:
        self.routes.site = None
        for method in ("GET", "PUT", "OPTIONS", "PATCH"):
            for target in (b"/db/k", b"/db/", b"/status", b"/", b"/nowhere"):
                answer = self.ask(method, target)
                self.assertError(answer, 503, "not_ready")
                self.assertEqual(answer.headers["Retry-After"], "1")
        self.assertEqual(self.database.calls, [])


class Statuses(WebCase):
    def status(self) -> dict[str, Any]:
        answer = self.ask("GET", b"/status")
        self.assertEqual((answer.status, answer.content_type), (200, "application/json"))
        self.assertEqual(answer.headers, {"Cache-Control": "no-cache"})
        return cast("dict[str, Any]", answer.json())

    def test_of_a_leader(self) -> None:
        self.assertEqual(
            self.status(),
            {
                "name": "localhost:4001",
                "member_id": "0000000000001234",
                "cluster_id": "0000000000000abc",
                "version": "26.11.0",
                "role": "leader",
                "term": 7,
                "leader": "localhost:4001",
                "first_index": 3,
                "last_index": 20,
                "commit_index": 19,
                "applied_index": 18,
                "snapshot_index": 2,
                "revision": 41,
                "uptime_seconds": 12.346,
                "members": [
                    {
                        "name": "localhost:4001",
                        "id": "0000000000001234",
                        "role": "voter",
                        "match_index": 20,
                        "next_index": 21,
                        "last_contact_ms": None,
                    },
                    {
                        "name": "localhost:4002",
                        "id": "ffffffffffffffff",
                        "role": "learner",
                        "match_index": 5,
                        "next_index": 6,
                        "last_contact_ms": 30,
                    },
                ],
            },
        )

    def test_of_others(self) -> None:
        """Only a leader knows how far the members are."""
        for role, said in (
            ("follower", "follower"),
            ("learner", "learner"),
            ("candidate", "candidate"),
        ):
            self.node.now = NodeStatus(
                ME, 1, role, 1, None, 1, 0, 0, 0, 0, 0.0, (MemberStatus(OTHER, "voter"),)
            )
            status = self.status()
            self.assertEqual((status["role"], status["leader"]), (said, None))
            self.assertEqual(
                status["members"],
                [{"name": "localhost:4002", "id": "ffffffffffffffff", "role": "voter"}],
            )

    def test_parameters(self) -> None:
        self.assertError(self.ask("GET", b"/status?x=1"), 400, "bad_request")


class OverTCP(TestCase):
    """Port, protocol, routes, database and store, as a client of today meets them."""

    timeout = 20

    def setUp(self) -> None:
        clock = IReactorTime(reactor)
        store = Store()
        node = test_kv.FakeNode(store)
        self.reads = node.reads
        routes = Routes("1")
        routes.site = Site(node, Database(node, store))
        http = HTTPFactory(routes.handle, clock)
        self.port = PortFactory(Factory(), http, clock)
        listening = IReactorTCP(reactor).listenTCP(
            0,
            self.port,  # type: ignore[arg-type]
            interface="127.0.0.1",
        )
        address = cast(IPv4Address, listening.getHost())
        self.url = f"http://127.0.0.1:{address.port}/db/"
        self.pool = HTTPConnectionPool(reactor)
        self.addCleanup(listening.stopListening)
        self.addCleanup(self.port.close_all)
        self.addCleanup(http.stop)
        self.addCleanup(self.pool.closeCachedConnections)

    async def ask(self, method: str, key: str, body: bytes = b"") -> tuple[int, bytes]:
        response = await treq.request(
            method, self.url + key, data=body, pool=self.pool, persistent=True
        )
        return response.code, await response.content()

    async def test_a_key_through_its_life(self) -> None:
        local = "a%2Fb?consistency=local"
        self.assertEqual((await self.ask("GET", local))[0], 404)
        self.assertEqual(
            await self.ask("PUT", "a%2Fb", b"1"), (201, b'{"key":"a/b","revision":2}\n')
        )
        self.assertEqual(
            await self.ask("POST", "a/b", b"2" * 2**20), (200, b'{"key":"a/b","revision":3}\n')
        )
        self.assertEqual(await self.ask("GET", local), (200, b"2" * 2**20))
        self.assertEqual(await self.ask("HEAD", local), (200, b""))
        self.assertEqual(
            await self.ask("DELETE", "a/b"), (200, b'{"key":"a/b","revision":4}\n')
        )
        self.assertEqual((await self.ask("DELETE", "a/b"))[0], 404)
        self.assertEqual((await self.ask("GET", local))[0], 404)
        # All of it over one connection.
        self.assertEqual(len(self.port.connections), 1)

    async def test_a_value_that_is_too_large(self) -> None:
        status, body = await self.ask("PUT", "k", b"x" * (2**20 + 1))
        self.assertEqual((status, json.loads(body)["error"]), (413, "too_large"))
        self.assertEqual((await self.ask("GET", "k?consistency=local"))[0], 404)

    async def test_a_key_that_is_too_long(self) -> None:
        status, body = await self.ask("PUT", "%6b" * 4096, b"v")
        self.assertEqual(status, 201)
        status, body = await self.ask("PUT", "%6b" * 4097, b"v")
        self.assertEqual((status, json.loads(body)["error"]), (400, "bad_request"))
