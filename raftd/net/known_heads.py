"""
Heads that the parser has read before, but for their targets.

Clients send the same fields with each request.  To find out that they have costs
half of what parsing them does: 1.1 us and not 2.3 for a write of 256 bytes.

Invariant: what is known was all of a head that llhttp and the `Reader` have
accepted, from the first byte of a message to the last before its body.  The
first line was that of HTTP/1.1, which llhttp is not told to insist on: it reads
`RTSP/1.1` as well.  Each line behind it, without exception, was one field.  The
parser is a state machine, in the same state before each message, and behind
any plain target of the same method: so the same bytes come to the same fields
and the same length of the body.  Nothing is parsed here.  What is not known
byte for byte goes to the parser.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from raftd.net.heads import MAX_TARGET_BYTES

#: Heads that are known at a time, of all connections, and the longest, without its target.
MAX_KNOWN = 256
MAX_KNOWN_BYTES = 1024
#: When so many are known, one in so many that are not takes the place of the oldest:
#: where most heads are new, as those with an `Idempotency-Key` each, to learn all of
#: them would cost half of what parsing them does.
ONE_IN = 16

#: What follows the target of a head that can be known.
_VERSION = b" HTTP/1.1\r\n"

#: What RFC 3986 permits in a path and a query, which the parser takes as it is.
_is_plain = re.compile(
    rb"/[A-Za-z0-9\-._~%%!$&'()*+,;=:@/?]{0,%d}" % (MAX_TARGET_BYTES - 1)
).fullmatch

#: The fields that may decide how such a request is read: those of others, as
#: `Transfer-Encoding` or `Expect`, are none that can be known.
_KNOWABLE = frozenset((b"host", b"content-length", b"origin"))


class KnownHead(NamedTuple):
    """What a head came to, but for its target."""

    method: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body_bytes: int


#: A request at the start of what has come: its head, its target, and where its body
#: begins and ends.
KnownRequest = tuple[KnownHead, bytes, int, int]


class KnownHeads:
    """Those of all connections of a factory."""

    def __init__(self) -> None:
        #: By the method and all that comes behind the target; the oldest first.
        self._heads: dict[bytes, KnownHead] = {}
        #: How many were not learned since one was.
        self._passed = 0

    def find(self, data: bytes, begin: int) -> KnownRequest | None:
        """
        The request that begins at `begin` of `data`, where a message begins; None
        if the parser has to read it, as one that has not come as a whole.
        """
        method_end = data.find(b" ", begin)
        target_end = data.find(_VERSION, method_end + 1)
        if not begin < method_end < target_end:
            return None
        fields_end = data.find(b"\r\n\r\n", target_end) + 4
        head = self._heads.get(data[begin:method_end] + data[target_end:fields_end])
        if head is None:
            return None
        target = data[method_end + 1 : target_end]
        end = fields_end + head.body_bytes
        if end > len(data) or not _is_plain(target):
            return None
        return head, target, fields_end, end

    def learn(
        self,
        data: bytes,
        method: bytes,
        target: bytes,
        fields: Sequence[tuple[bytes, bytes]],
        special: Collection[bytes],
        body_bytes: int,
    ) -> None:
        """
        The request at the start of `data`, of HTTP/1.1 and not the last of its
        connection, was accepted: remember its head, if it can be known.

        `target` is as it is delivered: if it was not sent so, nothing is learned.
        `special` has the names of the fields that decide how it is read.
        """
        if len(self._heads) >= MAX_KNOWN and self._passed < ONE_IN - 1:
            self._passed += 1
            return
        begin = len(method) + 1 + len(target)
        end = data.find(b"\r\n\r\n", begin) + 4
        known = data[begin:end]
        # It is all of the head: the first line, one for each field, and an empty one.
        lines = 2 + len(fields)
        if (
            data.startswith(b"%b %b%b" % (method, target, _VERSION))
            and _KNOWABLE.issuperset(special)
            and len(known) <= MAX_KNOWN_BYTES
            and known.count(b"\r\n") == known.count(b"\n") == lines
        ):
            self._passed = 0
            if len(self._heads) >= MAX_KNOWN:
                del self._heads[next(iter(self._heads))]
            self._heads[method + known] = KnownHead(method, tuple(fields), body_bytes)
