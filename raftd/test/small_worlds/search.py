"""Breadth first, one depth after the other, until a rule breaks or the depth is reached."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from raftd.test.small_worlds.nodes import Kind, Table, Violation
from raftd.test.small_worlds.starts import NAMES, STARTS, start
from raftd.test.small_worlds.worlds import (
    NONE,
    Limits,
    Step,
    World,
    Worlds,
    receiver_of,
    sender_of,
)


class Found(NamedTuple):
    """A rule that broke, and the shortest way to it, a line for each step."""

    rule: str
    trace: list[str]


class Result(NamedTuple):
    """What a search has seen; a violation ends it."""

    states: int
    depth: int
    violation: Found | None
    #: Steps that were tried, states of single nodes, and rows of their table.
    steps: int
    node_states: int
    rows: int
    #: Worlds if those that differ in which node is which count as many.
    labelled: int
    #: There was nothing left to try.
    exhausted: bool

    def __str__(self) -> str:
        violations = int(self.violation is not None)
        return f"states {self.states}, depth {self.depth}, violations {violations}"


class Search:
    """
    All worlds within some limits, from a start (`starts.py`) as far as one goes.

    If not `symmetric`, each node has an id of its own, and so has its core: so
    it is seen that the ids make no difference.
    """

    def __init__(
        self, begin: str = "nothing", limits: Limits | None = None, *, symmetric: bool = True
    ) -> None:
        self._symmetric = symmetric
        self._begin = begin
        self._worlds = Worlds(Table(symmetric=symmetric), limits or Limits())
        first = self._name(start(self._worlds, begin))
        #: The number of each world; and by number, of the one that it was reached from.
        self._numbers: dict[World, int] = {first: 0}
        self._parents = array("I", [0])
        self._frontier = [first]
        self._steps = 0
        self._labelled = self._orbit(first)

    def _name(self, world: World) -> World:
        return self._worlds.canonical(world) if self._symmetric else world

    def _orbit(self, world: World) -> int:
        return self._worlds.orbit(world) if self._symmetric else 1

    def run(self, depth: int, progress: Callable[[int, int], None] | None = None) -> Result:
        """Go `depth` steps far; `progress` hears of each depth and its new worlds."""
        reached, violation = 0, None
        while reached < depth and self._frontier and violation is None:
            reached += 1
            violation = self._go_on()
            if progress is not None:
                progress(reached, len(self._frontier))
        table = self._worlds.table
        return Result(
            len(self._numbers),
            reached,
            violation,
            self._steps,
            table.states,
            len(table),
            self._labelled,
            not self._frontier,
        )

    def _go_on(self) -> Found | None:
        """One step further."""
        worlds, numbers, parents = self._worlds, self._numbers, self._parents
        following: list[World] = []
        for world in self._frontier:
            for step in worlds.steps(world):
                self._steps += 1
                try:
                    after = self._name(worlds.after(world, step))
                except Violation as e:
                    return Found(str(e), self._way_to(world, step))
                if after not in numbers:
                    parents.append(numbers[world])
                    numbers[after] = len(numbers)
                    following.append(after)
                    self._labelled += self._orbit(after)
        self._frontier = following
        return None

    # -- the shortest way ------------------------------------------------------

    def _way_to(self, world: World, last: Step) -> list[str]:
        """
        Go the way again, in one world whose nodes keep their names.

        There, the last step may happen to another node; so it is whichever of
        that kind breaks a rule.
        """
        number, way = self._numbers[world], []
        while number:
            way.append(number)
            number = self._parents[number]
        by_number = list(self._numbers)
        here, lines = start(self._worlds, self._begin), list(STARTS[self._begin])
        for expected in reversed(way):
            step, there = next(
                (step, after)
                for step, after in self._successors(here)
                if after is not None and self._name(after) == by_number[expected]
            )
            lines.append(self._describe(step, here, there))
            here = there
        for step, after in self._successors(here):
            if after is None and step.kind is last.kind:
                return [*lines, self._describe(step, here, None)]
        return lines

    def _successors(self, world: World) -> Iterator[tuple[Step, World | None]]:
        for step in self._worlds.steps(world):
            try:
                yield step, self._worlds.after(world, step)
            except Violation:
                yield step, None

    def _describe(self, step: Step, before: World, after: World | None) -> str:
        """A step, and what it makes of the node that it happens to."""
        name, code = NAMES[step.place], step.packet
        if code == NONE:
            line = f"{name} {_WORDS[step.kind]}"
        else:
            arrow = f"{NAMES[sender_of(code)]}->{NAMES[receiver_of(code)]}"
            missed = f"; {name} hears of no answer" if step.kind is Kind.UNREACHABLE else ""
            line = f"{arrow} {self._worlds.message(code)}{missed}"
        if after is None:
            return f"{line}: broken"
        view = self._worlds.view(after, step.place)
        terms = ",".join(str(entry.term) for entry in view.log)
        return (
            f"{line}\n      {name}: {view.role.value} in term {view.term}, log [{terms}], "
            f"{len(view.on_disk)} on disk, {view.commit_index} committed"
        )


_WORDS: Final = {
    Kind.FLUSH: "has made its oldest write durable",
    Kind.CAMPAIGN: "stands for election",
    Kind.PROPOSE: "takes a proposal",
    Kind.BEAT: "sends heartbeats",
    Kind.NOTICE: "tells what is committed",
    Kind.STEP_DOWN: "hears from no quorum any more",
    Kind.CRASH: "crashes and starts again",
}
