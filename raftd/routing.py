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

from raftd.core.messages import Entry, decode_command
from raftd.core.raft import Raft, Role
from raftd.errors import (
    BadRequest,
    DidNotHappen,
    NoLeader,
    NoSpace,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProtocolViolation,
    RaftdError,
    Stopped,
    Superseded,
    TooLarge,
)
from raftd.interfaces import MAX_QUESTION_BYTES, Done, IPeer
from raftd.questions import Questions
from raftd.requests import MAX_REQUESTS, Request, Requests, State

#: How long to wait before asking a leader again that could not be asked.
RETRY_DELAY_S = 0.02
#: An encoded command may be this long: a value of 1 MiB, its key, the rest.
MAX_COMMAND_BYTES = 3 << 19
#: What one Forward carries, and what is proposed at once, so that the leader's
#: own bound is looked at in between; a single command is always taken whole.
MAX_BATCH_COMMANDS = 4096
MAX_BATCH_BYTES = 1 << 20
#: Forwards, and requests for a read index, that a leader may owe an answer at once.
MAX_FORWARDS_IN_FLIGHT = 16
MAX_READ_INDEX_IN_FLIGHT = 4
#: Reads that wait for an index, or for one to be applied.  They are kept until
#: then, answered or not, and a disk that hangs may take for ever.
MAX_READS_UNDER_WAY = MAX_REQUESTS


class Router:
    """
    The open requests of one node.

    Invariant: an open request is in exactly one place: a queue, `_proposed`, a
    Forward or a read on its way, the reads that wait for an index, or the
    questions.
    """

    def __init__(
        self,
        clock: IReactorTime,
        raft: Raft,
        *,
        wake: Callable[[], None],
        defect: Callable[[Failure], None],
        when_applied: Callable[[int, Callable[[], None]], None],
        answer: Callable[[bytes, Done[bytes]], None],
    ) -> None:
        """
        `wake` asks for a turn; `defect` takes the errors that nobody expected;
        `answer` is what this node's program says to a question.
        """
        self._clock = clock
        self._raft = raft
        self._wake = wake
        self._defect = defect
        self._when_applied = when_applied
        self._requests = Requests()
        self._questions = Questions(
            clock, self._requests, answer=answer, wake=wake, defect=defect
        )
        self._writes: deque[Request] = deque()
        #: Writes that came from other members: only ever proposed here.
        self._forwarded: deque[Request] = deque()
        self._reads: deque[Request] = deque()
        #: index -> request, of what was proposed here in `_proposed_term`.
        self._proposed: dict[int, Request] = {}
        self._proposed_term = 0
        #: index -> (term, request), of what was proposed here in earlier terms.
        self._former: dict[int, list[tuple[int, Request]]] = {}
        #: What the present leader owes an answer: Forwards, and reads by question.
        self._forwards: set[int] = set()
        self._asked: dict[int, list[Request]] = {}
        self._last_question = 0
        self._reads_under_way = 0
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
        if refusal := _unusable(data):
            done(refusal)
        else:
            queue = self._forwarded if forwarded else self._writes
            self._open(queue.append, data, done, timeout_s, forwarded)

    def read(self, done: Done[None], timeout_s: float) -> None:
        self._open(self._reads.append, b"", done, timeout_s, False)

    def ask(
        self, question: bytes, done: Done[bytes], timeout_s: float, *, forwarded: bool = False
    ) -> None:
        if len(question) > MAX_QUESTION_BYTES:
            done(TooLarge(f"A question may have at most {MAX_QUESTION_BYTES} bytes."))
        else:
            self._open(self._questions.add, question, done, timeout_s, forwarded)

    def _open(
        self,
        add: Callable[[Request], None],
        data: bytes,
        done: Done[Any],
        timeout_s: float,
        forwarded: bool,
    ) -> None:
        deadline = self._clock.seconds() + timeout_s
        try:
            add(self._requests.open(data, done, deadline, forwarded))
        except Overloaded as e:
            done(e)
        self._wake()

    # -- one turn ------------------------------------------------------------

    def leader_changed(self) -> None:
        """
        There is another leader, or none.

        Nobody waits for the former one any more: its host may be gone, and
        then it takes a timeout to know.  Reads are asked again; what it may
        have proposed is unknown until it answers.
        """
        self.retry_at = 0.0
        self._forwards.clear()
        asked, self._asked = self._asked, {}
        for batch in asked.values():
            self._read_again(batch)
        self._questions.leader_changed()

    def hand_over(self, leader: IPeer | None, now: float) -> None:
        """Propose what is queued here, or send it to `leader`, or let it wait."""
        may_read = self._reads and self._reads_under_way < MAX_READS_UNDER_WAY
        is_leader = self._raft.role is Role.LEADER
        if self._questions.waits:
            self._questions.hand_over(is_leader, leader, now)
        if is_leader:
            # While leadership is handed over, writes wait for who is next.
            if (self._writes or self._forwarded) and not self._raft.is_handing_over:
                self._propose(now)
            if may_read:
                batch = self._take_reads()
                self.ask_read_index(partial(self._read_index_known, batch, now))
        else:
            if self._writes or self._forwarded:
                self._forward_all(leader, now)
            if may_read:
                self._ask_leader(leader, now)

    def expire(self, now: float, why_not: Callable[[], RaftdError]) -> None:
        """Fail the requests whose time is up; `why_not` for those that did not happen."""
        if self._requests.next_deadline <= now:
            self._requests.expire(now, why_not())
            for queue in (self._writes, self._reads):
                while queue and queue[0].state is State.ANSWERED:
                    queue.popleft()
            self._questions.expire()
            if not len(self._requests):
                # Of indexes that the log may not reach again for long.
                self._proposed.clear()
                self._former.clear()

    @property
    def waits_for_leader(self) -> bool:
        """Whether something is queued that could not be handed over."""
        return bool(self._writes or self._reads or self._questions.waits)

    @property
    def next_deadline(self) -> float:
        """When a turn is wanted, for `expire` or a question; infinity if never."""
        return min(self._requests.next_deadline, self._questions.next_due)

    def stop(self) -> None:
        """Answer everything: nothing more will happen here."""
        self._requests.fail_all(Stopped("This node is stopping."))
        contexts, self._contexts = self._contexts, {}
        for use in contexts.values():
            use(None)

    # -- writes --------------------------------------------------------------

    def _propose(self, now: float) -> None:
        queued = deque((*self._writes, *self._forwarded))
        self._writes.clear()
        self._forwarded.clear()
        refused: list[tuple[Request, RaftdError]] = []
        while batch := _take_batch(queued, now):
            try:
                self._propose_batch(batch, now)
            except (NoSpace, Overloaded) as e:
                refused += [(request, e) for request in batch]
        # Not before: whoever is answered may ask for something else at once, such
        # as that another member leads, and then nothing could be proposed any more.
        for request, reason in refused:
            self._requests.answer(request, reason)

    def _propose_batch(self, batch: list[Request], now: float) -> None:
        term, first = self._raft.propose([r.data for r in batch], now)
        if term != self._proposed_term:
            self._begin_term(term)
        sent, proposed = State.SENT, self._proposed
        for index, request in enumerate(batch, first):
            request.state = sent
            proposed[index] = request

    def _begin_term(self, term: int) -> None:
        """This node leads anew, and may propose at indexes at which it did before."""
        for index, request in self._proposed.items():
            if request.state is not State.ANSWERED:
                self._former.setdefault(index, []).append((self._proposed_term, request))
        self._proposed_term, self._proposed = term, {}

    def applied(self, entry: Entry, result: bytes) -> None:
        """An entry has been applied: answer the request that stands at its index."""
        request = self._proposed.pop(entry.index, None)
        if request is not None:
            self._settle(self._proposed_term, request, entry, result)
        if self._former:
            for term, former in self._former.pop(entry.index, ()):
                self._settle(term, former, entry, result)

    def _settle(self, term: int, request: Request, entry: Entry, result: bytes) -> None:
        """`request` was proposed in `term` at the index at which `entry` is applied."""
        if term == entry.term:
            self._requests.answer(request, result)
        else:
            self._queue_again(self._writes, request)
            self._wake()

    def restored(self, index: int) -> None:
        """
        A snapshot has taken the place of everything up to `index`: what was
        proposed there may be part of it, or not.
        """
        replaced = [self._proposed.pop(i) for i in list(self._proposed) if i <= index]
        for former in [i for i in self._former if i <= index]:
            replaced += [request for _, request in self._former.pop(former)]
        for request in replaced:
            self._requests.fail(request, OutcomeUnknown("A snapshot took its place."))

    def _forward_all(self, leader: IPeer | None, now: float) -> None:
        while self._forwarded:
            request = self._forwarded.popleft()
            self._requests.answer(request, NotLeader("This node is not the leader."))
        # One that fails at once, or is answered so, comes back to the queue.
        for _ in range(MAX_FORWARDS_IN_FLIGHT - len(self._forwards)):
            if leader is None or self.retry_at > now:
                return
            batch = _take_batch(self._writes, now)
            if not batch:
                return
            self._forward(leader, batch, now)

    def _forward(self, leader: IPeer, batch: list[Request], now: float) -> None:
        for request in batch:
            request.state = State.SENT
        self._last_question = question = self._last_question + 1
        self._forwards.add(question)
        forwarded = leader.forward([r.data for r in batch], _time_left_ms(batch, now))
        forwarded.addCallbacks(
            partial(self._forward_answered, question, batch),
            partial(self._forward_failed, question, batch),
        )
        forwarded.addErrback(self._defect)

    def _forward_failed(self, question: int, batch: list[Request], failure: Failure) -> None:
        failure.trap(RaftdError)
        reason = cast(RaftdError, failure.value)
        self._forward_answered(question, batch, [reason] * len(batch))

    def _forward_answered(
        self, question: int, batch: list[Request], outcomes: Sequence[bytes | RaftdError]
    ) -> None:
        self._forwards.discard(question)
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
        """The core's answer; None if this node no longer leads."""
        use = self._contexts.pop(context, None)
        if use is not None:
            use(read_index)
            if read_index is None:
                self._wake()

    def _ask_leader(self, leader: IPeer | None, now: float) -> None:
        """One question for a read index serves all reads that wait (thesis 6.4)."""
        if leader is None or len(self._asked) >= MAX_READ_INDEX_IN_FLIGHT:
            return
        batch = self._take_reads()
        self._last_question = question = self._last_question + 1
        self._asked[question] = batch
        asked = leader.read_index(_time_left_ms(batch, now))
        asked.addBoth(partial(self._leader_answered, question, now))
        asked.addErrback(self._defect)

    def _take_reads(self) -> list[Request]:
        batch = list(self._reads)
        self._reads.clear()
        self._reads_under_way += len(batch)
        return batch

    def _leader_answered(self, question: int, asked_at: float, result: int | Failure) -> None:
        batch = self._asked.pop(question, None)
        if isinstance(result, Failure):
            result.trap(RaftdError)
        if batch is None:
            return  # asked of another leader since
        if isinstance(result, Failure):
            self.retry_at = self._clock.seconds() + RETRY_DELAY_S
            self._read_again(batch)
        else:
            self._read_index_known(batch, asked_at, result)
        self._wake()

    def _read_index_known(
        self, batch: list[Request], asked_at: float, read_index: int | None
    ) -> None:
        """Answer the reads once the index is applied; without one, they wait again."""
        if read_index is None:
            self._read_again(batch)
        else:
            self._when_applied(read_index, partial(self._answer_reads, batch, asked_at))

    def _read_again(self, batch: list[Request]) -> None:
        self._reads_under_way -= len(batch)
        for request in batch:
            self._queue_again(self._reads, request)

    def _answer_reads(self, batch: list[Request], asked_at: float) -> None:
        self.fresh_at = max(self.fresh_at, asked_at)
        self._reads_under_way -= len(batch)
        for request in batch:
            self._requests.answer(request, None)
        if self._reads:
            self._wake()  # they may have waited for these


def _unusable(data: bytes) -> RaftdError | None:
    """
    Why `data` must not get into the log; None if it may.

    What is no command would stop every node that applies it, and stop it
    again after every restart.
    """
    if len(data) > MAX_COMMAND_BYTES:
        return TooLarge(f"A command may have at most {MAX_COMMAND_BYTES} bytes.")
    try:
        decode_command(data)
    except ProtocolViolation as e:
        return BadRequest(f"The command cannot be read: {e}.")
    return None


def _time_left_ms(batch: list[Request], now: float) -> int:
    """That of the one which has most: one that was queued again may have hardly any."""
    return max(1, int((max([r.deadline for r in batch]) - now) * 1000))


def _take_batch(queue: deque[Request], now: float) -> list[Request]:
    """
    From the front of `queue`: requests that are still open, within the bounds of a batch.

    One whose time is up is not sent any more, so that it certainly did not happen.
    """
    batch: list[Request] = []
    size = 0
    while queue and len(batch) < MAX_BATCH_COMMANDS:
        request = queue[0]
        data_bytes = len(request.data)
        if batch and size + data_bytes > MAX_BATCH_BYTES:
            break
        queue.popleft()
        if request.state is State.QUEUED and request.deadline > now:
            batch.append(request)
            size += data_bytes
    return batch
