"""
A log on a file system that is too small for it, in a process of its own:

    python -m raftd.test.small_disk DIRECTORY

The disk is filled, and room is made; "all there" if nothing was lost.
"""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFromThreads
from zope.interface import implementer

from raftd.core.messages import HardState
from raftd.errors import Fatal
from raftd.storage.wal import Wal
from raftd.test.logrig import entry

SEGMENT_BYTES = 1 << 20
ENTRY_BYTES = 100_000
#: Of the first entries one fits the file system; of all of them, none does.
ENTRIES = 40


@implementer(IReactorFromThreads)
class Calls:
    """What threads ask for, done when it is waited for."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()

    def callFromThread(
        self, callable: Callable[..., Any], *args: object, **kwargs: object
    ) -> None:
        self._calls.put(lambda: callable(*args, **kwargs))

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._calls.get(timeout=20)()


def check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def main(directory: str) -> None:
    calls = Calls()
    ballast = os.path.join(directory, "ballast")
    with open(ballast, "wb") as file:
        file.write(bytes(SEGMENT_BYTES))
    path = os.path.join(directory, "log")
    wal = Wal.create(path, 1, HardState(1), (), reactor=calls, segment_bytes=SEGMENT_BYTES)
    persisted, space = [0], [True]
    failures: list[Fatal] = []
    wal.start(persisted.append, failures.append, space.append)
    for number in range(1, ENTRIES + 1):
        wal.write(number, None, [entry(number, data=b"%d" % (number % 10) * ENTRY_BYTES)])
        # Each a frame of its own, as long as there is room.
        calls.until(lambda: persisted[-1] == number or not space[-1])  # noqa: B023
    # All room that there is gets used, and then the rest waits.
    calls.until(lambda: persisted[-1] * ENTRY_BYTES > SEGMENT_BYTES)
    check(persisted[-1] < ENTRIES, "the disk was not full")
    check(space == [True, False], f"what was told is {space}")
    check(failures == [], f"it failed: {failures}")
    wal.compact(0)
    os.remove(ballast)
    wal.look_for_space()
    calls.until(lambda: persisted[-1] * ENTRY_BYTES > 2 * SEGMENT_BYTES)
    check(failures == [], f"it failed: {failures}")
    reached = persisted[-1]
    closed: list[object] = []
    wal.close().addBoth(closed.append)
    calls.until(lambda: closed)
    again = Wal.open(path, 1, reactor=calls, segment_bytes=SEGMENT_BYTES)
    check(len(again.entries) >= reached, f"{len(again.entries)} of {reached} are there")
    for number, found in enumerate(again.entries, 1):
        check(found.data == b"%d" % (number % 10) * ENTRY_BYTES, f"entry {number} changed")
    again.close()
    print("all there")


if __name__ == "__main__":
    main(sys.argv[1])
