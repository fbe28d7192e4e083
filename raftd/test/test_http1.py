"""The HTTP/1.1 server protocol, by the rules of RFC 9110 and RFC 9112."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer, IReactorTCP, IReactorTime
from twisted.internet.protocol import ClientCreator, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from raftd.interfaces import IRequest
from raftd.net import heads, http1, reader
from raftd.net.http1 import HTTPConnection, HTTPFactory

HOST = b"Host: localhost:4001\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
#: 2026-02-03 04:05:06 UTC.
NOW = 1770091506.5


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Transport(StringTransport):
    """A transport that records how it was closed."""

    aborted = False
    half_closed = False
    protocol: HTTPConnection
    writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        super().write(data)

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


def answers(data: bytes, methods: Sequence[str] = ()) -> list[Answer]:
    """`data` taken apart; AssertionError unless it is whole answers and nothing else."""
    result: list[Answer] = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, f"an unfinished head: {head!r}"
        lines = head.decode("ascii").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 ([1-5]\d\d) [A-Za-z -]+", lines[0])
        assert match, lines[0]
        headers = dict(line.split(": ", 1) for line in lines[1:])
        method = methods[len(result)] if len(result) < len(methods) else "GET"
        size = 0 if method == "HEAD" else int(headers.get("Content-Length", "0"))
        assert len(data) >= size, "an unfinished body"
        body, data = data[:size], data[size:]
        result.append(Answer(int(match[1]), headers, body))
    return result


class HTTPCase(SynchronousTestCase):
    """One connection; requests are recorded and answered when the test says so."""

    max_body_bytes = 1000

    def setUp(self) -> None:
        self.clock = Clock()
        self.requests: list[IRequest] = []
        self.handler: Callable[[IRequest], None] = self.requests.append
        self.factory = HTTPFactory(
            self.handle,
            self.clock,
            lambda: NOW + self.clock.seconds(),
            self.max_body_bytes,
            b"raftd/1",
            {b"/long": 1500},
        )
        self.connect()

    def handle(self, request: IRequest) -> None:
        self.handler(request)

    def connect(self) -> None:
        self.transport = Transport()
        self.connection = self.factory.buildProtocol(None)
        self.transport.protocol = self.connection
        self.connection.makeConnection(self.transport)

    def lose(self) -> None:
        self.connection.connectionLost(Failure(ConnectionDone()))

    def echo(self, request: IRequest) -> None:
        self.requests.append(request)
        request.respond(200, request.path + b" " + request.body, b"text/plain")

    def send(self, *data: bytes) -> None:
        for piece in data:
            self.connection.dataReceived(piece)

    def sent(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def answered(self) -> list[Answer]:
        """The answers since the last call."""
        return answers(self.sent(), [r.method for r in self.requests])

    def seconds(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)

    def assertRefused(self, status: int, code: str) -> None:
        """An error in JSON, and then only what lets the client see it."""
        (answer,) = answers(self.sent())
        self.assertEqual(answer.status, status)
        value = json.loads(answer.body)
        self.assertEqual(set(value), {"error", "message"})
        self.assertEqual(value["error"], code)
        self.assertTrue(value["message"].endswith("."), value["message"])
        self.assertEqual(answer.headers["Content-Type"], "application/json")
        self.assertEqual(answer.headers["Connection"], "close")
        self.assertTrue(self.transport.half_closed)
        # Nothing more is parsed, and the end comes in bounded time.
        seen = len(self.requests)
        self.send(GET)
        self.assertEqual((len(self.requests), self.sent()), (seen, b""))
        self.seconds(http1.LINGER_S + 1)
        self.assertTrue(self.transport.disconnecting)


class Requests(HTTPCase):
    def test_a_request(self) -> None:
        self.send(
            b"GET /db/a%2Fb?x=1&y=%20 HTTP/1.1\r\nHoSt: localhost\r\n"
            b"X-Thing:  a b \t\r\nEmpty:\r\n\r\n"
        )
        (request,) = self.requests
        self.assertTrue(verifyObject(IRequest, request))
        self.assertEqual(request.method, "GET")
        self.assertEqual((request.path, request.query), (b"/db/a%2Fb", b"x=1&y=%20"))
        headers = [(b"host", b"localhost"), (b"x-thing", b"a b"), (b"empty", b"")]
        self.assertEqual(list(request.headers), headers)
        self.assertEqual(request.body, b"")

    def test_a_body_of_known_length(self) -> None:
        head = b"PUT /a HTTP/1.1\r\n" + HOST + b"Content-Length: 6 \r\n\r\n"
        self.send(head, b"abc", b"def" + GET)
        self.assertEqual((self.requests[0].method, self.requests[0].body), ("PUT", b"abcdef"))
        self.requests[0].respond(200)
        self.assertEqual(self.requests[1].body, b"")

    def test_a_chunked_body(self) -> None:
        self.send(
            b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: Chunked\r\n\r\n"
            b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nContent-MD5: x\r\n\r\n"
        )
        (request,) = self.requests
        self.assertEqual(request.body, b"abc0123456789")
        self.assertNotIn(b"content-md5", dict(request.headers))

    def test_no_length_is_no_body(self) -> None:
        self.send(b"POST /a HTTP/1.1\r\n" + HOST + b"\r\n")
        self.assertEqual(self.requests[0].body, b"")

    def test_absolute_form(self) -> None:
        """RFC 9112, 3.2.2: accepted though only proxies should send it."""
        for target, path in (
            (b"http://localhost:4001/db/k?x", b"/db/k"),
            (b"HTTP://[::1]:80", b"/"),
            (b"https://a?x", b"/"),
        ):
            self.handler = self.echo
            self.send(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            self.assertEqual(self.requests[-1].path, path)

    def test_asterisk_form(self) -> None:
        """RFC 9112, 3.2.4."""
        self.handler = self.echo
        self.send(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n")
        self.send(b"OPTIONS http://localhost HTTP/1.1\r\n" + HOST + b"\r\n")
        self.assertEqual([r.path for r in self.requests], [b"*", b"*"])

    def test_an_empty_line_before_a_request_is_skipped(self) -> None:
        """RFC 9112, 2.2: some old clients send one after a body."""
        self.handler = self.echo
        self.send(GET + b"\r\n" + GET)
        self.assertEqual(len(self.answered()), 2)

    def test_methods_are_passed_on(self) -> None:
        """Which of them exist is the handler's to say."""
        self.handler = self.echo
        for method in (b"GET", b"PATCH", b"TRACE", b"PROPFIND", b"QUERY"):
            self.send(method + b" / HTTP/1.1\r\n" + HOST + b"\r\n")
            self.assertEqual(self.requests[-1].method, method.decode())

    def test_an_upgrade_is_ignored(self) -> None:
        """RFC 9110, 7.8: and what follows the head is still this request's body."""
        self.handler = self.echo
        upgrade = HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
        stream = (
            b"GET /1 HTTP/1.1\r\n" + upgrade + b"\r\n"
            b"PUT /2 HTTP/1.1\r\n" + upgrade + b"Content-Length: 27\r\n\r\n"
            b"GET /evil HTTP/1.1\r\n\r\n.... "
            b"PUT /3 HTTP/1.1\r\n" + upgrade + b"Transfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n0\r\n\r\n"
            b"GET /4 HTTP/1.1\r\n" + upgrade + b"\r\n" + GET
        )
        expected = [
            (b"/1", b""),
            (b"/2", b"GET /evil HTTP/1.1\r\n\r\n.... "),
            (b"/3", b"abc"),
            (b"/4", b""),
            (b"/a", b""),
        ]
        self.send(stream)
        self.assertEqual([(r.path, r.body) for r in self.requests], expected)
        self.assertEqual([a.status for a in self.answered()], [200] * 5)
        self.requests.clear()
        self.send(*(stream[i : i + 1] for i in range(len(stream))))
        self.assertEqual([(r.path, r.body) for r in self.requests], expected)

    def test_nothing_is_read_after_an_upgrade_that_closes(self) -> None:
        self.handler = self.echo
        fields = HOST + b"Connection: close, Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n"
        self.send(b"PUT /1 HTTP/1.1\r\n" + fields + b"\r\nabc" + GET)
        self.assertEqual([(r.path, r.body) for r in self.requests], [(b"/1", b"abc")])
        (answer,) = self.answered()
        self.assertEqual(answer.headers["Connection"], "close")


class Answers(HTTPCase):
    def test_an_answer(self) -> None:
        self.send(GET)
        self.requests[0].respond(201, b"{}", headers=((b"ETag", b'"5"'),))
        self.assertEqual(
            self.sent(),
            b"HTTP/1.1 201 Created\r\nServer: raftd/1\r\n"
            b"Date: Tue, 03 Feb 2026 04:05:06 GMT\r\nContent-Type: application/json\r\n"
            b'Content-Length: 2\r\nETag: "5"\r\n\r\n{}',
        )

    def test_the_date_follows_the_wall_clock(self) -> None:
        self.handler = self.echo
        self.seconds(3)
        self.send(GET)
        (answer,) = self.answered()
        self.assertEqual(answer.headers["Date"], "Tue, 03 Feb 2026 04:05:09 GMT")

    def test_the_date_is_right_after_a_time_without_connections(self) -> None:
        self.handler = self.echo
        self.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(100)
        self.connect()
        self.send(GET)
        (answer,) = self.answered()
        self.assertEqual(answer.headers["Date"], "Tue, 03 Feb 2026 04:06:46 GMT")

    def test_head_has_the_length_and_not_the_body(self) -> None:
        self.send(b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n")
        self.requests[0].respond(200, b"12345", b"text/plain")
        data = self.sent()
        self.assertTrue(data.endswith(b"Content-Length: 5\r\n\r\n"), data)

    def test_no_content_has_no_length(self) -> None:
        """RFC 9110, 8.6."""
        self.send(GET)
        self.requests[0].respond(204, headers=((b"Allow", b"GET"),))
        (answer,) = self.answered()
        self.assertEqual(set(answer.headers), {"Server", "Date", "Allow"})

    def test_not_modified_has_no_length(self) -> None:
        """RFC 9110, 8.6: it would have to be that of the answer with the content."""
        self.send(GET + b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n")
        for request in self.requests:
            request.respond(304, headers=((b"ETag", b'"5"'),))
        head = (
            b"HTTP/1.1 304 Not Modified\r\nServer: raftd/1\r\n"
            b'Date: Tue, 03 Feb 2026 04:05:06 GMT\r\nETag: "5"\r\n\r\n'
        )
        self.assertEqual(self.sent(), head + head)

    def test_a_second_answer_is_a_defect(self) -> None:
        self.send(GET)
        self.requests[0].respond(200)
        self.assertRaises(RuntimeError, self.requests[0].respond, 200)
        self.assertEqual(len(self.answered()), 1)

    def test_an_answer_to_a_client_that_is_gone(self) -> None:
        self.send(GET)
        self.lose()
        self.requests[0].respond(200)
        self.assertEqual(self.sent(), b"")
        self.assertRaises(RuntimeError, self.requests[0].respond, 200)

    def test_a_header_field_cannot_be_split(self) -> None:
        """What a handler puts into a field never becomes another one."""
        self.handler = lambda r: r.respond(200, headers=((b"X", b"a\r\nSet-Cookie: b"),))
        self.send(GET)
        (answer,) = self.answered()
        self.assertEqual(answer.status, 500)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_an_exception_of_the_handler(self) -> None:
        """Logged, answered, and the connection goes on."""

        def fail(request: IRequest) -> None:
            raise ZeroDivisionError()

        self.handler = fail
        self.send(GET)
        (answer,) = self.answered()
        self.assertEqual(
            (answer.status, json.loads(answer.body)["error"]), (500, "internal_error")
        )
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.handler = self.echo
        self.send(GET)
        self.assertEqual([a.status for a in self.answered()], [200])

    def test_an_exception_after_the_answer(self) -> None:
        def fail(request: IRequest) -> None:
            self.echo(request)
            raise ZeroDivisionError()

        self.handler = fail
        self.send(GET)
        self.assertEqual([a.status for a in self.answered()], [200])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class Persistence(HTTPCase):
    """Which connections go on (RFC 9112, 9.3)."""

    def go(self, request: bytes) -> Answer:
        self.handler = self.echo
        self.send(request)
        (answer,) = self.answered()
        return answer

    def test_http_1_1_goes_on(self) -> None:
        self.assertNotIn("Connection", self.go(GET).headers)
        self.assertNotIn("Connection", self.go(GET).headers)
        self.assertFalse(self.transport.disconnecting)

    def test_close(self) -> None:
        for field in (b"close", b"Close", b"keep-alive, close"):
            self.connect()
            request = b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: " + field + b"\r\n\r\n"
            self.assertEqual(self.go(request).headers["Connection"], "close")
            self.assertTrue(self.transport.disconnecting)

    def test_nothing_is_read_after_close(self) -> None:
        request = b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
        self.assertEqual(self.go(request + GET).headers["Connection"], "close")
        self.send(GET)
        self.assertEqual((len(self.requests), self.sent()), (1, b""))

    def test_http_1_0_ends(self) -> None:
        self.assertEqual(self.go(b"GET /a HTTP/1.0\r\n\r\n").headers["Connection"], "close")
        self.assertTrue(self.transport.disconnecting)

    def test_http_1_0_may_ask_to_go_on(self) -> None:
        request = b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        for _ in range(2):
            self.assertEqual(self.go(request).headers["Connection"], "keep-alive")
        self.assertFalse(self.transport.disconnecting)

    def test_close_waits_for_the_answer(self) -> None:
        self.send(b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        self.seconds(200)
        self.assertFalse(self.transport.disconnecting)
        self.requests[0].respond(200)
        self.assertTrue(self.transport.disconnecting)

    def test_a_close_that_does_not_come_about_is_enforced(self) -> None:
        self.go(b"GET /a HTTP/1.0\r\n\r\n")
        self.assertFalse(self.transport.aborted)
        self.seconds(http1.CLOSE_TIMEOUT_S + 1)
        self.assertTrue(self.transport.aborted)

    def test_the_producer_is_taken_back_before_closing(self) -> None:
        """Or a transport that is full would never close."""
        self.go(b"GET /a HTTP/1.0\r\n\r\n")
        self.assertIsNone(self.transport.producer)

    def test_a_client_that_has_sent_everything_gets_its_answers(self) -> None:
        self.send(GET + GET)
        self.connection.readConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        for request in self.requests:
            request.respond(200)
        self.assertEqual([a.status for a in self.answered()], [200, 200])
        self.assertTrue(self.transport.disconnecting)

    def test_an_idle_client_that_closes(self) -> None:
        self.connection.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)


class Refusals(HTTPCase):
    """What is no request, or more than is accepted; each ends the connection."""

    def test_malformed(self) -> None:
        """RFC 9112: among these is everything that servers and proxies read differently."""
        put = b"PUT /a HTTP/1.1\r\n" + HOST
        chunked = put + b"Transfer-Encoding: chunked\r\n\r\n"
        for request in (
            # section 2.2: lines end in CRLF
            b"GET /a HTTP/1.1\nHost: a\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            b"GET /a HTTP/1.1\r\n" + HOST + b"\n",
            # section 2.2: no space before the first field
            b"GET /a HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n",
            # section 3: the request line
            b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET /a HTTP/1.1 \r\n" + HOST + b"\r\n",
            b"GET /a\tb HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET /a http/1.1\r\n" + HOST + b"\r\n",
            b"GET a HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET ftp://a/b HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET http:///b HTTP/1.1\r\n" + HOST + b"\r\n",
            # section 3.2: exactly one valid Host
            b"GET /a HTTP/1.1\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a\r\nX: b\r\nhOST: b\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a b\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: a/b\r\n\r\n",
            b"GET /a HTTP/1.1\r\nHost: user@a\r\n\r\n",
            b"GET /a HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
            # section 5.1: no space before the colon; names are tokens
            b"GET /a HTTP/1.1\r\nHost : a\r\n\r\n",
            put + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            put + b"Content-Length : 3\r\n\r\nabc",
            b"GET /a HTTP/1.1\r\n" + HOST + b"X(: a\r\n\r\n",
            b"GET /a HTTP/1.1\r\n" + HOST + b": a\r\n\r\n",
            b"GET /a HTTP/1.1\r\n" + HOST + b"X\r\n\r\n",
            # section 5.2: no folded lines
            b"GET /a HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
            b"GET /a HTTP/1.1\r\n" + HOST + b"X: a\r\n\tb\r\n\r\n",
            put + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
            # RFC 9110, 5.5: no control characters in values
            b"GET /a HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
            b"GET /a HTTP/1.1\r\n" + HOST + b"X: a\x01b\r\n\r\n",
            put + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
            # section 6.1: the transfer coding
            put + b"Transfer-Encoding: gzip\r\n\r\n",
            put + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
            put + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            put + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            put + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            put + b"Transfer-Encoding:\r\n\r\n",
            b"PUT /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            # section 6.2 and 6.3: the length
            put + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            put + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            put + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            put + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            put + b"Content-Length: 3, 3\r\n\r\nabc",
            put + b"Content-Length: +3\r\n\r\nabc",
            put + b"Content-Length: -3\r\n\r\nabc",
            put + b"Content-Length: 0x3\r\n\r\nabc",
            put + b"Content-Length: 3 3\r\n\r\nabc",
            put + b"Content-Length: three\r\n\r\nabc",
            put + b"Content-Length:\r\n\r\nabc",
            put + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
            # section 7.1: chunks
            chunked + b"3\nabc\r\n0\r\n\r\n",
            chunked + b"3 \r\nabc\r\n0\r\n\r\n",
            chunked + b"+3\r\nabc\r\n0\r\n\r\n",
            chunked + b"0x3\r\nabc\r\n0\r\n\r\n",
            chunked + b"-3\r\nabc\r\n0\r\n\r\n",
            chunked + b"\r\nabc\r\n0\r\n\r\n",
            chunked + b"3\r\nabcd\r\n0\r\n\r\n",
            chunked + b"3\r\nabc0\r\n\r\n",
            chunked + b"3;a\nb\r\nabc\r\n0\r\n\r\n",
            chunked + b"ffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
            chunked + b"0\r\nContent-Length: 3\r\n\r\nabc",
        ):
            for pieces in ([request], [request[i : i + 1] for i in range(len(request))]):
                self.connect()
                self.send(*pieces)
                try:
                    self.assertRefused(400, "bad_request")
                except Exception as e:
                    self.fail(f"{request!r}: {e!r}")
        self.assertEqual(self.requests, [])

    def refused(self, request: bytes, status: int, code: str) -> None:
        self.connect()
        self.send(request)
        self.assertRefused(status, code)
        self.assertEqual(self.requests, [])

    def test_changes_for_pages_of_another_origin(self) -> None:
        """A browser sends them without asking, to a node on its own machine too."""
        for method in (b"PUT", b"POST", b"DELETE", b"PATCH"):
            for origin in (b"http://evil.example", b"null", b"http://evil/" + HOST[6:-2], b""):
                head = b"%s /a HTTP/1.1\r\n%sOrigin: %s\r\n" % (method, HOST, origin)
                self.refused(head + b"Content-Length: 0\r\n\r\n", 403, "cross_origin")

    def test_reads_for_any_page_and_changes_for_its_own(self) -> None:
        self.handler = self.echo
        self.send(b"GET /a HTTP/1.1\r\n" + HOST + b"Origin: http://evil.example\r\n\r\n")
        own = b"Origin: http://" + HOST[6:-2].upper() + b"\r\n"
        self.send(b"PUT /a HTTP/1.1\r\n" + HOST + own + b"Content-Length: 0\r\n\r\n")
        self.assertEqual([a.status for a in self.answered()], [200, 200])

    def test_other_transfer_codings(self) -> None:
        """RFC 9112, 6.1."""
        put = b"PUT /a HTTP/1.1\r\n" + HOST
        self.refused(put + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "not_implemented")
        self.refused(
            put + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
            501,
            "not_implemented",
        )

    def test_other_versions(self) -> None:
        for version in (b"2.0", b"0.9"):
            self.refused(
                b"GET /a HTTP/" + version + b"\r\n" + HOST + b"\r\n",
                505,
                "version_not_supported",
            )
        self.refused(b"GET /a\r\n\r\n", 505, "version_not_supported")

    def test_unknown_methods_and_connect(self) -> None:
        for line in (b"FOO /", b"get /", b"CONNECT a:80", b"CONNECT /a"):
            self.refused(line + b" HTTP/1.1\r\n" + HOST + b"\r\n", 501, "not_implemented")

    def test_other_expectations(self) -> None:
        """RFC 9110, 10.1.1."""
        for expect in (b"Expect: magic\r\n", b"Expect: 100-continue\r\nExpect: magic\r\n"):
            self.refused(
                b"PUT /a HTTP/1.1\r\n" + HOST + expect + b"Content-Length: 3\r\n\r\n",
                417,
                "expectation_failed",
            )

    def test_a_long_target(self) -> None:
        longest = b"/" + b"a" * (heads.MAX_TARGET_BYTES - 1)
        self.handler = self.echo
        self.send(b"GET " + longest + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        self.assertEqual(self.requests.pop().path, longest)
        self.refused(
            b"GET " + longest + b"a HTTP/1.1\r\n" + HOST + b"\r\n", 414, "uri_too_long"
        )

    def test_many_header_fields(self) -> None:
        most = b"X: y\r\n" * (reader.MAX_HEADERS - 1)
        self.handler = self.echo
        self.send(b"GET /a HTTP/1.1\r\n" + HOST + most + b"\r\n")
        self.assertEqual(len(self.requests.pop().headers), reader.MAX_HEADERS)
        self.refused(
            b"GET /a HTTP/1.1\r\n" + HOST + most + b"X: y\r\n\r\n", 431, "headers_too_large"
        )

    def test_as_many_header_fields_as_there_may_be_and_an_upgrade(self) -> None:
        most = b"X: y\r\n" * (reader.MAX_HEADERS - 4)
        fields = HOST + most + b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n"
        self.send(b"PUT /a HTTP/1.1\r\n" + fields + b"\r\nabc")
        self.assertEqual(self.requests[0].body, b"abc")

    def test_large_header_fields(self) -> None:
        field = b"X: " + b"y" * 996 + b"\r\n"
        self.handler = self.echo
        self.send(b"GET /a HTTP/1.1\r\n" + HOST + field * 31 + b"\r\n")
        self.assertEqual(len(self.requests), 1)
        self.requests.clear()
        self.refused(
            b"GET /a HTTP/1.1\r\n" + HOST + field * 33 + b"\r\n", 431, "headers_too_large"
        )

    def test_a_head_that_does_not_end(self) -> None:
        """It is not kept: neither a name, nor a value, nor a target."""
        for start in (b"GET /a HTTP/1.1\r\nX: ", b"GET /a HTTP/1.1\r\n", b"GET /"):
            self.connect()
            self.send(start)
            for _ in range(200):
                self.send(b"a" * 1000)
                if self.transport.value():
                    break
            status = 414 if start == b"GET /" else 431
            self.assertRefused(status, "uri_too_long" if status == 414 else "headers_too_large")

    def test_trailers_that_do_not_end(self) -> None:
        start = b"PUT /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: "
        self.send(start)
        for _ in range(400):
            self.send(b"a" * 1000)
            if self.transport.value():
                break
        self.assertRefused(400, "bad_request")

    def test_many_trailers(self) -> None:
        start = b"PUT /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
        self.refused(start + b"X: yyyyyyyyyyyyyyy\r\n" * 2000, 431, "headers_too_large")

    def test_chunks_that_are_mostly_extension(self) -> None:
        """CVE-2023-39326 of another server: bytes that cost the sender little."""
        self.send(b"PUT /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(400):
            self.send(b"1;" + b"x" * 1000 + b"\r\na\r\n")
            if self.transport.value():
                break
        self.assertRefused(400, "bad_request")

    def test_an_answer_to_come_comes_before_the_refusal(self) -> None:
        self.send(GET + b"nonsense\r\n\r\n")
        self.assertEqual(self.sent(), b"")
        self.requests[0].respond(200, b"1")
        first, second = answers(self.sent())
        self.assertEqual((first.status, second.status), (200, 501))
        self.assertNotIn("Connection", first.headers)
        self.assertTrue(self.transport.half_closed)


class Bodies(HTTPCase):
    """The bound on bodies; it is a thousand bytes here."""

    def put(self, size: int, *fields: bytes) -> bytes:
        head = b"PUT /a HTTP/1.1\r\n" + HOST + b"".join(f + b"\r\n" for f in fields)
        return head + b"Content-Length: %d\r\n\r\n" % size

    def test_as_large_as_allowed(self) -> None:
        self.send(self.put(1000), b"x" * 1000)
        self.assertEqual(len(self.requests[0].body), 1000)

    def test_an_announced_excess_is_refused_at_once(self) -> None:
        self.send(self.put(1001))
        self.assertTrue(self.transport.value().startswith(b"HTTP/1.1 413 Content Too Large\r"))
        self.assertRefused(413, "too_large")

    def test_a_chunked_excess_is_refused_as_it_arrives(self) -> None:
        chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
        self.send(b"PUT /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            self.send(chunk)
        self.assertEqual(self.sent(), b"")
        self.send(b"1\r\nx")
        self.assertRefused(413, "too_large")
        self.assertEqual(self.requests, [])

    def test_a_target_with_a_bound_of_its_own(self) -> None:
        """And the next request of the connection has the general one again."""
        self.handler = self.echo
        long = self.put(1500).replace(b"/a", b"/long")
        chunked = b"PUT /long HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        self.send(long, b"x" * 1500, chunked, b"5dc\r\n" + b"x" * 1500 + b"\r\n0\r\n\r\n")
        self.assertEqual([len(r.body) for r in self.requests], [1500, 1500])
        self.assertEqual([a.status for a in self.answered()], [200, 200])
        self.send(self.put(1001))
        self.assertRefused(413, "too_large")
        for target in (b"/long?", b"/long/", b"/%6cong"):
            self.connect()
            self.send(long.replace(b"/long", target))
            self.assertRefused(413, "too_large")
        self.connect()
        self.send(chunked, b"5dd\r\n" + b"x" * 1501)
        self.assertRefused(413, "too_large")

    def test_the_rest_of_a_refused_body_is_dropped(self) -> None:
        """And not without end."""
        self.patch(http1, "MAX_LINGER_BYTES", 5000)
        self.send(self.put(10_000))
        self.assertEqual([a.status for a in self.answered()], [413])
        self.send(b"x" * 5000)
        self.assertFalse(self.transport.disconnecting)
        self.send(b"x")
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.requests, [])

    def test_a_client_that_has_seen_its_refusal_closes(self) -> None:
        self.send(self.put(10_000))
        self.connection.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)

    def test_100_continue(self) -> None:
        """RFC 9110, 10.1.1."""
        self.send(self.put(3, b"Expect: 100-continue"))
        self.assertEqual(self.sent(), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.send(b"abc")
        self.requests[0].respond(200)
        self.assertEqual([a.status for a in self.answered()], [200])

    def test_100_continue_for_a_chunked_body(self) -> None:
        self.send(
            b"PUT /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"
            b"Expect: 100-Continue\r\n\r\n"
        )
        self.assertEqual(self.sent(), b"HTTP/1.1 100 Continue\r\n\r\n")

    def test_no_100_continue_when_refused(self) -> None:
        self.send(self.put(1001, b"Expect: 100-continue"))
        self.assertRefused(413, "too_large")

    def test_no_100_continue_when_the_body_has_begun(self) -> None:
        self.handler = self.echo
        self.send(self.put(3, b"Expect: 100-continue") + b"a")
        self.assertEqual(self.sent(), b"")
        self.send(b"bc")
        self.assertEqual([a.status for a in self.answered()], [200])

    def test_no_100_continue_without_a_body_or_in_http_1_0(self) -> None:
        self.send(self.put(0, b"Expect: 100-continue"))
        self.send(b"PUT /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        self.assertEqual(self.sent(), b"")

    def test_100_continue_waits_for_the_answers_before_it(self) -> None:
        self.send(GET + self.put(3, b"Expect: 100-continue"))
        self.assertEqual(self.sent(), b"")
        self.requests[0].respond(200)
        self.assertEqual([a.status for a in self.answered()], [200, 100])


class Pipelining(HTTPCase):
    """RFC 9112, 9.3.2."""

    def gets(self, count: int, start: int = 0) -> bytes:
        return b"".join(
            b"GET /%d HTTP/1.1\r\n" % n + HOST + b"\r\n" for n in range(start, start + count)
        )

    def bodies(self) -> list[bytes]:
        return [a.body for a in self.answered()]

    def test_answers_leave_in_the_order_of_the_requests(self) -> None:
        self.send(self.gets(3))
        for n in (2, 0, 1):
            self.assertEqual(self.requests[n].path, b"/%d" % n)
        self.requests[2].respond(200, b"2")
        self.assertEqual(self.bodies(), [])
        self.requests[0].respond(200, b"0")
        self.assertEqual(self.bodies(), [b"0"])
        self.requests[1].respond(200, b"1")
        self.assertEqual(self.bodies(), [b"1", b"2"])

    def test_answers_given_together_leave_in_one_write(self) -> None:
        self.handler = self.echo
        self.send(self.gets(50))
        self.assertEqual(len(self.bodies()), 50)
        self.assertEqual(self.transport.writes, 1)

    def test_the_number_in_hand_is_bounded(self) -> None:
        self.send(self.gets(http1.MAX_IN_HAND + 5))
        self.assertEqual(len(self.requests), http1.MAX_IN_HAND)
        self.assertEqual(self.transport.producerState, "paused")
        for n in range(5):
            self.requests[n].respond(200, b"%d" % n)
        self.assertEqual(len(self.requests), http1.MAX_IN_HAND + 5)
        self.assertEqual(self.transport.producerState, "producing")
        self.assertEqual(self.bodies(), [b"0", b"1", b"2", b"3", b"4"])

    def test_a_write_is_handled_alone(self) -> None:
        """A read behind it sees it; two of them happen in their order."""
        put = b"PUT /p HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx"
        self.send(self.gets(2) + put + put + self.gets(2, 2))
        paths = [b"/0", b"/1"]
        self.assertEqual([r.path for r in self.requests], paths)
        for expected in ([b"/p"], [b"/p"], [b"/2", b"/3"]):
            for request in self.requests[len(paths) - (2 if len(paths) == 2 else 1) :]:
                request.respond(200)
            paths += expected
            self.assertEqual([r.path for r in self.requests], paths)
        self.assertEqual(len(self.bodies()), 4)
        self.assertEqual(self.transport.producerState, "producing")

    def test_nothing_more_is_read_while_a_request_waits(self) -> None:
        put = b"PUT /p HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx"
        self.send(put)
        self.assertEqual(self.transport.producerState, "producing")
        self.send(put)
        self.assertEqual(self.transport.producerState, "paused")
        self.requests[0].respond(200)
        self.assertEqual(self.transport.producerState, "producing")

    def test_a_client_that_does_not_read(self) -> None:
        """It gets nothing more until it has taken what there is."""
        self.assertIs(self.transport.producer, self.connection)
        self.assertTrue(self.transport.streaming)
        self.handler = self.echo
        self.connection.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.send(self.gets(3))
        self.assertEqual(self.requests, [])
        self.connection.resumeProducing()
        self.assertEqual(len(self.bodies()), 3)
        self.assertEqual(self.transport.producerState, "producing")

    def test_large_answers_are_not_gathered(self) -> None:
        """Handing over stops as soon as the transport is full."""

        def large(request: IRequest) -> None:
            self.requests.append(request)
            request.respond(200, b"x" * 100_000)

        self.handler = large
        transport = self.transport
        write = transport.write

        def full(data: bytes) -> None:
            write(data)
            self.connection.pauseProducing()

        transport.write = full  # type: ignore[method-assign]
        self.send(self.gets(100))
        self.assertEqual(len(self.requests), 1)
        self.connection.resumeProducing()
        self.assertEqual(len(self.requests), 2)


class Deadlines(HTTPCase):
    def timed(self, limit: int) -> None:
        """Nothing happens before `limit` seconds."""
        self.seconds(limit - 1)
        self.assertEqual((self.sent(), self.transport.disconnecting), (b"", False))
        self.seconds(2)

    def test_an_idle_connection(self) -> None:
        self.timed(http1.KEEP_ALIVE_S)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.sent(), b"")

    def test_idle_after_a_request(self) -> None:
        self.handler = self.echo
        self.seconds(50)
        self.send(GET)
        self.sent()
        self.timed(http1.KEEP_ALIVE_S)
        self.assertTrue(self.transport.disconnecting)

    def test_a_head(self) -> None:
        """Also one that arrives byte by byte."""
        self.seconds(30)
        for n in range(http1.HEADER_TIMEOUT_S - 1):
            self.send(GET[n : n + 1])
            self.seconds(1)
        self.assertEqual(self.sent(), b"")
        self.seconds(2)
        self.assertRefused(408, "request_timeout")

    def test_a_body(self) -> None:
        self.send(b"PUT /a HTTP/1.1\r\n" + HOST + b"Content-Length: 900\r\n\r\n")
        for _ in range(http1.REQUEST_TIMEOUT_S - 1):
            self.send(b"x")
            self.seconds(1)
        self.assertEqual(self.sent(), b"")
        self.seconds(2)
        self.assertRefused(408, "request_timeout")

    def test_the_handler_has_all_the_time_it_takes(self) -> None:
        self.send(GET)
        self.seconds(1000)
        self.requests[0].respond(200)
        self.assertEqual([a.status for a in self.answered()], [200])

    def test_a_request_that_had_to_wait_has_all_its_time(self) -> None:
        self.send(GET + GET[:5])
        self.seconds(100)
        self.requests[0].respond(200)
        self.sent()
        self.timed(http1.HEADER_TIMEOUT_S)
        self.assertRefused(408, "request_timeout")

    def test_a_client_that_takes_nothing_is_cut_off(self) -> None:
        self.connection.pauseProducing()
        self.seconds(http1.SEND_TIMEOUT_S - 1)
        self.assertFalse(self.transport.aborted)
        self.seconds(2)
        self.assertTrue(self.transport.aborted)

    def test_a_client_that_takes_its_time_is_not(self) -> None:
        for _ in range(5):
            self.connection.pauseProducing()
            self.seconds(http1.SEND_TIMEOUT_S - 1)
            self.connection.resumeProducing()
        self.assertFalse(self.transport.disconnecting)

    def test_one_timer_serves_all_connections(self) -> None:
        """And there is none without connections."""
        connections = [self.connection]
        for _ in range(9):
            self.connect()
            self.send(GET[:9])
            connections.append(self.connection)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        for connection in connections:
            connection.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_52_a_stalled_reactor_cuts_nobody_off(self) -> None:
        """Time that the server itself has lost is not the client's fault."""
        self.send(GET[:5])
        self.clock.advance(1000)
        self.handler = self.echo
        self.send(GET[5:])
        self.assertEqual([a.status for a in self.answered()], [200])


class Stopping(HTTPCase):
    def test_without_connections(self) -> None:
        self.lose()
        self.assertIsNone(self.successResultOf(self.factory.stop()))

    def test_an_idle_connection_is_closed(self) -> None:
        stopped = self.factory.stop()
        self.assertTrue(self.transport.disconnecting)
        self.assertNoResult(stopped)
        self.lose()
        self.successResultOf(stopped)

    def test_requests_in_hand_are_finished(self) -> None:
        self.send(GET + GET)
        stopped = self.factory.stop()
        self.send(GET)
        self.seconds(http1.STOP_TIMEOUT_S - 1)
        self.assertFalse(self.transport.disconnecting)
        for request in self.requests:
            request.respond(200)
        first, second = self.answered()
        self.assertNotIn("Connection", first.headers)
        self.assertEqual(second.headers["Connection"], "close")
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(len(self.requests), 2)
        self.lose()
        self.successResultOf(stopped)

    def test_requests_that_wait_for_others_are_dropped(self) -> None:
        """A client sends them again (RFC 9112, 9.3.2); none of them was begun."""
        put = b"PUT /p HTTP/1.1\r\n" + HOST + b"\r\n"
        self.send(put + put)
        self.factory.stop()
        self.requests[0].respond(200)
        (answer,) = self.answered()
        self.assertEqual(answer.headers["Connection"], "close")
        self.assertEqual(len(self.requests), 1)
        self.assertTrue(self.transport.disconnecting)

    def test_requests_that_have_only_begun_are_refused(self) -> None:
        self.send(GET[:9])
        self.factory.stop()
        self.assertRefused(503, "stopped")

    def test_what_does_not_finish_is_cut_off(self) -> None:
        self.send(GET)
        self.factory.stop()
        self.seconds(http1.STOP_TIMEOUT_S)
        self.assertTrue(self.transport.aborted)

    def test_a_connection_that_comes_too_late(self) -> None:
        self.factory.stop()
        self.connect()
        self.assertTrue(self.transport.disconnecting)

    def test_stopping_twice(self) -> None:
        first, second = self.factory.stop(), self.factory.stop()
        self.lose()
        self.successResultOf(first)
        self.successResultOf(second)


# -- any bytes, in any pieces ----------------------------------------------------

TOKENS = st.text("abcdefghij-XYZ", min_size=1, max_size=8).map(str.encode)
FIELDS = st.lists(st.tuples(TOKENS.map(lambda t: b"x-" + t), TOKENS), max_size=4)
BODIES = st.binary(max_size=60)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A valid request."""
    method = draw(st.sampled_from([b"GET", b"PUT", b"DELETE", b"HEAD"]))
    target = b"/" + draw(TOKENS) + draw(st.sampled_from([b"", b"?", b"?q=1"]))
    fields = draw(FIELDS)
    body = draw(BODIES)
    extra = draw(st.sampled_from([b"", b"Connection: Upgrade\r\nUpgrade: x\r\n"]))
    head = method + b" " + target + b" HTTP/1.1\r\n" + HOST + extra
    head += b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "none":
        return head + b"\r\n"
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    size = draw(st.integers(1, 20))
    for n in range(0, len(body), size):
        chunk = body[n : n + size]
        head += b"%x\r\n" % len(chunk) + chunk + b"\r\n"
    return head + b"0\r\n\r\n"


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """`data` cut at some places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


CUTS = st.lists(st.integers(0, 5000), max_size=12)


class AnyBytes(HTTPCase):
    def converse(self, pieces: Sequence[bytes]) -> tuple[list[Any], bytes]:
        """What the handler saw and what the client got."""
        self.setUp()
        self.handler = self.echo
        for piece in pieces:
            self.send(piece)
            self.assertBounded()
        seen = [(r.method, r.path, r.query, list(r.headers), r.body) for r in self.requests]
        return seen, self.sent()

    def assertBounded(self) -> None:
        connection = self.connection
        reading = connection._reader
        self.assertLessEqual(len(connection._in_hand), http1.MAX_IN_HAND)
        self.assertLessEqual(len(connection._queue), reader.READ_BYTES // 16)
        self.assertLessEqual(len(reading._body), self.max_body_bytes)
        self.assertLessEqual(len(reading._headers), reader.MAX_HEADERS)

    @settings(derandomize=True, max_examples=150, deadline=None)
    @given(st.lists(requests(), min_size=1, max_size=4), CUTS)
    def test_valid_requests_in_any_pieces(self, stream: list[bytes], cuts: list[int]) -> None:
        data = b"".join(stream)
        seen, sent = self.converse([data])
        self.assertEqual(len(seen), len(stream))
        self.assertEqual(self.converse(split(data, cuts)), (seen, sent))
        methods = [s[0] for s in seen]
        self.assertEqual([a.status for a in answers(sent, methods)], [200] * len(stream))

    @settings(derandomize=True, max_examples=150, deadline=None)
    @given(
        st.lists(requests(), min_size=1, max_size=3),
        CUTS,
        st.integers(0, 2000),
        st.binary(max_size=3),
    )
    def test_damaged_requests_in_any_pieces(
        self, stream: list[bytes], cuts: list[int], place: int, damage: bytes
    ) -> None:
        """The same requests are seen, however the bytes are cut; the answers are whole."""
        data = b"".join(stream)
        place %= len(data)
        data = data[:place] + damage + data[place + 1 :]
        seen, sent = self.converse([data])
        again, sent_again = self.converse(split(data, cuts))
        self.assertEqual(seen, again)
        methods = [s[0] for s in seen]
        statuses = [a.status for a in answers(sent, methods)]
        self.assertEqual(statuses, [a.status for a in answers(sent_again, methods)])
        self.assertNotIn(500, statuses)

    @settings(derandomize=True, max_examples=150, deadline=None)
    @given(st.lists(st.binary(min_size=1, max_size=200), max_size=5))
    def test_any_bytes_at_all(self, pieces: list[bytes]) -> None:
        """No exception, and in the end the connection closes."""
        seen, sent = self.converse(pieces)
        for answer in answers(sent, [s[0] for s in seen]):
            self.assertNotEqual(answer.status, 500)
        self.seconds(http1.KEEP_ALIVE_S + http1.LINGER_S + 2)
        self.assertTrue(self.transport.disconnecting)


# -- over TCP ----------------------------------------------------------------------


class Client(Protocol):
    """A client that says what it is told and keeps what it hears."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        #: Whether the connection ended without an error.
        self.ended: Deferred[bool] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(reason.check(ConnectionDone) is not None)

    def answers(self) -> list[Answer]:
        return answers(b"".join(self.pieces))


@implementer(IPullProducer)
class Upload:
    """Sends a mebibyte some times over, and only then lets the client listen."""

    def __init__(self, client: Client, times: int) -> None:
        self.transport = cast(Any, client.transport)
        self.times = times
        self.transport.pauseProducing()
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if self.times:
            self.times -= 1
            self.transport.write(b"x" * 2**20)
        else:
            self.transport.unregisterProducer()
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        self.transport.unregisterProducer()


class OverTCP(TestCase):
    """What only a real transport shows."""

    timeout = 20

    def setUp(self) -> None:
        clock = IReactorTime(reactor)
        self.handled = 0
        self.factory = HTTPFactory(self.handle, clock)
        self.port = IReactorTCP(reactor).listenTCP(
            0,
            self.factory,  # type: ignore[arg-type]
            interface="127.0.0.1",
        )
        self.addCleanup(self.port.stopListening)
        self.addCleanup(self.factory.stop)

    def handle(self, request: IRequest) -> None:
        self.handled += 1
        request.respond(200, b"x" * 1_000_000 if request.path == b"/large" else request.body)

    async def connect(self) -> Client:
        port = cast(IPv4Address, self.port.getHost()).port
        client: Client = await ClientCreator(reactor, Client).connectTCP("127.0.0.1", port)
        return client

    async def test_a_refusal_is_seen_by_a_client_that_goes_on_sending(self) -> None:
        """Not lost to a reset (RFC 9112, 9.6)."""
        client = await self.connect()
        assert client.transport is not None
        head = b"PUT /a HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n"
        client.transport.write(head % (8 * 2**20))
        upload = Upload(client, 8)
        self.assertTrue(await client.ended)
        self.assertEqual(upload.times, 0)
        (answer,) = client.answers()
        self.assertEqual((answer.status, self.handled), (413, 0))

    async def test_a_client_that_closes_its_half(self) -> None:
        client = await self.connect()
        assert client.transport is not None
        client.transport.write(GET)
        client.transport.loseWriteConnection()  # type: ignore[attr-defined]
        self.assertTrue(await client.ended)
        self.assertEqual([a.status for a in client.answers()], [200])

    async def test_55_a_client_that_does_not_read_is_not_buffered_for(self) -> None:
        """Sixty megabytes are asked for; at most a few are made before they are read."""
        client = await self.connect()
        assert client.transport is not None
        client.transport.pauseProducing()  # type: ignore[attr-defined]
        client.transport.write((b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n") * 60)
        client.transport.write(b"GET /a HTTP/1.0\r\n\r\n")
        while self.handled == 0:
            await _next_turn()
        # The kernel's buffers fill within a number of turns, not of seconds.
        for _ in range(100):
            await _next_turn()
        made = self.handled
        self.assertLess(made, 20)
        client.transport.resumeProducing()  # type: ignore[attr-defined]
        self.assertTrue(await client.ended)
        result = client.answers()
        self.assertEqual(len(result), 61)
        self.assertEqual({len(a.body) for a in result[:60]}, {1_000_000})


def _next_turn() -> Deferred[None]:
    turn: Deferred[None] = Deferred()
    IReactorTime(reactor).callLater(0, turn.callback, None)
    return turn
