"""
A client's side of exactly once: a session over a node of this process.

    session = await Session.open(node, reactor)
    result = await session.propose(operation)

A command whose answer was lost is sent again under the same number until an
answer comes or its time is up; however often it was sent, it is applied at
most once.  The cluster's state machine must be wrapped in
`raftd.sessions.Sessions`.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from raftd.core.messages import Command, encode_command
from raftd.errors import (
    BadRequest,
    DidNotHappen,
    OutcomeUnknown,
    ProtocolViolation,
    RaftdError,
    SessionClosed,
    SessionExpired,
    SessionWindowFull,
    StaleSequence,
    Stopped,
    TooLarge,
)
from raftd.interfaces import INode
from raftd.sessions import CLOSE_SESSION, OPEN_SESSION, WINDOW, decode_opened, decode_result

#: How long a command is tried, in seconds, if the caller does not say.
DEFAULT_TIMEOUT_S = 30.0
#: The first pause before a command is sent again.  It doubles each time, up to
#: the second figure, and is shortened by up to half so that clients spread out.
RETRY_DELAY_S = 0.05
MAX_RETRY_DELAY_S = 1.0
#: Commands of a session that wait for their turn because its window is full.
MAX_QUEUED = 4096

#: Sending again would not help.
_FINAL = (TooLarge, BadRequest, SessionExpired, StaleSequence)

#: What `SessionClosed` says.
SESSION_OVER = "The session is over; the command was not applied. Open another session."

T = TypeVar("T")


class _Attempts(Generic[T]):
    """
    One command, sent again and again until an answer comes or its time is up.

    What its failure means depends on all that was sent: it did not happen only
    if no attempt may have.
    """

    def __init__(
        self,
        node: INode,
        clock: IReactorTime,
        jitter: Callable[[], float],
        timeout_s: float,
        decode: Callable[[bytes], T | RaftdError],
        finished: Callable[[T | RaftdError], None],
    ) -> None:
        """`finished` is called once, with the result or why there is none."""
        self._node = node
        self._clock = clock
        self._jitter = jitter
        self._timeout_s = timeout_s
        self._decode = decode
        self._finished: Callable[[T | RaftdError], None] | None = finished
        self._encode: Callable[[], bytes] | None = None
        self._delay_s = RETRY_DELAY_S
        self._in_flight = False
        #: `propose` has not returned: what is answered now, the node itself has said.
        self._sending = False
        self._may_have_happened = False
        #: Why the last attempt came to nothing.
        self._reason: RaftdError = SessionWindowFull(
            "The command waited for others of its session until its time was up."
        )
        self._pause: IDelayedCall | None = None
        self._timer: IDelayedCall = clock.callLater(timeout_s, self._time_is_up)
        #: The number of the command in its session; 0 until it has one.
        self.sequence = 0

    def start(self, encode: Callable[[], bytes]) -> None:
        """Send for the first time; `encode` is asked anew for each attempt."""
        self._encode = encode
        self._send()

    def abandon(self) -> None:
        """Nobody wants the answer any more; `finished` is not called."""
        self._finished = None
        for call in (self._timer, self._pause):
            if call is not None and call.active():
                call.cancel()

    def fail(self, reason: RaftdError) -> None:
        """Give up, because of `reason`."""
        if isinstance(reason, SessionExpired) and not self._may_have_happened:
            self._finish(SessionClosed(SESSION_OVER))
        elif self._may_have_happened and isinstance(reason, DidNotHappen):
            self._finish(
                OutcomeUnknown(f"An answer was lost, and no other could be had: {reason}")
            )
        else:
            self._finish(reason)

    def _send(self) -> None:
        assert self._encode is not None
        self._in_flight = self._sending = True
        self._node.propose(self._encode(), self._answered)
        self._sending = False

    def _answered(self, outcome: bytes | RaftdError) -> None:
        if self._finished is None:
            return
        self._in_flight = False
        result: T | RaftdError
        if isinstance(outcome, RaftdError):
            result = outcome
        else:
            try:
                result = self._decode(outcome)
            except ProtocolViolation as e:
                # Without a table of sessions each attempt is applied: not another.
                self.fail(
                    OutcomeUnknown(
                        f"What came of the command cannot be told: {e}. "
                        "Is the state machine wrapped in Sessions?"
                    )
                )
                return
        if not isinstance(result, RaftdError):
            self._finish(result)
        elif isinstance(result, _FINAL) or (isinstance(result, Stopped) and self._sending):
            # A leader elsewhere that is stopping has a successor; this node has none.
            self.fail(result)
        else:
            self._try_again(result)

    def _try_again(self, reason: RaftdError) -> None:
        self._reason = reason
        if not isinstance(reason, DidNotHappen):
            self._may_have_happened = True
        delay_s = self._delay_s * (1.0 - self._jitter() / 2)
        self._delay_s = min(self._delay_s * 2, MAX_RETRY_DELAY_S)
        self._pause = self._clock.callLater(delay_s, self._send)

    def _time_is_up(self) -> None:
        if self._in_flight:
            self.fail(
                OutcomeUnknown(
                    f"No answer within {self._timeout_s} seconds: "
                    "the command may have happened, or may happen yet."
                )
            )
        else:
            self.fail(self._reason)

    def _finish(self, outcome: T | RaftdError) -> None:
        finished = self._finished
        if finished is not None:
            self.abandon()
            finished(outcome)


class Session:
    """
    One session of the cluster, and the commands under way in it.

    At most `WINDOW` commands are under way, and `MAX_QUEUED` wait.  A session
    that is not used for `raftd.sessions.SESSION_TTL_MS` expires.  It belongs to
    one program: nobody else may send commands under its id.

    Invariants: `_open` has numbers from `_first_unacknowledged` up to but not
    including `_next_sequence`, the first of which is there if any is; there
    are at most `WINDOW` numbers between the two.
    """

    def __init__(
        self,
        node: INode,
        clock: IReactorTime,
        session_id: int,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """For a session that was just opened; `open` does both."""
        self.id = session_id
        self._node = node
        self._clock = clock
        self._jitter = jitter
        self._next_sequence = 1
        self._first_unacknowledged = 1
        self._open: dict[int, _Attempts[bytes]] = {}
        #: Commands that have no number yet, and what they ask.
        self._queue: OrderedDict[_Attempts[bytes], bytes] = OrderedDict()
        self._starting = False
        #: No more commands are taken.
        self._over = False
        #: The cluster has no such session any more, as far as is known.
        self._forgotten = False
        #: Who waits for the session to be closed, and what tells the cluster.
        self._closing: list[Deferred[None]] = []
        self._close_attempts: _Attempts[bytes] | None = None

    @classmethod
    def open(
        cls,
        node: INode,
        clock: IReactorTime,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        jitter: Callable[[], float] = random.random,
    ) -> Deferred[Session]:
        """
        Open a session through `node`; fires with it.

        Tried until `timeout_s` is over; then it fails with what stood in the
        way, such as `SessionTableFull` or `NoLeader`.  A session of which only
        the answer was lost stays behind until it expires.
        """

        def finished(outcome: int | RaftdError) -> None:
            if isinstance(outcome, RaftdError):
                opened.errback(outcome)
            else:
                opened.callback(cls(node, clock, outcome, jitter))

        attempts = _Attempts(node, clock, jitter, timeout_s, decode_opened, finished)
        opened: Deferred[Session] = Deferred(lambda _: attempts.abandon())
        data = encode_command(Command(b"", OPEN_SESSION))
        attempts.start(lambda: data)
        return opened

    def propose(
        self, operation: bytes, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Deferred[bytes]:
        """
        Apply `operation` once; fires with the state machine's result.

        Within `timeout_s` it fails otherwise: with a `DidNotHappen`, such as
        `SessionClosed` or `NoLeader`; or with an `OutcomeUnknown`, such as
        `SessionExpired`, if an attempt may have been applied and no answer
        could be had.  Cancelling gives it up, with its outcome unknown.
        """
        if self._over:
            return fail(SessionClosed(SESSION_OVER))
        if len(self._queue) >= MAX_QUEUED:
            return fail(SessionWindowFull("Too many commands of this session are waiting."))

        def cancelled(_: Deferred[bytes]) -> None:
            attempts.abandon()
            self._ended(attempts)

        def finished(outcome: bytes | RaftdError) -> None:
            if isinstance(outcome, (SessionExpired, SessionClosed)):
                self._forget()
            self._ended(attempts)
            if isinstance(outcome, RaftdError):
                result.errback(outcome)
            else:
                result.callback(outcome)

        result: Deferred[bytes] = Deferred(cancelled)
        attempts = _Attempts(
            self._node, self._clock, self._jitter, timeout_s, decode_result, finished
        )
        self._queue[attempts] = operation
        self._start_queued()
        return result

    def close(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Deferred[None]:
        """
        Take no more commands and, when those under way have ended, close the session.

        Fires when the cluster has forgotten the session, or could not be told
        within `timeout_s`, for then the session expires by itself.
        """
        closed: Deferred[None] = Deferred()
        self._over = True
        self._closing.append(closed)
        self._close_if_idle(timeout_s)
        return closed

    # -- under way -------------------------------------------------------------

    def _start_queued(self) -> None:
        if self._starting:
            return  # further up the stack, somebody is at it
        self._starting = True
        while (
            self._queue
            and not self._forgotten
            and self._next_sequence < self._first_unacknowledged + WINDOW
        ):
            attempts, operation = self._queue.popitem(last=False)
            attempts.sequence = self._next_sequence
            self._next_sequence += 1
            self._open[attempts.sequence] = attempts
            attempts.start(partial(self._encode, attempts.sequence, operation))
        self._starting = False

    def _encode(self, sequence: int, operation: bytes) -> bytes:
        return encode_command(Command(operation, self.id, sequence, self._first_unacknowledged))

    def _ended(self, attempts: _Attempts[bytes]) -> None:
        """A command has its answer, or will never get one: it is acknowledged with the next."""
        self._queue.pop(attempts, None)
        self._open.pop(attempts.sequence, None)
        while (
            self._first_unacknowledged < self._next_sequence
            and self._first_unacknowledged not in self._open
        ):
            self._first_unacknowledged += 1
        self._start_queued()
        self._close_if_idle()

    def _forget(self) -> None:
        """The cluster has: nothing that is still queued can be applied."""
        if self._forgotten:
            return
        self._over = self._forgotten = True
        for attempts in list(self._queue):
            attempts.fail(SessionClosed(SESSION_OVER))

    def _close_if_idle(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        if not self._closing or self._open or self._queue:
            return
        if self._forgotten:
            closing, self._closing = self._closing, []
            for closed in closing:
                closed.callback(None)
        elif self._close_attempts is None:
            self._close_attempts = _Attempts(
                self._node, self._clock, self._jitter, timeout_s, decode_result, self._told
            )
            data = encode_command(Command(b"", CLOSE_SESSION, self.id))
            self._close_attempts.start(lambda: data)

    def _told(self, outcome: bytes | RaftdError) -> None:
        self._forget()
        self._close_if_idle()
