"""
The book of requests that a node has taken on and not answered yet.

It holds each request until it is answered, bounds their number and size, and
finds the ones whose time is up; all of them share one deadline order, so that
the node needs one timer for all.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from typing import Any

from raftd.errors import OutcomeUnknown, Overloaded, RaftdError
from raftd.interfaces import Done

#: Requests that a node holds at once.
MAX_REQUESTS = 65_536
#: Bytes of commands that a node holds at once.
MAX_REQUEST_BYTES = 64 << 20


class State(enum.Enum):
    """How far a request has come, which decides what its failure means."""

    #: Nothing has left this node: it certainly did not happen.
    QUEUED = enum.auto()
    #: Proposed here or sent to the leader: it may have happened.
    SENT = enum.auto()
    ANSWERED = enum.auto()


class Request:
    """
    One command, or one read (which has no data).

    `forwarded`: it came from another member, and is not forwarded again.
    """

    __slots__ = ("data", "deadline", "done", "forwarded", "state")

    def __init__(self, data: bytes, done: Done[Any], deadline: float, forwarded: bool) -> None:
        self.data = data
        self.done = done
        self.deadline = deadline
        self.forwarded = forwarded
        self.state = State.QUEUED


class Requests:
    """
    The open requests, oldest first.

    They are expired in the order of their opening: one with a shorter time
    than an older one's may be answered late.

    Invariant: `_size` is the sum of their data's lengths.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Request, None] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, data: bytes, done: Done[Any], deadline: float, forwarded: bool) -> Request:
        """Take on a request; `Overloaded` if there are too many."""
        size = len(data)
        if len(self._open) >= MAX_REQUESTS or self._size + size > MAX_REQUEST_BYTES:
            raise Overloaded("This node has too many requests waiting. Try again.")
        request = Request(data, done, deadline, forwarded)
        self._open[request] = None
        self._size += size
        return request

    def answer(self, request: Request, outcome: bytes | RaftdError | None) -> None:
        """Close a request with its outcome; nothing happens if it is closed already."""
        if request.state is State.ANSWERED:
            return
        request.state = State.ANSWERED
        del self._open[request]
        self._size -= len(request.data)
        request.data = b""
        request.done(outcome)

    def fail(self, request: Request, reason: RaftdError) -> None:
        """Answer with `reason` or, if it may have happened, with `OutcomeUnknown`."""
        if request.state is State.SENT:
            reason = OutcomeUnknown(
                "The write was on its way, and no answer came: "
                "it may have happened, or may happen yet."
            )
        self.answer(request, reason)

    def fail_all(self, reason: RaftdError) -> None:
        for request in list(self._open):
            self.fail(request, reason)

    def expire(self, now: float, reason: RaftdError) -> None:
        """Fail the requests whose time is up."""
        while self._open and (request := next(iter(self._open))).deadline <= now:
            self.fail(request, reason)

    @property
    def next_deadline(self) -> float:
        """When `expire` wants to be called; infinity if never."""
        return next(iter(self._open)).deadline if self._open else math.inf
