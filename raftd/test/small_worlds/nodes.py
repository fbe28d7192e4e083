"""What a node does, as a table; each row is worked out once, by the real core."""

from __future__ import annotations

import enum
import math
import pickle
import random
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

import msgspec

from raftd.core.membership import Configuration
from raftd.core.messages import (
    Entry,
    HardState,
    MemberId,
    Message,
    PreVote,
    PreVoteResponse,
    Request,
    Response,
)
from raftd.core.raft import Role
from raftd.test.cores import Node, Time, configuration

#: Numbers that nothing else in a small world has, so that each says that a member is meant.
IDS: Final[tuple[MemberId, ...]] = (0xA1, 0xA2, 0xA3)
THREE: Final = configuration(IDS)

#: How the table speaks of nodes: the node itself, and the two others.
ME, ONE, OTHER = 0, 1, 2


class Violation(Exception):
    """A rule that did not hold."""


class NoChance(random.Random):
    """Takes the place of randomness: timeouts come when the search says so."""

    def random(self) -> float:
        return 0.0

    def __reduce__(self) -> tuple[type[NoChance], tuple[()]]:
        return NoChance, ()


class Kind(enum.IntEnum):
    """What may happen to a node."""

    REQUEST = 0
    RESPONSE = 1
    UNREACHABLE = 2
    FLUSH = 3
    CAMPAIGN = 4
    PROPOSE = 5
    BEAT = 6
    NOTICE = 7
    STEP_DOWN = 8
    CRASH = 9


class Input(NamedTuple):
    """One thing that happens; `sender` is `ONE` or `OTHER`, `message` the number of one."""

    kind: Kind
    sender: int = ME
    message: int = 0


class View(NamedTuple):
    """What the rules that bind several nodes look at, and which inputs there are."""

    role: Role
    term: int
    log: tuple[Entry, ...]
    on_disk: tuple[Entry, ...]
    commit_index: int
    applied: tuple[Entry, ...]
    may_campaign: bool
    may_flush: bool
    may_notice: bool


class Sent(NamedTuple):
    to: int
    message: int
    is_answer: bool


class Row(NamedTuple):
    """What an input leads to, or the rule that it breaks."""

    state: int
    #: Who is `ONE` in that state: `ONE`, `OTHER`, or `ME` if it makes no difference.
    one: int
    sent: tuple[Sent, ...] = ()
    broken: str = ""


class _State(NamedTuple):
    image: bytes
    #: Which ids the node of this image has for `ME`, `ONE` and `OTHER`.
    ids: tuple[MemberId, ...]
    view: View


class Table:
    """
    (state, input) -> (state, messages), and states by number.

    If `symmetric`, states that differ only in the ids of nodes are one.
    """

    def __init__(self, *, symmetric: bool = True) -> None:
        self._symmetric = symmetric
        self._states: list[_State] = []
        self._numbers: dict[Hashable, int] = {}
        self._rows: dict[tuple[int, Input], Row] = {}
        self.messages: list[Message] = []
        self._message_numbers: dict[Message, int] = {}

    def __len__(self) -> int:
        """Rows that were worked out."""
        return len(self._rows)

    @property
    def states(self) -> int:
        return len(self._states)

    def start(self, position: int) -> Row:
        """The state of the node at `position` (0 to 2) of a cluster that has just been made."""
        position = 0 if self._symmetric else position
        me = IDS[position]
        ids = (me, *(i for i in IDS if i != me))
        node = Node(me, THREE, time=Time(0.0), rng=NoChance())
        return self._settle(node, ids)

    def view(self, state: int) -> View:
        return self._states[state].view

    def row(self, state: int, what: Input) -> Row:
        row = self._rows.get((state, what))
        if row is None:
            row = self._rows[state, what] = self._work_out(state, what)
        return row

    def _work_out(self, number: int, what: Input) -> Row:
        state = self._states[number]
        node: Node = pickle.loads(state.image)
        try:
            self._give(node, state.ids, what)
            return self._settle(node, state.ids)
        except Exception as e:
            # Whatever it is: no order of these steps may make a node raise.
            return Row(0, ME, broken=f"{type(e).__name__}: {e}")

    def _give(self, node: Node, ids: tuple[MemberId, ...], what: Input) -> None:
        raft, sender = node.raft, ids[what.sender]
        match what.kind:
            case Kind.REQUEST:
                request: Request = self.messages[what.message]  # type: ignore[assignment]
                node.receive(sender, request, 0)
            case Kind.RESPONSE:
                response: Response = self.messages[what.message]  # type: ignore[assignment]
                node.respond(sender, response)
            case Kind.UNREACHABLE:
                node.unreachable(sender)
            case Kind.FLUSH:
                node.persisted(node.disk.flush_one())
            case Kind.CAMPAIGN:
                raft._election_due = 0.0
                node.tick()
                if raft.role is Role.PRE_CANDIDATE:
                    node.respond(ids[ONE], PreVoteResponse(raft.term + 1, True))
            case Kind.PROPOSE:
                node.propose(b"%d" % what.message)
            case Kind.BEAT:
                assert raft.leadership is not None
                raft.leadership.heartbeat_due = 0.0
                node.tick()
            case Kind.NOTICE:
                assert raft.leadership is not None
                raft.leadership._notice_due = 0.0
            case Kind.STEP_DOWN:
                assert raft.leadership is not None
                for progress in raft.leadership.progress.values():
                    progress.last_contact = -math.inf
                raft._quorum_check_due = 0.0
                node.tick()
            case Kind.CRASH:
                node.crash()
                node.start()

    def _settle(self, node: Node, ids: tuple[MemberId, ...]) -> Row:
        """End a turn of a node: what it has sent, and the state that it is in then."""
        sent = [out for out in node.take() if not isinstance(out.message, PreVote)]
        node.apply()
        node.collect()
        raft = node.raft
        raft._leader_contact = -math.inf
        node.incarnation = 1
        _count_writes_anew(node)
        keys = [repr(_walk(node, {i: label for label, i in enumerate(ids)}, set()))]
        if self._symmetric:
            swapped = {ids[ME]: ME, ids[OTHER]: ONE, ids[ONE]: OTHER}
            keys.append(repr(_walk(node, swapped, set())))
        key = min(keys)
        one = ONE if key == keys[0] else OTHER
        if self._symmetric and keys[0] == keys[1]:
            one = ME
        if not self._symmetric:
            key = f"{ids[ME]} {key}"
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._states)
            mine = (ids[ME], ids[OTHER], ids[ONE]) if one == OTHER else ids
            self._states.append(_State(pickle.dumps(node, 5), mine, _view(node)))
        return Row(
            number,
            one,
            tuple(
                Sent(ids.index(out.to), self.number(out.message), out.request_id is not None)
                for out in sent
            ),
        )

    def number(self, message: Message) -> int:
        number = self._message_numbers.setdefault(message, len(self.messages))
        if number == len(self.messages):
            self.messages.append(message)
        return number


def _view(node: Node) -> View:
    raft = node.raft
    return View(
        raft.role,
        raft.term,
        tuple(raft.log.entries(raft.log.first_index, raft.log.last_index)),
        tuple(node.disk.entries),
        raft.commit_index,
        tuple(node.applied),
        raft.role is not Role.LEADER and raft._outbox.is_hard_state_durable,
        bool(node.disk.queue),
        raft.leadership is not None and raft.leadership._notice_due < math.inf,
    )


def _count_writes_anew(node: Node) -> None:
    """
    Let the last durable write be number 0: only the differences of the numbers
    of writes matter, and so many states are one.
    """
    raft, outbox = node.raft, node.raft._outbox
    before = outbox.persisted_write
    outbox.persisted_write = 0
    outbox.last_write -= before
    outbox.hard_state_write = max(0, outbox.hard_state_write - before)
    outbox._under_way = deque((n - before, at) for n, at in outbox._under_way)
    outbox._held = [(n - before, out) for n, out in outbox._held]
    raft.log._writes = deque((n - before, last) for n, last in raft.log._writes)
    raft._reset_write = max(0, raft._reset_write - before)
    node.disk.queue = deque(
        msgspec.structs.replace(write, number=write.number - before)
        for write in node.disk.queue
    )


#: What never changes, or is somebody else's.
_CONSTANT: Final = frozenset(
    {"time", "rng", "settings", "base", "_stepped", "_settings", "_random", "_send", "id"}
)
#: What waits to be sent: messages may arrive in any order.
_UNORDERED: Final = frozenset({"_held"})
_PLAIN: Final = (str, bytes, bytearray, float, bool, type(None), enum.Enum)


def _walk(value: Any, labels: dict[int, int], seen: set[int]) -> Any:
    """
    All that a node consists of, as nested tuples, with labels instead of ids.

    It looks at whatever is there, so that a field that is added is part of it.
    An object that is met again is left out: who refers to whom never changes.
    """
    if isinstance(value, int) and not isinstance(value, bool | enum.Enum):
        return f"m{labels[value]}" if value in labels else value
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Configuration | Entry):
        return value  # no node is singled out in them
    if isinstance(value, HardState):
        return value.term, _walk(value.voted_for, labels, seen)
    if isinstance(value, list | tuple | deque):
        return [_walk(item, labels, seen) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_walk(item, labels, seen)) for item in value)
    if isinstance(value, dict):
        return sorted(
            (repr(_walk(k, labels, seen)), _walk(v, labels, seen)) for k, v in value.items()
        )
    if isinstance(value, msgspec.Struct):
        fields = [_walk(getattr(value, n), labels, seen) for n in value.__struct_fields__]
        return type(value).__name__, fields
    if id(value) in seen:
        return None
    seen.add(id(value))
    return _fields_of(type(value))(value, labels, seen)


_Walker = Callable[[Any, dict[int, int], set[int]], Any]
_walkers: dict[type, _Walker] = {}


def _fields_of(kind: type) -> _Walker:
    walker = _walkers.get(kind)
    if walker is None:
        slots = getattr(kind, "__slots__", None)

        def walker(value: Any, labels: dict[int, int], seen: set[int]) -> Any:
            names = sorted(vars(value)) if slots is None else slots
            return [
                (name, sorted(map(repr, _walk(getattr(value, name), labels, seen))))
                if name in _UNORDERED
                else (name, _walk(getattr(value, name), labels, seen))
                for name in names
                if name not in _CONSTANT
            ]

        _walkers[kind] = walker
    return walker
