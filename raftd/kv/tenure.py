"""
When this node leads, and knows it: what the leader's own duties wait for.

A tenure begins when the node was told that it leads and has then confirmed a
linearizable read: an entry of its own term is committed, and its store
has everything that earlier leaders have acknowledged (thesis 6.4).  It ends as
soon as the node hears of another leader, or of none.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from raftd.errors import RaftdError, Stopped
from raftd.events import Event, LeaderChanged
from raftd.interfaces import INode

#: When to ask again for a confirmation that was not to be had.
RETRY_S = 0.1


class Tenure:
    """
    Calls `begin` and `end` by turns, beginning with `begin`.

    What a former leader goes on doing for a moment must do no harm: it does
    not know at once that it is one.
    """

    def __init__(
        self,
        clock: IReactorTime,
        node: INode,
        begin: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._node = node
        self._begin = begin
        self._end = end
        #: Counts the changes of leader, so that an answer for a former one is known.
        self._changes = 0
        self._retry: IDelayedCall | None = None
        self.lasts = False

    def observe(self, event: Event) -> None:
        """For `Node.observe`."""
        if isinstance(event, LeaderChanged):
            self.stop()
            if event.leader is not None and event.leader.id == self._node.status().member.id:
                self._confirm(self._changes)

    def stop(self) -> None:
        """The node is stopping, or leads no longer."""
        self._changes += 1
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self.lasts:
            self.lasts = False
            self._end()

    def _confirm(self, change: int) -> None:
        self._retry = None

        def confirmed(outcome: RaftdError | None) -> None:
            if change != self._changes:
                return
            if outcome is None:
                self.lasts = True
                self._begin()
            elif not isinstance(outcome, Stopped):
                # It could not be confirmed in time, and may be yet.
                self._retry = self._clock.callLater(RETRY_S, self._confirm, change)

        self._node.read(confirmed)
