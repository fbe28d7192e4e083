"""
Time: one queue of events for a whole cluster, and a clock for each process.

The order of events is a function of what was put into the queue and of nothing
else.  Of each event its number and its time go into a checksum, the trace: two
runs of the same seed have the same one, or something is not determined.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable, Hashable
from heapq import heappop, heappush
from random import Random
from struct import Struct
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from raftd.test.cores import check

#: A timer this close is due: sums of floats are not exact.
EPSILON_S = 1e-9
#: More events than these in one run are a loop that never ends.
MAX_EVENTS = 2_000_000
#: The last so many notes are shown when something does not hold.
MAX_NOTES = 400

_trace = Struct("<dQ").pack

Act = Callable[[], object]


class World:
    """
    True time, in seconds, and what happens in it.

    As a clock it is that of the network, which never stops and is never late.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        #: For delays and losses: whatever nobody plans.
        self.random = Random(f"world {seed}")
        self.events = 0
        #: How often what has come about.
        self.counts: Counter[str] = Counter()
        self.trace = 0
        #: What happened, in words; the last of it.
        self.notes: deque[str] = deque(maxlen=MAX_NOTES)
        #: What does not hold; nothing more happens then.
        self.violation = ""
        self._queue: list[tuple[float, int, Timer]] = []
        self._serial = 0

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any, **kw: Any) -> Timer:
        timer = Timer(self, self.now + delay, call, args, kw)
        self.push(timer.time, timer)
        return timer

    def getDelayedCalls(self) -> list[IDelayedCall]:
        return [timer for _, _, timer in self._queue if timer.active()]

    def push(self, at: float, timer: Timer) -> None:
        """Have `timer` looked at, at the true time `at`."""
        self._serial += 1
        heappush(self._queue, (at, self._serial, timer))

    def note(self, text: str) -> None:
        """Somebody who looks for what went wrong will want to know."""
        self.notes.append(f"{self.events:7} {self.now:9.4f}  {text}")
        self.mark(text)

    def mark(self, text: str) -> None:
        """Something that the trace is to depend on."""
        self.trace = zlib.crc32(text.encode(), self.trace)

    def run(self, until: float) -> None:
        """All events up to the time `until`."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            at, serial, timer = heappop(queue)
            if timer.call is None:
                continue
            # Whoever has taken time makes others late.
            self.now = now = max(self.now, at)
            self.events += 1
            self.trace = zlib.crc32(_trace(now, serial), self.trace)
            check(self.events < MAX_EVENTS, "this goes on for ever")
            timer.fire()
            if self.violation:
                raise AssertionError(self.violation)
        self.now = max(self.now, until)

    def require(self, holds: bool, rule: str) -> None:
        """As `check`; but whoever swallows the error, the run ends here."""
        if not holds:
            self.violation = self.violation or rule
            raise AssertionError(rule)


@implementer(IDelayedCall)
class Timer:
    """A call at a time of the clock that it was asked of."""

    __slots__ = ("_args", "_clock", "_kw", "_was_called", "call", "time")

    def __init__(
        self,
        clock: World | ProcessClock,
        time: float,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kw: dict[str, Any],
    ) -> None:
        self.time = time
        #: None: it was called, or cancelled.
        self.call: Callable[..., Any] | None = call
        self._clock = clock
        self._args = args
        self._kw = kw
        self._was_called = False

    def getTime(self) -> float:
        return self.time

    def active(self) -> bool:
        return self.call is not None

    def cancel(self) -> None:
        if self.call is None:
            raise AlreadyCalled if self._was_called else AlreadyCancelled
        self.call = None

    def reset(self, secondsFromNow: float) -> None:
        raise NotImplementedError  # nobody in raftd does

    def delay(self, secondsLater: float) -> None:
        raise NotImplementedError

    def fire(self) -> None:
        clock = self._clock
        if isinstance(clock, World):
            self.act()
        elif clock.is_due(self):
            clock.enter(self.act)

    def act(self) -> None:
        call = self.call
        if call is not None:
            self.call, self._was_called = None, True
            call(*self._args, **self._kw)


@implementer(IReactorTime)
class ProcessClock:
    """
    What a process takes for its reactor: its clock, and the queue of its thread.

    Whatever happens in the process happens in `enter`.  The clock runs at
    `rate` seconds in one; while the process is stopped, what comes waits; when
    it has died, nothing happens in it any more.
    """

    def __init__(self, world: World, rate: float, creep_s: float, after: Act) -> None:
        """`creep_s` is what looking at the clock takes; `after` is called after each event."""
        self.world = world
        self.rate = rate
        self.is_dead = False
        self._creep_s = creep_s
        self._after = after
        self._offset = -world.now * rate
        self._stopped_at = 0.0
        self._clock_stops = False
        #: What waits, while the process is stopped, by where it comes from.
        self._waiting: dict[Hashable, list[Act]] | None = None
        #: Timers whose time has not come, because the clock has stopped as well.
        self._unripe: list[Timer] = []

    # -- for the process -------------------------------------------------------

    def seconds(self) -> float:
        self.world.now += self._creep_s
        return self._local

    @property
    def _local(self) -> float:
        stands = self._clock_stops and self._waiting is not None
        now = self._stopped_at if stands else self.world.now
        return now * self.rate + self._offset

    def callLater(
        self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object
    ) -> Timer:
        timer = Timer(self, self._local + delay, callable, args, kwargs)
        if not self.is_dead:
            self.world.push(self.world.now + delay / self.rate, timer)
        return timer

    def callFromThread(self, call: Callable[..., Any], *args: Any, **kw: Any) -> None:
        self.callLater(0, call, *args, **kw)

    def getDelayedCalls(self) -> list[IDelayedCall]:
        raise NotImplementedError  # nobody in raftd asks

    # -- for the world ---------------------------------------------------------

    def is_due(self, timer: Timer) -> bool:
        """Whether its time has come here; if not, it is looked at again."""
        if self.is_dead:
            return False
        left = timer.time - self._local
        if left <= EPSILON_S:
            if left > 0.0:
                # Whoever looks at the clock must find that it is time.
                self.world.now += 4 * EPSILON_S
            return True
        if self._waiting is not None and self._clock_stops:
            self._unripe.append(timer)
        else:
            self.world.push(self.world.now + left / self.rate, timer)
        return False

    def enter(self, act: Act, source: Hashable = None) -> None:
        """
        Something happens in the process, now or when it goes on.

        `source` is whose message it is; None for what is the process's own.
        """
        if self.is_dead:
            return
        if self._waiting is not None:
            self._waiting.setdefault(source, []).append(act)
            return
        act()
        if not self.is_dead:
            self._after()

    @property
    def is_stopped(self) -> bool:
        return self._waiting is not None

    def stop(self, with_clock: bool) -> None:
        """The process stops, as by SIGSTOP; `with_clock`, as a virtual machine does."""
        self._waiting = {}
        self._stopped_at = self.world.now
        self._clock_stops = with_clock

    def go_on(self) -> None:
        """
        What has waited happens now: each source's in its order, the sources in
        any, for nobody can tell what has come first on different connections.
        """
        waiting, self._waiting = list((self._waiting or {}).values()), None
        self.world.random.shuffle(waiting)
        unripe, self._unripe = self._unripe, []
        if self._clock_stops:
            self._offset -= (self.world.now - self._stopped_at) * self.rate
        for acts in waiting:
            for act in acts:
                self.callLater(0, act)
        for timer in unripe:
            self.world.push(self.world.now, timer)
