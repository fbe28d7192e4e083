"""
How a request finds the leader, and its answer the way back.

    queued -> proposed here, or sent to the leader -> answered

A queued request waits for a leader until its time is up, and then certainly
did not happen.  One that was proposed or sent is answered when its index is
applied; an entry of another term at its index means that it did not happen,
and it is queued again.  Reads are queued again whatever happens to them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from raftd.core.messages import Entry
from raftd.core.raft import Raft, Role
from raftd.errors import (
    DidNotHappen,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftdError,
    Stopped,
    Superseded,
    TooLarge,
)
from raftd.interfaces import Done, IPeer
from raftd.requests import Request, Requests, State

#: How long to wait before asking a leader again that could not be asked.
RETRY_DELAY_S = 0.02
#: An encoded command may be this long: a value of 1 MiB, its key, the rest.
MAX_COMMAND_BYTES = 3 << 19
#: What one Forward carries; a single command is always carried whole.
MAX_FORWARD_COMMANDS = 4096
MAX_FORWARD_BYTES = 1 << 20
#: Forwards, and requests for a read index, that may be unanswered at once.
MAX_FORWARDS_IN_FLIGHT = 16
MAX_READ_INDEX_IN_FLIGHT = 4


class Router:
    """
    The open requests of one node.

    Invariant: an open request is in exactly one place: a queue, `_proposed`, a
    Forward or a read on its way, or the reads that wait for an index.
    """

    def __init__(
        self,
        clock: IReactorTime,
        raft: Raft,
        *,
        wake: Callable[[], None],
        defect: Callable[[Failure], None],
        when_applied: Callable[[int, Callable[[], None]], None],
    ) -> None:
        """`wake` asks for a turn; `defect` takes the errors that nobody expected."""
        self._clock = clock
        self._raft = raft
        self._wake = wake
        self._defect = defect
        self._when_applied = when_applied
        self._requests = Requests()
        self._writes: deque[Request] = deque()
        #: Writes that came from other members: only ever proposed here.
        self._forwarded: deque[Request] = deque()
        self._reads: deque[Request] = deque()
        #: index -> (term, request) of what was proposed here.
        self._proposed: dict[int, tuple[int, Request]] = {}
        self._forwards_in_flight = 0
        self._read_index_in_flight = 0
        #: The leader is not asked before this time: it could not be asked last time.
        self.retry_at = 0.0
        #: This node's state has all that was acknowledged anywhere by this time.
        self.fresh_at = -math.inf
        self._last_context = 0
        #: What to do with a read index, or with None when it cannot be had here.
        self._contexts: dict[int, Callable[[int | None], None]] = {}

    # -- what comes in -------------------------------------------------------

    def write(
        self, data: bytes, done: Done[bytes], timeout_s: float, *, forwarded: bool = False
    ) -> None:
        if len(data) > MAX_COMMAND_BYTES:
            done(TooLarge(f"A command may have at most {MAX_COMMAND_BYTES} bytes."))
        else:
            queue = self._forwarded if forwarded else self._writes
            self._open(queue, data, done, timeout_s, forwarded)

    def read(self, done: Done[None], timeout_s: float) -> None:
        self._open(self._reads, b"", done, timeout_s, False)

    def _open(
        self,
        queue: deque[Request],
        data: bytes,
        done: Done[Any],
        timeout_s: float,
        forwarded: bool,
    ) -> None:
        deadline = self._clock.seconds() + timeout_s
        try:
            queue.append(self._requests.open(data, done, deadline, forwarded))
        except Overloaded as e:
            done(e)
        self._wake()

    # -- one turn ------------------------------------------------------------

    def hand_over(self, leader: IPeer | None, now: float) -> None:
        """Propose what is queued here, or send it to `leader`, or let it wait."""
        if self._raft.role is Role.LEADER:
            # While leadership is handed over, writes wait for who is next.
            if (self._writes or self._forwarded) and not self._raft.is_handing_over:
                self._propose(now)
            if self._reads:
                batch = self._take_reads()
                self.ask_read_index(partial(self._read_index_known, batch, now))
        else:
            if self._writes or self._forwarded:
                self._forward_all(leader, now)
            if self._reads:
                self._ask_leader(leader, now)

    def expire(self, now: float, why_not: Callable[[], RaftdError]) -> None:
        """Fail the requests whose time is up; `why_not` for those that did not happen."""
        if self._requests.next_deadline <= now:
            self._requests.expire(now, why_not())
            for queue in (self._writes, self._reads):
                while queue and queue[0].state is State.ANSWERED:
                    queue.popleft()

    @property
    def waits_for_leader(self) -> bool:
        """Whether something is queued that could not be handed over."""
        return bool(self._writes or self._reads)

    @property
    def next_deadline(self) -> float:
        """When `expire` wants to be called; infinity if never."""
        return self._requests.next_deadline

    def stop(self) -> None:
        """Answer everything: nothing more will happen here."""
        self._requests.fail_all(Stopped("This node is stopping."))
        contexts, self._contexts = self._contexts, {}
        for use in contexts.values():
            use(None)

    # -- writes --------------------------------------------------------------

    def _propose(self, now: float) -> None:
        batch = [r for r in (*self._writes, *self._forwarded) if r.state is State.QUEUED]
        self._writes.clear()
        self._forwarded.clear()
        if not batch:
            return
        try:
            term, first = self._raft.propose([r.data for r in batch], now)
        except Overloaded as e:
            for request in batch:
                self._requests.answer(request, e)
            return
        for index, request in enumerate(batch, first):
            request.state = State.SENT
            self._proposed[index] = (term, request)

    def applied(self, entry: Entry, result: bytes) -> None:
        """An entry has been applied: answer the request that stands at its index."""
        proposed = self._proposed.pop(entry.index, None)
        if proposed is None:
            return
        term, request = proposed
        if term == entry.term:
            self._requests.answer(request, result)
        else:
            self._queue_again(self._writes, request)

    def restored(self, index: int) -> None:
        """
        A snapshot has taken the place of everything up to `index`: what was
        proposed there may be part of it, or not.
        """
        for proposed in [i for i in self._proposed if i <= index]:
            _, request = self._proposed.pop(proposed)
            self._requests.fail(request, OutcomeUnknown("A snapshot took its place."))

    def _forward_all(self, leader: IPeer | None, now: float) -> None:
        while self._forwarded:
            request = self._forwarded.popleft()
            self._requests.answer(request, NotLeader("This node is not the leader."))
        while self._writes and leader and self._forwards_in_flight < MAX_FORWARDS_IN_FLIGHT:
            batch = self._next_forward()
            if batch:
                self._forward(leader, batch, now)

    def _next_forward(self) -> list[Request]:
        batch: list[Request] = []
        size = 0
        while self._writes and len(batch) < MAX_FORWARD_COMMANDS:
            request = self._writes[0]
            if batch and size + len(request.data) > MAX_FORWARD_BYTES:
                break
            self._writes.popleft()
            if request.state is State.QUEUED:
                batch.append(request)
                size += len(request.data)
        return batch

    def _forward(self, leader: IPeer, batch: list[Request], now: float) -> None:
        timeout_ms = max(1, int((batch[-1].deadline - now) * 1000))
        for request in batch:
            request.state = State.SENT
        self._forwards_in_flight += 1
        forwarded = leader.forward([r.data for r in batch], timeout_ms)
        forwarded.addCallbacks(
            partial(self._forward_answered, batch), partial(self._forward_failed, batch)
        )
        forwarded.addErrback(self._defect)

    def _forward_failed(self, batch: list[Request], failure: Failure) -> None:
        failure.trap(RaftdError)
        reason = cast(RaftdError, failure.value)
        self._forward_answered(batch, [reason] * len(batch))

    def _forward_answered(
        self, batch: list[Request], outcomes: Sequence[bytes | RaftdError]
    ) -> None:
        self._forwards_in_flight -= 1
        for request, outcome in zip(batch, outcomes, strict=True):
            self._forward_ended(request, outcome)
        self._wake()

    def _forward_ended(self, request: Request, outcome: bytes | RaftdError) -> None:
        if isinstance(outcome, NoLeader | Superseded | Stopped):
            self.retry_at = self._clock.seconds() + RETRY_DELAY_S
            self._queue_again(self._writes, request)
        elif isinstance(outcome, bytes | DidNotHappen):
            self._requests.answer(request, outcome)
        else:
            self._requests.fail(request, outcome)

    def _queue_again(self, queue: deque[Request], request: Request) -> None:
        """It certainly did not happen: it may wait for the next leader."""
        if request.state is State.ANSWERED:
            return
        request.state = State.QUEUED
        if request.forwarded:
            self._requests.answer(request, Superseded("Another entry took its place."))
        else:
            queue.append(request)

    # -- reads ---------------------------------------------------------------

    def ask_read_index(self, use: Callable[[int | None], None]) -> None:
        """Ask the core; `use` gets the index, or None if it cannot be had here."""
        self._last_context += 1
        context = self._last_context
        try:
            self._raft.read_index(context, self._clock.seconds())
        except DidNotHappen:
            use(None)
        else:
            self._contexts[context] = use

    def read_index_known(self, context: int, read_index: int | None) -> None:
        """The core's answer."""
        self._contexts.pop(context)(read_index)

    def _ask_leader(self, leader: IPeer | None, now: float) -> None:
        """One question for a read index serves all reads that wait (thesis 6.4)."""
        if leader is None or self._read_index_in_flight >= MAX_READ_INDEX_IN_FLIGHT:
            return
        batch = self._take_reads()
        self._read_index_in_flight += 1
        asked = leader.read_index(max(1, int((batch[-1].deadline - now) * 1000)))
        asked.addBoth(partial(self._leader_answered, batch, now))
        asked.addErrback(self._defect)

    def _take_reads(self) -> list[Request]:
        batch = list(self._reads)
        self._reads.clear()
        return batch

    def _leader_answered(
        self, batch: list[Request], asked_at: float, result: int | Failure
    ) -> None:
        self._read_index_in_flight -= 1
        if isinstance(result, Failure):
            result.trap(RaftdError)
            self.retry_at = self._clock.seconds() + RETRY_DELAY_S
            self._read_index_known(batch, asked_at, None)
        else:
            self._read_index_known(batch, asked_at, result)
        self._wake()

    def _read_index_known(
        self, batch: list[Request], asked_at: float, read_index: int | None
    ) -> None:
        """Answer the reads once the index is applied; without one, they wait again."""
        if read_index is None:
            for request in batch:
                self._queue_again(self._reads, request)
        else:
            self._when_applied(read_index, partial(self._answer_reads, batch, asked_at))

    def _answer_reads(self, batch: list[Request], asked_at: float) -> None:
        self.fresh_at = max(self.fresh_at, asked_at)
        for request in batch:
            self._requests.answer(request, None)
