"""
Text on its way to places that may be slow: a terminal, a pipe, a file.

A write to a stopped terminal (Ctrl-S), to a full pipe or to a hanging disk
blocks.  So that it never blocks the reactor, a thread writes what waits in a
bounded queue.  Descriptors are written as they are: making them non-blocking
would change the terminal for the shell and everybody else who shares it.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

#: How many pieces of text may wait to be written; more are refused.
MAX_PENDING = 10_000

#: How long to wait for a descriptor that somebody else made non-blocking.
_BUSY_WAIT_MS = 1_000

Write = Callable[[str], object]


class Outlet:
    """
    A queue of text and the thread that writes it, in order.

    Text that cannot be written (a closed pipe, a full disk) is lost: there is
    nowhere left to say so.
    """

    def __init__(self, max_pending: int = MAX_PENDING) -> None:
        self._max_pending = max_pending
        self._pending: deque[tuple[Write, str]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def put(self, write: Write, text: str) -> bool:
        """Have `write(text)` called by the thread; false if the queue is full or closed."""
        with self._changed:
            if self._closed or len(self._pending) >= self._max_pending:
                return False
            self._pending.append((write, text))
            if self._thread is None:
                # A daemon, so that a stuck write cannot keep the process alive.
                self._thread = threading.Thread(
                    target=self._run, name="raftd-outlet", daemon=True
                )
                self._thread.start()
            self._changed.notify()
        return True

    def close(self, timeout_s: float) -> bool:
        """Take no more, wait for what is queued; false if that took too long."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending:
                    if self._closed:
                        return
                    self._changed.wait()
                write, text = self._pending.popleft()
            with contextlib.suppress(OSError, ValueError):  # ValueError: the file was closed
                write(text)


def stream_writer(stream: TextIO | None) -> Write:
    """
    What writes to `stream` and reaches its descriptor before it returns.

    None, as `sys.stdout` is when it was closed from the start, swallows.
    """
    if stream is None:
        return lambda text: None
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return lambda text: (stream.write(text), stream.flush())
    encoding = stream.encoding or "utf-8"
    return lambda text: _write_all(descriptor, text.encode(encoding, "backslashreplace"))


def _write_all(descriptor: int, data: bytes) -> None:
    """Write `data`, waiting where the descriptor would not."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll(_BUSY_WAIT_MS)
