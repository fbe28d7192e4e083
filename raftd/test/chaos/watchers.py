"""Watchers: who hear of every change of a round, at one node after another."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence

from raftd.test.chaos.rounds import Round
from raftd.test.chaos.systems import Seen, System
from raftd.test.chaos.tally import Tally
from raftd.test.chaos.wire import Improper, Refused, Uncertain, Wire

#: Before a watch that has ended goes on, in seconds.
RESUME_S = 0.2


class Watcher:
    """One watch of one round, begun again wherever it has ended, to the last key."""

    def __init__(
        self,
        process: int,
        round_: Round,
        system: System,
        names: Sequence[str],
        tally: Tally,
        stopping: threading.Event,
    ) -> None:
        self._process = process
        self._round = round_
        self._system = system
        self._wire = Wire(names)
        self._tally = tally
        self._stopping = stopping
        self._node = process % system.count
        #: It has been given everything up to here; 0: nothing yet.
        self._done = 0
        self._resumes = False
        self._is_over = False

    def run(self) -> None:
        """Watch until the round's last key has come, or the run is over."""
        while not self._is_over and not self._stopping.is_set():
            try:
                self._watch()
            except Improper as e:
                self._tally.violation(f"watcher {self._process}: {e}")
                return
            except Exception as e:
                self._tally.violation(f"watcher {self._process} broke: {e!r}")
                raise
            self._node = (self._node + 1) % self._system.count
            if not self._is_over:
                self._stopping.wait(RESUME_S)

    @property
    def is_over(self) -> bool:
        """Whether it has been given all."""
        return self._is_over

    def _watch(self) -> None:
        """One stream, to its end."""
        round_, prefix = self._round, self._round.prefix
        revision = self._done + 1 if self._done else 0
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        round_.watch(self._process, end, revision, self._resumes)
        self._resumes = True
        try:
            for seen in self._system.watch(self._wire, self._node, prefix, revision):
                self._take(seen)
                if self._is_over or self._stopping.is_set():
                    return
        except (Refused, Uncertain, OSError, http.client.HTTPException):
            pass
        round_.broken(self._process)

    def _take(self, seen: Seen) -> None:
        round_ = self._round
        if seen.is_compacted:
            round_.compacted(self._process, seen.revision)
            self._done, self._resumes = seen.revision, False
        elif seen.changes is None:
            round_.progress(self._process, seen.revision)
            self._done = max(self._done, seen.revision)
        else:
            round_.changed(self._process, seen.revision, seen.changes)
            self._done = max(self._done, seen.revision)
            self._is_over = any(change.key == round_.last_key for change in seen.changes)


def await_all(watchers: Sequence[Watcher], timeout_s: float) -> bool:
    """Whether all are given the last key in time."""
    give_up_at = time.monotonic() + timeout_s
    while not all(watcher.is_over for watcher in watchers):
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.05)
    return True
