"""
The judge of watches: what they showed, against one another and the operations.

A watch is *ordered* (revisions rise), *unique* (none comes twice, nor a key
twice in one), *complete* (whatever is known to have changed in its range is
there, from where it began to where it is), *atomic* (a revision comes whole),
*resumable* (behind a broken stream it goes on with the next revision; what had
come of an incomplete one comes again), and *never from the future* (nothing is
shown before it was asked for, nor anything that certainly never happened, nor
at another revision than its answer has told).

What changed is known from three sources: answers that tell a revision, all
watches together, and, within one watch, `version` and `create_revision`, which
tell of changes that it did not show.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from msgspec import UNSET

from raftd.test.judge.calls import (
    Append,
    Call,
    CompareAndSet,
    Delete,
    Put,
    Result,
    Scalar,
    Transaction,
    is_inside,
)
from raftd.test.judge.history import (
    BadHistory,
    Change,
    Changed,
    Compacted,
    History,
    Operation,
    Progress,
    Watch,
    WatchLine,
)
from raftd.test.judge.revisions import changes, taken


class _Unsure:
    """Stands for a value that the operation alone does not tell."""


_UNSURE = _Unsure()

#: What a key became; None: it was deleted.
_Value = Scalar | None | _Unsure


def judge_watches(history: History, has_all_writes: bool = True) -> list[str]:
    """
    What is wrong with the watches of a history, in words; empty if nothing is.
    `BadHistory` raised if something comes to who does not watch.

    `has_all_writes`: every write of the watched keys is an operation of the
    history, those of unknown outcome and the expiry of leases included.
    """
    if not history.watched:
        return []
    streams: dict[int, _Stream] = {}
    told = _Told(history.operations)
    for number, line in history.watched:
        process = line.process
        if isinstance(line, Watch):
            if process not in streams:
                streams[process] = _Stream(process)
            streams[process].begin(number, line, told.acknowledged(number))
        elif process not in streams:
            raise BadHistory(f"line {number}: process {process} does not watch")
        else:
            streams[process].take(number, line)
    wrong = [text for stream in streams.values() for text in stream.wrong]
    truth = _Truth(told)
    for stream in streams.values():
        wrong += truth.learn(stream)
    for stream in streams.values():
        wrong += truth.missed(stream)
    if has_all_writes:
        origins = _Origins(history.operations)
        for stream in streams.values():
            wrong += origins.missing(stream)
    return wrong


# -- one watch by itself ---------------------------------------------------------


class _Part:
    """
    What a stream has seen without a gap: of the range, from `first` to `last`.

    `first` is None until it is known: a watch from now on begins with the
    first thing that it is told.
    """

    def __init__(self, line: Watch, first: int | None) -> None:
        self.start, self.end = line.key, line.end
        self.first = first
        self.last = 0 if first is None else first - 1


class _Stream:
    """The lines of one process, each judged by those before it."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.wrong: list[str] = []
        self.parts: list[_Part] = []
        #: By revision: the line at which it began, and what it changed.
        self.seen: dict[int, tuple[int, dict[str, Change]]] = {}
        #: By key: the last revision that has shown it, and how.
        self._shown: dict[str, tuple[int, Change]] = {}
        #: The revision of which only a part has come.
        self._incomplete: int | None = None
        #: Nothing at or below this may come.
        self._behind = 0
        self._is_compacted = False

    def begin(self, number: int, line: Watch, acknowledged: int) -> None:
        """It asks for changes, when `acknowledged` was the greatest revision answered."""
        self._drop_incomplete()
        self._is_compacted = False
        part = self.parts[-1] if self.parts else None
        if line.resumes and part is not None:
            goes_on = part.first is not None
            if (line.key, line.end) != (part.start, part.end):
                self._say(number, "it goes on with another range")
            if goes_on and line.revision not in (0, part.last + 1):
                self._say(
                    number,
                    f"it goes on at revision {line.revision}, but {part.last} was complete",
                )
            if goes_on:
                return
        self._shown.clear()
        self.parts.append(_Part(line, line.revision or None))
        self._behind = line.revision - 1 if line.revision else acknowledged

    def take(self, number: int, line: WatchLine) -> None:
        """Something has come."""
        if self._is_compacted:
            self._say(number, "something came after it was told that it is compacted")
        if isinstance(line, Changed):
            self._changed(number, line)
        elif isinstance(line, Progress):
            self._cut(number)
            self._progress(number, line.revision)
        elif isinstance(line, Compacted):
            self._cut(number)
            self._is_compacted = True
            if line.revision < self._behind + 1 and self.parts[-1].first is not None:
                self._say(
                    number,
                    f"revisions up to {line.revision} are compacted, but "
                    f"{self._behind + 1} is the next",
                )
        else:
            self._drop_incomplete()

    def _changed(self, number: int, line: Changed) -> None:
        part, revision = self.parts[-1], line.revision
        if self._incomplete is not None and revision != self._incomplete:
            self._cut(number)
        if self._incomplete is None:
            if revision <= self._behind:
                again = revision in self.seen
                how = "comes again" if again else "is out of order"
                self._say(number, f"revision {revision} {how}, behind {self._behind}")
                return
            if not line.changes and line.last:
                self._say(number, f"revision {revision} changes nothing")
            self._incomplete = revision
            self.seen[revision] = (number, {})
        shown = self.seen[revision][1]
        for change in line.changes:
            if not is_inside(change.key, part.start, part.end):
                self._say(number, f"{change.key!r} is not in its range")
            elif change.key in shown:
                self._say(number, f"{change.key!r} comes twice in revision {revision}")
            else:
                shown[change.key] = change
        if line.last:
            for change in shown.values():
                self._follow(number, revision, change)
            self._incomplete = None
            if part.first is None:
                part.first = revision
            part.last = self._behind = revision

    def _progress(self, number: int, revision: int) -> None:
        part = self.parts[-1]
        if part.first is None:
            part.first = max(revision, self._behind) + 1
            part.last = self._behind = max(revision, self._behind)
        elif revision > part.last:
            part.last = self._behind = revision

    def _follow(self, number: int, revision: int, change: Change) -> None:
        """Whether a change follows from the last that the watch has shown of its key."""
        before = self._shown.get(change.key)
        self._shown[change.key] = (revision, change)
        is_first = before is None or before[1].value is None
        where = f"{change.key!r} in revision {revision}"
        if before is None:
            self._follow_nothing(number, where, revision, change)
        if change.value is None:
            if before is not None and is_first:
                self._say(number, f"{where} is deleted once more")
        elif is_first:
            if before is not None and not _may_be(change.version, 1):
                self._say(number, f"{where} has version {change.version} behind a delete")
            if before is not None and not _may_be(change.create_revision, revision):
                self._say(number, f"{where} was created at {change.create_revision} already")
        elif before is not None:
            old = before[1]
            if old.version is not UNSET and not _may_be(change.version, old.version + 1):
                self._say(number, f"{where} has version {change.version} behind {old.version}")
            if old.create_revision is not UNSET and not _may_be(
                change.create_revision, old.create_revision
            ):
                self._say(number, f"{where} was created anew, with no delete before it")
        if before is not None and not _may_be(change.previous, before[1].value):
            self._say(
                number,
                f"{where} was {change.previous!r} before, but shown as {before[1].value!r}",
            )

    def _follow_nothing(self, number: int, where: str, revision: int, change: Change) -> None:
        """Whether the first change of a key can be the first since the watch began."""
        first, created = self.parts[-1].first, change.create_revision
        if created is UNSET or change.value is None:
            return
        if first is not None and first <= created < revision:
            self._say(number, f"{where} was created at {created}, which was not shown")
        if created != revision and change.version == 1:
            self._say(number, f"{where} has version 1, and was created at {created}")

    def _cut(self, number: int) -> None:
        if self._incomplete is not None:
            self._say(number, f"revision {self._incomplete} is not complete")
            self._drop_incomplete()

    def _drop_incomplete(self) -> None:
        """What has come of it comes again."""
        if self._incomplete is not None:
            del self.seen[self._incomplete]
            self._incomplete = None

    def _say(self, number: int, text: str) -> None:
        self.wrong.append(f"watch of process {self.process}, line {number}: {text}")


def _may_be(shown: object, expected: object) -> bool:
    return shown is UNSET or shown == expected


# -- all watches and answers together ------------------------------------------------


class _Told:
    """What answers have told: by revision, what it changed, as far as that is known."""

    def __init__(self, operations: list[Operation]) -> None:
        self.changes: dict[int, tuple[Operation, dict[str, _Value]]] = {}
        self._ends: list[tuple[int, int]] = []
        for operation in operations:
            result = operation.result
            if result is None or result.revision is UNSET or operation.returned is None:
                continue
            self._ends.append((operation.returned, result.revision))
            values = dict(_changes(operation.call, result))
            if values:
                self.changes[result.revision] = (operation, values)
        self._ends.sort()

    def acknowledged(self, number: int) -> int:
        """The greatest revision that was answered before a line."""
        return max((revision for end, revision in self._ends if end < number), default=0)


def _changes(call: Call, result: Result) -> Iterator[tuple[str, _Value]]:
    """What a call has certainly changed, if its answer says so."""
    if isinstance(call, Put):
        yield call.key, call.value
    elif isinstance(call, Append):
        yield call.key, _UNSURE
    elif isinstance(call, CompareAndSet) and result.succeeded is True:
        yield call.key, call.value
    elif isinstance(call, Delete) and not call.end and result.count == 1:
        yield call.key, None
    elif isinstance(call, Transaction) and result.succeeded is not UNSET:
        for step, part in taken(call, result):
            yield from _changes(step, part)


class _Truth:
    """What each revision has changed, as far as anybody knows, and who says so."""

    def __init__(self, told: _Told) -> None:
        self._changes: dict[int, dict[str, tuple[_Value, str]]] = {}
        for revision, (operation, values) in told.changes.items():
            who = f"process {operation.process} (line {operation.invoked})"
            self._changes[revision] = {key: (value, who) for key, value in values.items()}
        self._told = told

    def learn(self, stream: _Stream) -> list[str]:
        """What a watch has shown; where it differs from what is known already."""
        wrong = []
        who = f"the watch of process {stream.process}"
        for revision, (number, shown) in stream.seen.items():
            known = self._changes.setdefault(revision, {})
            if revision in self._told.changes:
                operation = self._told.changes[revision][0]
                if operation.invoked > number:
                    wrong.append(
                        f"{who}, line {number}: revision {revision} is from the future: "
                        f"it was asked for at line {operation.invoked}"
                    )
            for key, change in shown.items():
                if key not in known or known[key][0] is _UNSURE:
                    known[key] = (change.value, who)
                elif known[key][0] != change.value:
                    wrong.append(
                        f"{who}, line {number}: {key!r} in revision {revision} is "
                        f"{change.value!r}, but {known[key][0]!r} to {known[key][1]}"
                    )
        return wrong

    def missed(self, stream: _Stream) -> list[str]:
        """What a watch has not shown though it should have."""
        wrong = []
        for part in stream.parts:
            if part.first is None:
                continue
            for revision in sorted(self._changes):
                if not part.first <= revision <= part.last:
                    continue
                shown = stream.seen[revision][1] if revision in stream.seen else {}
                for key, (_, who) in self._changes[revision].items():
                    if key not in shown and is_inside(key, part.start, part.end):
                        what = f"{key!r} in revision {revision}, known from {who}"
                        whole = "only a part came: " if shown else ""
                        wrong.append(
                            f"the watch of process {stream.process} has missed {whole}{what}"
                        )
        return wrong


class _Origin(NamedTuple):
    """Since which line something was asked for; and at what revision it was done, if told."""

    since: int
    revision: int | None


class _Origins:
    """For each key, what may have been put there, since which line, and at what revision."""

    def __init__(self, operations: list[Operation]) -> None:
        self._puts: dict[tuple[str, Scalar], list[_Origin]] = {}
        #: Keys that were appended to, so that any value may be theirs.
        self._appends: dict[str, list[_Origin]] = {}
        self._deletes: list[tuple[str, str, _Origin]] = []
        #: Revisions that are those of operations whose answers say so.
        self._told: set[int] = set()
        for operation in operations:
            call, result = operation.call, operation.result or Result()
            revision = None if result.revision is UNSET else result.revision
            if revision is not None and changes(call, result):
                self._told.add(revision)
            self._learn(call, result, _Origin(operation.invoked, revision))

    def _learn(self, call: Call, result: Result, origin: _Origin) -> None:
        if isinstance(call, Put) or (
            isinstance(call, CompareAndSet) and result.succeeded is not False
        ):
            self._puts.setdefault((call.key, call.value), []).append(origin)
        elif isinstance(call, Append):
            self._appends.setdefault(call.key, []).append(origin)
        elif isinstance(call, Delete) and result.count != 0:
            self._deletes.append((call.key, call.end, origin))
        elif isinstance(call, Transaction):
            for step, part in taken(call, result):
                self._learn(step, part, origin)

    def missing(self, stream: _Stream) -> list[str]:
        """Changes that a watch has shown and that nobody can have made, there and by then."""
        wrong = []
        for revision, (number, shown) in stream.seen.items():
            for change in shown.values():
                origins = [o for o in self._origins(change) if o.since < number]
                if any(self._may_be_of(origin, revision) for origin in origins):
                    continue
                what = "its delete" if change.value is None else repr(change.value)
                why = f"{what} is of another revision" if origins else ""
                wrong.append(
                    f"the watch of process {stream.process}, line {number}: {change.key!r} in "
                    f"revision {revision}: {why or f'nobody had asked for {what}'}"
                )
        return wrong

    def _origins(self, change: Change) -> Iterator[_Origin]:
        """Who may have made it, at any time."""
        if change.value is None:
            for start, end, origin in self._deletes:
                if is_inside(change.key, start, end):
                    yield origin
        else:
            yield from self._puts.get((change.key, change.value), ())
            yield from self._appends.get(change.key, ())

    def _may_be_of(self, origin: _Origin, revision: int) -> bool:
        """One that was told has its own revision, and nobody else has that."""
        if origin.revision is None:
            return revision not in self._told
        return origin.revision == revision
