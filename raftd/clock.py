"""
Monotonic time for Twisted's reactor.

A reactor schedules its calls by `time.time`, which jumps when somebody sets
the clock: a step forward fires election timers early, a step back silences
heartbeats.  `use_monotonic` puts `time.monotonic` in its place.  `twist raftd`
does so itself; a program that embeds raftd calls it first of all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.logger import Logger

_log = Logger()


def use_monotonic(reactor: object) -> None:
    """
    Make `reactor` run on the monotonic clock, from now on.

    Call it before the first `callLater`: calls that were scheduled by the
    other clock would be decades away, so `RuntimeError` if there are any.
    Nothing happens if it was done before, or if `reactor` is not one of
    Twisted's own (a test's `Clock` owns its time).
    """
    if is_monotonic(reactor):
        return
    assert isinstance(reactor, ReactorBase)
    if reactor.getDelayedCalls():
        raise RuntimeError("use_monotonic() must be called before the first callLater().")
    reactor.seconds = time.monotonic


def is_monotonic(reactor: object) -> bool:
    """Whether no step of the wall clock can move the timers of `reactor`."""
    return not isinstance(reactor, ReactorBase) or reactor.seconds is time.monotonic


def boot_seconds() -> float:
    """
    Monotonic time that on Linux also counts while the machine is suspended,
    when `time.monotonic` stands still.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    else:
        return time.monotonic()


def elapsed_seconds(reactor: Any) -> Callable[[], float]:
    """
    What tells how much time has passed for everybody: `boot_seconds`, unless
    `reactor` is a test's, which owns its time.
    """
    seconds: Callable[[], float] = reactor.seconds
    return boot_seconds if isinstance(reactor, ReactorBase) else seconds


def warn_unless_monotonic(
    reactor: object, so: str = "Setting the clock will disturb elections."
) -> None:
    """Log a warning if a step of the wall clock would move the timers of `reactor`."""
    if not is_monotonic(reactor):
        _log.warn(
            "The reactor runs on the wall clock. {so} "
            "Call raftd.clock.use_monotonic(reactor) before the first callLater().",
            so=so,
        )
