"""For tests of the web face: a request, a database and a node that are made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from raftd.core.messages import Member
from raftd.interfaces import (
    Done,
    IBodySink,
    IBodySource,
    IRequest,
    MemberStatus,
    NodeStatus,
)
from raftd.kv.interfaces import (
    DigestStatus,
    IDatabase,
    IWatch,
    LeaseStatus,
    Selection,
    StoreStatus,
)
from raftd.kv.operations import Operation, Range
from raftd.kv.results import KeyValue, LeaseResult, RangeResult, Result
from raftd.test.contract import check
from raftd.test.drivers import IdleNode
from raftd.web.routes import Routes, Site

Headers = Sequence[tuple[bytes, bytes]]


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


@implementer(IBodySink)
class FakeSink:
    """Takes so many pieces at a time."""

    def __init__(self, room: int = 1) -> None:
        self.room = room
        self.pieces: list[bytes] = []
        self.over = ""

    @property
    def has_room(self) -> bool:
        return self.room > 0

    def write(self, data: bytes) -> None:
        assert data
        assert not self.over
        self.room -= 1
        self.pieces.append(data)

    def finish(self) -> None:
        assert not self.over
        self.over = "finished"

    def abort(self) -> None:
        assert not self.over
        self.over = "aborted"


@implementer(IRequest)
class FakeRequest:
    """A request that keeps its answer; a streamed one is drawn to its end if `patient`."""

    def __init__(
        self,
        method: str,
        target: bytes,
        body: bytes = b"",
        headers: Headers = (),
        patient: bool = True,
    ) -> None:
        self.method = method
        self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        self.body = body
        self.answers: list[Answer] = []
        self.sink = FakeSink(10**9 if patient else 1)
        self.source: IBodySource | None = None
        self.head: tuple[int, str, dict[str, str]] | None = None

    def respond(
        self,
        status: int,
        body: bytes = b"",
        content_type: bytes = b"application/json",
        headers: Headers = (),
    ) -> None:
        assert self.head is None
        fields = {name.decode(): value.decode() for name, value in headers}
        self.answers.append(Answer(status, body, content_type.decode(), fields))

    def stream(
        self, status: int, body: IBodySource, content_type: bytes, headers: Headers = ()
    ) -> IBodySink | None:
        assert not self.answers
        assert self.head is None
        fields = {name.decode(): value.decode() for name, value in headers}
        self.source = body
        self.head = (status, content_type.decode(), fields)
        return None if self.method == "HEAD" else self.sink

    def answer(self) -> Answer:
        """The only one."""
        if self.head is None:
            (answer,) = self.answers
            return answer
        status, content_type, headers = self.head
        return Answer(status, b"".join(self.sink.pieces), content_type, headers)


@implementer(IDatabase)
class FakeDatabase:
    """Remembers what it was asked, and answers what the test wants."""

    def __init__(self) -> None:
        self.revision = 41
        self.compacted_revision = 7
        self.calls: list[tuple[Any, ...]] = []
        #: What every call comes to, or those of a kind.
        self.outcome: Any = None
        self.outcomes: dict[str, Any] = {}
        self.waiting: list[Done[Any]] | None = None
        self.now = StoreStatus(41, 7, 3, 1234, 10**9, 2, 1, 5, DigestStatus(30, 0))

    def _answer(self, kind: str, done: Done[Any]) -> None:
        if self.waiting is None:
            done(self.outcomes.get(kind, self.outcome))
        else:
            self.waiting.append(done)

    def change(self, operation: Operation, done: Done[Result], retry: bytes = b"") -> None:
        self.calls.append(("change", operation, retry) if retry else ("change", operation))
        self._answer("change", done)

    def get(
        self,
        key: bytes,
        max_staleness_s: float,
        done: Done[KeyValue | None],
        revision: int = 0,
    ) -> None:
        self.calls.append(("get", key, max_staleness_s, revision))
        self._answer("get", done)

    def range(self, query: Range, max_staleness_s: float, done: Done[RangeResult]) -> None:
        self.calls.append(("range", query, max_staleness_s))
        self._answer("range", done)

    def watch(
        self, selection: Selection, revision: int, on_ready: Callable[[], None]
    ) -> IWatch:
        raise NotImplementedError

    def grant(
        self, ttl_ms: int, done: Done[LeaseResult], lease_id: int = 0, retry: bytes = b""
    ) -> None:
        self.calls.append(("grant", ttl_ms, lease_id, retry))
        self._answer("grant", done)

    def lease_ttl_ms(self, ttl_ms: int) -> int:
        return max(ttl_ms, 2000)

    def draw_lease_id(self) -> int:
        return 0xD1CE

    def keep_alive(self, lease_id: int, done: Done[LeaseResult]) -> None:
        self.calls.append(("keep_alive", lease_id))
        self._answer("keep_alive", done)

    def lease(self, lease_id: int, max_keys: int, done: Done[LeaseStatus]) -> None:
        self.calls.append(("lease", lease_id, max_keys))
        self._answer("lease", done)

    def leases(self, max_staleness_s: float, done: Done[list[LeaseResult]]) -> None:
        self.calls.append(("leases", max_staleness_s))
        self._answer("leases", done)

    def backup(self, done: Done[tuple[int, Iterator[bytes]]]) -> None:
        self.calls.append(("backup",))
        self._answer("backup", done)

    def status(self) -> StoreStatus:
        return self.now


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
    """Asks the routes; whatever they answer is held against the document."""

    def setUp(self) -> None:
        self.database = FakeDatabase()
        self.node: Any = FakeNode()
        self.routes = Routes("26.11.0", Clock())
        self.routes.site = Site(self.node, self.database)

    def ask(
        self,
        method: str,
        target: bytes,
        body: bytes | object = b"",
        outcome: Any = None,
        **headers: str,
    ) -> Answer:
        """
        Ask for `target`, with a `body` of bytes or what is to be JSON, and let
        the database answer `outcome`.  `if_match="..."` is a header field.
        """
        self.database.outcome = outcome
        self.database.calls = []
        fields = [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = FakeRequest(method, target, data, fields)
        self.routes.handle(request)
        answer = request.answer()
        check(method, target, answer.status, answer.content_type, answer.headers, answer.body)
        return answer

    def asked(self) -> tuple[Any, ...]:
        """The only question to the database since the last `ask`."""
        (call,) = self.database.calls
        return call

    def assertError(self, answer: Answer, status: int, code: str, *more: str) -> None:
        self.assertEqual(answer.status, status, answer.body)
        self.assertEqual(answer.content_type, "application/json")
        value = answer.json()
        self.assertEqual(set(value), {"error", "message", *more})
        self.assertEqual(value["error"], code)
        self.assertTrue(value["message"].endswith("."), value["message"])

    def assertRefused(self, answer: Answer, *words: str) -> None:
        """400, and nobody was asked; the sentence has the words."""
        self.assertError(answer, 400, "bad_request")
        for word in words:
            self.assertIn(word, answer.json()["message"])
        self.assertEqual(self.database.calls, [])
