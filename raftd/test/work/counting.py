"""What is counted, and the calls of Python among it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import raftd.test

#: What is in here is the bench, and not what is measured.
_BENCH = str(Path(raftd.test.__file__).parent)


class Tally:
    """What one member has done since it was last set to nothing."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        #: Functions called, in Python or C, by whatever ships; see `Calls`.
        self.calls = 0
        #: Turns of the reactor in which there was anything to do.
        self.turns = 0
        #: `recv` and `send` on sockets.
        self.receives = 0
        self.sends = 0
        #: On epolls, of the reactor or of connections: `epoll_wait` and `epoll_ctl`.
        self.polls = 0
        self.registrations = 0
        #: What the epoll of the reactor has told it of.
        self.events = 0
        #: Boxes of AMP to other members, requests and answers, and their bytes.
        self.messages = 0
        self.wire_bytes = 0
        #: Files made durable, and the bytes written to files.
        self.flushes = 0
        self.disk_bytes = 0


class Calls:
    """
    Counts calls by `sys.setprofile`: of functions in Python, and of those in C.

    A call counts if whoever makes it is not the bench: raftd, Twisted or the
    standard library.  So what the bench itself does inside is left out.
    """

    def __init__(self) -> None:
        self._counted: dict[CodeType, bool] = {}
        self._count = 0

    @contextlib.contextmanager
    def counted(self, tally: Tally) -> Iterator[None]:
        """Add the calls that are made within."""
        before = sys.getprofile()
        self._count = 0
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(before)
            tally.calls += self._count

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            if frame.f_back is None:
                return
            code = frame.f_back.f_code
        elif event == "c_call":
            code = frame.f_code
        else:
            return
        counted = self._counted.get(code)
        if counted is None:
            counted = self._counted[code] = not code.co_filename.startswith(_BENCH)
        self._count += counted
