"""
Letting go of a large state bit by bit.

A store that is restored drops the state that it had.  To free a million keys
takes a quarter of a second; this does so in slices, while other things go on.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: How long one slice may take, in seconds, but for its last container: a
#: dictionary with a 256th of all keys, most often.
SLICE_S = 0.001
#: Between two slices: nobody waits for this, and others have most of the time.
PAUSE_S = 0.002


class Sweeper:
    """Invariants: `_call` is there if and only if `_containers` has any; not when stopped."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._containers: list[object] = []
        self._call: IDelayedCall | None = None
        self._stopped = False

    def take(self, containers: list[object]) -> None:
        """What nothing else refers to."""
        if self._stopped:
            return
        self._containers += containers
        if self._call is None and self._containers:
            self._call = self._clock.callLater(PAUSE_S, self._go_on)

    def stop(self) -> None:
        """Let go of all of it, and of whatever comes."""
        self._stopped = True
        self._containers.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _go_on(self) -> None:
        containers, self._call = self._containers, None
        until = self._clock.seconds() + SLICE_S
        while containers and self._clock.seconds() < until:
            container = containers.pop()
            if isinstance(container, list | tuple):
                # What is within one may be large, as what a revision changed.
                containers += [part for part in container if isinstance(part, tuple | dict)]
            del container
        if containers:
            self._call = self._clock.callLater(PAUSE_S, self._go_on)
