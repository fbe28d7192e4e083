"""
A world: three nodes, the messages between them, what is known of its past, and
what may still happen.  Every step leads to another world.

There are millions of worlds, so one is a tuple of integers, and what they
stand for is kept once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from raftd.core.messages import AppendEntries, Entry, Heartbeat, Message, RequestVoteResponse
from raftd.core.raft import Role
from raftd.test.small_worlds.nodes import ME, ONE, OTHER, Input, Kind, Table, View, Violation

NODES: Final = 3
#: No place in particular is `ONE`: it makes no difference.
ANY: Final = 3

#: Where a node is: 0 to 2.
Place = int
#: The number of a state of a node times 4, plus the place of its `ONE`.
Placed = int
#: A message on its way, see `packet`.
Packet = int
#: Three nodes, packets in order, the number of a `Past`, the number of a `Limits`.
World = tuple[Placed, Placed, Placed, tuple[Packet, ...], int, int]

#: No packet: something that happens to a node by itself.
NONE: Final = -1


class Limits(NamedTuple):
    """How much of everything there is in a world."""

    terms: int = 2
    proposals: int = 2
    crashes: int = 1
    #: Requests of a leader of which it hears that no answer comes.
    misses: int = 1
    #: Heartbeats, besides those with which a term begins.
    beats: int = 0
    #: How often a leader finds that no quorum answers it any more.
    step_downs: int = 1


class Past(NamedTuple):
    """What must be remembered to judge what comes (Raft paper, figure 3)."""

    #: (term, who leads in it, the log it was elected with).
    leaders: tuple[tuple[int, Place, tuple[Entry, ...]], ...] = ()
    #: What is committed, from index 1, and in which term it was.
    committed: tuple[tuple[Entry, int], ...] = ()


class Step(NamedTuple):
    """What happened: to whom, and by which packet if it was one."""

    place: Place
    kind: Kind
    packet: Packet = NONE


class _Effect(NamedTuple):
    """What a step does to the node that it happens to, whatever else is in the world."""

    after: Placed
    sent: tuple[Packet, ...]
    #: Whether there is something to be judged; whether packets may have become useless.
    is_news: bool
    is_turn: bool


def packet(message: int, sender: Place, to: Place, *, is_answer: bool, orphan: bool) -> Packet:
    """`orphan`: whoever asked has crashed, so that the answer has nowhere to go."""
    return message << 6 | sender << 4 | to << 2 | is_answer << 1 | orphan


def message_of(packet: Packet) -> int:
    return packet >> 6


def sender_of(packet: Packet) -> Place:
    return packet >> 4 & 3


def receiver_of(packet: Packet) -> Place:
    return packet >> 2 & 3


def is_answer(packet: Packet) -> bool:
    return bool(packet & 2)


def is_orphan(packet: Packet) -> bool:
    return bool(packet & 1)


def asker_of(packet: Packet) -> Place:
    return receiver_of(packet) if is_answer(packet) else sender_of(packet)


def others(place: Place) -> tuple[Place, Place]:
    first, second = (p for p in range(NODES) if p != place)
    return first, second


_OTHERS: Final = tuple(others(place) for place in range(NODES))


class Worlds:
    """The worlds within some limits."""

    def __init__(self, table: Table, limits: Limits) -> None:
        self.table = table
        self.limits = limits
        self.pasts: list[Past] = []
        self._past_numbers: dict[Past, int] = {}
        self._left: list[Limits] = []
        self._left_numbers: dict[Limits, int] = {}
        self._effects: dict[tuple[Placed, Step], _Effect] = {}
        self._own_steps: dict[tuple[Placed, Place, int], tuple[Step, ...]] = {}
        self._moved: dict[tuple[int, tuple[Place, ...]], int] = {}

    def first(self) -> World:
        """Three nodes that have just been made."""
        a, b, c = (self._placed(self.table.start(p)[:2], p, _OTHERS[p]) for p in range(NODES))
        return a, b, c, (), self._past_number(Past()), self._left_number(self.limits)

    def view(self, world: World, place: Place) -> View:
        return self.table.view(world[:3][place] >> 2)

    def message(self, packet: Packet) -> Message:
        return self.table.messages[packet >> 6]

    def _placed(
        self, state_and_one: tuple[int, int], place: Place, places: Sequence[Place]
    ) -> Placed:
        """`places` are those of the present `ONE` and `OTHER`."""
        state, one = state_and_one
        return state << 2 | (ANY if one == ME else places[one - 1])

    def _past_number(self, past: Past) -> int:
        number = self._past_numbers.setdefault(past, len(self.pasts))
        if number == len(self.pasts):
            self.pasts.append(past)
        return number

    def _left_number(self, left: Limits) -> int:
        number = self._left_numbers.setdefault(left, len(self._left))
        if number == len(self._left):
            self._left.append(left)
        return number

    # -- which steps there are -------------------------------------------------

    def steps(self, world: World) -> Iterator[Step]:
        """All that can happen next."""
        misses = self._left[world[5]].misses
        before = NONE
        for code in world[3]:
            if code == before:
                continue  # two of a kind
            before = code
            if code & 2:
                yield Step(receiver_of(code), Kind.RESPONSE, code)
            else:
                yield Step(receiver_of(code), Kind.REQUEST, code)
            if misses and self._is_missed(world, code):
                yield Step(asker_of(code), Kind.UNREACHABLE, code)
        for place in range(NODES):
            key = world[:3][place], place, world[5]
            own = self._own_steps.get(key)
            if own is None:
                own = self._own_steps[key] = tuple(self._steps_of(world, place))
            yield from own

    def _is_missed(self, world: World, code: Packet) -> bool:
        """Whether it makes a difference to who asked that no answer comes."""
        if self.view(world, asker_of(code)).role is not Role.LEADER or is_orphan(code):
            return False
        return is_answer(code) or isinstance(self.message(code), AppendEntries | Heartbeat)

    def _steps_of(self, world: World, place: Place) -> Iterator[Step]:
        view, left = self.view(world, place), self._left[world[5]]
        if view.may_flush:
            yield Step(place, Kind.FLUSH)
        if view.may_campaign and view.term < self.limits.terms:
            yield Step(place, Kind.CAMPAIGN)
        if left.crashes:
            yield Step(place, Kind.CRASH)
        if view.role is Role.LEADER:
            if view.may_notice:
                yield Step(place, Kind.NOTICE)
            if left.proposals:
                yield Step(place, Kind.PROPOSE)
            if left.beats:
                yield Step(place, Kind.BEAT)
            if left.step_downs:
                yield Step(place, Kind.STEP_DOWN)

    # -- what they lead to -----------------------------------------------------

    def after(self, world: World, step: Step) -> World:
        """The world that a step leads to; `Violation` if a rule does not hold in it."""
        place, kind, code = step
        proposal = 0
        if kind is Kind.PROPOSE:
            proposal = self.limits.proposals - self._left[world[5]].proposals + 1
        key = world[:3][place], step._replace(packet=proposal) if proposal else step
        effect = self._effects.get(key)
        if effect is None:
            effect = self._effects[key] = self._effect(world[:3][place], step, proposal)
        packets = list(world[3])
        if code != NONE:
            packets.remove(code)
        if kind is Kind.CRASH:
            packets = list(_with_crash(packets, place))
        placed = list(world[:3])
        placed[place] = effect.after
        sent = effect.sent
        if effect.is_turn:
            packets = [p for p in packets if not self._is_useless(p, placed)]
        if sent:
            packets += [p for p in sent if not self._is_useless(p, placed)]
            packets.sort()
        elif kind is Kind.CRASH:
            packets.sort()
        past = world[4]
        if effect.is_news:
            before = self.table.view(world[:3][place] >> 2)
            views = [self.table.view(p >> 2) for p in placed]
            past = self._past_number(_judged(self.pasts[past], place, views, before))
        left = world[5] if kind in _FREE else self._less(world[5], kind)
        return placed[0], placed[1], placed[2], tuple(packets), past, left

    def _effect(self, placed: Placed, step: Step, proposal: int) -> _Effect:
        place, kind, code = step
        first, second = _OTHERS[place]
        if placed & 3 == second:
            first, second = second, first
        sender = ME
        if code != NONE:
            partner = sender_of(code) if receiver_of(code) == place else receiver_of(code)
            sender = ONE if partner == first else OTHER
        number = proposal
        if kind in (Kind.REQUEST, Kind.RESPONSE):
            number = message_of(code)
        row = self.table.row(placed >> 2, Input(kind, sender, number))
        if row.broken:
            raise Violation(row.broken)
        mute = code != NONE and is_orphan(code)
        places = (first, second)
        before, after = self.table.view(placed >> 2), self.table.view(row.state)
        return _Effect(
            self._placed((row.state, row.one), place, places),
            tuple(
                packet(
                    sent.message,
                    place,
                    places[sent.to - 1],
                    is_answer=sent.is_answer,
                    orphan=False,
                )
                for sent in row.sent
                if not (sent.is_answer and mute)
            ),
            (before.role, before.log, before.commit_index, before.applied)
            != (after.role, after.log, after.commit_index, after.applied),
            (before.role, before.term) != (after.role, after.term),
        )

    def _less(self, left: int, kind: Kind) -> int:
        limits = self._left[left]
        return self._left_number(
            limits._replace(
                proposals=limits.proposals - (kind is Kind.PROPOSE),
                crashes=limits.crashes - (kind is Kind.CRASH),
                misses=limits.misses - (kind is Kind.UNREACHABLE),
                beats=limits.beats - (kind is Kind.BEAT),
                step_downs=limits.step_downs - (kind is Kind.STEP_DOWN),
            )
        )

    def _is_useless(self, code: Packet, placed: Sequence[Placed]) -> bool:
        """
        Whether it is an answer of a term that who asked has left behind, or a
        vote that it does not count any more: of no use to it ever again.
        """
        if not code & 2:
            return False
        view, message = self.table.view(placed[code >> 2 & 3] >> 2), self.message(code)
        if message.term < view.term:
            return True
        is_vote = isinstance(message, RequestVoteResponse)
        return is_vote and message.term == view.term and view.role is not Role.CANDIDATE

    # -- which node is which ---------------------------------------------------

    def canonical(self, world: World) -> World:
        """The one world that stands for all that differ only in which node is which."""
        a, b, c = world[0] >> 2, world[1] >> 2, world[2] >> 2
        if a < b < c:
            return world
        if a != b and b != c and a != c:
            ranks = ((b < a) + (c < a), (a < b) + (c < b), (a < c) + (b < c))
            return self.moved(world, ranks)
        states, ordered = (a, b, c), sorted((a, b, c))
        return min(
            self.moved(world, goes_to)
            for goes_to in PERMUTATIONS
            if all(states[p] == ordered[goes_to[p]] for p in range(NODES))
        )

    def moved(self, world: World, goes_to: tuple[Place, ...]) -> World:
        """The same world with each node in another place."""
        if goes_to == PERMUTATIONS[0]:
            return world
        placed = [0] * NODES
        for place, code in zip(goes_to, world[:3], strict=True):
            one = code & 3
            placed[place] = code if one == ANY else code & ~3 | goes_to[one]
        ways = _WAYS[goes_to]
        packets = tuple(sorted([p & ~60 | ways[p >> 2 & 15] for p in world[3]]))
        key = world[4], goes_to
        past = self._moved.get(key)
        if past is None:
            old = self.pasts[world[4]]
            leaders = tuple((term, goes_to[p], log) for term, p, log in old.leaders)
            past = self._moved[key] = self._past_number(old._replace(leaders=leaders))
        return placed[0], placed[1], placed[2], packets, past, world[5]

    def orbit(self, world: World) -> int:
        """How many worlds it stands for."""
        if len({world[0] >> 2, world[1] >> 2, world[2] >> 2}) == NODES:
            return len(PERMUTATIONS)
        return len({self.moved(world, goes_to) for goes_to in PERMUTATIONS})


#: What there is no limit of.
_FREE: Final = frozenset({Kind.REQUEST, Kind.RESPONSE, Kind.FLUSH, Kind.CAMPAIGN, Kind.NOTICE})
PERMUTATIONS: Final = tuple(itertools.permutations(range(NODES)))
#: For each: sender and receiver, as they stand in a packet, to those after it.
_WAYS: Final = {
    goes_to: [
        goes_to[way >> 2] << 4 | goes_to[way & 3] << 2 if way >> 2 < NODES > way & 3 else 0
        for way in range(16)
    ]
    for goes_to in PERMUTATIONS
}


def _with_crash(packets: list[Packet], place: Place) -> Iterator[Packet]:
    """Answers to who has crashed are lost; its requests may still arrive."""
    for code in packets:
        if asker_of(code) != place:
            yield code
        elif not is_answer(code):
            yield code | 1


# -- rules ---------------------------------------------------------------------


def _judged(past: Past, place: Place, views: list[View], before: View) -> Past:
    """The past with what the node at `place` has just done."""
    view = views[place]
    if view.log != before.log:
        for other in _OTHERS[place]:
            _check_matching(view.log, views[other].log)
    if view.role is Role.LEADER:
        past = _led(past, place, view)
    if view.commit_index:
        past = _committed(past, view, views)
    _require(len(view.applied) <= len(past.committed), "what is applied is committed")
    for entry, (known, _) in zip(view.applied, past.committed, strict=False):
        _require(entry == known, f"State Machine Safety: {entry} and {known} are applied")
    return past


def _led(past: Past, place: Place, view: View) -> Past:
    for term, leader, _ in past.leaders:
        if term == view.term:
            _require(leader == place, f"Election Safety: two leaders in term {term}")
            return past
    for entry, committed_in in past.committed:
        _require(
            committed_in >= view.term or entry in view.log,
            f"Leader Completeness: the leader of term {view.term} lacks {entry}",
        )
    leaders = sorted([*past.leaders, (view.term, place, view.log)])
    return past._replace(leaders=tuple(leaders))


def _committed(past: Past, view: View, views: list[View]) -> Past:
    known = len(past.committed)
    for entry, (other, _) in zip(view.log[: view.commit_index], past.committed, strict=False):
        _require(entry == other, f"State Machine Safety: {entry} and {other} are committed")
    if view.commit_index <= known:
        return past
    _require(view.role is Role.LEADER, "a leader commits first")
    new = view.log[known : view.commit_index]
    _require(new[-1].term == view.term, "a leader commits by an entry of its own term")
    for entry in new:
        holding = sum(entry in v.on_disk for v in views)
        _require(
            2 * holding > NODES, f"{entry} is committed, and on {holding} of {NODES} disks"
        )
        for term, _, log in past.leaders:
            _require(
                term <= view.term or entry in log,
                f"Leader Completeness: the leader of term {term} lacks {entry}",
            )
    committed = (*past.committed, *((entry, view.term) for entry in new))
    return past._replace(committed=committed)


def _check_matching(log: tuple[Entry, ...], other: tuple[Entry, ...]) -> None:
    """Where two logs have an entry of one index and term, they are the same up to there."""
    for length in range(min(len(log), len(other)), 0, -1):
        if log[length - 1].term == other[length - 1].term:
            _require(
                log[:length] == other[:length],
                f"Log Matching: {log[:length]} and {other[:length]}",
            )
            return


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise Violation(rule)
