"""A history of changes for tests of watches, and what a watch of it must see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from raftd.core.messages import Command
from raftd.errors import Compacted
from raftd.kv.interfaces import Changes, Event, IWatch, Selection
from raftd.kv.operations import (
    EVERY_KEY,
    Compact,
    DeleteRangeWith,
    Operation,
    Put,
    PutWith,
    Transaction,
    encode_operation,
)
from raftd.kv.results import KeyValue
from raftd.kv.store import Store

Write = tuple[bytes, bytes | None]


class Past:
    """
    What `WatchHub` needs of a store, in the plainest way.

    `expected` is the model: it is made of what was written, not of what the
    methods for the hub say.
    """

    def __init__(self) -> None:
        self.revision = 1
        self.compacted_revision = 1
        self.on_change: Callable[[], None] | None = None
        self._live: dict[bytes, KeyValue] = {}
        self._changes: dict[int, dict[bytes, Event]] = {}
        self.looks = 0

    @property
    def watched(self) -> Past:
        """What a hub is given."""
        return self

    def write(self, *writes: Write) -> int:
        """Put, or with None delete, all in one revision, which is returned."""
        revision = self.revision + 1
        changes: dict[bytes, Event] = {}
        for key, value in writes:
            old = self._live.pop(key, None)
            if value is not None:
                created = revision if old is None else old.create_revision
                version = 1 if old is None else old.version + 1
                record = KeyValue(key, value, created, revision, version)
                self._live[key] = record
            elif old is None:
                continue
            else:
                record = KeyValue(key, b"", 0, revision, 0)
            changes[key] = Event(record, old)
        if changes:
            self._changes[revision] = changes
            self.revision = revision
            self._changed()
        return self.revision

    def compact(self, revision: int) -> None:
        self.compacted_revision = revision
        for old in [r for r in self._changes if r <= revision]:
            del self._changes[old]
        self._changed()

    def restore(self, other: Past) -> None:
        """Become `other`, as by a snapshot."""
        self.revision = other.revision
        self.compacted_revision = other.compacted_revision
        self._live = dict(other._live)
        self._changes = {
            r: c for r, c in other._changes.items() if r > other.compacted_revision
        }
        self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def changed_keys(self, revision: int) -> Sequence[bytes]:
        assert self.compacted_revision < revision <= self.revision
        self.looks += 1
        return tuple(self._changes[revision])

    def event(self, key: bytes, revision: int, previous: bool) -> Event:
        event = self._changes[revision][key]
        return event if previous else Event(event.record)

    def expected(self, selection: Selection, first: int, last: int) -> dict[int, list[Event]]:
        """What a watch sees of the revisions from `first` to `last`, by revision."""
        found: dict[int, list[Event]] = {}
        for revision in range(first, last + 1):
            for key, event in self._changes[revision].items():
                if inside(selection, key) and (
                    selection.deletes if event.record.version == 0 else selection.puts
                ):
                    found.setdefault(revision, []).append(
                        event if selection.previous else Event(event.record)
                    )
        return found


class Real:
    """A store, written to as a `Past` is."""

    def __init__(self) -> None:
        self.watched = Store()

    @property
    def revision(self) -> int:
        return self.watched.revision

    @property
    def compacted_revision(self) -> int:
        return self.watched.compacted_revision

    def write(self, *writes: Write) -> int:
        if len(writes) == 1 and writes[0][1] is not None:
            self._apply(Put(writes[0][0], writes[0][1]))
        else:
            steps = tuple(
                DeleteRangeWith(key) if value is None else PutWith(key, value)
                for key, value in writes
            )
            self._apply(Transaction((), steps))
        return self.revision

    def compact(self, revision: int) -> None:
        self._apply(Compact(revision))

    def restore(self, other: Real) -> None:
        restore = self.watched.restore()
        for data in other.watched.snapshot():
            restore.write(data)
        restore.finish()

    def _apply(self, operation: Operation) -> None:
        result = self.watched.apply(1, 1, Command(encode_operation(operation)))
        if not isinstance(result, bytes):
            for _ in result:
                pass


def inside(selection: Selection, key: bytes) -> bool:
    if not selection.range_end:
        return key == selection.key
    return key >= selection.key and (
        selection.range_end == EVERY_KEY or key < selection.range_end
    )


class Reader:
    """Draws from a watch whenever it is called, and keeps what it was given."""

    def __init__(self) -> None:
        self.watch: IWatch | None = None
        self.pieces: list[Changes] = []
        self.calls = 0
        self.compacted: int | None = None
        #: Draws so many pieces at a call; the rest when `draw` is called again.
        self.appetite = 10**9

    def ready(self) -> None:
        self.calls += 1
        self.draw()

    def draw(self) -> bool:
        """Whether it has come to the end of what there is."""
        assert self.watch is not None
        for _ in range(self.appetite):
            try:
                changes = self.watch.take()
            except Compacted as e:
                self.compacted = e.revision
                return True
            if changes is None:
                return True
            self.pieces.append(changes)
        return False

    def seen(self) -> dict[int, list[Event]]:
        """The complete revisions, in the order of arrival; AssertionError if it is none."""
        return joined(self.pieces)


def joined(pieces: Iterable[Changes]) -> dict[int, list[Event]]:
    """Revisions that are complete, put together from their pieces."""
    found: dict[int, list[Event]] = {}
    latest, is_open, events = 0, False, list[Event]()
    for piece in pieces:
        if is_open:
            assert piece.revision == latest, "another revision within one"
        else:
            assert piece.revision > latest, f"{piece.revision} behind {latest}"
            assert piece.events, "nothing has changed"
            events = []
        latest, is_open = piece.revision, not piece.last
        events += piece.events
        if piece.last:
            found[latest] = events
    return found
