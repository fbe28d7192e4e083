"""
Header fields that change what a request means.

They are rare, and a request without any costs one look at each of its fields.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from raftd.errors import BadRequest
from raftd.idempotency import retry_of
from raftd.interfaces import IRequest
from raftd.web.answers import UnsupportedMediaType

IF_MATCH = b"if-match"
IF_NONE_MATCH = b"if-none-match"
IDEMPOTENCY_KEY = b"idempotency-key"
CONTENT_ENCODING = b"content-encoding"
CONTENT_RANGE = b"content-range"

_SPECIAL = frozenset(
    (IF_MATCH, IF_NONE_MATCH, IDEMPOTENCY_KEY, CONTENT_ENCODING, CONTENT_RANGE)
)

#: The longest idempotency key, in bytes.
MAX_IDEMPOTENCY_KEY_BYTES = 255

_is_idempotency_key = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_IDEMPOTENCY_KEY_BYTES).fullmatch

Fields = dict[bytes, bytes]


def special(headers: Sequence[tuple[bytes, bytes]]) -> Fields | None:
    """Those of `headers` that matter here, several of a name as a list; None without any."""
    found: Fields | None = None
    for name, value in headers:
        if name in _SPECIAL:
            if found is None:
                found = {}
            found[name] = found[name] + b", " + value if name in found else value
    return found


def check_content(fields: Fields) -> None:
    """
    Refuse a body that is not, as it stands, what is meant.

    `UnsupportedMediaType` if it is encoded (RFC 9110, 8.4), `BadRequest` if
    it is a part (14.5).
    """
    if fields.get(CONTENT_ENCODING, b"identity").lower() != b"identity":
        raise UnsupportedMediaType("A body is taken as it is: there is no Content-Encoding.")
    if CONTENT_RANGE in fields:
        raise BadRequest("A body is taken as a whole: there is no Content-Range.")


def read_retry(request: IRequest, fields: Fields) -> bytes:
    """What tells the store that `request` may be a retry; empty without an idempotency key."""
    key = fields.get(IDEMPOTENCY_KEY)
    if key is None:
        return b""
    if not _is_idempotency_key(key):
        raise BadRequest(
            f"An Idempotency-Key is given once and has 1 to {MAX_IDEMPOTENCY_KEY_BYTES} "
            "visible characters."
        )
    target = request.path + b"?" + request.query if request.query else request.path
    for name in (IF_MATCH, IF_NONE_MATCH):
        if name in fields:
            # Another condition makes it another request; no target has a line break.
            target += b"\n" + name + b":" + fields[name]
    return retry_of(key, request.method, target, request.body)


def read_unconditional_retry(request: IRequest) -> bytes:
    """As `read_retry`, of a write that cannot have conditions; `BadRequest` if it has."""
    fields = special(request.headers)
    if fields is None:
        return b""
    check_content(fields)
    refuse_conditions(fields)
    return read_retry(request, fields)


def refuse_conditions(fields: Fields) -> None:
    """`BadRequest` if there are any, where they cannot be kept to."""
    if IF_MATCH in fields or IF_NONE_MATCH in fields:
        raise BadRequest(
            "If-Match and If-None-Match are for one key; a transaction has compares."
        )
