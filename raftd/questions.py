"""
Questions to the leader's own program, from whichever node they are asked.

    queued -> answered here, or sent to the leader -> answered

A question changes nothing that may not be changed twice, so one whose answer
is missing is asked again, of whoever leads by then, until its time is up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from raftd.errors import DidNotHappen, NoLeader, NotLeader, RaftdError, Stopped, Superseded
from raftd.interfaces import MAX_QUESTION_BYTES, Done, IPeer
from raftd.requests import Request, Requests, State

#: How long to wait before asking again when there was no answer to be had.
RETRY_DELAY_S = 0.02
#: Questions that may be under way at once; the others wait, within the bounds
#: of all requests.
MAX_QUESTIONS_UNDER_WAY = 1024


class Questions:
    """
    Invariant: an open question is either in `_queue` or in `_under_way`, where
    it stands under the number of its latest attempt; answers to earlier ones
    are dropped.
    """

    def __init__(
        self,
        clock: IReactorTime,
        requests: Requests,
        *,
        answer: Callable[[bytes, Done[bytes]], None],
        wake: Callable[[], None],
        defect: Callable[[Failure], None],
    ) -> None:
        """`answer` is what this node has to say itself, when it leads."""
        self._clock = clock
        self._requests = requests
        self._answer = answer
        self._wake = wake
        self._defect = defect
        self._queue: deque[Request] = deque()
        self._under_way: dict[int, Request] = {}
        self._last_attempt = 0
        #: Nobody is asked before this time; 0 for none.
        self._retry_at = 0.0

    def add(self, request: Request) -> None:
        """A question that was just opened; its data is what is asked."""
        self._queue.append(request)

    @property
    def waits(self) -> bool:
        """Whether one is queued, for want of a leader for instance."""
        return bool(self._queue)

    @property
    def next_due(self) -> float:
        """When to look at the queue again; infinity if something else will say so."""
        return self._retry_at if self._queue and self._retry_at else math.inf

    def leader_changed(self) -> None:
        """Nobody waits for the former leader any more: its host may be gone."""
        self._retry_at = 0.0
        under_way, self._under_way = self._under_way, {}
        for request in under_way.values():
            self._ask_again(request, NotLeader("Another one leads."))

    def hand_over(self, is_leader: bool, leader: IPeer | None, now: float) -> None:
        """Answer what is queued, send it to `leader`, or let it wait."""
        if not is_leader:
            self._refuse_forwarded()
        if now < self._retry_at:
            return
        self._retry_at = 0.0
        while (
            self._queue
            and not self._retry_at  # set by what was asked just now
            and (is_leader or leader is not None)
            and len(self._under_way) < MAX_QUESTIONS_UNDER_WAY
        ):
            request = self._queue.popleft()
            if request.state is not State.QUEUED or request.deadline <= now:
                continue
            self._last_attempt = attempt = self._last_attempt + 1
            self._under_way[attempt] = request
            if is_leader:
                self._answer(request.data, partial(self._answered_here, attempt))
            elif leader is not None:
                timeout_ms = max(1, int((request.deadline - now) * 1000))
                asked = leader.ask(request.data, timeout_ms)
                asked.addBoth(partial(self._answered_there, attempt))
                asked.addErrback(self._defect)

    def expire(self) -> None:
        """Forget the questions that were answered because their time was up."""
        while self._queue and self._queue[0].state is State.ANSWERED:
            self._queue.popleft()
        expired = [n for n, r in self._under_way.items() if r.state is State.ANSWERED]
        for attempt in expired:
            del self._under_way[attempt]

    def _refuse_forwarded(self) -> None:
        """Whoever has sent a question here asks the next leader itself."""
        if any(request.forwarded for request in self._queue):
            queue, self._queue = self._queue, deque()
            for request in queue:
                self._ask_again(request, NotLeader("This node is not the leader."))

    def _answered_there(self, attempt: int, result: bytes | Failure) -> None:
        if isinstance(result, Failure):
            result.trap(RaftdError)
            assert isinstance(result.value, RaftdError)
            self._ended(attempt, result.value)
        else:
            self._ended(attempt, result)

    def _answered_here(self, attempt: int, outcome: bytes | RaftdError) -> None:
        if isinstance(outcome, bytes) and len(outcome) > MAX_QUESTION_BYTES:
            raise ValueError(f"an answer of {len(outcome)} bytes is too long")
        self._ended(attempt, outcome)

    def _ended(self, attempt: int, outcome: bytes | RaftdError) -> None:
        request = self._under_way.pop(attempt, None)
        if request is None:
            return  # asked of another leader since, or out of time
        is_final = isinstance(outcome, bytes | DidNotHappen)
        if is_final and not isinstance(outcome, NoLeader | Superseded | Stopped):
            self._requests.answer(request, outcome)
        else:
            assert isinstance(outcome, RaftdError)
            self._retry_at = self._clock.seconds() + RETRY_DELAY_S
            self._ask_again(request, outcome)
        if self._queue:
            self._wake()

    def _ask_again(self, request: Request, reason: RaftdError) -> None:
        if request.forwarded:
            self._requests.answer(request, reason)
        elif request.state is not State.ANSWERED:
            self._queue.append(request)
