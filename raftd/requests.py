"""
The book of requests that a node has taken on and not answered yet.

It holds each request until it is answered, bounds their number and size, and
finds the ones whose time is up, with one timer of the node for all.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Any

import msgspec

from raftd.errors import OutcomeUnknown, Overloaded, RaftdError
from raftd.interfaces import Done

#: Requests that a node holds at once.
MAX_REQUESTS = 65_536
#: Bytes of commands that a node holds at once.
MAX_REQUEST_BYTES = 64 << 20
#: Requests that were answered before their time was up, and whose deadlines are
#: still in order, may be this many more than those that are open.
MAX_STALE_DEADLINES = 4096


class State(enum.Enum):
    """How far a request has come, which decides what its failure means."""

    #: Nothing has left this node: it certainly did not happen.
    QUEUED = enum.auto()
    #: Proposed here or sent to the leader: it may have happened.
    SENT = enum.auto()
    ANSWERED = enum.auto()


class Request(msgspec.Struct, eq=False):
    """
    One command, or one read (which has no data).

    `forwarded`: it came from another member, and is not forwarded again.
    """

    data: bytes
    done: Done[Any]
    deadline: float
    forwarded: bool
    state: State = State.QUEUED


class Requests:
    """
    The open requests.

    Those of this node's own clients all have the same time, so that they expire
    in the order of their opening.  Those that were forwarded come with what is
    left of theirs, and the member that waits for them relies on an answer by
    then.

    Invariants: `_size` is the sum of their data's lengths.  An open request is
    in `_forwarded` if it was forwarded, with its deadline in the heap
    `_deadlines`, and in `_own` if not; whatever else is in that heap was answered.
    """

    def __init__(self) -> None:
        self._own: OrderedDict[Request, None] = OrderedDict()
        self._forwarded: dict[Request, None] = {}
        #: (deadline, serial, request).
        self._deadlines: list[tuple[float, int, Request]] = []
        self._serial = 0
        self._size = 0

    def __len__(self) -> int:
        return len(self._own) + len(self._forwarded)

    def open(self, data: bytes, done: Done[Any], deadline: float, forwarded: bool) -> Request:
        """Take on a request; `Overloaded` if there are too many."""
        size = len(data)
        count = len(self._own) + len(self._forwarded)
        if count >= MAX_REQUESTS or self._size + size > MAX_REQUEST_BYTES:
            raise Overloaded("This node has too many requests waiting. Try again.")
        request = Request(data, done, deadline, forwarded)
        self._size += size
        if forwarded:
            self._forwarded[request] = None
            self._keep_deadline(request)
        else:
            self._own[request] = None
        return request

    def _keep_deadline(self, request: Request) -> None:
        if len(self._deadlines) > 2 * len(self._forwarded) + MAX_STALE_DEADLINES:
            self._deadlines = [kept for kept in self._deadlines if kept[2] in self._forwarded]
            heapify(self._deadlines)
        self._serial += 1
        heappush(self._deadlines, (request.deadline, self._serial, request))

    def answer(self, request: Request, outcome: bytes | RaftdError | None) -> None:
        """Close a request with its outcome; nothing happens if it is closed already."""
        if request.state is State.ANSWERED:
            return
        request.state = State.ANSWERED
        del (self._forwarded if request.forwarded else self._own)[request]
        self._size -= len(request.data)
        request.data = b""
        done = request.done
        # It may hold what others were answered, and be waited for no longer.
        del request.done
        done(outcome)

    def fail(self, request: Request, reason: RaftdError) -> None:
        """Answer with `reason` or, if it may have happened, with `OutcomeUnknown`."""
        if request.state is State.SENT:
            reason = OutcomeUnknown(
                "The write was on its way, and no answer came: "
                "it may have happened, or may happen yet."
            )
        self.answer(request, reason)

    def fail_all(self, reason: RaftdError) -> None:
        for request in [*self._own, *self._forwarded]:
            self.fail(request, reason)

    def expire(self, now: float, reason: RaftdError) -> None:
        """Fail the requests whose time is up."""
        while self._own and (request := next(iter(self._own))).deadline <= now:
            self.fail(request, reason)
        while self._next_forwarded() <= now:
            self.fail(self._deadlines[0][2], reason)

    @property
    def next_deadline(self) -> float:
        """When `expire` wants to be called; infinity if never."""
        forwarded = self._next_forwarded() if self._deadlines else math.inf
        return min(next(iter(self._own)).deadline, forwarded) if self._own else forwarded

    def _next_forwarded(self) -> float:
        deadlines = self._deadlines
        while deadlines and deadlines[0][2].state is State.ANSWERED:
            heappop(deadlines)
        return deadlines[0][0] if deadlines else math.inf
