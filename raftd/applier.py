"""Applying committed entries to the state machine, in order and in slices of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from heapq import heappop, heappush

from twisted.internet.interfaces import IReactorTime

from raftd.core.messages import Entry, EntryKind, decode_command
from raftd.core.snapshot import SnapshotMetadata
from raftd.interfaces import IStateMachine

#: How long applying may keep the reactor, so that no heartbeat is late.
APPLY_SLICE_S = 0.005
#: What an entry takes besides its data, more or less, in `Applier.applied_bytes`.
ENTRY_OVERHEAD_BYTES = 32


class Applier:
    """
    Invariant: `applied_index` is that of the last entry whose application has
    ended, or of the snapshot that the state was restored from; one entry at
    most is under way, and none while the state is being restored.
    """

    def __init__(
        self,
        clock: IReactorTime,
        state_machine: IStateMachine,
        restored: SnapshotMetadata | None,
        on_applied: Callable[[Entry, bytes], None],
    ) -> None:
        """
        `restored` is what the state machine holds already; `on_applied(entry,
        result)` is called after each entry and must not raise.
        """
        self._clock = clock
        self._state_machine = state_machine
        self.applied_index = 0 if restored is None else restored.last_included_index
        #: How much of the log was applied by this; what was restored does not count.
        self.applied_bytes = 0
        #: The greatest leader's time that was applied.
        self.time_ms = 0 if restored is None else restored.time_ms
        self._on_applied = on_applied
        self._entries: deque[Entry] = deque()
        #: The application of the first of `_entries`, if it is under way.
        self._under_way: Generator[None, None, bytes] | None = None
        #: Begins to restore the state, as soon as nothing is under way.
        self._begin_restore: Callable[[], None] | None = None
        self._restoring = False
        #: (index, serial, what to do once it is applied).
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0

    def add(self, committed: Iterable[Entry]) -> None:
        """Committed entries that follow those given before, or the snapshot."""
        self._entries.extend(committed)

    @property
    def is_between_entries(self) -> bool:
        """Whether the state is exactly that of `applied_index`, so that a snapshot may be."""
        return self._under_way is None and not self._restoring

    def when_applied(self, index: int, act: Callable[[], None]) -> None:
        """Call `act` when `index` is applied, which may be now."""
        if index <= self.applied_index:
            act()
        else:
            self._serial += 1
            heappush(self._waiting, (index, self._serial, act))

    # -- restoring -----------------------------------------------------------

    def restore(self, begin: Callable[[], None]) -> None:
        """
        Let a snapshot take the place of all entries added so far.

        `begin` is called when the application under way has ended, and whoever
        gave it calls `restored` in the end.
        """
        del_from = 1 if self._under_way is not None else 0
        while len(self._entries) > del_from:
            self._entries.pop()
        self._restoring = True
        self._begin_restore = begin
        self._restore_if_idle()

    def _restore_if_idle(self) -> None:
        if self._begin_restore is not None and self._under_way is None:
            begin, self._begin_restore = self._begin_restore, None
            begin()

    def restored(self, metadata: SnapshotMetadata) -> None:
        """The state is that of the snapshot now."""
        self._restoring = False
        self.applied_index = metadata.last_included_index
        self.time_ms = max(self.time_ms, metadata.time_ms)
        self._tell_waiting()

    # -- applying ------------------------------------------------------------

    def run(self) -> bool:
        """Apply for at most one slice of time; whether there is more to apply."""
        if not self._entries or (self._restoring and self._under_way is None):
            return False
        entries, seconds = self._entries, self._clock.seconds
        until = seconds() + APPLY_SLICE_S
        while entries:
            entry = entries[0]
            result = self._apply(entry, until)
            if result is None:
                break
            entries.popleft()
            self.applied_index = entry.index
            self.applied_bytes += len(entry.data) + ENTRY_OVERHEAD_BYTES
            if entry.time_ms > self.time_ms:
                self.time_ms = entry.time_ms
            self._on_applied(entry, result)
            if self._waiting:
                self._tell_waiting()
            if self._restoring:
                self._restore_if_idle()
                return False
            if seconds() >= until:
                break
        return bool(entries)

    def _tell_waiting(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.applied_index:
            heappop(self._waiting)[2]()

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
