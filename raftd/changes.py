"""
Changes of membership and of leadership: conversations with whoever leads.

Each is idempotent, so it is carried out where the leader is, and tried again
until its time is up.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from raftd.applier import Applier
from raftd.core.membership import Change, Configuration
from raftd.core.messages import NOBODY, MemberId
from raftd.core.raft import Raft, Role
from raftd.errors import (
    ChangeInProgress,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    PeerUnreachable,
    RaftdError,
    Stopped,
    Superseded,
    TransferFailed,
)
from raftd.interfaces import IPeer
from raftd.routing import RETRY_DELAY_S

T = TypeVar("T")

#: How long, in election timeouts, to wait for a successor to lead.
TRANSFER_PATIENCE_TIMEOUTS = 2


class Changes:
    """
    The changes that a node has been asked for.

    Invariant: `_under_way` has each of them until its Deferred has fired.
    """

    def __init__(
        self,
        clock: IReactorTime,
        raft: Raft,
        applier: Applier,
        *,
        leader_peer: Callable[[float], IPeer | None],
        why_not: Callable[[], RaftdError],
        wake: Callable[[], None],
    ) -> None:
        """`leader_peer(now)` is whom to ask; `why_not` says why there is nobody."""
        self._clock = clock
        self._raft = raft
        self._applier = applier
        self._leader_peer = leader_peer
        self._why_not = why_not
        self._wake = wake
        self._under_way: set[Deferred[Any]] = set()
        self._stopped = False

    def stop(self) -> None:
        """Give up what is under way."""
        self._stopped = True
        for change in list(self._under_way):
            change.cancel()

    # -- membership (thesis 4) -----------------------------------------------

    def membership(
        self, changes: Sequence[Change], force: bool, timeout_s: float, forwarded: bool
    ) -> Deferred[Configuration]:
        """See `INodeRPC.change_membership`."""

        async def here(left_s: float) -> Configuration:
            deadline = self._clock.seconds() + left_s
            now = self._clock.seconds()
            index = self._raft.change_membership(changes, now, force=force)
            is_joint = self._raft.configuration.is_joint
            await self._committed(index, left_s)
            if is_joint:
                await self._left(deadline)
            return self._raft.configuration

        def there(peer: IPeer, left_ms: int) -> Deferred[Configuration]:
            return peer.change_membership(changes, force, left_ms)

        return self._begin(here, there, timeout_s, forwarded)

    async def _left(self, deadline: float) -> None:
        """
        Returns when the joint configuration, which is committed, has been left
        for good; fails with `OutcomeUnknown` if nobody can say, in time.

        Until then the voters that are let go are needed: whoever hears that
        they are gone may switch them off.
        """
        while self._raft.configuration.is_joint:
            if self._clock.seconds() >= deadline:
                raise _maybe_made()
            await self._pause()
        try:
            left_s = deadline - self._clock.seconds()
            await self._committed(self._raft.configuration_index, left_s)
        except Superseded:
            # What is committed already comes about, by whoever leads next.
            raise _maybe_made() from None

    def _committed(self, index: int, timeout_s: float) -> Deferred[None]:
        """
        Fires when the configuration entry at `index`, just found in the log,
        is applied; fails with `Superseded` if another one takes its place, and
        with `OutcomeUnknown` if nobody can say, in time.
        """
        term = self._raft.log.term_at(index)
        applied: Deferred[None] = Deferred()

        def act() -> None:
            now_there = self._raft.log.term_at(index)
            if now_there == term:
                applied.callback(None)
            elif now_there is None:
                applied.errback(OutcomeUnknown("A snapshot took the change's place."))
            else:
                applied.errback(Superseded("The change was lost with its leader. Try again."))

        def give_up(result: object, timeout_s: float) -> None:
            raise OutcomeUnknown(
                f"The change was not committed within {timeout_s:.0f} s; it may be yet."
            )

        self._applier.when_applied(index, act)
        self._wake()
        return applied.addTimeout(max(0.0, timeout_s), self._clock, give_up)

    # -- leadership (thesis 3.10) --------------------------------------------

    def transfer(
        self, successor: MemberId | None, timeout_s: float, forwarded: bool
    ) -> Deferred[None]:
        """See `INodeRPC.transfer`."""

        async def here(left_s: float) -> None:
            await self.hand_over(successor)

        def there(peer: IPeer, left_ms: int) -> Deferred[None]:
            return peer.transfer(successor, left_ms)

        return self._begin(here, there, timeout_s, forwarded)

    async def hand_over(self, successor: MemberId | None) -> None:
        """As the leader, let another lead; returns when it does, else `TransferFailed`."""
        if successor == self._raft.member_id:
            return
        term = self._raft.term
        self._raft.transfer(successor, self._clock.seconds())
        self._wake()
        # Who was thought best may refuse, and then it is known who is.
        may_choose_again = successor is None
        patience_s = TRANSFER_PATIENCE_TIMEOUTS * self._raft.settings.election_timeout_s
        give_up_at = self._clock.seconds() + patience_s
        while not self._stopped and self._clock.seconds() < give_up_at:
            leads = self._raft.role is Role.LEADER and self._raft.term == term
            if not leads and self._raft.leader_id != NOBODY:
                return
            if leads and not self._raft.is_handing_over:
                if not may_choose_again:
                    break
                may_choose_again = False
                self._raft.transfer(None, self._clock.seconds())
                self._wake()
            await self._pause()
        raise TransferFailed("The other member did not take leadership over in time.")

    # -- wherever the leader is ----------------------------------------------

    def _begin(
        self,
        here: Callable[[float], Coroutine[Deferred[Any], Any, T]],
        there: Callable[[IPeer, int], Deferred[T]],
        timeout_s: float,
        forwarded: bool,
    ) -> Deferred[T]:
        change = Deferred.fromCoroutine(self._at_leader(here, there, timeout_s, forwarded))
        self._under_way.add(change)

        def ended(result: T | Failure) -> T | Failure:
            self._under_way.discard(change)
            return result

        return change.addBoth(ended)

    async def _at_leader(
        self,
        here: Callable[[float], Coroutine[Deferred[Any], Any, T]],
        there: Callable[[IPeer, int], Deferred[T]],
        timeout_s: float,
        forwarded: bool,
    ) -> T:
        """
        Try until the time is up.

        Once a try was sent and not answered, the outcome is unknown until a
        later one is answered.
        """
        deadline = self._clock.seconds() + timeout_s
        unknown = False
        try:
            while True:
                now = self._clock.seconds()
                left_s = max(0.001, deadline - now)
                reason = self._why_not()
                before, unknown = unknown, True  # should it be broken off
                try:
                    peer = self._leader_peer(now)
                    if self._raft.role is Role.LEADER:
                        return await here(left_s)
                    if forwarded:
                        raise NotLeader("This node is not the leader.")
                    if peer is not None:
                        return await there(peer, int(left_s * 1000))
                    unknown = before
                except PeerUnreachable as e:
                    reason = e
                except (ChangeInProgress, NoLeader, Superseded) as e:
                    unknown, reason = before, e
                if now >= deadline or (forwarded and isinstance(reason, NoLeader)):
                    raise _maybe_made() if unknown else reason
                await self._pause()
        except CancelledError:
            raise _maybe_made() if unknown else Stopped("This node is stopping.") from None

    def _pause(self) -> Deferred[None]:
        return deferLater(self._clock, RETRY_DELAY_S, lambda: None)


def _maybe_made() -> OutcomeUnknown:
    return OutcomeUnknown("No answer came: the change may have been made, or may be yet.")
