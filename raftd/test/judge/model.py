"""
What a store may answer: a pure model, a function of state and operation.

It begins empty.  An answer is compared with the state in everything that it
says and in nothing else; an unknown outcome may be any that the state allows.

**Revisions.**  Which revision a change made is known if its client was told,
or once somebody has seen it.  Else it is some number that is greater than all
before it.  So a state has `floor`, a revision that the store has reached at
least, and a record's revision is a number, or negative: -n stands for "not
known, at least n".  Seeing it settles it.  What this leaves undecided is
taken for possible, so that no good history is ever rejected; the order of
revisions among all keys is judged once more, exactly, in
`raftd.test.judge.revisions`.

If no answer of a history says anything of revisions or versions they are left
out of states, for states that differ in nothing visible must be equal.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType

from raftd.test.judge.calls import (
    Call,
    Compare,
    CompareAndSet,
    Delete,
    Get,
    Put,
    Range,
    Record,
    Result,
    Scalar,
    Transaction,
    is_inside,
    is_read,
)
from raftd.test.judge.history import Operation

#: The revision of an empty store.
FIRST_REVISION: Final = 1

#: What stands for an unknown result: nothing of it is known.
_ANYTHING = Result()

_RELATIONS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}


class Row(NamedTuple):
    """A key that is there; the numbers are 0 if they are not followed."""

    value: Scalar
    create_revision: int
    mod_revision: int
    version: int


class State(NamedTuple):
    """`rows` by key, sorted."""

    rows: tuple[tuple[str, Row], ...]
    floor: int


class _Attempt:
    """An operation, as far as it was carried out."""

    __slots__ = ("changed", "revision", "rows", "seen")

    def __init__(self, rows: dict[str, Row], revision: int) -> None:
        self.rows = rows
        #: What a change has as its revision.
        self.revision = revision
        #: The greatest revision that its answer has settled.
        self.seen = 0
        self.changed = False

    def copy(self) -> _Attempt:
        other = _Attempt(dict(self.rows), self.revision)
        other.seen, other.changed = self.seen, self.changed
        return other


class StoreModel:
    """The store: a register, compare-and-set, deletes, ranges, transactions."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        """What is followed is what `operations` speak of."""
        spoken = [text for o in operations for text in _spoken(o.call, o.result)]
        self.follows_versions = "version" in spoken
        self.follows_revisions = "revision" in spoken

    @property
    def initial(self) -> State:
        """Nothing is there."""
        return State((), FIRST_REVISION if self.follows_revisions else 0)

    def step(self, state: State, call: Call, result: Result | None) -> list[State]:
        """
        What may be after `call` was answered with `result` in `state`; None: unknown.

        Empty: it cannot have been.  None comes twice.
        """
        answer = _ANYTHING if result is None else result
        revision = 0
        if self.follows_revisions:
            told = answer.revision
            if told is not UNSET and told < state.floor:
                return []
            revision = -(state.floor + 1) if told is UNSET else told
        before = dict(state.rows)
        found: dict[State, None] = {}
        for attempt in self._carry_out(_Attempt(dict(before), revision), call, answer, before):
            after = self._after(state, attempt, answer)
            if after is not None:
                found[after] = None
        return list(found)

    def _after(self, state: State, attempt: _Attempt, answer: Result) -> State | None:
        """The state after an attempt; None if its revision cannot be."""
        floor = state.floor
        if self.follows_revisions:
            told = answer.revision
            if attempt.changed:
                if told is not UNSET and told <= floor:
                    return None
                floor += 1
            if told is not UNSET and attempt.seen > told:
                return None  # it has shown what was not there yet
            floor = max(floor, attempt.seen, 0 if told is UNSET else told)
        rows = attempt.rows
        if tuple(rows.items()) == state.rows:
            return state if floor == state.floor else State(state.rows, floor)
        return State(tuple(sorted(rows.items())), floor)

    def is_lost(self, state: State, result: Result | None) -> bool:
        """
        Whether an answer that does not fit `state` fits none that comes later.

        It is so if it told a revision that has passed.
        """
        if result is None or not self.follows_revisions:
            return False
        for seen in (result.revision, result.mod_revision):
            if seen is not UNSET and 0 < seen < state.floor:
                return True
        return False

    # -- operations ------------------------------------------------------------

    def _carry_out(
        self, attempt: _Attempt, call: Call, answer: Result, before: Mapping[str, Row]
    ) -> list[_Attempt]:
        """All ways in which it may have gone; `before` is what compares see."""
        if isinstance(call, Get):
            possible = self._get(attempt, call.key, answer)
        elif isinstance(call, Range):
            possible = self._range(attempt, call, answer)
        elif isinstance(call, Delete):
            possible = self._delete(attempt, call, answer)
        elif isinstance(call, CompareAndSet):
            row = attempt.rows.get(call.key)
            is_equal = (None if row is None else row.value) == call.expected
            possible = answer.succeeded in (UNSET, is_equal)
            if is_equal:
                self._put(attempt, call.key, call.value)
        elif isinstance(call, Transaction):
            return list(self._transaction(attempt, call, answer, before))
        else:
            old = attempt.rows.get(call.key)
            possible = answer.created in (UNSET, old is None)
            text = "" if old is None or isinstance(call, Put) else str(old.value)
            value = call.value if isinstance(call, Put) else text + call.value
            self._put(attempt, call.key, value)
        return [attempt] if possible else []

    def _put(self, attempt: _Attempt, key: str, value: Scalar) -> None:
        old = attempt.rows.get(key)
        created = attempt.revision if old is None else old.create_revision
        version = 0
        if self.follows_versions:
            version = 1 if old is None else old.version + 1
        attempt.rows[key] = Row(value, created, attempt.revision, version)
        attempt.changed = True

    def _delete(self, attempt: _Attempt, call: Delete, answer: Result) -> bool:
        keys = [key for key in attempt.rows if is_inside(key, call.key, call.end)]
        for key in keys:
            del attempt.rows[key]
        attempt.changed = attempt.changed or bool(keys)
        return answer.count in (UNSET, len(keys))

    def _get(self, attempt: _Attempt, key: str, answer: Result | Record) -> bool:
        """Whether the record can be as it was seen; settles what is seen of revisions."""
        row = attempt.rows.get(key)
        if row is None:
            shown = (answer.create_revision, answer.mod_revision, answer.version)
            return answer.value in (UNSET, None) and all(n in (UNSET, 0) for n in shown)
        if answer.value is not UNSET and answer.value != row.value:
            return False
        if self.follows_versions and answer.version not in (UNSET, row.version):
            return False
        created = _settled(row.create_revision, answer.create_revision)
        modified = _settled(row.mod_revision, answer.mod_revision)
        if created is None or modified is None:
            return False
        if self.follows_revisions:
            attempt.rows[key] = row._replace(create_revision=created, mod_revision=modified)
            attempt.seen = max(attempt.seen, created, modified)
        return True

    def _range(self, attempt: _Attempt, call: Range, answer: Result) -> bool:
        keys = sorted(key for key in attempt.rows if is_inside(key, call.key, call.end))
        if answer.count not in (UNSET, len(keys)):
            return False
        if answer.kvs is UNSET:
            return True
        if [kv.key for kv in answer.kvs] != (keys[: call.limit] if call.limit else keys):
            return False
        return all(self._get(attempt, kv.key, kv) for kv in answer.kvs)

    def _transaction(
        self, attempt: _Attempt, call: Transaction, answer: Result, before: Mapping[str, Row]
    ) -> Iterator[_Attempt]:
        ways = (True, False) if answer.succeeded is UNSET else (answer.succeeded,)
        for way in ways:
            holds = [_may_hold(compare, before) for compare in call.compares]
            if way and not all(may for may, _ in holds):
                continue
            if not way and not any(may_not for _, may_not in holds):
                continue
            ahead = attempt.copy()
            if way:
                _settle(ahead, call.compares, before)
            steps = call.success if way else call.failure
            answers: Iterable[Result] = [_ANYTHING] * len(steps)
            if answer.results is not UNSET:
                if len(answer.results) != len(steps):
                    continue
                answers = answer.results
            attempts = [ahead]
            for step, part in zip(steps, answers, strict=True):
                attempts = [
                    done
                    for one in attempts
                    for done in self._carry_out(one, step, part, before)
                ]
            yield from attempts


# -- revisions that are not known ----------------------------------------------


def _settled(number: int, seen: int | UnsetType) -> int | None:
    """A revision after it was seen; None if it cannot be that."""
    if seen is UNSET or number == seen:
        return number
    return seen if number < 0 and seen >= -number else None


def _settle(attempt: _Attempt, compares: Iterable[Compare], before: Mapping[str, Row]) -> None:
    """A compare for equality that held has shown a revision."""
    for compare in compares:
        row = before.get(compare.key)
        if row is None or compare.relation != "=" or compare.end:
            continue
        if attempt.rows.get(compare.key) != row or not isinstance(compare.operand, int):
            continue
        if compare.target == "mod_revision" and row.mod_revision < 0:
            attempt.rows[compare.key] = row._replace(mod_revision=compare.operand)
            attempt.seen = max(attempt.seen, compare.operand)
        elif compare.target == "create_revision" and row.create_revision < 0:
            attempt.rows[compare.key] = row._replace(create_revision=compare.operand)
            attempt.seen = max(attempt.seen, compare.operand)


def _may_hold(compare: Compare, before: Mapping[str, Row]) -> tuple[bool, bool]:
    """Whether a compare may be true, and whether it may be false."""
    if compare.end:
        found = [row for key, row in before.items() if is_inside(key, compare.key, compare.end)]
    else:
        found = [before[compare.key]] if compare.key in before else []
    answers = [_may_be(row, compare) for row in found] or [_may_be(None, compare)]
    return all(may for may, _ in answers), any(may_not for _, may_not in answers)


def _may_be(row: Row | None, compare: Compare) -> tuple[bool, bool]:
    if row is None and compare.target == "value":
        return False, True
    actual: Scalar = 0 if row is None else getattr(row, compare.target)
    operand, relation = compare.operand, compare.relation
    if row is not None and not actual and compare.target != "value":
        # It is not followed, so nobody asks more than whether there is something.
        actual = 1
    if isinstance(actual, int) and actual < 0 and compare.target != "value":
        least = -actual
        assert isinstance(operand, int)
        return {
            "=": (operand >= least, True),
            "!=": (True, operand >= least),
            "<": (operand > least, True),
            ">": (True, operand >= least),
        }[relation]
    if isinstance(actual, int) != isinstance(operand, int):
        # Values of two kinds, which only a history has: they are not equal.
        return (True, False) if relation == "!=" else (False, True)
    holds = bool(_RELATIONS[relation](actual, operand))
    return holds, not holds


def observes(call: Call, result: Result | None) -> bool:
    """Whether an operation with this answer changes nothing, in whatever state it fits."""
    if result is None:
        return is_read(call)
    if isinstance(call, CompareAndSet):
        return result.succeeded is False or call.expected == call.value
    if isinstance(call, Delete):
        return result.count == 0
    if isinstance(call, Transaction) and result.succeeded is not UNSET:
        return all(map(is_read, call.success if result.succeeded else call.failure))
    return is_read(call)


# -- what a history speaks of --------------------------------------------------


def _spoken(call: Call, result: Result | None) -> Iterator[str]:
    """What must be followed because of an operation: "version", "revision"."""
    if isinstance(call, Transaction):
        for compare in call.compares:
            # Being 0 or not is being there or not, and needs no numbers.
            if compare.operand != 0 or compare.relation == "<":
                yield from _kind(compare.target)
        for step in (*call.success, *call.failure):
            yield from _spoken(step, None)
    if result is not None:
        yield from _shown(result)


def _shown(result: Result) -> Iterator[str]:
    if result.revision is not UNSET:
        yield "revision"
    for record in (result, *(result.kvs or ())):
        for target in ("version", "create_revision", "mod_revision"):
            if getattr(record, target):
                yield from _kind(target)
    for part in result.results or ():
        yield from _shown(part)


def _kind(target: str) -> Iterator[str]:
    if target != "value":
        yield "version" if target == "version" else "revision"
