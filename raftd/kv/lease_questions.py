"""
What a node asks the leader about leases, and how it asks (`INode.ask_leader`).

Whether a lease was kept alive is not in the log: only the leader's
`LeaseKeeper` knows.  Questions and answers are MessagePack arrays, a question
with the number of its kind first; a number is never given to another kind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from raftd.errors import BadRequest, LeaseNotFound, Overloaded, RaftdError, Stopped
from raftd.interfaces import Done, INode
from raftd.kv.refusals import REFUSALS
from raftd.kv.results import LeaseResult

T = TypeVar("T")

#: Leases that one question is about.
MAX_LEASES_ASKED = 4096
#: Keep-alives of this node that wait to be sent: those of one turn.
MAX_KEEP_ALIVES_WAITING = 65_536


class KeepAlive(msgspec.Struct, tag=1, array_like=True, frozen=True, gc=False):
    """
    Begin the TTLs of these leases anew.  The answer is a TTL in milliseconds for
    each; 0: there is no such lease, or not any more.
    """

    ids: list[int]


class TimeLeft(msgspec.Struct, tag=2, array_like=True, frozen=True, gc=False):
    """How long the lease has yet.  The answer is a `Left`, or `LeaseNotFound`."""

    id: int


class Left(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A lease's TTL, and how much of it is left."""

    ttl_ms: int
    left_ms: int


_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(KeepAlive | TimeLeft).decode
_decode_ttls = msgspec.msgpack.Decoder(list[int]).decode
_decode_left = msgspec.msgpack.Decoder(Left).decode


def decode_question(data: bytes) -> KeepAlive | TimeLeft | BadRequest:
    """What was asked; an error for what this version does not know."""
    try:
        question: KeepAlive | TimeLeft = _decode_question(data)
    except (msgspec.MsgspecError, RecursionError):
        return BadRequest("The leader does not know the question.")
    if isinstance(question, KeepAlive) and len(question.ids) > MAX_LEASES_ASKED:
        return BadRequest(f"A question is about at most {MAX_LEASES_ASKED} leases.")
    return question


def encode_answer(answer: list[int] | Left) -> bytes:
    """What the leader says to a question."""
    return _encode(answer)


def lease_not_found() -> LeaseNotFound:
    return LeaseNotFound(REFUSALS[LeaseNotFound.code].message)


class LeaseAsker:
    """Asks the leader, for this node's clients.  Keep-alives of one turn share a question."""

    def __init__(self, clock: IReactorTime, node: INode) -> None:
        self._clock = clock
        self._node = node
        self._waiting: list[tuple[int, Done[LeaseResult]]] = []
        self._flush_call: IDelayedCall | None = None
        self._stopped = False

    def stop(self) -> None:
        """Nothing more is asked."""
        self._stopped = True
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush_call = None
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done(Stopped("This node is stopping."))

    def keep_alive(self, lease_id: int, done: Done[LeaseResult]) -> None:
        """See `IDatabase.keep_alive`."""
        if self._stopped:
            done(Stopped("This node is stopping."))
        elif len(self._waiting) >= MAX_KEEP_ALIVES_WAITING:
            done(Overloaded("This node has too many keep-alives waiting. Try again."))
        else:
            self._waiting.append((lease_id, done))
            if self._flush_call is None:
                self._flush_call = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._flush_call = None
        waiting, self._waiting = self._waiting, []
        for begin in range(0, len(waiting), MAX_LEASES_ASKED):
            batch = waiting[begin : begin + MAX_LEASES_ASKED]
            question = _encode(KeepAlive([lease_id for lease_id, _ in batch]))
            self._node.ask_leader(question, partial(self._kept_alive, batch))

    def _kept_alive(
        self, batch: list[tuple[int, Done[LeaseResult]]], outcome: bytes | RaftdError
    ) -> None:
        ttls = _understood(outcome, _decode_ttls)
        if not isinstance(ttls, RaftdError) and len(ttls) != len(batch):
            ttls = _not_understood()
        if isinstance(ttls, RaftdError):
            for _, done in batch:
                done(ttls)
            return
        for (lease_id, done), ttl_ms in zip(batch, ttls, strict=True):
            done(LeaseResult(lease_id, ttl_ms) if ttl_ms else lease_not_found())

    def time_left(self, lease_id: int, done: Done[Left]) -> None:
        """How long a lease has yet; `LeaseNotFound`."""

        def answered(outcome: bytes | RaftdError) -> None:
            done(_understood(outcome, _decode_left))

        self._node.ask_leader(_encode(TimeLeft(lease_id)), answered)


def _understood(outcome: bytes | RaftdError, decode: Callable[[bytes], T]) -> T | RaftdError:
    if isinstance(outcome, RaftdError):
        return outcome
    try:
        return decode(outcome)
    except (msgspec.MsgspecError, RecursionError):
        return _not_understood()


def _not_understood() -> BadRequest:
    return BadRequest("The leader's answer is one of a version that this node does not know.")
