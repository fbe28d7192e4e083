"""
Which keys a request means: those with a prefix, or from a start to an end.

A `Span` is what operations take, (`key`, `range_end`).  Two ends have a
meaning of their own there: the empty one, "this key alone", and a zero byte,
"no end".  A client that gives such bytes as an end means neither, and must
not, in a DELETE, get either.
"""

from __future__ import annotations

from typing import NamedTuple

from raftd.errors import BadRequest
from raftd.kv.operations import EVERY_KEY
from raftd.web.parameters import Parameters

#: What names a range in a query.
PARAMETERS = ("prefix", "start", "end")

#: The first key that there can be.
FIRST_KEY = b"\0"


class Span(NamedTuple):
    """From `key` up to, but not including, `range_end`; see `DeleteRange`."""

    key: bytes
    range_end: bytes


#: No key at all.
NOTHING = Span(b"\1", b"\1")


def named(parameters: Parameters, what: str) -> Span | None:
    """The range that a query names, with `PARAMETERS`; None if it names none."""
    prefix, start, end = map(parameters.octets, PARAMETERS)
    return span(prefix, start, end, what)


def span(
    prefix: bytes | None, start: bytes | None, end: bytes | None, what: str
) -> Span | None:
    """
    What is meant by these, of which each may be missing; None if all are.

    `BadRequest` if they do not go together, about `what`, the beginning of a
    sentence.
    """
    if prefix is not None:
        if start is not None or end is not None:
            raise BadRequest(f"{what} has either a prefix, or a start and an end.")
        return with_prefix(prefix)
    if start is None and end is None:
        return None
    if end is None:
        return Span(start or FIRST_KEY, EVERY_KEY)
    return up_to(start or FIRST_KEY, end)


def up_to(key: bytes, end: bytes) -> Span:
    """From `key` up to, but not including, `end`; `BadRequest` if that is empty."""
    if not end:
        raise BadRequest("The end is empty: leave it out if there is to be none.")
    return Span(key, end) if key < end else NOTHING


def with_prefix(prefix: bytes) -> Span:
    """All keys that begin with `prefix`."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return Span(prefix or FIRST_KEY, EVERY_KEY)
    return Span(prefix, stem[:-1] + bytes((stem[-1] + 1,)))


def behind(whole: Span, after: bytes, descending: bool) -> Span:
    """What of `whole` comes behind `after` in the order that is asked for."""
    key, end = whole
    if not descending:
        key = max(key, after + b"\0")
    elif end == EVERY_KEY or after < end:
        end = after
    if end == EVERY_KEY and not descending:
        return Span(key, end)
    return Span(key, end) if key < end else NOTHING
