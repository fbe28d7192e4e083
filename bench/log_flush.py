"""
How fast the write-ahead log flushes, beside a bare loop of pwrite and
fdatasync on a file of zeros, in the same run on the same disk.

    python bench/log_flush.py [DIRECTORY]

Writes some hundred MiB below DIRECTORY (the working directory unless given)
and removes them again.  Needs raftd installed, or PYTHONPATH=.
"""

from __future__ import annotations

import os
import queue
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from raftd.core.messages import Entry, HardState
from raftd.storage.frames import extent_of
from raftd.storage.wal import Wal

ROUNDS = 3
FLUSHES = 1000
VALUE = os.urandom(256)


class Loop:
    """The least that a log needs of a reactor, run by the main thread."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]]
        self._calls = queue.SimpleQueue()

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        self._calls.put((function, args))

    def turn(self) -> None:
        function, args = self._calls.get()
        function(*args)


def measure(directory: str, batch: int) -> tuple[float, float]:
    """
    Median seconds of one bare flush and of one flush of the log, taken in turn
    so that both meet the same disk; `batch` entries each.
    """
    length = extent_of(batch * (len(VALUE) + 14))
    fd = os.open(os.path.join(directory, "bare"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.pwrite(fd, bytes(length * FLUSHES), 0)
    os.fsync(fd)
    data = os.urandom(length)
    loop: Any = Loop()
    log = Wal.create(os.path.join(directory, "log"), 1, HardState(1, 1), [], reactor=loop)
    done = 0

    def persisted(number: int) -> None:
        nonlocal done
        done = number

    log.start(persisted, print)
    while not log._writer.preparer._ready:
        time.sleep(0.01)
    bare, logged = [], []
    for number in range(1, FLUSHES + 1):
        first = (number - 1) * batch + 1
        entries = [Entry(i, 1, 1, 0, VALUE) for i in range(first, first + batch)]
        began = time.perf_counter()
        os.pwrite(fd, data, (number - 1) * length)
        os.fdatasync(fd)
        between = time.perf_counter()
        log.write(number, None, entries)
        while done < number:
            loop.turn()
        bare.append(between - began)
        logged.append(time.perf_counter() - between)
    os.close(fd)
    finished = log.close()
    while not finished.called:
        loop.turn()
    return statistics.median(bare), statistics.median(logged)


def main() -> None:
    parent = sys.argv[1] if len(sys.argv) > 1 else "."
    for batch in (1, 8, 64):
        for _ in range(ROUNDS):
            directory = tempfile.mkdtemp(dir=parent)
            try:
                bare, log = measure(directory, batch)
            finally:
                shutil.rmtree(directory)
            print(
                f"{batch:3} entries: bare {bare * 1e6:4.0f} us, log {log * 1e6:4.0f} us "
                f"= {1 / log:5.0f} flushes/s, {batch / log:7.0f} entries/s; "
                f"{log / bare:.2f} times the bare loop"
            )


if __name__ == "__main__":
    main()
