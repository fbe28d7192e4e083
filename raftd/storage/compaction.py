"""
Compaction of the log: which segments are not needed any more, and their removal.

A log may begin with any segment whose first record says what the log was when
the segment was begun (its checkpoint), as long as the entries before it are
not needed.  So whole segments go, from the front, and nothing is rewritten.
"""

from __future__ import annotations

import os
import threading

from raftd.errors import StorageFailed
from raftd.storage.files import Files
from raftd.storage.segments import segment_name


class Beginnings:
    """
    The segments with which the log may begin, each with the last index that
    the log had when it was begun; oldest first.

    A segment is none of them any more once an entry at or before that index
    has been cut off: what is written behind it then leans on entries before it.

    Invariant: segment numbers grow strictly, indexes do not go down.
    """

    def __init__(self) -> None:
        self._segments: list[tuple[int, int]] = []

    def begin(self, number: int, last_index: int) -> None:
        """Segment `number` is begun, and durable, when `last_index` is the last entry."""
        self._segments.append((number, last_index))

    def truncate(self, first_removed: int) -> None:
        """Entries from `first_removed` on are cut off."""
        while self._segments and self._segments[-1][1] >= first_removed:
            self._segments.pop()

    def begin_anew(self) -> None:
        """The whole log is dropped: nothing before the newest of these is needed."""
        self._segments = [(number, 0) for number, _ in self._segments[-1:]]

    def first_needed(self, base_index: int) -> int:
        """The segment to begin with if entries up to `base_index` are not needed; 0 if any."""
        for number, last_index in reversed(self._segments):
            if last_index <= base_index:
                return number
        return 0


class Remover:
    """
    Removes segments from the front, one at a time, on the preparer's thread.

    Each removal is durable before the next begins, so that a crash between
    two leaves a log without a gap.
    """

    def __init__(self, files: Files, directory: str, oldest: int) -> None:
        """`oldest` is the number of the first segment that there is."""
        self._files = files
        self._directory = directory
        self._oldest = oldest
        self._first_needed = oldest
        self._lock = threading.Lock()
        self._closed = False
        #: Why a segment could not be removed, a sentence; empty if all went well.
        self.trouble = ""

    def need_from(self, number: int) -> bool:
        """Segments before `number` may go; whether there is something to do.  Any thread."""
        self._first_needed = max(self._first_needed, number)
        return self._oldest < self._first_needed

    def remove_one(self) -> bool:
        """
        Remove the oldest segment if it may go; whether there is another one.

        A segment that cannot be removed takes room and does no harm; the next
        attempt comes with the next compaction.  But when a directory could not
        be flushed, nobody knows which segments are there: `StorageFailed`.
        """
        with self._lock:
            if self._closed or self._oldest >= self._first_needed:
                return False
            path = os.path.join(self._directory, segment_name(self._oldest))
            try:
                self._files.remove(path)
            except OSError as e:
                self.trouble = f"{path}, which is not needed any more, stays: {e}."
                return False
            try:
                self._files.flush_directory(self._directory)
            except OSError as e:
                raise StorageFailed(
                    f"The directory {self._directory} could not be flushed: {e}."
                ) from e
            self.trouble = ""
            self._oldest += 1
            return self._oldest < self._first_needed

    def close(self) -> None:
        """Nothing is removed afterwards.  Waits for `remove_one`."""
        with self._lock:
            self._closed = True
