"""Answers whose bodies are sent while they are made (`IRequest.stream`)."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from OpenSSL.crypto import X509, PKey
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IReactorTCP, IReactorTime
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from raftd.interfaces import IBodySink, IBodySource, IRequest
from raftd.net import http1
from raftd.net.http1 import HTTPFactory
from raftd.test.test_http1 import GET, HOST, Client, HTTPCase, answers

OLD = b"GET /a HTTP/1.0\r\n\r\n"
OLD_KEEP_ALIVE = b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n"


@implementer(IBodySource)
class Source:
    """Records what it is told; does what the test has it do."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.sink: IBodySink | None = None
        self.on_resume: Callable[[], None] = lambda: None
        self.on_stop: Callable[[], None] = lambda: None

    def resume(self) -> None:
        self.told.append("resume")
        self.on_resume()

    def stop(self, patient: bool) -> None:
        self.told.append("stop patiently" if patient else "stop")
        self.on_stop()


def chunks(data: bytes) -> tuple[list[bytes], bytes | None]:
    """
    `data` as chunks, and what comes behind the last one.

    None: there is no last one yet.  AssertionError if it is anything else.
    """
    found: list[bytes] = []
    while data:
        size, separator, data = data.partition(b"\r\n")
        assert separator, f"no chunk: {size!r}"
        n = int(size, 16)
        assert data[n : n + 2] == b"\r\n", "a chunk without its end"
        if n == 0:
            return found, data[2:]
        found.append(data[:n])
        data = data[n + 2 :]
    return found, None


class StreamCase(HTTPCase):
    """One connection; requests for /s... are streamed, others recorded."""

    def setUp(self) -> None:
        super().setUp()
        self.sources: list[Source] = []

    def stream(self, request: IRequest, *headers: tuple[bytes, bytes]) -> Source:
        source = Source()
        source.sink = request.stream(200, source, b"text/event-stream", headers)
        self.sources.append(source)
        return source

    def open(self, data: bytes = GET) -> Source:
        """Send a request and answer it with a stream."""
        self.send(data)
        return self.stream(self.requests[-1])

    def sink(self, source: Source) -> IBodySink:
        assert source.sink is not None
        return source.sink

    def head(self) -> bytes:
        """The head of the answer, which is all that was sent since the last call."""
        head, separator, rest = self.sent().partition(b"\r\n\r\n")
        self.assertEqual((separator, rest), (b"\r\n\r\n", b""))
        return head

    def body(self) -> tuple[list[bytes], bytes | None]:
        return chunks(self.sent())


class Bodies(StreamCase):
    def test_chunks(self) -> None:
        """RFC 9112, 7.1; the head leaves at once, and each piece as it comes."""
        self.send(GET)
        source = self.stream(self.requests[0], (b"Cache-Control", b"no-store"))
        sink = self.sink(source)
        self.assertTrue(verifyObject(IBodySink, sink))
        self.assertEqual(
            self.sent(),
            b"HTTP/1.1 200 OK\r\nServer: raftd/1\r\n"
            b"Date: Tue, 03 Feb 2026 04:05:06 GMT\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nCache-Control: no-store\r\n\r\n",
        )
        sink.write(b"id: 1\n\n")
        self.assertEqual(self.sent(), b"7\r\nid: 1\n\n\r\n")
        sink.write(b"x" * 1000)
        self.assertEqual(self.sent(), b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        sink.finish()
        self.assertEqual(self.sent(), b"0\r\n\r\n")
        self.assertFalse(self.transport.disconnecting)
        self.assertEqual(source.told, [])

    def test_the_connection_goes_on_behind_it(self) -> None:
        self.sink(self.open()).finish()
        self.sent()
        self.handler = self.echo
        self.send(GET)
        self.assertEqual([a.status for a in self.answered()], [200])

    def test_http_1_1_that_closes(self) -> None:
        source = self.open(b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        head = self.head()
        self.assertIn(b"Transfer-Encoding: chunked\r\n", head)
        self.assertTrue(head.endswith(b"Connection: close"), head)
        self.sink(source).write(b"abc")
        self.assertFalse(self.transport.disconnecting)
        self.sink(source).finish()
        self.assertEqual(self.body(), ([b"abc"], b""))
        self.assertTrue(self.transport.disconnecting)

    def test_http_1_0_ends_with_the_connection(self) -> None:
        """RFC 9112, 6.3: it knows no chunks; also where it would like to go on."""
        for request in (OLD, OLD_KEEP_ALIVE):
            self.connect()
            source = self.open(request)
            head = self.head()
            self.assertNotIn(b"Transfer-Encoding", head)
            self.assertTrue(head.endswith(b"Connection: close"), head)
            self.sink(source).write(b"abc")
            self.assertFalse(self.transport.disconnecting)
            self.sink(source).finish()
            self.assertEqual(self.sent(), b"abc")
            self.assertTrue(self.transport.disconnecting)

    def test_nothing_comes_behind_a_body_that_ends_with_the_connection(self) -> None:
        """Neither an answer nor a refusal: it would be taken for more of the body."""
        self.send(OLD_KEEP_ALIVE + OLD_KEEP_ALIVE)
        first, second = self.requests
        source = self.stream(first)
        self.send(GET + b"nonsense\r\n\r\n")
        self.sink(source).write(b"abc")
        self.sent()
        self.sink(source).finish()
        second.respond(200, b"no part of it")
        self.seconds(2)
        self.assertEqual(self.sent(), b"")
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(len(self.requests), 2)

    def test_head_has_no_body(self) -> None:
        for request in (HEAD, b"HEAD /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"):
            self.connect()
            source = self.open(request)
            self.assertIsNone(source.sink)
            head = self.head()
            self.assertEqual(b"chunked" in head, request == HEAD)
            self.handler = self.requests.append
            self.send(GET)
            self.requests[-1].respond(200)
            self.assertEqual([a.status for a in answers(self.sent())], [200])
            self.lose()
            self.assertEqual(source.told, [])

    def test_a_second_answer_is_a_defect(self) -> None:
        self.open()
        self.assertRaises(RuntimeError, self.requests[0].respond, 200)
        self.assertRaises(RuntimeError, self.stream, self.requests[0])
        self.send(HEAD)

    def test_a_client_that_is_gone_before_it(self) -> None:
        self.send(GET)
        self.lose()
        source = self.stream(self.requests[0])
        self.assertIsNone(source.sink)
        self.assertEqual((self.sent(), source.told), (b"", []))
        self.assertRaises(RuntimeError, self.requests[0].respond, 200)

    def test_an_empty_piece_is_a_defect(self) -> None:
        """It would end the body."""
        sink = self.sink(self.open())
        self.assertRaises(ValueError, sink.write, b"")

    def test_nothing_may_follow_the_end(self) -> None:
        source = self.open()
        sink = self.sink(source)
        sink.finish()
        self.sent()
        for call in (lambda: sink.write(b"x"), sink.finish, sink.abort):
            self.assertRaises(RuntimeError, call)
        self.assertFalse(sink.has_room)
        self.lose()
        self.assertEqual((self.sent(), source.told), (b"", []))

    def test_a_header_field_cannot_be_split(self) -> None:
        source = Source()

        def split(request: IRequest) -> None:
            request.stream(200, source, b"text/plain", ((b"X", b"a\r\nb: c"),))

        self.handler = split
        self.send(GET)
        self.assertEqual([a.status for a in answers(self.sent())], [500])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(source.told, [])

    def test_abort(self) -> None:
        """The client sees that it is not complete: no last chunk, no orderly end."""
        for request in (GET, OLD):
            self.connect()
            source = self.open(request)
            self.sink(source).write(b"abc")
            self.sent()
            self.sink(source).abort()
            self.assertEqual(self.sent(), b"")
            self.assertTrue(self.transport.aborted)
            self.assertRaises(RuntimeError, self.sink(source).finish)
            self.send(GET)
            self.lose()
            self.assertEqual(source.told, [])

    def test_pieces_given_with_the_head_leave_with_it(self) -> None:
        def at_once(request: IRequest) -> None:
            source = self.stream(request)
            self.sink(source).write(b"a")
            self.sink(source).write(b"b")
            self.sink(source).finish()

        self.handler = at_once
        self.send(GET + GET)
        self.assertEqual(self.transport.writes, 1)
        _, _, first = self.sent().partition(b"\r\n\r\n")
        found, rest = chunks(first)
        self.assertEqual(found, [b"a", b"b"])
        assert rest is not None
        self.assertTrue(rest.startswith(b"HTTP/1.1 200 OK"))
        self.assertEqual(chunks(rest.partition(b"\r\n\r\n")[2]), ([b"a", b"b"], b""))

    def test_a_handler_that_raises_behind_its_stream(self) -> None:
        def fail(request: IRequest) -> None:
            self.stream(request)
            raise ZeroDivisionError

        self.handler = fail
        self.send(GET)
        self.assertTrue(self.transport.aborted)
        self.assertEqual(self.sources[0].told, ["stop"])
        self.flushLoggedErrors(ZeroDivisionError)
        self.lose()
        self.assertEqual(self.sources[0].told, ["stop"])


class InOrder(StreamCase):
    """Pipelining (RFC 9112, 9.3.2)."""

    def test_requests_behind_it_wait(self) -> None:
        source = self.open()
        self.sent()
        self.send(GET + GET)
        self.assertEqual(len(self.requests), 1)
        self.sink(source).write(b"abc")
        self.assertEqual(self.body(), ([b"abc"], None))
        self.handler = self.echo
        self.sink(source).finish()
        data = self.sent()
        self.assertTrue(data.startswith(b"0\r\n\r\n"))
        self.assertEqual([a.status for a in answers(data[5:])], [200, 200])

    def test_answers_behind_it_that_are_ready_wait(self) -> None:
        """They were in hand already when the one before them became a stream."""
        self.send(GET + GET + GET)
        source = self.stream(self.requests[0])
        self.head()
        self.requests[2].respond(200, b"3")
        self.requests[1].respond(200, b"2")
        self.assertEqual(self.sent(), b"")
        self.sink(source).finish()
        data = self.sent()
        self.assertEqual([a.body for a in answers(data[5:])], [b"2", b"3"])

    def test_it_waits_for_those_before_it(self) -> None:
        """It has no room until then, and is told when it has."""
        self.send(GET + GET)
        source = self.stream(self.requests[1])
        sink = self.sink(source)
        self.assertFalse(sink.has_room)
        sink.write(b"a")
        self.assertEqual((self.sent(), source.told), (b"", []))
        source.on_resume = lambda: sink.write(b"b")
        self.requests[0].respond(200)
        first, data = self.sent().split(b"HTTP/1.1")[1:]
        self.assertEqual(len(answers(b"HTTP/1.1" + first)), 1)
        self.assertEqual(chunks(data.partition(b"\r\n\r\n")[2]), ([b"a", b"b"], None))
        self.assertEqual(source.told, ["resume"])
        self.assertTrue(sink.has_room)

    def test_it_may_end_before_its_turn(self) -> None:
        self.send(GET + GET + GET)
        source = self.stream(self.requests[1])
        self.sink(source).write(b"a")
        self.sink(source).finish()
        self.requests[2].respond(200, b"3")
        self.requests[0].respond(200, b"1")
        data = self.sent()
        first, second, third = (b"HTTP/1.1" + part for part in data.split(b"HTTP/1.1")[1:])
        self.assertEqual(answers(first)[0].body, b"1")
        self.assertEqual(chunks(second.partition(b"\r\n\r\n")[2]), ([b"a"], b""))
        self.assertEqual(answers(third)[0].body, b"3")
        self.assertEqual(source.told, [])
        self.handler = self.echo
        self.send(GET)
        self.assertEqual(len(answers(self.sent())), 1)

    def test_it_may_end_before_its_turn_with_the_connection(self) -> None:
        self.send(OLD_KEEP_ALIVE * 3)
        source = self.stream(self.requests[1])
        self.sink(source).write(b"a")
        self.sink(source).finish()
        self.requests[2].respond(200, b"3")
        self.requests[0].respond(200, b"1")
        data = self.sent()
        self.assertEqual(data.count(b"HTTP/1.1 200"), 2)
        self.assertTrue(data.endswith(b"\r\n\r\na"), data)
        self.assertTrue(self.transport.disconnecting)

    def test_it_may_be_aborted_before_its_turn(self) -> None:
        """Those before it are answered first."""
        self.send(GET + GET)
        source = self.stream(self.requests[1])
        self.sink(source).abort()
        self.assertFalse(self.transport.aborted)
        self.requests[0].respond(200, b"1")
        self.assertTrue(self.transport.aborted)
        self.assertEqual(source.told, [])

    def test_several_at_once(self) -> None:
        self.send(GET + GET)
        second, first = self.stream(self.requests[1]), self.stream(self.requests[0])
        self.head()
        self.sink(second).write(b"2")
        self.sink(first).write(b"1")
        self.assertEqual(self.body(), ([b"1"], None))
        self.sink(first).finish()
        data = self.sent()
        self.assertTrue(data.endswith(b"\r\n\r\n1\r\n2\r\n"), data)
        self.assertEqual((first.told, second.told), ([], ["resume"]))
        self.lose()
        self.assertEqual((first.told, second.told), ([], ["resume", "stop"]))

    def test_what_is_pipelined_is_bounded(self) -> None:
        """Reading pauses as soon as one request waits, and goes on behind the body."""
        source = self.open()
        self.assertEqual(self.transport.producerState, "producing")
        self.send(GET[:-2])
        self.assertEqual(self.transport.producerState, "producing")
        self.send(GET[-2:])
        self.assertEqual(self.transport.producerState, "paused")
        self.assertEqual(len(self.connection._queue), 1)
        self.handler = self.echo
        self.sink(source).finish()
        self.assertEqual(self.transport.producerState, "producing")

    def test_nonsense_behind_it_is_dropped(self) -> None:
        """And refused when the body is over; not without end."""
        self.patch(http1, "MAX_LINGER_BYTES", 5000)
        source = self.open()
        self.head()
        self.send(b"nonsense\r\n\r\n")
        self.send(b"x" * 5000)
        self.assertEqual(self.transport.producerState, "producing")
        self.send(b"x")
        self.assertEqual(self.transport.producerState, "paused")
        self.sink(source).write(b"abc")
        self.assertEqual(self.body(), ([b"abc"], None))
        self.sink(source).finish()
        data = self.sent()
        self.assertEqual([a.status for a in answers(data[5:])], [501])
        self.assertTrue(self.transport.half_closed)

    def test_a_client_that_has_sent_everything_gets_all_of_it(self) -> None:
        """A half-closed connection streams on: nc, or a test of a person's own."""
        for request in (GET, OLD):
            self.connect()
            source = self.open(request)
            self.connection.readConnectionLost()
            self.seconds(1000)
            self.assertFalse(self.transport.disconnecting)
            self.assertEqual(source.told, [])
            self.sent()
            self.sink(source).write(b"abc")
            self.assertIn(b"abc", self.sent())
            self.sink(source).finish()
            self.assertTrue(self.transport.disconnecting)


class Pace(StreamCase):
    """A client that does not read, or not fast enough."""

    def test_no_room(self) -> None:
        source = self.open()
        sink = self.sink(source)
        self.assertTrue(sink.has_room)
        self.connection.pauseProducing()
        self.assertFalse(sink.has_room)
        self.assertEqual(source.told, [])
        self.connection.resumeProducing()
        self.assertEqual((source.told, sink.has_room), (["resume"], True))

    def test_resumed_and_full_again(self) -> None:
        source = self.open()

        def fill() -> None:
            self.sink(source).write(b"abc")
            self.connection.pauseProducing()

        source.on_resume = fill
        self.connection.pauseProducing()
        for _ in range(3):
            self.connection.resumeProducing()
            self.assertFalse(self.sink(source).has_room)
        self.seconds(http1.SEND_TIMEOUT_S - 1)
        self.assertFalse(self.transport.aborted)
        self.seconds(2)
        self.assertTrue(self.transport.aborted)

    def test_finished_when_there_is_room(self) -> None:
        """What waits behind it comes then."""
        source = self.open()
        self.send(GET)
        self.sent()
        self.connection.pauseProducing()
        source.on_resume = self.sink(source).finish
        self.handler = self.echo
        self.connection.resumeProducing()
        data = self.sent()
        self.assertEqual(len(answers(data.removeprefix(b"0\r\n\r\n"))), 1)

    def test_55_a_client_that_takes_nothing_is_cut_off(self) -> None:
        source = self.open()
        self.connection.pauseProducing()
        self.seconds(http1.SEND_TIMEOUT_S - 1)
        self.assertEqual((source.told, self.transport.aborted), ([], False))
        self.seconds(2)
        self.assertEqual((source.told, self.transport.aborted), (["stop"], True))
        self.sink(source).write(b"never sent")
        self.sink(source).finish()
        self.lose()
        self.assertEqual(source.told, ["stop"])
        self.assertNotIn(b"never sent", self.sent())

    def test_a_client_that_takes_its_time_is_not(self) -> None:
        source = self.open()
        for _ in range(5):
            self.connection.pauseProducing()
            self.seconds(http1.SEND_TIMEOUT_S - 1)
            self.connection.resumeProducing()
        self.assertEqual(source.told, ["resume"] * 5)
        self.assertFalse(self.transport.disconnecting)

    def test_silence_is_no_fault(self) -> None:
        """A watch may say nothing for as long as it likes."""
        source = self.open()
        self.sent()
        self.seconds(5 * http1.KEEP_ALIVE_S)
        self.assertEqual((self.sent(), source.told), (b"", []))
        self.assertFalse(self.transport.disconnecting)
        self.sink(source).finish()
        self.seconds(http1.KEEP_ALIVE_S + 1)
        self.assertTrue(self.transport.disconnecting)

    def test_half_a_request_behind_it_has_all_its_time(self) -> None:
        source = self.open()
        self.send(GET[:9])
        self.seconds(200)
        self.sink(source).finish()
        self.sent()
        self.seconds(http1.HEADER_TIMEOUT_S - 1)
        self.assertEqual(self.sent(), b"")
        self.seconds(2)
        self.assertRefused(408, "request_timeout")

    def test_no_timer_of_its_own(self) -> None:
        for _ in range(10):
            self.connect()
            self.open()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)


class Ends(StreamCase):
    """Nobody wants more: told exactly once."""

    def test_a_client_that_goes(self) -> None:
        source = self.open()
        sink = self.sink(source)
        self.lose()
        self.assertEqual(source.told, ["stop"])
        self.assertFalse(sink.has_room)
        sink.write(b"abc")
        sink.finish()
        self.seconds(100)
        self.assertEqual(source.told, ["stop"])

    def test_a_client_that_goes_before_its_turn(self) -> None:
        self.send(GET + GET)
        source = self.stream(self.requests[1])
        self.lose()
        self.assertEqual(source.told, ["stop"])
        self.requests[0].respond(200)
        self.assertEqual(source.told, ["stop"])

    def test_what_the_source_writes_when_the_client_is_gone(self) -> None:
        source = self.open()
        self.sent()

        def last_words() -> None:
            self.sink(source).write(b"abc")
            self.sink(source).abort()

        source.on_stop = last_words
        self.lose()
        self.assertEqual((source.told, self.sent()), (["stop"], b""))
        self.assertFalse(self.transport.aborted)

    def test_the_server_stops(self) -> None:
        """Last words, and an orderly end."""
        source = self.open()
        self.sent()

        def last_words() -> None:
            self.sink(source).write(b"bye")
            self.sink(source).finish()

        source.on_stop = last_words
        stopped = self.factory.stop()
        self.assertEqual(self.body(), ([b"bye"], b""))
        self.assertEqual(source.told, ["stop patiently"])
        self.assertTrue(self.transport.disconnecting)
        self.lose()
        self.successResultOf(stopped)
        self.assertEqual(source.told, ["stop patiently"])

    def test_the_server_stops_and_the_source_has_nothing_to_say(self) -> None:
        """Then the client must see that the body is not complete."""
        source = self.open()
        self.sent()
        self.factory.stop()
        self.assertEqual((self.sent(), source.told), (b"", ["stop patiently"]))
        self.assertTrue(self.transport.aborted)
        self.lose()
        self.assertEqual(source.told, ["stop patiently"])

    def test_the_server_stops_before_its_turn(self) -> None:
        self.send(GET + GET)
        source = self.stream(self.requests[1])

        def last_words() -> None:
            self.sink(source).write(b"bye")
            self.sink(source).finish()

        source.on_stop = last_words
        self.factory.stop()
        self.assertEqual(self.sent(), b"")
        self.requests[0].respond(200)
        self.assertTrue(self.sent().endswith(b"\r\n\r\n3\r\nbye\r\n0\r\n\r\n"))
        self.assertTrue(self.transport.disconnecting)

    def test_the_server_stops_and_the_client_does_not_read(self) -> None:
        """What was written is kept for it, but not for long."""
        source = self.open()
        source.on_stop = lambda: self.sink(source).finish()
        self.connection.pauseProducing()
        self.factory.stop()
        self.assertFalse(self.transport.disconnecting)
        self.seconds(http1.STOP_TIMEOUT_S + 1)
        self.assertTrue(self.transport.aborted)

    def test_a_stream_that_comes_when_the_server_stops(self) -> None:
        self.send(GET)
        self.factory.stop()
        source = self.stream(self.requests[0])
        self.assertIsNone(source.sink)
        self.assertEqual([a.status for a in answers(self.sent())], [503])
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(source.told, [])

    def test_a_source_that_fails(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        source = self.open()
        source.on_resume = source.on_stop = fail
        self.connection.pauseProducing()
        self.connection.resumeProducing()
        self.assertTrue(self.transport.aborted)
        self.assertEqual(source.told, ["resume", "stop"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.lose()
        self.assertEqual(source.told, ["resume", "stop"])


class AnyOrder(StreamCase):
    """Random conversations: whole answers, in order, and each source told once."""

    def test_at_random(self) -> None:
        for seed in range(300):
            self.setUp()
            self.converse(random.Random(seed))

    def converse(self, rng: random.Random) -> None:
        served: list[str] = []
        live: list[tuple[int, Source]] = []
        written: dict[int, list[bytes]] = {}
        done = 0
        blocked = False
        for _ in range(60):
            act = rng.randrange(7)
            if act == 0 and self.transport.producerState == "producing":
                self.send(GET * rng.randrange(1, 4))
            elif act in (1, 2) and done < len(self.requests):
                # Answered out of order, now and then.
                open_ = [n for n in range(len(self.requests)) if n not in written]
                n = rng.choice(open_)
                done += 1
                written[n] = []
                if act == 1:
                    written[n].append(b"%d" % n)
                    self.requests[n].respond(200, b"%d" % n)
                    served.append("answer")
                else:
                    live.append((n, self.stream(self.requests[n])))
                    served.append("stream")
            elif act == 3 and live:
                n, source = rng.choice(live)
                piece = b"%d." % n * rng.randrange(1, 20)
                written[n].append(piece)
                self.sink(source).write(piece)
            elif act == 4 and live:
                n, source = live.pop(rng.randrange(len(live)))
                self.sink(source).finish()
            elif act == 5:
                blocked = not blocked
                if blocked:
                    self.connection.pauseProducing()
                else:
                    self.connection.resumeProducing()
            self.assertLessEqual(len(self.connection._in_hand), http1.MAX_IN_HAND)
        if blocked:
            self.connection.resumeProducing()
        for _, source in live:
            self.sink(source).finish()
        for n, request in enumerate(self.requests):
            if n not in written:
                written[n] = [b"%d" % n]
                request.respond(200, b"%d" % n)
        self.assertEqual(self.bodies(), [b"".join(written[n]) for n in sorted(written)])
        self.assertFalse(self.transport.aborted)
        told = {word for source in self.sources for word in source.told}
        self.assertLessEqual(told, {"resume"})

    def bodies(self) -> list[bytes]:
        """Of answers of both kinds."""
        found: list[bytes] = []
        data: bytes | None = self.sent()
        while data:
            head, separator, data = data.partition(b"\r\n\r\n")
            assert separator
            if b"Transfer-Encoding: chunked" in head:
                pieces, data = chunks(data)
                assert data is not None, "a body without its end"
                found.append(b"".join(pieces))
            else:
                size = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                found.append(data[:size])
                data = data[size:]
        return found


@implementer(IBodySource)
class Endless:
    """Writes for as long as there is room."""

    def __init__(self, request: IRequest, piece: bytes) -> None:
        self.piece = piece
        self.made = 0
        self.told: list[bool] = []
        self.stopped: Deferred[bool] = Deferred()
        sink = request.stream(200, self, b"text/plain")
        assert sink is not None
        self.sink = sink
        self.resume()

    def resume(self) -> None:
        while self.sink.has_room:
            self.made += len(self.piece)
            self.sink.write(self.piece)

    def stop(self, patient: bool) -> None:
        self.told.append(patient)
        if patient:
            self.sink.write(b"bye")
            self.sink.finish()
        self.stopped.callback(patient)


class StreamsOverTCP(TestCase):
    """What only a real transport shows."""

    #: Below the deadlines for closing: none of them is to be needed.
    timeout = http1.CLOSE_TIMEOUT_S - 2
    piece = b"x" * 50_000

    def setUp(self) -> None:
        self.sources: list[Endless] = []
        self.opened: Deferred[None] = Deferred()
        self.factory = HTTPFactory(self.handle, IReactorTime(reactor))
        self.listen(self.factory)
        self.addCleanup(self.factory.stop)

    def listen(self, factory: Any) -> None:
        self.port = IReactorTCP(reactor).listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def handle(self, request: IRequest) -> None:
        self.sources.append(Endless(request, self.piece))
        if not self.opened.called:
            self.opened.callback(None)

    async def connect(self) -> Client:
        client = Client()
        point = self.endpoint(cast(IPv4Address, self.port.getHost()).port)
        await point.connect(Factory.forProtocol(lambda: client))
        return client

    def endpoint(self, port: int) -> Any:
        return TCP4ClientEndpoint(reactor, "127.0.0.1", port)

    async def test_55_a_client_that_does_not_read_is_not_buffered_for(self) -> None:
        client = await self.connect()
        transport = cast(Any, client.transport)
        transport.write(GET)
        await self.opened
        transport.pauseProducing()
        source = self.sources[0]
        made = -1
        while made != source.made:
            made = source.made
            for _ in range(50):
                await _next_turn()
        self.assertLess(made, 20_000_000)
        transport.resumeProducing()
        while source.made < made + 10_000_000:
            await _next_turn()
        await self.factory.stop()
        await client.ended
        self.assertEqual(source.told, [True])
        found, rest = chunks(b"".join(client.pieces).partition(b"\r\n\r\n")[2])
        self.assertEqual((sum(map(len, found)), rest), (source.made + 3, b""))
        self.assertEqual(found[-1], b"bye")

    async def test_a_client_that_closes_is_noticed(self) -> None:
        client = await self.connect()
        cast(Any, client.transport).write(GET)
        await self.opened
        cast(Any, client.transport).abortConnection()
        await client.ended
        self.assertFalse(await self.sources[0].stopped)
        await _next_turn()
        self.assertEqual(self.sources[0].told, [False])

    async def test_an_abort_is_seen(self) -> None:
        """Also by a client of HTTP/1.0, to which an orderly end is the end of the body."""
        for request in (GET, OLD):
            client = await self.connect()
            self.opened = Deferred()
            cast(Any, client.transport).write(request)
            await self.opened
            self.sources[-1].sink.abort()
            self.assertFalse(await client.ended)


class StreamsOverTLS(StreamsOverTCP):
    """The same through a wrapper, which has a buffer and a producer of its own."""

    def listen(self, factory: Any) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), 1)
            .not_valid_before(datetime(2020, 1, 1))
            .not_valid_after(datetime(2100, 1, 1))
            .sign(key, SHA256())
        )
        server = CertificateOptions(
            PKey.from_cryptography_key(key), X509.from_cryptography(certificate)
        )
        super().listen(TLSMemoryBIOFactory(server, False, factory))

    def endpoint(self, port: int) -> Any:
        # Whose certificate it is does not matter here.
        return wrapClientTLS(CertificateOptions(), super().endpoint(port))


def _next_turn() -> Deferred[None]:
    turn: Deferred[None] = Deferred()
    IReactorTime(reactor).callLater(0, turn.callback, None)
    return turn
