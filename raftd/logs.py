"""
The log of the server command: held back until the dialogue has ended, then
written by a thread, so that neither spoils the other and neither stops the
reactor.
"""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO, cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.logfile import LogFile
from zope.interface import implementer

#: How many formatted events are held back; later ones are dropped and counted.
MAX_HELD = 1_000

#: A log file of the server is put aside at this size, in bytes...
ROTATE_LENGTH = 16 * 1024 * 1024
#: ...and so many older ones are kept.
MAX_ROTATED_FILES = 4

#: What Twisted itself says of each port, once for each address: `raftd.listening`
#: says it better, once.
_of_a_port = re.compile(r"\w+ starting on \d+|\(TCP Port \d+ Closed\)").fullmatch

ObserverFactory = Callable[[TextIO], ILogObserver]


@implementer(ILogObserver)
class HeldLog:
    """
    A log observer that keeps formatted events until it is told where they go.

    `format_with` makes the observer that does the formatting; it is given a
    file, as Twisted's `textFileLogObserver` and `jsonFileLogObserver` are.
    """

    def __init__(self, format_with: ObserverFactory, max_held: int = MAX_HELD) -> None:
        self._format = format_with(cast(TextIO, _Sink(self._emit)))
        self._max_held = max_held
        self._held: deque[tuple[bool, str]] = deque()
        self._put: Callable[[str], bool] | None = None
        self._severe = False
        self._dropped = 0
        # Events come from any thread; formatting one may log another.
        self._lock = threading.RLock()

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_namespace") == "log_legacy" and _of_a_port(formatEvent(event)):
            return
        with self._lock:
            if self._dropped:
                self._tell_dropped()
            level = event.get("log_level")
            self._severe = level is not None and level >= LogLevel.error
            self._format(event)

    @property
    def released(self) -> bool:
        return self._put is not None

    def release(self, put: Callable[[str], bool]) -> None:
        """Let what was held and all that follows go to `put`, which is false when full."""
        with self._lock:
            self._put = put
            while self._held:
                self._emit(self._held.popleft()[1])

    def severe(self) -> str:
        """The held errors: what must be shown even if the log goes nowhere."""
        with self._lock:
            return "".join(text for severe, text in self._held if severe)

    def flush(self) -> None:
        """Say now how many events were dropped; the next one may never come."""
        with self._lock:
            if self._dropped:
                self._tell_dropped()

    def _emit(self, text: str) -> None:
        if self._put is not None:
            kept = self._put(text)
        else:
            kept = len(self._held) < self._max_held
            if kept:
                self._held.append((self._severe, text))
        if not kept:
            self._dropped += 1

    def _tell_dropped(self) -> None:
        count, self._dropped = self._dropped, 0
        self._severe = False
        self._format(
            {
                "log_level": LogLevel.warn,
                "log_namespace": __name__,
                "log_time": time.time(),
                "log_format": "{count} lines of the log were dropped here: "
                "it could not be written as fast as it grew.",
                "count": count,
            }
        )
        if self._dropped:  # that line too
            self._dropped = count


class LogFileWriter:
    """
    Appends to a log file and rotates it; opened by the first write.

    `complain` is called, once, with a sentence if it cannot be written.  Used
    by one thread.
    """

    def __init__(self, path: str, complain: Callable[[str], object]) -> None:
        self._path = path
        self._complain = complain
        self._complained = False
        self._file: LogFile | None = None

    def __call__(self, text: str) -> None:
        try:
            if self._file is None:
                directory, name = os.path.split(self._path)
                self._file = LogFile(
                    name, directory, ROTATE_LENGTH, maxRotatedFiles=MAX_ROTATED_FILES
                )
            data = text.encode("utf-8", "backslashreplace")
            self._file.write(data)
        except OSError as e:
            if not self._complained:
                self._complained = True
                self._complain(f"The log cannot be written: {e}")


class _Sink(io.TextIOBase):
    """The file that a formatting observer is given."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit_text = emit

    def write(self, text: str) -> int:
        self._emit_text(text)
        return len(text)
