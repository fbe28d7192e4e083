"""A member that was given another name, as the others see it meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from raftd.core.membership import Change, Configuration
from raftd.core.messages import MemberId, Request, Response
from raftd.errors import RaftdError
from raftd.interfaces import IPeer


@implementer(IPeer)
class MovingPeer:
    """
    A member under two names: asked under the former one until it answers
    under the new one.

    A change of name takes effect at once, and the member is still where it
    was: were it not asked there any more, it would never hear of its new name.

    It may answer under both.  So for a while its former connection stays for
    the answers that are on their way there: a write would else be unknown.

    Invariant: `_former` is None from `patience_s` after `_new` was connected.
    """

    def __init__(
        self, former: IPeer, new: IPeer, clock: IReactorTime, patience_s: float
    ) -> None:
        """Whatever the former one is asked ends within `patience_s` seconds."""
        self.member = new.member
        self._former: IPeer | None = former
        self._new = new
        self._clock = clock
        self._patience_s = patience_s
        #: Runs from when the member was found under its new name.
        self._farewell: IDelayedCall | None = None

    def _answering(self) -> IPeer:
        if self._former is None or self._farewell is not None:
            return self._new
        if not self._new.connected:
            return self._former
        self._farewell = self._clock.callLater(self._patience_s, self._leave_former)
        return self._new

    def _leave_former(self) -> None:
        former, self._former = self._former, None
        if former is not None:
            former.close()

    @property
    def connected(self) -> bool:
        return self._answering().connected

    @property
    def refusal(self) -> str:
        return self._answering().refusal

    def send(self, request: Request) -> Deferred[Response]:
        return self._answering().send(request)

    def forward(
        self, commands: Sequence[bytes], timeout_ms: int
    ) -> Deferred[list[bytes | RaftdError]]:
        return self._answering().forward(commands, timeout_ms)

    def read_index(self, timeout_ms: int) -> Deferred[int]:
        return self._answering().read_index(timeout_ms)

    def ask(self, question: bytes, timeout_ms: int) -> Deferred[bytes]:
        return self._answering().ask(question, timeout_ms)

    def change_membership(
        self, changes: Sequence[Change], force: bool, timeout_ms: int
    ) -> Deferred[Configuration]:
        return self._answering().change_membership(changes, force, timeout_ms)

    def transfer(self, successor: MemberId | None, timeout_ms: int) -> Deferred[None]:
        return self._answering().transfer(successor, timeout_ms)

    def close(self) -> Deferred[None]:
        if self._farewell is not None and self._farewell.active():
            self._farewell.cancel()
        former, self._former = self._former, None
        peers = [self._new] if former is None else [former, self._new]
        return gatherResults([peer.close() for peer in peers]).addCallback(lambda _: None)
