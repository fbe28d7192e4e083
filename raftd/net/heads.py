"""
Heads of HTTP/1.1 messages: requests checked, responses built.

The parser (llhttp) refuses whatever breaks the grammar.  What remains is here:
the rules of RFC 9110 and RFC 9112 that it leaves to the server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus

import msgspec

#: The longest request target, in bytes: three keys of 4 KiB, all percent-encoded,
#: as the next page of a listing may have them.
MAX_TARGET_BYTES = 40 * 1024

#: Fields that decide how a message is read.  Several of one name are joined
#: by commas (RFC 9110, 5.3), which makes doubles of those that must be single
#: fail their own checks.
SPECIAL_FIELDS = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"origin")
)

CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: Statuses of answers without content, which have no length of it, nor a type
#: (RFC 9110, 8.6: the length in a 304 would have to be that of the 200).
_WITHOUT_CONTENT = frozenset((204, 304))

#: Names that RFC 9110 changed and some versions of Python have not.
_PHRASES = {413: "Content Too Large", 414: "URI Too Long"}

#: RFC 9110, 7.2: a host, perhaps a port; empty is legal.
_host = re.compile(
    rb"(?:\[[0-9A-Fa-f:.v]+\]|[A-Za-z0-9\-._~%!$&'()*+,;=]*)(?::[0-9]*)?"
).fullmatch

#: RFC 9112, 3.2.2: a target with a scheme and an authority.
_absolute_form = re.compile(rb"(?i:https?)://([^/?#]+)(.*)", re.DOTALL).fullmatch


class Refused(Exception):
    """A request that the protocol itself answers, with an error; the connection ends."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    @classmethod
    def bad(cls, message: str) -> Refused:
        """The client broke a rule of HTTP."""
        return cls(400, "bad_request", message)

    def body(self) -> bytes:
        """As every error of raftd is told over HTTP."""
        return msgspec.json.encode({"error": self.code, "message": self.message}) + b"\n"


def check_version(version: str) -> None:
    """RFC 9110, 15.6.6."""
    if version not in ("1.1", "1.0"):
        raise Refused(505, "version_not_supported", "This server speaks HTTP/1.1.")


def check_host(version: str, host: bytes | None) -> None:
    """Exactly one valid Host, which only HTTP/1.0 may leave out (RFC 9112, 3.2)."""
    if host is None:
        if version == "1.1":
            raise Refused.bad("A request of HTTP/1.1 needs a Host field.")
    elif not _host(host):
        raise Refused.bad("There must be exactly one Host field, with a valid host in it.")


def origin_form(method: bytes, target: bytes) -> bytes:
    """`target` as path and query (RFC 9112, 3.2); `*` stays as it is."""
    if method == b"CONNECT":
        raise Refused(501, "not_implemented", "This server is no proxy: there is no CONNECT.")
    if b"#" in target:
        raise Refused.bad("A request target has no fragment: percent-encode the #.")
    if target[:1] == b"/" or (target == b"*" and method == b"OPTIONS"):
        return target
    absolute = _absolute_form(target)
    if absolute is None or not _host(absolute[1]):
        raise Refused.bad("The request target is neither a path nor an http URL.")
    rest: bytes = absolute[2]
    if rest[:1] == b"/":
        return rest
    return b"*" if method == b"OPTIONS" and not rest else b"/" + rest


def check_framing(version: str, special: Mapping[bytes, bytes], max_body_bytes: int) -> None:
    """
    Whether it is clear where the body ends, and not too far away.

    The parser has made sure that Content-Length is one number and does not
    come with Transfer-Encoding (RFC 9112, 6).
    """
    coding = special.get(b"transfer-encoding")
    if coding is None:
        length = int(special.get(b"content-length", b"0"))
        if length > max_body_bytes:
            raise too_large(max_body_bytes)
        return
    codings = [name.strip() for name in coding.lower().split(b",")]
    if version != "1.1" or codings[-1] != b"chunked":
        # Where the body ends cannot be told (RFC 9112, 6.1 and 6.3).
        raise Refused.bad("A Transfer-Encoding must end in chunked, and needs HTTP/1.1.")
    if len(codings) > 1:
        raise Refused(501, "not_implemented", "The only transfer coding known here is chunked.")


def too_large(max_body_bytes: int) -> Refused:
    """RFC 9110, 15.5.14."""
    return Refused(
        413, "too_large", f"The body is larger than the {max_body_bytes} bytes allowed."
    )


def check_expectation(expect: bytes) -> None:
    """RFC 9110, 10.1.1: there is one expectation."""
    if expect.lower() != b"100-continue":
        raise Refused(417, "expectation_failed", "The only expectation known is 100-continue.")


def check_origin(method: bytes, host: bytes, origin: bytes) -> None:
    """
    Refuse a change that a page of another site asks for (RFC 6454, 7).

    A browser sends it without asking first, to a node on its own machine too,
    and says only from where it comes.
    """
    if method in (b"GET", b"HEAD", b"OPTIONS"):
        return
    _, _, authority = origin.partition(b"://")
    if not authority or authority.lower() != host.lower():
        raise Refused(
            403, "cross_origin", "A page of another origin than this host may change nothing."
        )


def replayed_head(special: Mapping[bytes, bytes]) -> bytes:
    """
    The head of a request whose body is framed as by `special`, and nothing else.

    For reading a body that a parser has skipped because of an Upgrade field.
    """
    if b"transfer-encoding" in special:
        return b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    length = special.get(b"content-length", b"0")
    return b"POST / HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n"


STOPPED = Refused(503, "stopped", "This node is shutting down.")


class Responses:
    """
    Builds responses; the parts that many have in common are kept ready.

    `wall_clock` gives seconds since 1970; it is read by `refresh` only and
    gives the Date field (RFC 9110, 6.6.1).
    """

    def __init__(self, server: bytes, wall_clock: Callable[[], float]) -> None:
        self._server = server
        self._wall_clock = wall_clock
        self._second = -1
        self._common = b""
        #: Bounded by the statuses and content types that handlers use.
        self._prefixes: dict[tuple[int, bytes], bytes] = {}

    def refresh(self) -> None:
        """Take the time; to be called about once a second while there are connections."""
        second = int(self._wall_clock())
        if second != self._second:
            self._second = second
            date = formatdate(second, usegmt=True).encode("ascii")
            self._common = b"Server: %b\r\nDate: %b\r\n" % (self._server, date)
            self._prefixes.clear()

    def build(
        self,
        status: int,
        body: bytes,
        content_type: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        connection: bytes,
        head_only: bool,
    ) -> bytes:
        """
        A whole response.

        `connection` is a Connection field, complete, or empty.  `head_only`
        leaves the body out, as for HEAD, but not its length.
        """
        prefix = self._prefixes.get((status, content_type))
        if prefix is None:
            prefix = self._prefix(status, content_type)
        fields = connection + _lines(headers)
        if status in _WITHOUT_CONTENT:
            return prefix + fields + b"\r\n"
        if head_only:
            return b"%b%d\r\n%b\r\n" % (prefix, len(body), fields)
        return b"%b%d\r\n%b\r\n%b" % (prefix, len(body), fields, body)

    def open(
        self,
        status: int,
        content_type: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        connection: bytes,
        chunked: bool,
    ) -> bytes:
        """
        The head of a response whose length is not known.

        Its body ends as chunks do, or with the connection (RFC 9112, 6.3).
        """
        fields = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        fields += _lines(headers)
        return b"HTTP/1.1 %d %b\r\n%bContent-Type: %b\r\n%b%b\r\n" % (
            status,
            _phrase(status),
            self._common,
            content_type,
            fields,
            connection,
        )

    def _prefix(self, status: int, content_type: bytes) -> bytes:
        prefix = b"HTTP/1.1 %d %b\r\n%b" % (status, _phrase(status), self._common)
        if status not in _WITHOUT_CONTENT:
            prefix += b"Content-Type: %b\r\nContent-Length: " % content_type
        self._prefixes[status, content_type] = prefix
        return prefix


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """As they stand in a head; `ValueError` if one of them would be more than a line."""
    lines = b""
    for name, value in headers:
        lines += name + b": " + value + b"\r\n"
    count = len(headers)
    if lines.count(b"\r") != count or lines.count(b"\n") != count or b"\0" in lines:
        raise ValueError("a line break in a header field")
    return lines


def _phrase(status: int) -> bytes:
    return (_PHRASES.get(status) or HTTPStatus(status).phrase).encode("ascii")
