"""Heads that were read before come to the same as the parser makes of them."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from raftd.net import known_heads
from raftd.net.heads import MAX_TARGET_BYTES
from raftd.net.known_heads import KnownHeads, KnownRequest
from raftd.net.reader import DEAF, Fields, Reader

T = TypeVar("T")

Request = tuple[bytes, bytes, bytes, tuple[tuple[bytes, bytes], ...], bytes]


class Forgetful(KnownHeads):
    """Knows nothing, so that the parser reads everything."""

    def find(self, data: bytes, begin: int) -> KnownRequest | None:
        return None


class Counting(KnownHeads):
    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def find(self, data: bytes, begin: int) -> KnownRequest | None:
        found = super().find(data, begin)
        self.found += found is not None
        return found


class Connection:
    """What a reader has delivered, and how it has ended."""

    def __init__(self, known: KnownHeads) -> None:
        self.requests: list[Request] = []
        self.refused: tuple[int, str] | None = None
        self.reader = Reader(self._deliver, 20, {b"/large": 40, b"/small": 2}, known)

    def _deliver(
        self, connection: bytes, method: bytes, target: bytes, fields: Fields, body: bytes
    ) -> None:
        self.requests.append((connection, method, target, tuple(fields), body))

    def feed(self, *pieces: bytes) -> Connection:
        for piece in pieces:
            if self.reader.phase != DEAF:
                refused = self.reader.feed(piece, 0)
                if refused is not None:
                    self.refused = (refused.status, refused.message)
        return self

    @property
    def outcome(self) -> tuple[list[Request], tuple[int, str] | None, int, bool]:
        reader = self.reader
        return self.requests, self.refused, reader.phase, reader.continue_due


#: What a client sends: a method, fields, a body.
PLAIN: list[tuple[bytes, bytes, bytes]] = [
    (b"GET", b"", b""),
    (b"GET", b"X: y\r\n", b""),
    (b"DELETE", b"", b""),
    (b"DELETE", b"Origin: http://h\r\n", b""),
    (b"PUT", b"Content-Length: 3\r\n", b"abc"),
    (b"PUT", b"content-length:4 \r\n", b"\r\n\r\n"),
    (b"POST", b"Content-Length: 20\r\n", b"0\r\n\r\n" * 4),
]

#: What else comes, with its own line ends, fields, and lengths.
ODD: list[tuple[bytes, bytes, bytes]] = [
    (b"PUT", b"Content-Length: 21\r\n", b"a" * 21),
    (b"PUT", b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
    (b"PUT", b"Transfer-Encoding: chunked\r\n", b"0\r\nX: y\r\n\r\n"),
    (b"PUT", b"Expect: 100-continue\r\nContent-Length: 1\r\n", b"a"),
    (b"PUT", b"Content-Length: 1\nX: y\r\n", b"a"),
    (b"PUT", b"Content-Length: 1\n\n", b"a\r\n\r\n"),
    (b"GET", b"X: y\r\n folded\r\n", b""),
    (b"GET", b"X: y\rz\r\n", b""),
    (b"GET", b"Host: h\r\n", b""),
    (b"GET", b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b""),
    (b"PUT", b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 1\r\n", b"a"),
    (b"GET", b"Connection: close\r\n", b""),
    (b"GET", b"Connection: keep-alive\r\n", b""),
    (b"PUT", b"Origin: http://other\r\n", b""),
    (b"OPTIONS", b"", b""),
    (b"CONNECT", b"", b""),
    (b"NO", b"", b""),
]

PLAIN_TARGETS = [b"/", b"/a?b=c", b"/%41", b"/large", b"/small"]
ODD_TARGETS = [
    *(b"*", b"/a#b", b"http://h/x", b"http://h", b"h:1", b"", b"/\xff", b"/a b", b'/"'),
    *(b"/a HTTP/1.1", b"/{}|", b"/\t", b"/\r\nX: y"),
]
VERSIONS = [
    b"RTSP/1.1\r\n",
    b"HTTP/1.0\r\n",
    b"HTTP/1.1\n",
    b"HTTP/1.2\r\n",
    b"http/1.1\r\n",
    b"\r\n",
]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Most are what a client would send; of the others, most are odd in one way."""

    def one_of(plain: list[T], odd: list[T]) -> T:
        return draw(st.sampled_from(odd if draw(st.integers(0, 7)) == 7 else plain))

    method, fields, body = one_of(PLAIN, ODD)
    before = one_of([b""], [b"\r\n", b"\n", b" "])
    target, version = one_of(PLAIN_TARGETS, ODD_TARGETS), one_of([b"HTTP/1.1\r\n"], VERSIONS)
    host = one_of([b"Host: h\r\n"], [b"", b"Host: h\n", b"Host: h/\r\n"])
    end = one_of([b"\r\n"], [b"\n", b"\r"])
    return before + method + b" " + target + b" " + version + host + fields + end + body


class Same(SynchronousTestCase):
    @settings(derandomize=True, max_examples=1500, deadline=None)
    @given(
        st.lists(requests(), min_size=1, max_size=3),
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=3),
        st.lists(st.integers(1, 200), max_size=3),
    )
    def test_as_if_nothing_were_known(
        self, of: list[bytes], connections: list[list[int]], cuts: list[int]
    ) -> None:
        """Several connections with the same few requests, each by itself or in other pieces."""
        known = Counting()
        for chosen in connections:
            sent = [of[i % len(of)] for i in chosen]
            whole = b"".join(sent)
            places = sorted({0, len(whole), *(c for c in cuts if c < len(whole))})
            cut = [whole[a:b] for a, b in pairwise(places)]
            for pieces in (sent, [whole], cut):
                with_them = Connection(known).feed(*pieces)
                without = Connection(Forgetful()).feed(*pieces)
                self.assertEqual(with_them.outcome, without.outcome)


PUT = b"PUT /db/%b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"


class Known(SynchronousTestCase):
    def setUp(self) -> None:
        self.known = Counting()
        self.connection = Connection(self.known)

    def test_the_second_of_a_kind(self) -> None:
        """Of any connection, by itself or behind another."""
        self.connection.feed(PUT % b"1")
        self.assertEqual(self.known.found, 0)
        self.connection.feed(PUT % b"2", PUT % b"3" + PUT % b"4")
        other = Connection(self.known).feed(PUT % b"5")
        self.assertEqual(self.known.found, 4)
        fields = ((b"host", b"h"), (b"content-length", b"3"))
        self.assertEqual(
            self.connection.requests + other.requests,
            [(b"", b"PUT", b"/db/%d" % n, fields, b"abc") for n in (1, 2, 3, 4, 5)],
        )

    def test_one_that_has_not_come_as_a_whole(self) -> None:
        self.connection.feed(PUT % b"1", (PUT % b"2")[:-1], b"c", PUT % b"3")
        self.assertEqual(self.known.found, 1)
        self.assertEqual(
            [r[2] for r in self.connection.requests], [b"/db/1", b"/db/2", b"/db/3"]
        )

    def test_the_length_of_a_body_depends_on_the_target(self) -> None:
        self.connection.feed(PUT % b"1", b"PUT /small" + (PUT % b"")[len("PUT /db/") :])
        self.assertEqual(self.connection.refused and self.connection.refused[0], 413)
        self.assertEqual(len(self.connection.requests), 1)

    def test_a_target_that_is_too_long(self) -> None:
        long = b"a" * MAX_TARGET_BYTES
        refused = Connection(self.known).feed(PUT % b"1", PUT % long).refused
        self.assertEqual(refused, (414, "The request target is too long."))
        self.assertEqual(self.known.found, 0)

    def test_they_are_bounded(self) -> None:
        """When there are as many as may be, the oldest goes for one in some that are new."""
        self.patch(known_heads, "MAX_KNOWN", 3)
        self.patch(known_heads, "ONE_IN", 4)
        get = b"GET / HTTP/1.1\r\nHost: h%d\r\n\r\n"
        for n in range(12):
            self.connection.feed(get % n)
            self.assertLessEqual(len(self.known._heads), 3)
        # Not 3, 4 and 5, but 6; not 7, 8 and 9, but 10.
        for known, n in enumerate((2, 6, 10), 1):
            self.connection.feed(get % n)
            self.assertEqual(self.known.found, known)
        for n in (0, 1, 11):
            self.connection.feed(get % n)
        self.assertEqual(self.known.found, 3)

    def test_a_long_one(self) -> None:
        long = b"x" * known_heads.MAX_KNOWN_BYTES
        for _ in range(2):
            self.connection.feed(b"GET / HTTP/1.1\r\nHost: h\r\nX: %b\r\n\r\n" % long)
        self.assertEqual(self.known.found, 0)
        self.assertEqual(len(self.connection.requests), 2)

    def test_body_that_is_a_head_is_not_known(self) -> None:
        """
        Not even behind a first line of RTSP, which the parser reads as one of HTTP:
        what somebody else sends would be cut elsewhere, and their bodies carried out.
        """
        head = b" HTTP/1.1\r\nHost: h\r\nX:\r\n\r\n"
        for protocol in (b"RTSP", b"HTTP"):
            attack = b"POST /large %b/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
            attacker = Connection(self.known).feed(attack % (protocol, len(head)) + head)
            self.assertEqual([r[4] for r in attacker.requests], [head])
        other = Connection(self.known).feed(b"POST /1" + head + b"POST /2" + head)
        self.assertEqual(
            [r[2:] for r in other.requests],
            [(target, ((b"host", b"h"), (b"x", b"")), b"") for target in (b"/1", b"/2")],
        )
        self.assertEqual(self.known.found, 0)

    def test_what_a_request_is_refused_for_is_not_known(self) -> None:
        refused = b"GET / HTTP/1.1\r\n\r\n"
        for _ in range(2):
            again = Connection(self.known).feed(refused)
            self.assertEqual(again.refused and again.refused[0], 400)
        self.assertEqual(self.known._heads, {})

    def test_only_whole_heads_are_known(self) -> None:
        """Whatever a parser takes for the end of a line."""
        fields = ((b"host", b"h"), (b"x", b"y"))
        for rest, is_known in (
            (b" HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n", True),
            (b" HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", False),
            (b" HTTP/1.1\r\nHost: h\r\nX: y\n\nbody\r\n\r\n", False),
            (b" HTTP/1.1\r\nHost: h\r\nX:\r\n y\r\n\r\n", False),
            (b" HTTP/1.1\r\nHost: h\r\n\r\nX: y\r\n\r\n", False),
            (b" HTTP/1.1\nHost: h\r\nX: HTTP/1.1\r\n\r\n", False),
            (b" RTSP/1.1\r\nHost: h\r\n\r\n HTTP/1.1\r\nX: y\r\n\r\n", False),
        ):
            known = KnownHeads()
            known.learn(b"GET /" + rest, b"GET", b"/", fields, (b"host",), 0)
            self.assertEqual(known.find(b"GET /a" + rest, 0) is not None, is_known)

    def test_nothing_is_held_of_what_was_read(self) -> None:
        """The bytes of an unfinished request are the parser's alone."""
        self.connection.feed((PUT % b"1")[:-1])
        self.assertIsNone(self.connection.reader._to_learn)
