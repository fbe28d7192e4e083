"""
The leader keeps the time of leases.

Which leases there are is in the log; how long each has yet is in the memory of
the leader alone, by its monotonic clock, so that keep-alives cost the log
nothing.  A new leader does not know it, and starts every lease anew at its
full TTL: a lease may live longer than its TTL, and never shorter.

That holds for whoever has an answer.  A keep-alive is answered after a quorum
round that began after it arrived.  Whoever leads next was elected after that
round had begun, so behind the call, and begins to count later still.

When a lease is over, the leader proposes to revoke it, and does so as the
leader of this term only: were the proposal handed on to the next leader, it
would end a lease that was kept alive there (`docs/leases.md`).  The proposal
says which grant it means: on its way through the log the lease may be revoked
by its owner, and the same id granted again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.core.messages import Command, encode_command
from raftd.errors import DidNotHappen, NotLeader, RaftdError
from raftd.interfaces import Done
from raftd.kv.lease_questions import (
    KeepAlive,
    Left,
    TimeLeft,
    decode_question,
    encode_answer,
    lease_not_found,
)
from raftd.kv.operations import ExpireLease, encode_operation
from raftd.kv.results import LeaseResult

#: Revocations that are proposed at once; the next ones wait for their outcomes.
MAX_REVOKES_AT_ONCE = 128
#: How long the leader may take to commit them.
REVOKE_TIMEOUT_MS = 5_000
#: When to propose again what came to nothing.
RETRY_S = 0.5
#: Leases that are looked at in one call: half a millisecond, or one.
SLICE_LEASES = 250
#: The longest sleep.  Reactors do not wait for years.
MAX_SLEEP_S = 3600.0

#: The shortest TTL, in election timeouts: a lease outlives an ordinary failover.
MIN_TTL_ELECTION_TIMEOUTS = 1.5
#: The longest TTL, in milliseconds: as long as etcd's, 285 years.
MAX_TTL_MS = 9_000_000_000_000


def ttl_floor_ms(election_timeout_ms: int) -> int:
    """The shortest TTL of a lease: 1.5 election timeouts, rounded up to a second."""
    return _whole_seconds(math.ceil(election_timeout_ms * MIN_TTL_ELECTION_TIMEOUTS))


def raised_ttl_ms(ttl_ms: int, floor_ms: int) -> int:
    """A TTL that was asked for, as it is granted: at least the floor, and a whole second."""
    return max(floor_ms, _whole_seconds(ttl_ms))


def _whole_seconds(ms: int) -> int:
    return -(-ms // 1000) * 1000


class LeaseStore(Protocol):
    """What a keeper needs of a `Store`."""

    #: Called within apply, when a lease was granted, with its TTL, and with 0
    #: when it is gone.
    on_lease: Callable[[int, int], None] | None

    def lease(self, id: int) -> LeaseResult | None: ...
    def lease_number(self, id: int) -> int: ...
    def granted_leases(self) -> list[LeaseResult]: ...


class LeaderNode(Protocol):
    """What it needs of a `Node`."""

    def read(self, done: Done[None]) -> None: ...
    def forwarded(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]: ...


class _Kept(msgspec.Struct, gc=False, eq=False):
    """
    A lease; there may be many, so the garbage collector is spared them.

    `deadline` is when it is over.  `queued_at` is when it is looked at next,
    and stands in the heap; infinity if it is in no heap.  `is_revoking`: its
    revocation was proposed, and may be committed at any time.
    """

    id: int
    ttl_ms: int
    deadline: float
    queued_at: float = math.inf
    is_revoking: bool = False


class LeaseKeeper:
    """
    Keeps the leases of `store` while its node leads: from `begin` to `end`
    (`raftd.kv.tenure`).

    Invariants: outside of a tenure there is nothing kept and no timer.  Within
    one each lease of the store is in `_kept`, or in `_uncounted` at the
    beginning.  A lease in `_kept` is in the heap at its `queued_at`, or in
    `_expired`, or in the revocation under way.  It is the lease that the store
    has under this id, and no earlier one: so the number that goes with its
    revocation is its own.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, node: LeaderNode, store: LeaseStore) -> None:
        self._clock = clock
        self._node = node
        self._store = store
        #: Changes with each beginning and end, so that what comes late is known.
        self._tenure = 0
        self._is_leading = False
        self._began_at = 0.0
        self._kept: dict[int, _Kept] = {}
        #: Leases from before the tenure that are not in `_kept` yet.
        self._uncounted: list[LeaseResult] = []
        #: (when to look, id); an entry that is not its lease's `queued_at` is void.
        self._heap: list[tuple[float, int]] = []
        self._expired: deque[_Kept] = deque()
        self._is_revoking = False
        self._timer: IDelayedCall | None = None
        store.on_lease = self._changed

    def __len__(self) -> int:
        """How many leases are kept; 0 where this node does not lead."""
        return len(self._kept) + len(self._uncounted)

    # -- the tenure ----------------------------------------------------------

    def begin(self) -> None:
        """
        This node leads, and has applied everything that earlier leaders have
        acknowledged: every lease begins anew.
        """
        self._tenure += 1
        self._is_leading = True
        self._began_at = self._clock.seconds()
        self._uncounted = self._store.granted_leases()
        self._arm()

    def end(self) -> None:
        """This node leads no longer: it keeps no time, and knows nothing any more."""
        self._tenure += 1
        self._is_leading = self._is_revoking = False
        self._kept, self._uncounted, self._heap = {}, [], []
        self._expired.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _changed(self, lease_id: int, ttl_ms: int) -> None:
        """A lease was granted, or is gone (0); within apply, so no more than is needed."""
        if not self._is_leading:
            return
        self._kept.pop(lease_id, None)
        if ttl_ms:
            self._keep(lease_id, ttl_ms, self._clock.seconds())
            self._arm()

    def _keep(self, lease_id: int, ttl_ms: int, begin: float) -> _Kept:
        kept = self._kept[lease_id] = _Kept(lease_id, ttl_ms, begin + ttl_ms / 1000)
        self._queue(kept, kept.deadline)
        return kept

    def _queue(self, kept: _Kept, at: float) -> None:
        kept.queued_at = at
        heappush(self._heap, (at, kept.id))
        if len(self._heap) > 2 * len(self._kept) + SLICE_LEASES:
            # Leases that went before their time have left too much behind.
            self._heap = [
                (k.queued_at, k.id) for k in self._kept.values() if k.queued_at < math.inf
            ]
            heapify(self._heap)

    # -- time ----------------------------------------------------------------

    def _arm(self) -> None:
        """Keep one timer, for whatever is due next."""
        now = self._clock.seconds()
        if self._uncounted or (self._expired and not self._is_revoking):
            due = now
        elif self._heap:
            due = min(self._heap[0][0], now + MAX_SLEEP_S)
        else:
            return
        if self._timer is not None:
            if self._timer.getTime() <= due:
                return  # it will find out, and be armed again
            self._timer.cancel()
        self._timer = self._clock.callLater(max(0.0, due - now), self._look)

    def _look(self) -> None:
        """Do what is due, a slice at a time."""
        self._timer = None
        for lease in self._uncounted[-SLICE_LEASES:]:
            self._count(lease)
        del self._uncounted[-SLICE_LEASES:]
        now = self._clock.seconds()
        for _ in range(SLICE_LEASES):
            if not self._heap or self._heap[0][0] > now:
                break
            at, lease_id = heappop(self._heap)
            kept = self._kept.get(lease_id)
            if kept is None or kept.queued_at != at:
                continue
            if kept.deadline > now:
                self._queue(kept, kept.deadline)
            else:
                kept.queued_at = math.inf
                self._expired.append(kept)
        self._revoke(now)
        self._arm()

    def _count(self, lease: LeaseResult) -> None:
        """A lease from before the tenure, unless it is gone or was kept alive since."""
        if lease.id not in self._kept and self._store.lease(lease.id) is not None:
            self._keep(lease.id, lease.ttl_ms, self._began_at)

    # -- the end of a lease --------------------------------------------------

    def _revoke(self, now: float) -> None:
        """Propose to revoke expired leases: a bounded number, and then the next."""
        batch: list[_Kept] = []
        while self._expired and not self._is_revoking and len(batch) < MAX_REVOKES_AT_ONCE:
            kept = self._expired.popleft()
            if self._kept.get(kept.id) is not kept:
                continue
            if kept.deadline > now:
                self._queue(kept, kept.deadline)  # kept alive at the last moment
                continue
            kept.is_revoking = True
            batch.append(kept)
        if not batch:
            return
        self._is_revoking = True
        number = self._store.lease_number
        expiries = [ExpireLease(kept.id, number(kept.id)) for kept in batch]
        commands = [encode_command(Command(encode_operation(expiry))) for expiry in expiries]
        # As a forwarded command it is proposed by this leader or not at all.
        proposed = self._node.forwarded(commands, REVOKE_TIMEOUT_MS)
        proposed.addBoth(partial(self._revoked, self._tenure, batch))
        proposed.addErrback(self._defect)

    def _revoked(
        self, tenure: int, batch: list[_Kept], result: list[bytes | RaftdError] | Failure
    ) -> None:
        if isinstance(result, Failure):
            result.trap(RaftdError)
        if tenure != self._tenure:
            return
        self._is_revoking = False
        again = self._clock.seconds() + RETRY_S
        for position, kept in enumerate(batch):
            if self._kept.get(kept.id) is not kept:
                continue  # it is gone, as it should be
            outcome = result.value if isinstance(result, Failure) else result[position]
            if isinstance(outcome, DidNotHappen):
                kept.is_revoking = False
            # Otherwise it may be revoked at any moment, and stays without hope.
            self._queue(kept, again)
        self._arm()

    def _defect(self, failure: Failure) -> None:
        self._log.failure("A defect: leases do not expire", failure)

    # -- questions -----------------------------------------------------------

    def answer(self, question: bytes, done: Done[bytes]) -> None:
        """What this node, as the leader, says to a question (`Node.on_question`)."""
        asked = decode_question(question)
        if isinstance(asked, RaftdError):
            done(asked)
            return
        if not self._is_leading:
            done(NotLeader("This node does not lead, or has only just begun to."))
            return
        # Even a no needs the round: whoever leads by now may say yes.
        self._node.read(partial(self._confirmed, self._tenure, asked, done))

    def _confirmed(
        self,
        tenure: int,
        asked: KeepAlive | TimeLeft,
        done: Done[bytes],
        outcome: RaftdError | None,
    ) -> None:
        """This node still led after the question had come in."""
        if tenure != self._tenure:
            done(NotLeader("This node does not lead any more."))
        elif outcome is not None:
            done(outcome)
        elif isinstance(asked, KeepAlive):
            now = self._clock.seconds()
            done(encode_answer([self._kept_alive(id, now) for id in asked.ids]))
        else:
            kept = self._find(asked.id)
            if kept is None:
                done(lease_not_found())
            else:
                left_s = max(0.0, kept.deadline - self._clock.seconds())
                done(encode_answer(Left(kept.ttl_ms, int(left_s * 1000))))

    def _kept_alive(self, lease_id: int, now: float) -> int:
        """Begin its TTL anew; that, or 0 if it cannot be helped any more."""
        kept = self._find(lease_id)
        if kept is None or kept.is_revoking:
            return 0
        # Its place in the heap is looked at in time, and moved then.
        kept.deadline = now + kept.ttl_ms / 1000
        return kept.ttl_ms

    def _find(self, lease_id: int) -> _Kept | None:
        kept = self._kept.get(lease_id)
        if kept is None and self._uncounted:
            lease = self._store.lease(lease_id)
            if lease is not None:
                kept = self._keep(lease_id, lease.ttl_ms, self._began_at)
        return kept
