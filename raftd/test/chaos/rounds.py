"""
A run in rounds: each with keys of its own, and a history that is judged by itself.

So no history grows too long to be judged, and a fault may well last from one
round into the next.  At the end of all, the keys of every round are read once
more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raftd.test.judge.calls import Call, Result
from raftd.test.judge.history import Change, Recorder, to_file


class Round:
    """A history of what many threads do with the keys under `prefix`."""

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.path = path
        self.prefix = f"round{number}/"
        #: What is put last.
        self.last_key = f"{self.prefix}~"
        self._file = path.open("wb")
        self._recorder = Recorder(time.monotonic, to_file(self._file))
        self._lock = threading.Lock()
        self._guests = 0
        self._is_empty = threading.Condition(self._lock)

    @contextmanager
    def guest(self) -> Iterator[None]:
        """Somebody who does something here; the round waits for it."""
        with self._lock:
            self._guests += 1
        try:
            yield
        finally:
            with self._lock:
                self._guests -= 1
                self._is_empty.notify_all()

    def wait_empty(self, timeout_s: float) -> None:
        """Until all operations have an end."""
        with self._lock:
            self._is_empty.wait_for(lambda: not self._guests, timeout_s)

    def close(self) -> None:
        with self._lock:
            self._file.close()

    # -- the recorder, one at a time ---------------------------------------------------

    def invoke(self, process: int, call: Call) -> None:
        with self._lock:
            self._recorder.invoke(process, call)

    def ok(self, process: int, result: Result) -> None:
        with self._lock:
            self._recorder.ok(process, result)

    def fail(self, process: int, error: str) -> None:
        with self._lock:
            self._recorder.fail(process, error)

    def unknown(self, process: int, error: str) -> None:
        with self._lock:
            self._recorder.unknown(process, error)

    def watch(self, process: int, end: str, revision: int, resumes: bool) -> None:
        with self._lock:
            self._recorder.watch(process, self.prefix, end, revision, resumes)

    def changed(self, process: int, revision: int, changes: Iterable[Change]) -> None:
        with self._lock:
            self._recorder.changed(process, revision, changes)

    def progress(self, process: int, revision: int) -> None:
        with self._lock:
            self._recorder.progress(process, revision)

    def compacted(self, process: int, revision: int) -> None:
        with self._lock:
            self._recorder.compacted(process, revision)

    def broken(self, process: int) -> None:
        with self._lock:
            self._recorder.broken(process)
