"""A step that takes a while, and that can be broken off wherever it waits."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

T = TypeVar("T")

#: Of one step, far above the number of servers that anybody names.
MAX_WAITS_BROKEN_OFF = 1_000


def begin(step: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
    """
    Begin a step; `cancel` of what this returns ends it there and then, with
    `CancelledError`.
    """
    running = Deferred.fromCoroutine(step)
    over = False

    def break_off(taken: Deferred[T]) -> None:
        taken.errback(CancelledError())
        # Part of what it may wait for takes this for a failure, and the step
        # goes on to the next server: until there is none.
        for _ in range(MAX_WAITS_BROKEN_OFF):
            if over:
                break
            running.cancel()

    def ended(result: T | Failure) -> None:
        nonlocal over
        over = True
        if not taken.called:
            taken.callback(result)

    taken = Deferred[T](break_off)
    running.addBoth(ended)
    return taken
