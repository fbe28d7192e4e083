"""
Whether operations can be put in one order: the search.

Wing and Gong's algorithm ("Testing and verifying concurrent objects", 1993)
with the memory that Lowe gave it ("Testing for linearizability", 2017).  A
*configuration* is what was put in order so far, and the state that the model
is in then.  From each, one operation goes next: any that began before the
first end among those that are left.  A configuration that was seen before is
not looked at again.  There is no recursion, and a bound on the work.

What makes it fast, and why it loses nothing:

- An answered operation that fits and would change nothing in any state goes
  next at once.  It may go now, and wherever it would have gone later, leaving
  it out changes nothing.
- An operation that is open (of unknown outcome) is left out where it would
  change nothing.
- Of open operations that ask the same, the one that began first goes first:
  whatever is true of a later one is true of it.
- Of two configurations that differ only in which open operations were used,
  one that used a part of what the other did can do all that the other can.
- One in which an answered operation can never fit any more goes no further.
- The one that has got furthest goes on, answered operations before open ones;
  so open ones are tried only where nothing else fits.  Of the answered ones
  the first to end is tried first, for most histories went that way.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final, NamedTuple

from raftd.test.judge.history import Operation
from raftd.test.judge.model import State, StoreModel, observes
from raftd.test.judge.supply import Supply

#: Configurations that one search looks at: about ten seconds.
MAX_CONFIGURATIONS: Final = 200_000

#: States that are kept of those in which nothing fitted.
MAX_STATES_TOLD: Final = 64


class Verdict(Enum):
    """What a judge says; only the first one is a success."""

    GOOD = "linearizable"
    BAD = "NOT LINEARIZABLE"
    UNDECIDED = "UNDECIDED"


class _Configuration(NamedTuple):
    """
    The first `low` of the answered operations, and of those from there on the
    ones in `mask`; of the open ones those in `used`; in this order `state` is
    the outcome.  `earlier` and `moved` say how it was reached.
    """

    low: int
    mask: int
    used: int
    state: State
    earlier: _Configuration | None
    moved: tuple[Operation, ...]

    @property
    def answered(self) -> int:
        return self.low + self.mask.bit_count()


class Search:
    """
    One question: is there an order of `operations`?

    `run` answers it.  Then `order` is one if there is, and the longest that was
    found if there is none; `configurations` is the work that was done.
    """

    def __init__(
        self,
        model: StoreModel,
        operations: Sequence[Operation],
        max_configurations: int = MAX_CONFIGURATIONS,
        finds_stuck: bool = False,
    ) -> None:
        """`finds_stuck`: all states of `stuck` are wanted, as far as they are kept."""
        begun = sorted(operations, key=lambda operation: operation.invoked)
        self._model = model
        self._answered = [o for o in begun if o.returned is not None]
        self._returns = [math.inf if o.returned is None else o.returned for o in self._answered]
        self._last = max(range(len(self._returns)), key=self._returns.__getitem__, default=0)
        self._open = [o for o in begun if o.returned is None]
        self._alike = _alike(self._open)
        self._observes = [observes(o.call, o.result) for o in self._answered]
        # Only for these states is it looked beyond where the last one cannot fit any more.
        self._ignored = self._last if finds_stuck else None
        self._supply = Supply(self._answered, self._open, self._ignored)
        self._max = max_configurations
        self._heap: list[tuple[int, int, int, bool, _Configuration]] = []
        self._seen: dict[tuple[int, int, State], list[int]] = {}
        self._furthest = _Configuration(0, 0, 0, model.initial, None, ())
        self._pushed = 0
        self.configurations = 0
        #: States in which all are in order but the operation that ended last.
        self.stuck: dict[State, None] = {}

    @property
    def order(self) -> list[Operation]:
        """The longest order that was found."""
        moves: list[tuple[Operation, ...]] = []
        at: _Configuration | None = self._furthest
        while at is not None:
            moves.append(at.moved)
            at = at.earlier
        return [operation for moved in reversed(moves) for operation in moved]

    def run(self) -> Verdict:
        """The verdict; UNDECIDED if the bound was reached first."""
        self._push(self._furthest, False)
        while self._heap:
            *_, opens, configuration = heapq.heappop(self._heap)
            if opens:
                self._open_moves(configuration)
                continue
            if self.configurations >= self._max:
                return Verdict.UNDECIDED
            self.configurations += 1
            if self._answered_moves(configuration):
                return Verdict.GOOD
        return Verdict.BAD

    def _push(self, configuration: _Configuration, opens: bool) -> None:
        """`opens`: its open operations are to be tried, now that others were."""
        self._pushed += 1
        used = configuration.used.bit_count() + opens
        key = (-configuration.answered, used, -self._pushed, opens, configuration)
        heapq.heappush(self._heap, key)

    def _answered_moves(self, configuration: _Configuration) -> bool:
        """Go on from it with each answered operation; whether everything is in order."""
        settled, moves, is_lost = self._settle(configuration)
        if self._is_known(settled):
            return False
        if settled.answered > self._furthest.answered:
            self._furthest = settled
        if settled.answered == len(self._answered):
            return True
        if self._lacks_last(settled) and len(self.stuck) < MAX_STATES_TOLD:
            self.stuck[settled.state] = None
        if is_lost:
            return False
        for number in sorted(moves, key=self._returns.__getitem__, reverse=True):
            low, mask = _with(settled.low, settled.mask, number)
            operation = (self._answered[number],)
            for state in moves[number]:
                if not self._supply.is_lost(settled.state, state, low, mask, settled.used):
                    self._push(
                        _Configuration(low, mask, settled.used, state, settled, operation),
                        False,
                    )
        if self._open:
            self._push(settled, True)
        return False

    def _settle(
        self, configuration: _Configuration
    ) -> tuple[_Configuration, dict[int, list[State]], bool]:
        """
        Put in order what changes nothing; what else may come next, with its states;
        whether something is left that can never fit.
        """
        low, mask, used, state, _, _ = configuration
        moves: dict[int, list[State]] = {}
        moved: list[Operation] = []
        while True:
            before = len(moved)
            for number in list(self._candidates(low, mask)):
                operation = self._answered[number]
                if number not in moves:
                    moves[number] = self._model.step(state, operation.call, operation.result)
                if self._observes[number] and moves[number] == [state]:
                    del moves[number]
                    moved.append(operation)
                    mask |= 1 << (number - low)
            low, mask = _shifted(low, mask)
            if len(moved) == before:
                break
        is_lost = any(
            not states
            and number != self._ignored
            and self._model.is_lost(state, self._answered[number].result)
            for number, states in moves.items()
        )
        if moved:
            configuration = _Configuration(low, mask, used, state, configuration, tuple(moved))
        return configuration, moves, is_lost

    def _candidates(self, low: int, mask: int) -> Iterator[int]:
        """Those that began before the first end of what is left."""
        end = math.inf
        for number in range(low, len(self._answered)):
            if mask >> (number - low) & 1:
                continue
            if self._answered[number].invoked > end:
                return
            yield number
            end = min(end, self._returns[number])

    def _open_moves(self, configuration: _Configuration) -> None:
        """Go on from it with each open operation that changes something."""
        low, mask, used, state, _, _ = configuration
        end = min((self._returns[n] for n in self._candidates(low, mask)), default=math.inf)
        for number, operation in enumerate(self._open):
            if operation.invoked > end:
                break
            alike = self._alike[number]
            if used >> number & 1 or (alike is not None and not used >> alike & 1):
                continue
            for after in self._model.step(state, operation.call, operation.result):
                with_it = used | 1 << number
                if after == state or self._supply.is_lost(state, after, low, mask, with_it):
                    continue
                self._push(
                    _Configuration(low, mask, with_it, after, configuration, (operation,)),
                    False,
                )

    def _lacks_last(self, configuration: _Configuration) -> bool:
        """Whether all are in order but the one that ended last."""
        low, mask = configuration.low, configuration.mask
        if configuration.answered != len(self._answered) - 1 or low > self._last:
            return False
        return not mask >> (self._last - low) & 1

    def _is_known(self, configuration: _Configuration) -> bool:
        """Whether one that can do as much was looked at; else this one now counts as."""
        key = (configuration.low, configuration.mask, configuration.state)
        used = configuration.used
        seen = self._seen.setdefault(key, [])
        if any(other & ~used == 0 for other in seen):
            return True
        seen[:] = [other for other in seen if used & ~other]
        seen.append(used)
        return False


def _with(low: int, mask: int, number: int) -> tuple[int, int]:
    return _shifted(low, mask | 1 << (number - low))


def _shifted(low: int, mask: int) -> tuple[int, int]:
    """The same set with the greatest possible `low`."""
    ones = (~mask & (mask + 1)).bit_length() - 1
    return low + ones, mask >> ones


def _alike(operations: Sequence[Operation]) -> list[int | None]:
    """For each, the last one before it that asks the same."""
    latest: dict[object, int] = {}
    found: list[int | None] = []
    for number, operation in enumerate(operations):
        key = (operation.call, operation.result)
        found.append(latest.get(key))
        latest[key] = number
    return found
