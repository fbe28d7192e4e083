"""Whatever clients send to the whole of HTTP: answered as it is documented, or closed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_from_bytes

from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from raftd.interfaces import IRequest
from raftd.net import heads, http1, reader
from raftd.test import contract
from raftd.test.fuzz import INTEGERS, SIZES, damages, fuzz, pieces, words
from raftd.test.test_http1 import Transport, answers
from raftd.testing_store import StoreCluster
from raftd.web.routes import MAX_BODY_BYTES_AT

#: Fields that the protocol adds by itself.
OF_THE_PROTOCOL = {"Content-Length", "Content-Type", "Connection", "Date", "Server"}

KEYS = st.one_of(
    st.sampled_from([b"a", b"b", b"a/b", b"", b"\xff", b"\0", b"%", b"..", b"x" * 5000]),
    st.binary(max_size=5),
)
WORDS = words(
    "true false 1 0 -1 +1 01 1e3 0.5 nan inf linearizable local asc desc key "
    "value version 0000000000000005 5 * 5s"
)
NUMBERS = INTEGERS.map(str)
NAMES = words(
    "prefix start end after limit keys_only count_only order sort revision "
    "consistency prev lease wait watch timeout value max_staleness force "
    "keys nonsense"
)


@st.composite
def targets(draw: st.DrawFn) -> str:
    key = quote_from_bytes(draw(KEYS), safe="/")
    path = draw(
        st.one_of(
            words("/db/ /txn /lease /compact /status /metrics /members /leader /snapshot *"),
            st.sampled_from([f"/db/{key}", f"/members/{key}", f"/{key}", "/openapi.json"]),
            WORDS.map(lambda word: f"/lease/{word}"),
        )
    )
    parameters = []
    for name in draw(st.lists(NAMES, max_size=3)):
        value = draw(st.one_of(WORDS, NUMBERS, KEYS.map(quote_from_bytes)))
        parameters.append(draw(st.sampled_from([name, f"{name}=", f"{name}={value}"])))
    return path + ("?" + "&".join(parameters) if parameters else "")


TEXT = st.one_of(st.sampled_from(["a", "b", "YQ==", "not base64", "", "\0", "\ud800"]), WORDS)


@st.composite
def fields(draw: st.DrawFn, names: str) -> dict[str, Any]:
    """An object with some of these names, and values that may fit."""
    value = st.one_of(TEXT, INTEGERS, st.booleans(), st.none())
    return {name: draw(value) for name in names.split() if not draw(st.integers(0, 4))}


RANGE = "prefix prefix_base64 start start_base64 end end_base64"


@st.composite
def operations(draw: st.DrawFn, depth: int = 3) -> Any:
    inside: Any
    kind = draw(words("put get delete txn nonsense"))
    match kind:
        case "put":
            inside = draw(fields("value value_base64 lease prev keep_value keep_lease"))
        case "get":
            inside = draw(fields(f"{RANGE} limit keys_only count_only order sort revision"))
        case "delete":
            inside = draw(fields(f"{RANGE} prev"))
        case "txn" if depth:
            inside = draw(transactions(depth - 1))
        case _:
            inside = draw(TEXT)
    if isinstance(inside, dict) and kind != "txn" and draw(st.booleans()):
        inside = {"key": draw(st.sampled_from(["a", "b", ""])), **inside}
    return {kind: inside}


@st.composite
def transactions(draw: st.DrawFn, depth: int = 3) -> Any:
    compare = fields(f"{RANGE} value value_base64 version create_revision mod_revision lease")
    comparison = st.builds(
        lambda key, op, rest: {**key, **op, **rest},
        st.sampled_from([{"key": "a"}, {"key_base64": "YQ=="}, {}]),
        st.sampled_from([{}, {"op": "="}, {"op": "<"}, {"op": "~"}]),
        compare,
    )
    some = st.lists(operations(depth), max_size=3)
    value: dict[str, Any] = {}
    for name, what in (
        ("compare", st.lists(comparison, max_size=2)),
        ("then", some),
        ("else", some),
    ):
        if draw(st.booleans()):
            value[name] = draw(what)
    return value


MEMBERS = st.one_of(
    fields("name role to join force ttl id keep revision"),
    st.builds(
        lambda changes: {"changes": changes},
        st.lists(fields("add remove promote demote rename to"), max_size=3),
    ),
)
BODIES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"", b"{}", b"[" * 5000, b'{"a":' * 3000, b'{"ttl":1e999}', b"\xff", b"nul"]
    ),
    transactions().map(lambda value: json.dumps(value).encode()),
    MEMBERS.map(lambda value: json.dumps(value).encode()),
    fields("ttl id").map(lambda value: json.dumps(value).encode()),
)
HEADERS = st.lists(
    st.tuples(
        words(
            "If-Match If-None-Match Idempotency-Key Content-Type Accept "
            "Last-Event-ID Range Expect Transfer-Encoding Content-Length Host "
            "Connection TE Upgrade"
        ),
        st.one_of(
            st.sampled_from(
                [
                    '"2"',
                    '"2", "3"',
                    'W/"2"',
                    "*",
                    '""',
                    '"x"',
                    "100-continue",
                    "chunked",
                    "0",
                    "7",
                    "text/event-stream",
                    "gzip, chunked",
                    "close",
                    "bytes=0-1",
                    "x" * 300,
                ]
            ),
            st.text('abc"*,;=/-0 \t\xe9', max_size=12),
            NUMBERS,
        ),
    ),
    max_size=3,
)
METHODS = words("GET PUT POST DELETE HEAD PATCH OPTIONS TRACE")


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


PARAMETERS = st.builds(
    lambda pairs: "&".join(f"{name}={value}" if value else name for name, value in pairs),
    st.lists(
        st.tuples(
            words("prefix start end limit keys_only order sort revision prev"),
            st.sampled_from(["", "a", "b", "1", "2", "3", "asc", "desc", "local"]),
        ),
        max_size=2,
    ),
)


@st.composite
def sensible(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A method, a target and a body that go with one another."""
    key, query = draw(words("a b a%2Fb")), draw(PARAMETERS)
    question = f"?{query}" if query else ""
    lease = draw(words("5 0000000000000005 6"))
    kind = draw(words("key key range txn txn txn lease grant compact members"))
    match kind:
        case "key":
            method = draw(words("GET PUT POST DELETE HEAD"))
            return method, f"/db/{key}{question}", draw(st.binary(max_size=9))
        case "range":
            return draw(words("GET DELETE")), f"/db/{question}", b""
        case "txn":
            return "POST", "/txn", encoded(draw(transactions()))
        case "lease":
            method = draw(words("GET POST DELETE"))
            suffix = draw(st.sampled_from(["", "/keepalive", "/keys"]))
            return method, f"/lease/{lease}{suffix}", b""
        case "grant":
            numbers = st.one_of(INTEGERS, st.floats(), st.just(lease))
            return "POST", "/lease", encoded({"ttl": draw(numbers), **draw(fields("id"))})
        case "compact":
            name = draw(words("revision keep"))
            return "POST", "/compact", encoded({name: draw(INTEGERS)})
        case _:
            method = draw(words("POST PATCH DELETE"))
            where = "/members" if method == "POST" else "/members/n1:4001"
            return method, where, encoded(draw(MEMBERS))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A request, the framing of which may be wrong."""
    target: str
    method, target, body = draw(sensible())
    if not draw(st.integers(0, 4)):
        method = draw(METHODS)
    if not draw(st.integers(0, 4)):
        target = draw(targets())
    if not draw(st.integers(0, 4)):
        body = draw(BODIES)
    lines = [f"{method} {target} HTTP/1.1", "Host: n1:4001"]
    if draw(st.booleans()):
        lines += [f"{name}: {value}" for name, value in draw(HEADERS)]
    framing = draw(st.sampled_from(["length"] * 5 + ["chunked", "chunked", "none", "wrong"]))
    if framing == "length":
        lines.append(f"Content-Length: {len(body)}")
    elif framing == "wrong":
        lines.append(f"Content-Length: {draw(st.one_of(NUMBERS, WORDS))}")
    elif framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
        size = draw(st.integers(1, 9))
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        extension = draw(st.sampled_from([b"", b";a=b", b";" + b"x" * 200]))
        body = b"".join(b"%x%s\r\n%s\r\n" % (len(c), extension, c) for c in chunks)
        body += b"0\r\n" + draw(st.sampled_from([b"", b"", b"X: y\r\n", b"junk"])) + b"\r\n"
    head = "\r\n".join(lines).encode("latin-1", "replace")
    return head + b"\r\n\r\n" + body


class Served:
    """One node with its store, and one connection to it."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.case = case
        self.cluster = StoreCluster(1, seed=1)
        self.cluster.await_leader()
        self.routes = self.cluster.servers["n1"].routes
        self.requests: list[IRequest] = []
        clock = self.cluster.clock
        self.http = http1.HTTPFactory(
            self.handle, clock, clock.seconds, max_body_bytes_at=MAX_BODY_BYTES_AT
        )
        self.connect()

    def handle(self, request: IRequest) -> None:
        self.requests.append(request)
        self.routes.handle(request)

    def connect(self) -> None:
        self.transport = Transport()
        self.connection = self.http.buildProtocol(None)
        self.transport.protocol = self.connection
        self.connection.makeConnection(self.transport)

    @property
    def is_closed(self) -> bool:
        return bool(self.transport.disconnecting or self.transport.aborted)

    def send(self, data: bytes) -> None:
        """As TCP brings it; nothing beyond the bounds is kept."""
        if self.is_closed:
            return
        self.connection.dataReceived(data)
        case, reading = self.case, self.connection._reader
        case.assertLessEqual(len(self.connection._in_hand), http1.MAX_IN_HAND)
        case.assertLessEqual(len(reading._headers), reader.MAX_HEADERS)
        case.assertLessEqual(reading._header_bytes, reader.MAX_HEADER_BYTES + len(data))
        case.assertLessEqual(len(reading._body), reading._max_body_bytes)
        case.assertLessEqual(len(reading._target), heads.MAX_TARGET_BYTES + len(data))

    def finish(self) -> bytes:
        """Everything that was sent; and in the end nothing is left of the connection."""
        self.cluster.advance(0.3)
        sent: bytes = self.transport.value()
        self.connection.connectionLost(Failure(ConnectionDone()))
        self.cluster.advance(1.1)
        self.case.assertEqual(self.http.connections, set())
        return sent

    def check_alive(self) -> None:
        """The server serves whoever comes next."""
        self.connect()
        self.connection.dataReceived(b"GET /status HTTP/1.1\r\nHost: n1:4001\r\n\r\n")
        self.cluster.advance(0.1)
        (answer,) = answers(self.transport.value())
        self.case.assertEqual((answer.status, answer.body[:1]), (200, b"{"))


class HTTPFuzz(SynchronousTestCase):
    @fuzz(250, st.lists(messages(), min_size=1, max_size=3))
    def test_requests(self, stream: list[bytes]) -> None:
        """Each on a connection of its own; what reaches the handlers has documented answers."""
        served = Served(self)
        served.send(b"PUT /db/a HTTP/1.1\r\nHost: n1\r\nContent-Length: 1\r\n\r\n1")
        served.finish()
        for data in stream:
            served.connect()
            served.requests = []
            served.send(data)
            self.check_answers(served, served.finish())
        served.check_alive()

    @fuzz(120, st.lists(messages(), min_size=1, max_size=3), damages(), SIZES)
    def test_damaged_requests_one_after_the_other(
        self, stream: list[bytes], damage: Callable[[bytes], bytes], sizes: list[int]
    ) -> None:
        served = Served(self)
        for piece in pieces(damage(b"".join(stream)), sizes):
            served.send(piece)
        self.check_answers(served, served.finish())
        served.check_alive()

    def check_answers(self, served: Served, data: bytes) -> None:
        for status in re.findall(rb"^HTTP/1.1 (\d+) ", data, re.MULTILINE):
            self.assertNotEqual(status, b"500", data[:2000])
        head, _, body = data.partition(b"\r\n\r\n")
        if len(served.requests) != 1 or not head:
            return
        (request,) = served.requests
        lines = head.decode("ascii").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        if "Content-Length" not in headers or lines[0].startswith("HTTP/1.1 100"):
            return
        (status,) = re.findall(r"^HTTP/1.1 (\d+) ", lines[0])
        target = request.path + (b"?" + request.query if request.query else b"")
        kind = headers.get("Content-Type", "")
        shown = {n: v for n, v in headers.items() if n not in OF_THE_PROTOCOL}
        body = body[: int(headers["Content-Length"])]
        if status == "405":
            # Also at a place that is none, of a kind that might be one.
            self.assertIn("OPTIONS", headers["Allow"])
        else:
            contract.check(request.method, target, int(status), kind, shown, body)
        if int(status) >= 400 and request.method != "HEAD":
            self.assertTrue(json.loads(body)["message"].endswith("."), body)
