"""
From bytes to requests of HTTP/1.1, within bounds.

llhttp takes the bytes apart; `Reader` holds what it finds to the rules of
`raftd.net.heads` and to the bounds below, before anything is kept.  What it has
found so before is known (`raftd.net.known_heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.net.heads import (
    CLOSE,
    KEEP_ALIVE,
    MAX_TARGET_BYTES,
    SPECIAL_FIELDS,
    Refused,
    check_expectation,
    check_framing,
    check_host,
    check_origin,
    check_version,
    origin_form,
    replayed_head,
    too_large,
)
from raftd.net.known_heads import KnownHeads

#: Header fields of one request, and their bytes together.
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024

#: What a body may cost beyond itself: sizes of chunks, their extensions,
#: trailers.  Enough for a mebibyte in chunks of 32 bytes.
MAX_FRAMING_BYTES = 256 * 1024

#: The most that one read brings; unfinished heads and trailers are bounded to
#: within this.
READ_BYTES = 64 * 1024

# Phases: IDLE -> HEAD -> BODY -> IDLE and so on, and DEAF once nothing more is
# read.

IDLE = 0
HEAD = 1
BODY = 2
DEAF = 3

Fields = Sequence[tuple[bytes, bytes]]

#: Takes a complete request: its Connection field for the answer, empty for
#: HTTP/1.1 and only for that; method, target, header fields, body.
Deliver = Callable[[bytes, bytes, bytes, Fields, bytes], None]

_log = Logger()


class Reader:
    """
    Reads one connection and gives each request to `deliver`, in order.

    `deliver` is called while bytes are being parsed: it must not raise, nor
    call the reader.  `max_body_bytes_at` has the targets whose bodies have a
    bound of their own.
    """

    def __init__(
        self,
        deliver: Deliver,
        max_body_bytes: int,
        max_body_bytes_at: Mapping[bytes, int] = MappingProxyType({}),
        known: KnownHeads | None = None,
    ) -> None:
        self.phase = IDLE
        #: When the unfinished request began, in the unit of `feed`.
        self.begun = 0
        #: The client waits for leave to send the body (RFC 9110, 10.1.1).
        self.continue_due = False
        self._deliver = deliver
        self._default_max_body_bytes = max_body_bytes
        self._max_body_bytes_at = max_body_bytes_at
        #: Of the request that is being read, if it has a body.
        self._max_body_bytes = max_body_bytes
        self._known = KnownHeads() if known is None else known
        #: What is being fed, if its first byte begins a request that is not read yet.
        self._to_learn: bytes | None = None
        self._parser = HttpRequestParser(self)
        self._now = 0
        self._target = b""
        self._method = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_bytes = 0
        self._special: dict[bytes, bytes] = {}
        #: Grown in place once it comes in several pieces, however small.
        self._body: bytes | bytearray = b""
        self._connection_field = b""
        self._keep_alive = True
        self._upgrade = False
        self._framing_bytes = 0
        self._valid_host = b""

    def close(self) -> None:
        """
        Nothing more will be fed.  The parser holds this object's methods, and
        `deliver` is one of whoever holds this object: no reference cycle is left.
        """
        self.phase = DEAF
        del self._parser, self._deliver

    def feed(self, data: bytes, now: int) -> Refused | None:
        """
        Read `data`; not to be called when `phase` is DEAF.

        If what was sent is not acceptable, the answer to it is returned and
        the phase is DEAF; the requests before it have been delivered.
        """
        if self.phase == IDLE:
            begin = self._read_known(data)
            if begin == len(data):
                return None
            data = self._to_learn = data[begin:]
        self._now = now
        body_bytes = len(self._body)
        refused = None
        end = -1
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as e:
            end = e.args[0]
        except HttpParserError as e:
            refused = self._why(e)
        self._to_learn = None
        if end >= 0:
            refused = self._read_past_upgrade(data[end:])
        if self.phase == HEAD or self.phase == BODY:
            refused = refused or self._check_unfinished(len(data), len(self._body) - body_bytes)
        if refused is not None:
            self.phase = DEAF
        return refused

    def _read_known(self, data: bytes) -> int:
        """Deliver the requests at the start of `data` that have known heads; where they end."""
        begin = 0
        while begin < len(data):
            known = self._known.find(data, begin)
            if known is None:
                break
            head, target, body, end = known
            if head.body_bytes > self._max_body_bytes_of(target):
                break
            self._deliver(b"", head.method, target, head.fields, data[body:end])
            begin = end
        return begin

    def _max_body_bytes_of(self, target: bytes) -> int:
        return self._max_body_bytes_at.get(target, self._default_max_body_bytes)

    # -- called by the parser ----------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a method."""
        if self.phase == IDLE:
            self.phase = HEAD
            self.begun = self._now
        elif self.phase == DEAF:
            # A parser that was started anew does not know that it was the last.
            raise Refused.bad("There was to be no other request.")

    def on_url(self, url: bytes) -> None:
        """The target, or a part of it."""
        if self.phase == BODY:
            return
        self._target += url
        if len(self._target) > MAX_TARGET_BYTES:
            raise Refused(414, "uri_too_long", "The request target is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; or of the trailers, which are counted and dropped."""
        headers = self._headers
        in_head = self.phase == HEAD
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > MAX_HEADER_BYTES or (in_head and len(headers) == MAX_HEADERS):
            raise Refused(431, "headers_too_large", "The request has too many header fields.")
        if not in_head:
            return
        name = name.lower()
        value = value.rstrip(b" \t")
        headers.append((name, value))
        if name in SPECIAL_FIELDS:
            special = self._special
            special[name] = special[name] + b", " + value if name in special else value

    def on_headers_complete(self) -> None:
        if self.phase == BODY:
            return
        self.phase = BODY
        parser = self._parser
        special = self._special
        version = parser.get_http_version()
        check_version(version)
        host = special.get(b"host")
        if host is None or host != self._valid_host:
            check_host(version, host)
            self._valid_host = host or b""
        self._method = parser.get_method()
        self._target = origin_form(self._method, self._target)
        self._keep_alive = parser.should_keep_alive()
        self._connection_field = (
            b"" if version == "1.1" else KEEP_ALIVE if self._keep_alive else CLOSE
        )
        if host is None or len(special) > 1:
            self._look_at_special_fields(version)

    def _look_at_special_fields(self, version: str) -> None:
        special = self._special
        self._max_body_bytes = self._max_body_bytes_of(self._target)
        check_framing(version, special, self._max_body_bytes)
        if b"expect" in special and version == "1.1":
            check_expectation(special[b"expect"])
            self.continue_due = True
        if b"origin" in special:
            check_origin(self._method, special.get(b"host", b""), special[b"origin"])
        self._upgrade = b"upgrade" in special and self._parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self.continue_due = False
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        if len(self._body) > self._max_body_bytes:
            # Only a chunked body: the others were measured by their heads.
            self._body = b""
            raise too_large(self._max_body_bytes)

    def on_message_complete(self) -> None:
        if self._upgrade:
            # The parser thinks that another protocol begins here.
            return
        body = self._body
        if self._to_learn is not None and self._keep_alive and not self._connection_field:
            self._known.learn(
                self._to_learn,
                self._method,
                self._target,
                self._headers,
                self._special,
                len(body),
            )
        self._to_learn = None
        self._deliver(
            self._connection_field,
            self._method,
            self._target,
            self._headers,
            body if isinstance(body, bytes) else bytes(body),
        )
        self._target = b""
        self._headers = []
        self._header_bytes = 0
        self._special = {}
        self.continue_due = False
        self._body = b""
        self._framing_bytes = 0
        self.phase = IDLE if self._keep_alive else DEAF

    # -- what the parser does not do ----------------------------------------------

    def _read_past_upgrade(self, rest: bytes) -> Refused | None:
        """
        Ignore an Upgrade (RFC 9110, 7.8).

        The parser stops behind the head and would take the body for the next
        request.  One that never saw the field reads on from there; the phase
        is BODY, so that the head it is given passes unseen.
        """
        while True:
            self._upgrade = False
            self._parser = HttpRequestParser(self)
            try:
                self._parser.feed_data(replayed_head(self._special))
                if rest:
                    self._parser.feed_data(rest)
            except HttpParserUpgrade as e:
                rest = rest[e.args[0] :]
                continue
            except HttpParserError as e:
                return self._why(e)
            return None

    def _check_unfinished(self, data_bytes: int, body_bytes: int) -> Refused | None:
        """
        Bound what the parser keeps of a head or of trailers that do not end.

        What came with the body does not count, and no read counts for more
        than it can bring.
        """
        self._framing_bytes += min(data_bytes - max(body_bytes, 0), READ_BYTES)
        if self.phase == HEAD:
            if self._framing_bytes > MAX_TARGET_BYTES + MAX_HEADER_BYTES + READ_BYTES:
                return Refused(431, "headers_too_large", "The head does not end.")
        elif self._framing_bytes > MAX_FRAMING_BYTES:
            return Refused.bad("The chunks are too small, or have too much around them.")
        return None

    def _why(self, error: HttpParserError) -> Refused | None:
        """What to answer to bytes that the parser, or one of the methods above, refused."""
        cause = error.__context__
        if self.phase == DEAF:
            # They follow the last request of a connection, and nobody reads them.
            return None
        if isinstance(cause, Refused):
            return cause
        if isinstance(error, HttpParserInvalidMethodError):
            return Refused(501, "not_implemented", "The method is unknown to this server.")
        if isinstance(error, HttpParserCallbackError):
            _log.failure("a defect in reading requests", Failure(cause or error))
            return Refused(500, "internal_error", "The server failed; its log says how.")
        return Refused.bad(f"The request is not valid HTTP/1.1: {error}.")
