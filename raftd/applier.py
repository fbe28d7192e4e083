"""Applying committed entries to the state machine, in order and in slices of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from heapq import heappop, heappush

from twisted.internet.interfaces import IReactorTime

from raftd.core.messages import Entry, EntryKind, decode_command
from raftd.interfaces import IStateMachine

#: How long applying may keep the reactor, so that no heartbeat is late.
APPLY_SLICE_S = 0.005


class Applier:
    """
    Invariant: `applied_index` is that of the last entry whose application has
    ended; one entry at most is under way.
    """

    def __init__(
        self,
        clock: IReactorTime,
        state_machine: IStateMachine,
        applied_index: int,
        on_applied: Callable[[Entry, bytes], None],
    ) -> None:
        """`on_applied(entry, result)` is called after each; it must not raise."""
        self._clock = clock
        self._state_machine = state_machine
        self.applied_index = applied_index
        self._on_applied = on_applied
        self._entries: deque[Entry] = deque()
        #: The application of the first of `_entries`, if it is under way.
        self._under_way: Generator[None, None, bytes] | None = None
        #: (index, serial, what to do once it is applied).
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0

    def add(self, committed: Iterable[Entry]) -> None:
        """Committed entries that follow those given before."""
        self._entries.extend(committed)

    def when_applied(self, index: int, act: Callable[[], None]) -> None:
        """Call `act` when `index` is applied, which may be now."""
        if index <= self.applied_index:
            act()
        else:
            self._serial += 1
            heappush(self._waiting, (index, self._serial, act))

    def run(self) -> bool:
        """Apply for at most one slice of time; whether there is more to apply."""
        if not self._entries:
            return False
        until = self._clock.seconds() + APPLY_SLICE_S
        while self._entries:
            entry = self._entries[0]
            result = self._apply(entry, until)
            if result is None:
                break
            self._entries.popleft()
            self.applied_index = entry.index
            self._on_applied(entry, result)
            while self._waiting and self._waiting[0][0] <= entry.index:
                heappop(self._waiting)[2]()
            if self._clock.seconds() >= until:
                break
        return bool(self._entries)

    def _apply(self, entry: Entry, until: float) -> bytes | None:
        """The result of an entry; None if it takes longer than this slice."""
        if entry.kind != EntryKind.COMMAND:
            return b""
        if self._under_way is None:
            result = self._state_machine.apply(
                entry.index, entry.time_ms, decode_command(entry.data)
            )
            if isinstance(result, bytes):
                return result
            self._under_way = result
        try:
            while True:
                next(self._under_way)
                if self._clock.seconds() >= until:
                    return None
        except StopIteration as stop:
            self._under_way = None
            if not isinstance(stop.value, bytes):
                # Not to be taken for an application that goes on.
                raise TypeError(f"the result of a command is {stop.value!r}") from None
            return stop.value
