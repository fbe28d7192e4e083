"""
Watches: what the store's history has for those who want to hear of changes.

Nothing is kept for a reader.  A watch is a place in the history: the revision
that its reader comes to next, and how far into that.  `take` goes on from
there.  A reader who has drawn everything is *idle*, and costs nothing until
its range is touched; a slow one costs no more than its place.

When the store has changed, one call in the next turn of the reactor walks
along the new revisions, finds by their keys which ranges were touched, and
calls `on_ready` of the idle watches of those: in slices, so that ten thousand
watches delay no heartbeat.

Watches of one `Selection` are a group.  What one of them has found is kept
for a while for the others, so that a thousand watches of a key cost one walk,
and one encoding.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple
from typing import Protocol as Shape

from twisted.logger import Logger
from zope.interface import implementer

from raftd.errors import Compacted, Overloaded
from raftd.kv.interfaces import Changes, Event, IWatch, Selection
from raftd.kv.operations import EVERY_KEY
from raftd.kv.refusals import compacted
from raftd.kv.results import KeyValue

#: Watches at once; as many as there may be connections.
MAX_WATCHES: Final = 20_000

#: Where one piece of a revision ends, in bytes of keys and values; the event
#: that reaches it is whole.
PIECE_BYTES: Final = 64 * 1024

#: Keys and revisions that one `take` looks at: one to three milliseconds.
MAX_SCANNED: Final = 1_000

#: For how long one call walks, and wakes, in seconds.
WALK_SLICE_S: Final = 0.002
WAKE_SLICE_S: Final = 0.003
#: How often it looks at the clock: so many keys, or watches.
CLOCK_EVERY: Final = 16

#: What was found, kept for the other watches of a group: so many steps, and so
#: many bytes of keys and values.
MAX_KEPT_STEPS: Final = 4_096
MAX_KEPT_BYTES: Final = 16 * 1024 * 1024

#: What an event is reckoned at beside its keys and values, in bytes.
_EVENT_BYTES = 128

_log = Logger()


class _Store(Shape):
    """What is needed of the store (`raftd.kv.store.Store`)."""

    #: Called within apply or restore when one of the next two has moved.
    on_change: Callable[[], None] | None

    @property
    def revision(self) -> int: ...
    @property
    def compacted_revision(self) -> int: ...
    def changed_keys(self, revision: int) -> Sequence[bytes]: ...
    def event(self, key: bytes, revision: int, previous: bool) -> Event: ...


class _Clock(Shape):
    """What is needed of the reactor."""

    def seconds(self) -> float: ...
    def callLater(self, delay: float, callable: Callable[[], object]) -> Any: ...


class _State(Enum):
    #: Its reader is at it, or will be: it was called.
    READY = 1
    #: Nothing was left for it; in its group's `idle`.
    IDLE = 2
    #: It is to be called; in the hub's `_due`.
    DUE = 3
    CLOSED = 4


class _Place(NamedTuple):
    """`position` keys of `revision` were looked at; `is_open`: a part of it was given."""

    revision: int
    position: int = 0
    is_open: bool = False


class _Step(NamedTuple):
    """From one place to the next: with what was found between, if anything was."""

    changes: Changes | None
    next: _Place
    size: int


class _Group:
    """
    The watches of one selection.

    Invariant: outside of a walk `first` is None; within it, `first` and `last`
    are where it has touched the range first, and in which revision last.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.start = selection.key
        self.is_key = not selection.range_end
        #: None: there is none.
        self.end = None if selection.range_end == EVERY_KEY else selection.range_end
        self.watches = 0
        self.idle: dict[Watch, None] = {}
        self.first: _Place | None = None
        self.last = 0

    def has(self, key: bytes) -> bool:
        if self.is_key:
            return key == self.start
        return self.start <= key and (self.end is None or key < self.end)

    def prefix(self) -> bytes | None:
        """What all keys in the range, and no others, begin with; None: nothing does."""
        if self.is_key:
            return None
        if self.end is None:
            return b"" if self.start in (b"", b"\0") else None
        return self.start if self.end == _behind_prefix(self.start) else None


def _behind_prefix(prefix: bytes) -> bytes | None:
    """The end of the range of keys that begin with `prefix`; None if it has none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


class _Index:
    """Which groups a key touches: keys and prefixes are looked up, other ranges compared."""

    def __init__(self) -> None:
        self._keys: dict[bytes, list[_Group]] = {}
        #: By length, so that a key is cut once for each length in use.
        self._prefixes: dict[int, dict[bytes, list[_Group]]] = {}
        self._others: list[_Group] = []

    def add(self, group: _Group) -> None:
        prefix = group.prefix()
        if group.is_key:
            self._keys.setdefault(group.start, []).append(group)
        elif prefix is not None:
            prefixes = self._prefixes.setdefault(len(prefix), {})
            prefixes.setdefault(prefix, []).append(group)
        else:
            self._others.append(group)

    def remove(self, group: _Group) -> None:
        prefix = group.prefix()
        if group.is_key:
            _remove(self._keys, group.start, group)
        elif prefix is not None:
            prefixes = self._prefixes[len(prefix)]
            _remove(prefixes, prefix, group)
            if not prefixes:
                del self._prefixes[len(prefix)]
        else:
            self._others.remove(group)

    def touched_by(self, key: bytes) -> list[_Group]:
        found = list(self._keys.get(key, ()))
        for length, prefixes in self._prefixes.items():
            found += prefixes.get(key[:length], ())
        if self._others:
            found += [group for group in self._others if group.has(key)]
        return found


def _remove(groups: dict[bytes, list[_Group]], key: bytes, group: _Group) -> None:
    groups[key].remove(group)
    if not groups[key]:
        del groups[key]


@implementer(IWatch)
class Watch:
    """One reader's place (`IWatch`)."""

    __slots__ = ("_group", "_hub", "on_ready", "place", "state")

    def __init__(
        self, hub: WatchHub, group: _Group, place: _Place, on_ready: Callable[[], None]
    ) -> None:
        self._hub = hub
        self._group = group
        #: An idle watch may be further: where the hub's walk is.
        self.place = place
        self.on_ready = on_ready
        self.state = _State.READY

    @property
    def progress(self) -> int:
        progress = self.place.revision - 1
        if self.state is _State.IDLE:
            return max(progress, self._hub.walked)
        return progress

    def take(self) -> Changes | None:
        if self.state is _State.CLOSED:
            return None
        if self.state is _State.IDLE:
            self._hub.wake(self)
        self.state = _State.READY
        step = self._hub.find(self._group, self.place)
        self.place = step.next
        if step.changes is None:
            self._hub.found_nothing(self, self._group)
        return step.changes

    def close(self) -> None:
        if self.state is not _State.CLOSED:
            self._hub.closed(self, self._group)
            self.state = _State.CLOSED
            # As a rule this is a method of whoever has this watch: no reference cycle is left.
            self.on_ready = _nobody


class WatchHub:
    """
    All watches of one store; `len` says how many.

    It takes the store's `on_change` for itself, while there are any: it is called
    for each change.  `clock` is the reactor.

    Invariant: an idle watch has seen, or its group was not touched by, every
    revision up to `walked`, and the first `_position` keys of the next.
    """

    def __init__(self, store: _Store, clock: _Clock) -> None:
        self._store = store
        self._clock = clock
        self._groups: dict[Selection, _Group] = {}
        self._index = _Index()
        self._count = 0
        self.walked = store.revision
        self._position = 0
        #: Groups that the present walk has touched.
        self._touched: list[_Group] = []
        #: To be called; one may be here twice, or not be `DUE` any more.
        self._due: deque[Watch] = deque()
        self._call: Any = None
        self._kept: OrderedDict[tuple[_Group, _Place], _Step] = OrderedDict()
        self._kept_bytes = 0
        self._is_closed = False

    def __len__(self) -> int:
        return self._count

    def watch(self, selection: Selection, revision: int, on_ready: Callable[[], None]) -> Watch:
        """As `IDatabase.watch`; `Overloaded` raised if there are too many."""
        store = self._store
        if self._count >= MAX_WATCHES:
            raise Overloaded(f"There are {MAX_WATCHES} watches already.")
        if not revision:
            revision = store.revision + 1
        # The first revision is that of the empty store, and has changed nothing.
        place = _Place(max(revision, 2))
        self._check_there(place.revision)
        if not self._count:
            self.walked, self._position = store.revision, 0
            if not self._is_closed:
                store.on_change = self._schedule
        group = self._groups.get(selection)
        if group is None:
            group = self._groups[selection] = _Group(selection)
            self._index.add(group)
        group.watches += 1
        self._count += 1
        return Watch(self, group, place, on_ready)

    def close(self) -> None:
        """Call nobody any more."""
        self._is_closed = True
        self._store.on_change = None
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._due.clear()

    # -- for watches ---------------------------------------------------------------

    def find(self, group: _Group, place: _Place) -> _Step:
        """What comes behind `place`; `Compacted` raised if it was compacted."""
        if place.revision > self._store.revision:
            return _Step(None, place, 0)
        self._check_there(place.revision)
        if group.watches == 1:
            return self._walk_on(group, place)
        step = self._kept.get((group, place))
        if step is None:
            step = self._walk_on(group, place)
            self._keep(group, place, step)
        return step

    def found_nothing(self, watch: Watch, group: _Group) -> None:
        """Call it when there is something; soon, if it has not come to the end."""
        if watch.place.revision > self._store.revision:
            watch.state = _State.IDLE
            group.idle[watch] = None
        else:
            self._call_soon(watch)

    def wake(self, watch: Watch) -> None:
        """It is drawn from though it was not called."""
        del watch._group.idle[watch]
        if watch.place.revision <= self.walked:
            watch.place = _Place(self.walked + 1)

    def closed(self, watch: Watch, group: _Group) -> None:
        """Forget it."""
        group.idle.pop(watch, None)
        group.watches -= 1
        self._count -= 1
        if not self._count:
            self._store.on_change = None
        if not group.watches:
            del self._groups[group.selection]
            self._index.remove(group)

    def _check_there(self, revision: int) -> None:
        if revision <= self._store.compacted_revision:
            refusal = compacted(self._store.compacted_revision)
            raise Compacted(refusal.message, refusal.revision)

    def _walk_on(self, group: _Group, place: _Place) -> _Step:
        """Look at the keys from `place` on, until there is something, or for long enough."""
        store = self._store
        selection = group.selection
        revision, position, is_open = place
        left = MAX_SCANNED
        while revision <= store.revision and left > 0:
            keys = store.changed_keys(revision)
            count = len(keys)
            end = min(count, position + left)
            left -= end - position + 1
            events: list[Event] = []
            size = 0
            while position < end and size < PIECE_BYTES:
                key = keys[position]
                position += 1
                if not group.has(key):
                    continue
                event = store.event(key, revision, selection.previous)
                if selection.deletes if event.is_delete else selection.puts:
                    events.append(event)
                    size += _size(event.record) + _size(event.previous)
                if group.is_key:
                    # A revision has it once only.
                    position = count
            is_last = position == count
            after = _Place(revision + 1) if is_last else _Place(revision, position, is_open)
            if events or (is_open and is_last):
                changes = Changes(revision, tuple(events), is_last)
                return _Step(changes, after if is_last else after._replace(is_open=True), size)
            if not is_last:
                return _Step(None, after, 0)
            revision, position, is_open = after
        return _Step(None, _Place(revision), 0)

    def _keep(self, group: _Group, place: _Place, step: _Step) -> None:
        kept = self._kept
        kept[group, place] = step
        self._kept_bytes += step.size
        while len(kept) > MAX_KEPT_STEPS or self._kept_bytes > MAX_KEPT_BYTES:
            _, old = kept.popitem(last=False)
            self._kept_bytes -= old.size

    # -- waking --------------------------------------------------------------------

    def _schedule(self) -> None:
        """Deliver soon; cheap, for it is called while the store is changing."""
        if self._call is None:
            self._call = self._clock.callLater(0, self._deliver)

    def _call_soon(self, watch: Watch) -> None:
        watch.state = _State.DUE
        self._due.append(watch)
        self._schedule()

    def _deliver(self) -> None:
        """Walk for a while, wake for a while, and go on in the next turn if need be."""
        self._call = None
        if not self._count:
            return
        self._walk()
        touched, self._touched = self._touched, []
        for group in touched:
            self._wake_touched(group)
        self._wake_due()
        if self._due or self.walked < self._store.revision:
            self._schedule()

    def _walk(self) -> None:
        """Along the revisions that the store has added, to see what they touch."""
        store = self._store
        seconds = self._clock.seconds
        deadline = seconds() + WALK_SLICE_S
        looks = 0
        while self.walked < store.revision:
            if self.walked < store.compacted_revision:
                # A snapshot has taken the place of what was to be walked along.
                self._pass_over(store.compacted_revision)
                continue
            revision = self.walked + 1
            keys = store.changed_keys(revision)
            count = len(keys)
            while self._position < count:
                self._touch(keys[self._position], revision)
                self._position += 1
                looks += 1
                if not looks % CLOCK_EVERY and seconds() >= deadline:
                    break
            else:
                self.walked, self._position = revision, 0
                looks += 1
                if looks % CLOCK_EVERY or seconds() < deadline:
                    continue
            break

    def _touch(self, key: bytes, revision: int) -> None:
        for group in self._index.touched_by(key):
            if not group.idle:
                continue
            if group.first is None:
                group.first = _Place(revision, self._position)
                self._touched.append(group)
            group.last = revision

    def _pass_over(self, revision: int) -> None:
        """All up to `revision` is gone: whoever has not seen it is to be told."""
        next_place = _Place(self.walked + 1)
        for group in self._groups.values():
            for watch in [w for w in group.idle if w.place.revision <= revision]:
                del group.idle[watch]
                watch.place = max(watch.place, next_place)
                self._call_soon(watch)
        self.walked, self._position = revision, 0

    def _wake_touched(self, group: _Group) -> None:
        first, group.first = group.first, None
        assert first is not None
        idle = group.idle
        group.idle = {}
        for watch in idle:
            if watch.place.revision > group.last:
                # It begins in the future, or has come further by itself.
                group.idle[watch] = None
                continue
            if watch.place.revision < first.revision:
                watch.place = first
            watch.state = _State.DUE
            self._due.append(watch)

    def _wake_due(self) -> None:
        due = self._due
        seconds = self._clock.seconds
        deadline = seconds() + WAKE_SLICE_S
        # Those that are put back meanwhile have the next turn.
        for n in range(len(due)):
            if n and seconds() >= deadline:
                break
            watch = due.popleft()
            if watch.state is not _State.DUE:
                continue
            watch.state = _State.READY
            try:
                watch.on_ready()
            except Exception:
                _log.failure("a reader of a watch failed")


def _nobody() -> None:
    """Whom a watch calls that is closed."""


def _size(record: KeyValue | None) -> int:
    """About what it takes in memory and on the way, in bytes."""
    return 0 if record is None else len(record.key) + len(record.value) + _EVENT_BYTES
