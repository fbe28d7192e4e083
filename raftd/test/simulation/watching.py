"""
Watchers: who hear of every change, in order and once, across any failure.

What a watch is given is compared with what the first node to apply it did,
revision by revision; and it goes into the history for the judge of watches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftd.errors import Compacted, RaftdError
from raftd.kv.interfaces import Changes, Event, IWatch, Selection
from raftd.test.judge.history import Change
from raftd.test.simulation.asking import END, FIRST
from raftd.test.simulation.invariants import Effect

if TYPE_CHECKING:
    from raftd.test.simulation.clients import Clients
    from raftd.test.simulation.hosts import Process

#: When a watch that has ended is begun again, in seconds.
RESUME_S = 0.1
SELECTION = Selection(FIRST.encode(), END.encode())


class Watcher:
    """
    One watch of all keys, begun again wherever it has ended.

    Invariant: it has been given whatever changed up to `_done`, and `_part` of
    the next revision.
    """

    def __init__(self, clients: Clients, number: int) -> None:
        self._clients = clients
        self._number = number
        self._process: Process | None = None
        self._watch: IWatch | None = None
        self._done = 1
        self._part: list[Effect] = []
        self._resumes = False
        self.events = 0

    def start(self) -> None:
        """Watch at some node, from where it was."""
        clients = self._clients
        if not clients.simulation.is_watched or self._watch is not None:
            return
        process = self._process or clients.some_process()
        self._process = process
        if process is None:
            self._start_later()
        else:
            process.clock.enter(lambda: self._begin(process))

    def _start_later(self) -> None:
        self._clients.simulation.world.callLater(RESUME_S, self.start)

    def _begin(self, process: Process) -> None:
        recorder = self._clients.recorder
        revision = self._done + 1
        recorder.watch(self._number, FIRST, END, revision, self._resumes)
        self._resumes = True
        try:
            self._watch = process.service.database.watch(SELECTION, revision, self._draw)
        except Compacted as e:
            self._compacted(e)
        except RaftdError:
            self._clients.simulation.require(False, "a watch was refused")
        else:
            self._draw()

    def _draw(self) -> None:
        """Take all that there is."""
        watch = self._watch
        if watch is None:
            return
        try:
            while (changes := watch.take()) is not None:
                self._take(changes)
        except Compacted as e:
            watch.close()
            self._compacted(e)
            return
        if not self._part and watch.progress > self._done:
            self._pass_to(watch.progress)
            self._clients.recorder.progress(self._number, self._done)

    def _compacted(self, e: Compacted) -> None:
        """What comes next is gone; it goes on behind that."""
        require = self._clients.simulation.require
        require(e.revision > self._done, f"revision {self._done + 1} was not compacted")
        asked = self._clients.compacted
        require(e.revision <= asked, f"compacted to {e.revision}, and {asked} was asked for")
        self._clients.recorder.compacted(self._number, e.revision)
        self._clients.simulation.count("watch compacted")
        self._watch, self._part = None, []
        self._done, self._resumes = e.revision, False
        self._start_later()

    def _take(self, changes: Changes) -> None:
        require = self._clients.simulation.require
        if changes.revision > self._done + 1:
            require(not self._part, f"the rest of revision {self._done + 1} never came")
            self._pass_to(changes.revision - 1)
        require(changes.revision == self._done + 1, f"revision {changes.revision} came late")
        self._part += map(_effect, changes.events)
        self.events += len(changes.events)
        self._clients.recorder.changed(
            self._number, changes.revision, map(_change, changes.events), changes.last
        )
        if changes.last:
            wanted, part = self._wanted(changes.revision), self._part
            require(part == wanted, f"revision {changes.revision}: {part}, and not {wanted}")
            self._done, self._part = changes.revision, []

    def _pass_to(self, revision: int) -> None:
        """Nothing of this range has changed up to there."""
        for passed in range(self._done + 1, revision + 1):
            text = f"watcher {self._number} was not told of revision {passed}"
            self._clients.simulation.require(not self._wanted(passed), text)
        self._done = revision

    def _wanted(self, revision: int) -> list[Effect]:
        effects = self._clients.simulation.invariants.effects.get(revision)
        require = self._clients.simulation.require
        require(effects is not None, f"a watch was told of revision {revision} too early")
        first, end = SELECTION.key, SELECTION.range_end
        return [effect for effect in effects or () if first <= effect.key < end]

    def lost(self, process: Process) -> None:
        """Its process has died."""
        if process is self._process:
            self._process = None
            if self._watch is not None:
                self._watch, self._part = None, []
                self._clients.recorder.broken(self._number)
            self._start_later()

    def move_to(self, process: Process) -> None:
        """Watch there, unless it does already."""
        if self._process is process and self._watch is not None:
            return
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
            self._part = []
            self._clients.recorder.broken(self._number)
        self._process = process
        process.clock.enter(lambda: self._begin(process))

    def check_complete(self, revision: int) -> None:
        """In the end it has heard of everything; what is not of its range does not call it."""
        self._pass_to(max(revision, self._done))


def _effect(event: Event) -> Effect:
    record = event.record
    return Effect(record.key, record.value if record.version else None, record.version)


def _change(event: Event) -> Change:
    record = event.record
    value = None if event.is_delete else record.value.decode()
    if event.is_delete:
        return Change(record.key.decode(), value)
    return Change(
        record.key.decode(),
        value,
        create_revision=record.create_revision,
        version=record.version,
    )
