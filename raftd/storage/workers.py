"""Threads that the storage works on, behind one small class so that tests need none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

Job = Callable[[], None]


class Worker(Protocol):
    """Does jobs one after the other, in the order given, on a thread of its own."""

    def do(self, job: Job) -> None:
        """Queue a job; it must not raise.  Called from any thread."""

    def quit(self) -> None:
        """End after the jobs queued so far; does not wait."""


class ThreadWorker:
    """
    A `Worker` on a real thread.

    The thread is a daemon: a disk that never answers must not keep a process
    from ending.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def do(self, job: Job) -> None:
        self._jobs.put(job)

    def quit(self) -> None:
        self._jobs.put(None)

    def _run(self) -> None:
        get = self._jobs.get
        while (job := get()) is not None:
            job()
