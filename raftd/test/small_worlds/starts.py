"""
Where searches begin: with nothing, or some steps on, where it becomes interesting.

A start is a script of steps like those that the search itself takes, so what
it leads to is a world like any other.
"""

from __future__ import annotations

from typing import Final

from raftd.test.small_worlds.nodes import Kind
from raftd.test.small_worlds.worlds import (
    Packet,
    Step,
    World,
    Worlds,
    is_answer,
    receiver_of,
    sender_of,
)

NAMES: Final = "ABC"

#: How scripts call what a node does by itself.
_KINDS: Final = {
    "campaigns": Kind.CAMPAIGN,
    "flushes": Kind.FLUSH,
    "proposes": Kind.PROPOSE,
}

_A_LEADS: Final = (
    "A campaigns",
    "A flushes",
    "A>B RequestVote",
    "B flushes",
    "B>A RequestVoteResponse",
    "A flushes",
)
_B_IS_ELECTED_BY_C: Final = (
    "B campaigns",
    "B flushes",
    "B>C RequestVote",
    "C flushes",
    "C>B RequestVoteResponse",
)
_NO_HEARTBEATS: Final = ("A>B Heartbeat is lost", "A>C Heartbeat is lost")
_B_LEADS: Final = (
    *_B_IS_ELECTED_BY_C,
    "B>A RequestVote is lost",
    "B>A Heartbeat is lost",
    "B>C Heartbeat is lost",
)

STARTS: Final[dict[str, tuple[str, ...]]] = {
    # Three nodes that have just been made.
    "nothing": (),
    # A leads in term 1, and what it tells the others is on its way.
    "a leader": (*_A_LEADS, "A>C RequestVote is lost", *_NO_HEARTBEATS),
    # A has an entry of term 1 that B, which leads in term 2, knows nothing of;
    # a late request of A is still on its way.
    "rivals": (
        *_A_LEADS,
        "A>C RequestVote is lost",
        *_NO_HEARTBEATS,
        "A>B AppendEntries is lost",
        *_B_LEADS,
    ),
    # B, which leads in term 2, has an entry of A's that nobody committed; C has not.
    "an heir": (
        *_A_LEADS,
        "A>C RequestVote is lost",
        *_NO_HEARTBEATS,
        "A>B AppendEntries",
        "B flushes",
        "B>A AppendEntriesResponse is lost",
        "A>C AppendEntries is lost",
        *_B_LEADS,
    ),
}


def start(worlds: Worlds, name: str) -> World:
    """The world that the script of this name leads to."""
    world = worlds.first()
    for line in STARTS[name]:
        world = _play(worlds, world, line)
    return world


def _play(worlds: Worlds, world: World, line: str) -> World:
    who, what, *fate = line.split(" ", 2)
    if ">" not in who:
        return worlds.after(world, Step(NAMES.index(who), _KINDS[what]))
    sender, to = (NAMES.index(name) for name in who.split(">"))
    code = _find(worlds, world, sender, to, what)
    if fate:
        packets = list(world[3])
        packets.remove(code)
        return (*world[:3], tuple(packets), *world[4:])
    kind = Kind.RESPONSE if is_answer(code) else Kind.REQUEST
    return worlds.after(world, Step(to, kind, code))


def _find(worlds: Worlds, world: World, sender: int, to: int, what: str) -> Packet:
    return next(
        code
        for code in world[3]
        if (sender_of(code), receiver_of(code)) == (sender, to)
        and type(worlds.message(code)).__name__ == what
    )
