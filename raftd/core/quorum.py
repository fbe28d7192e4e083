"""
Majorities: the arithmetic on which every decision of Raft rests.

A decision needs a majority of each set of voters in `Configuration.majorities`:
of one set, or of two while the configuration is joint (thesis 4.3).  Two such
quorums always share a voter.  A set without voters decides nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from raftd.core.messages import MemberId

Number = TypeVar("Number", int, float)

Majorities = Sequence[frozenset[MemberId]]


def has_quorum(majorities: Majorities, members: Collection[MemberId]) -> bool:
    """Whether `members` hold a majority of each set."""
    return all(2 * sum(v in members for v in voters) > len(voters) for voters in majorities)


def quorum_value(
    majorities: Majorities, values: Mapping[MemberId, Number], none: Number
) -> Number:
    """
    The greatest value that a quorum has reached; `none` where there are no voters.

    `values` has one for each voter.  With `match_index` as the value this is
    the index up to which a quorum holds the log (paper 5.3).
    """
    return min([_majority_value(voters, values, none) for voters in majorities], default=none)


def _majority_value(
    voters: frozenset[MemberId], values: Mapping[MemberId, Number], none: Number
) -> Number:
    if not voters:
        return none
    descending = sorted([values[v] for v in voters], reverse=True)
    return descending[len(descending) // 2]
