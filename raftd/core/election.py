"""One campaign: the votes of one node's one try to be elected (paper 5.2, thesis 9.6)."""

from __future__ import annotations

from raftd.core.messages import MemberId
from raftd.core.quorum import Majorities, has_quorum


class Campaign:
    """
    The answers to one PreVote or RequestVote of one term.

    It is made anew for every campaign, so no vote outlives its own.  A member
    counts once, and what it has granted stays granted; a refusal does not
    stay, for it may have answered a request of an earlier term.
    """

    def __init__(self, term: int) -> None:
        #: The term that the votes are for.
        self.term = term
        self._answers: dict[MemberId, bool] = {}

    def record(self, voter: MemberId, granted: bool) -> None:
        self._answers[voter] = granted or self._answers.get(voter, False)

    def won(self, majorities: Majorities) -> bool:
        return has_quorum(majorities, {v for v, granted in self._answers.items() if granted})

    def lost(self, majorities: Majorities) -> bool:
        """Whether so many have refused that no quorum can grant any more."""
        refused = {v for v, granted in self._answers.items() if not granted}
        return not has_quorum(majorities, frozenset().union(*majorities) - refused)
