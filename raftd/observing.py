"""What has changed in a node from turn to turn, for those who want to be told."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from raftd.core.membership import Configuration
from raftd.core.messages import NOBODY, Member
from raftd.core.raft import Raft
from raftd.events import (
    Committed,
    Event,
    LeaderChanged,
    MembershipChanged,
    Observer,
    TermChanged,
)


class Observers:
    """
    Who is told, and what they have been told.

    Invariant: `_term`, `_leader_id`, `_applied_index` and `_configuration_index`
    are as they were when they were looked at last.
    """

    _log = Logger()

    def __init__(
        self,
        raft: Raft,
        *,
        leader: Callable[[], Member | None],
        on_leader_changed: Callable[[], None],
        on_members_changed: Callable[[Configuration], None],
    ) -> None:
        """
        `leader` says who leads.  The node itself is told of it before the
        observers are, and of new members after them.
        """
        self._raft = raft
        self._leader = leader
        self._on_leader_changed = on_leader_changed
        self._on_members_changed = on_members_changed
        self._observers: list[Observer] = []
        self._stopped = False
        self._term = raft.term
        self._leader_id = NOBODY
        self._applied_index = 0
        self._configuration_index = 0

    def stop(self) -> None:
        """Nobody is told of anything any more."""
        self._stopped = True

    def add(self, observer: Observer) -> Callable[[], None]:
        """Tell `observer` of every event from now on; call what this returns to end it."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def tell(self, event: Event) -> None:
        for observer in list(self._observers):
            if not self._stopped:  # else one of them has stopped this node
                observer(event)

    def look_at_leader(self) -> None:
        """Tell of a new term, and of who leads in it, or that nobody does any more."""
        raft = self._raft
        if raft.term != self._term:
            self._term = raft.term
            self.tell(TermChanged(raft.term))
        if raft.leader_id != self._leader_id:
            self._leader_id = raft.leader_id
            self._leader_changed()

    def look_at_applied(self) -> None:
        """Tell what was applied in this turn; each turn, so it must cost little."""
        raft = self._raft
        if raft.applied_index == self._applied_index:
            return
        self._applied_index = raft.applied_index
        if self._observers:
            self.tell(Committed(raft.applied_index))
        if self._configuration_index < raft.configuration_index <= raft.applied_index:
            self._configuration_index = raft.configuration_index
            self._members_changed(raft.configuration)

    def _leader_changed(self) -> None:
        self._on_leader_changed()
        leader = self._leader()
        if leader is not None:
            self._log.info(
                "Term {term}: the leader is {name}.", term=self._raft.term, name=leader.name
            )
        elif self._raft.leader_id == NOBODY:
            self._log.info("Term {term}: no leader.", term=self._raft.term)
        self.tell(LeaderChanged(self._raft.term, leader))

    def _members_changed(self, configuration: Configuration) -> None:
        """A configuration is committed, and applied here."""
        names = ", ".join(sorted(m.name for m in configuration.members().values()))
        self._log.info("The members are {names}.", names=names)
        self.tell(MembershipChanged(self._configuration_index, configuration))
        self._on_members_changed(configuration)
