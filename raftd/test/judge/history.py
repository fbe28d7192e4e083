"""
Histories: what clients did and saw, in the order in which it happened.

On disk a history is JSON lines, one event a line (`docs/judge.md`).  The order
of the lines is the order of the events; `time_us` is for people.  A process
has one operation at a time.  Its end is one of:

- `ok`: it was carried out and answered;
- `fail`: it certainly was not carried out, and never will be;
- `unknown`: it may have been, or may yet be at any later time.  The process
  may go on under the same number; the operation stays open for ever.

What has no end when the history ends is open as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, BinaryIO

import msgspec
from msgspec import UNSET, UnsetType

from raftd.test.judge.calls import Call, Result, Scalar, is_read

Natural = Annotated[int, msgspec.Meta(ge=0)]


class BadHistory(Exception):
    """What is no history, or none that can be judged; says at which line."""


# -- lines ---------------------------------------------------------------------


class Invoke(msgspec.Struct, tag="invoke", frozen=True):
    """A process begins an operation."""

    process: int
    call: Call
    time_us: Natural = 0


class Ok(msgspec.Struct, tag="ok", frozen=True, omit_defaults=True):
    """It was answered."""

    process: int
    result: Result = Result()
    time_us: Natural = 0


class Fail(msgspec.Struct, tag="fail", frozen=True, omit_defaults=True):
    """It certainly was not carried out."""

    process: int
    time_us: Natural = 0
    error: str = ""


class Unknown(msgspec.Struct, tag="unknown", frozen=True, omit_defaults=True):
    """Nobody knows."""

    process: int
    time_us: Natural = 0
    error: str = ""


class Watch(msgspec.Struct, tag="watch", frozen=True, omit_defaults=True):
    """
    A process asks for the changes of a range from `revision` on, 0 for from now on.

    If it watched before, and `resumes`, it goes on behind what was complete.
    """

    process: int
    key: str
    end: str = ""
    revision: Natural = 0
    resumes: bool = False
    time_us: Natural = 0


class Change(msgspec.Struct, frozen=True):
    """One key as it became; a value of None: it was deleted."""

    key: str
    value: Scalar | None
    create_revision: int | UnsetType = UNSET
    version: int | UnsetType = UNSET
    #: What was there before, None for nothing.
    previous: Scalar | UnsetType | None = UNSET


class Changed(msgspec.Struct, tag="changed", frozen=True, omit_defaults=True):
    """A watch was given changes of a revision: a part of them unless `last`."""

    process: int
    revision: Natural
    changes: tuple[Change, ...]
    last: bool = True
    time_us: Natural = 0


class Progress(msgspec.Struct, tag="progress", frozen=True, omit_defaults=True):
    """A watch was told that it has seen whatever changed up to this revision."""

    process: int
    revision: Natural
    time_us: Natural = 0


class Compacted(msgspec.Struct, tag="compacted", frozen=True, omit_defaults=True):
    """A watch was told that what comes next was compacted, up to this revision."""

    process: int
    revision: Natural
    time_us: Natural = 0


class Broken(msgspec.Struct, tag="broken", frozen=True, omit_defaults=True):
    """The stream of a watch has ended, perhaps within a revision."""

    process: int
    time_us: Natural = 0


OperationLine = Invoke | Ok | Fail | Unknown
WatchLine = Watch | Changed | Progress | Compacted | Broken
Line = OperationLine | WatchLine

_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], Line] = msgspec.json.Decoder(Line).decode


def encode_line(line: Line) -> bytes:
    """One line of a file, with its end."""
    return _encode(line) + b"\n"


def decode_lines(data: bytes) -> list[Line]:
    """The reverse, of a whole file."""
    lines: list[Line] = []
    for number, text in enumerate(data.splitlines(), 1):
        try:
            lines.append(_decode(text))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
            raise BadHistory(f"line {number}: {e}") from None
    return lines


# -- operations ----------------------------------------------------------------


class Operation(msgspec.Struct, frozen=True):
    """
    One operation of a client.  `invoked` and `returned` are numbers of lines.

    `returned` is None if it has no end, and then it need not have taken effect
    at all; without an end it has no result either, as a rule.
    """

    process: int
    call: Call
    result: Result | None
    invoked: int
    returned: int | None


class History(msgspec.Struct, frozen=True):
    """What there is to judge; watches by the number of their line."""

    operations: list[Operation]
    watched: list[tuple[int, WatchLine]] = []
    #: Of the operations, how many had no known outcome, reads included.
    unknown: int = 0


def history_of(lines: Iterable[Line]) -> History:
    """
    Pairs each operation's beginning with its end.

    Left out are those that certainly were not carried out, and reads of
    unknown outcome: neither says anything.
    """
    pairing = _Pairing()
    watched: list[tuple[int, WatchLine]] = []
    latest_us = 0
    for number, line in enumerate(lines, 1):
        if line.time_us:
            if line.time_us < latest_us:
                raise BadHistory(f"line {number}: earlier than the line before")
            latest_us = line.time_us
        if isinstance(line, Invoke):
            pairing.invoke(number, line.process, line.call)
        elif isinstance(line, Ok):
            pairing.end(number, line.process, line.result)
        elif isinstance(line, Unknown):
            pairing.end(number, line.process, None)
        elif isinstance(line, Fail):
            pairing.drop(number, line.process)
        else:
            watched.append((number, line))
    operations, unknown = pairing.finish()
    return History(operations, watched, unknown)


class _Pairing:
    """Operations of processes, each of which has at most one at a time."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, Call]] = {}
        self._found: list[Operation] = []
        self._unknown = 0

    def invoke(self, number: int, process: int, call: Call) -> None:
        if process in self._open:
            raise BadHistory(f"line {number}: process {process} is not done yet")
        self._open[process] = (number, call)

    def end(self, number: int, process: int, result: Result | None) -> None:
        invoked, call = self.drop(number, process)
        if result is not None:
            self._found.append(Operation(process, call, result, invoked, number))
            return
        self._unknown += 1
        if not is_read(call):
            self._found.append(Operation(process, call, None, invoked, None))

    def drop(self, number: int, process: int) -> tuple[int, Call]:
        if process not in self._open:
            raise BadHistory(f"line {number}: process {process} has nothing to end")
        return self._open.pop(process)

    def finish(self) -> tuple[list[Operation], int]:
        for process in list(self._open):
            self.end(0, process, None)
        self._found.sort(key=lambda operation: operation.invoked)
        return self._found, self._unknown


# -- recording -----------------------------------------------------------------


class Recorder:
    """
    Takes down a history while it happens; in one thread, so that order is order.

    Call `invoke` before the request is sent, and the others once the answer is
    there.  `sink` is given every line at once (`list.append`, or `to_file`).
    Nothing is kept here but which processes are busy.

    A lease that may expire is recorded as a delete of its key by a process of
    its own, begun when the lease is granted and never ended.
    """

    def __init__(self, seconds: Callable[[], float], sink: Callable[[Line], object]) -> None:
        """`seconds` is a monotonic clock, as `IReactorTime.seconds`."""
        self._seconds = seconds
        self._start_s = seconds()
        self._sink = sink
        self._busy: set[int] = set()

    def invoke(self, process: int, call: Call) -> None:
        """`process` is about to ask; it must have nothing else under way."""
        assert process not in self._busy, f"process {process} is busy"
        self._busy.add(process)
        self._sink(Invoke(process, call, self._now_us()))

    def ok(self, process: int, result: Result) -> None:
        """It was answered."""
        self._end(process)
        self._sink(Ok(process, result, self._now_us()))

    def fail(self, process: int, error: str = "") -> None:
        """It was refused for certain: it did not happen, and never will."""
        self._end(process)
        self._sink(Fail(process, self._now_us(), error))

    def unknown(self, process: int, error: str = "") -> None:
        """It may have happened, or may happen yet."""
        self._end(process)
        self._sink(Unknown(process, self._now_us(), error))

    def watch(
        self, process: int, key: str, end: str = "", revision: int = 0, resumes: bool = False
    ) -> None:
        """`process` is about to watch, or to go on with its watch."""
        self._sink(Watch(process, key, end, revision, resumes, self._now_us()))

    def changed(
        self, process: int, revision: int, changes: Iterable[Change], last: bool = True
    ) -> None:
        """The watch was given changes of one revision."""
        self._sink(Changed(process, revision, tuple(changes), last, self._now_us()))

    def progress(self, process: int, revision: int) -> None:
        """The watch was told how far it is."""
        self._sink(Progress(process, revision, self._now_us()))

    def compacted(self, process: int, revision: int) -> None:
        """The watch was told that it came too late."""
        self._sink(Compacted(process, revision, self._now_us()))

    def broken(self, process: int) -> None:
        """The stream of the watch has ended."""
        self._sink(Broken(process, self._now_us()))

    def _end(self, process: int) -> None:
        assert process in self._busy, f"process {process} has nothing under way"
        self._busy.remove(process)

    def _now_us(self) -> int:
        return round((self._seconds() - self._start_s) * 1e6)


def to_file(file: BinaryIO) -> Callable[[Line], object]:
    """A sink for a `Recorder`."""
    return lambda line: file.write(encode_line(line))
