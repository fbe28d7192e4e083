"""One campaign: the votes of one node's one try to be elected (paper 5.2, thesis 9.6)."""

from __future__ import annotations

from raftd.core.messages import MemberId
from raftd.core.quorum import Majorities, has_quorum


class Campaign:
    """
    The answers to one PreVote or RequestVote of one term.

    It is made anew for every campaign, so no vote outlives its own.  A
    member's first answer counts and later ones do not.
    """

    def __init__(self, term: int) -> None:
        #: The term that the votes are for.
        self.term = term
        self._answers: dict[MemberId, bool] = {}

    def record(self, voter: MemberId, granted: bool) -> None:
        self._answers.setdefault(voter, granted)

    def won(self, majorities: Majorities) -> bool:
        return has_quorum(majorities, {v for v, granted in self._answers.items() if granted})

    def lost(self, majorities: Majorities) -> bool:
        """Whether so many have refused that no quorum can grant any more."""
        refused = {v for v, granted in self._answers.items() if not granted}
        return not has_quorum(majorities, frozenset().union(*majorities) - refused)
