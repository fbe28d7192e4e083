"""Time is monotonic: a step of the wall clock moves no timer."""

from __future__ import annotations

import subprocess
import sys
import time
from unittest.mock import Mock

from twisted.internet.base import ReactorBase
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from raftd.clock import elapsed_seconds, is_monotonic, use_monotonic, warn_unless_monotonic
from raftd.test.processes import PATIENCE_S, PYTHON, environment

#: A reactor with a timer of TIMER_S, whose wall clock steps once the timer is
#: set.  It prints when the timer fired, on a clock that cannot be set; a timer
#: that does not fire is given up after GIVE_UP_S by a thread.
CHILD = """
import sys, threading, time
step_s, timer_s, give_up_s = (float(a) for a in sys.argv[1:4])
real_time, stepped = time.time, [0.0]
time.time = lambda: real_time() + stepped[0]
from twisted.internet import reactor
if sys.argv[4] == "monotonic":
    from raftd.clock import use_monotonic
    use_monotonic(reactor)
began = time.monotonic()
def fired():
    print(time.monotonic() - began)
    reactor.stop()
def step():
    stepped[0] = step_s
def give_up():
    print("never")
    reactor.callFromThread(reactor.stop)
watchdog = threading.Timer(give_up_s, give_up)
watchdog.start()
reactor.callLater(timer_s, fired)
reactor.callLater(0, step)
reactor.run()
watchdog.cancel()
"""
TIMER_S = 0.5
GIVE_UP_S = 3.0


def fired_after(step_s: float, clock: str) -> str:
    """When the timer of the child fired, in seconds, or "never"."""
    arguments = [str(step_s), str(TIMER_S), str(GIVE_UP_S), clock]
    child = subprocess.run(
        [PYTHON, "-c", CHILD, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=PATIENCE_S,
    )
    return child.stdout.decode().split()[0]


class StepTests(SynchronousTestCase):
    def test_52_a_step_of_the_wall_clock_moves_no_timer(self) -> None:
        for step_s in (3600.0, -3600.0):
            fired = float(fired_after(step_s, "monotonic"))
            self.assertGreaterEqual(fired, TIMER_S)
            self.assertLess(fired, GIVE_UP_S)

    def test_52_it_would_without_our_help(self) -> None:
        """The trap is still there: otherwise the test above proves nothing."""
        self.assertLess(float(fired_after(3600.0, "wall")), TIMER_S)
        self.assertEqual(fired_after(-3600.0, "wall"), "never")


class UseMonotonicTests(SynchronousTestCase):
    def reactor(self) -> ReactorBase:
        reactor = SelectReactor()
        self.addCleanup(reactor.removeAll)
        return reactor

    def test_the_reactor_has_monotonic_time(self) -> None:
        reactor = self.reactor()
        self.assertFalse(is_monotonic(reactor))
        use_monotonic(reactor)
        self.assertTrue(is_monotonic(reactor))
        self.assertLess(abs(reactor.seconds() - time.monotonic()), 60)
        call = reactor.callLater(10, lambda: None)
        self.assertLess(abs(call.getTime() - time.monotonic() - 10), 60)
        use_monotonic(reactor)  # a second time changes nothing, calls or not
        call.cancel()

    def test_it_is_too_late_after_the_first_call(self) -> None:
        reactor = self.reactor()
        call = reactor.callLater(10, lambda: None)
        self.assertRaises(RuntimeError, use_monotonic, reactor)
        call.cancel()

    def test_the_clock_of_a_test_is_left_alone(self) -> None:
        clock = Clock()
        use_monotonic(clock)
        self.assertEqual(clock.seconds(), 0.0)

    def test_a_wall_clock_is_warned_of(self) -> None:
        seen = Mock()
        globalLogPublisher.addObserver(seen)
        self.addCleanup(globalLogPublisher.removeObserver, seen)
        reactor = self.reactor()
        warn_unless_monotonic(reactor)
        (event,) = [call.args[0] for call in seen.call_args_list]
        self.assertEqual(event["log_level"], LogLevel.warn)
        self.assertIn("use_monotonic", event["log_format"])
        seen.reset_mock()
        use_monotonic(reactor)
        warn_unless_monotonic(reactor)
        warn_unless_monotonic(Clock())
        seen.assert_not_called()


class ElapsedTests(SynchronousTestCase):
    def test_time_while_the_machine_is_suspended_counts(self) -> None:
        reactor = SelectReactor()
        self.addCleanup(reactor.removeAll)
        use_monotonic(reactor)
        self.patch(time, "clock_gettime", {time.CLOCK_BOOTTIME: 3600.0}.__getitem__)
        self.assertEqual(elapsed_seconds(reactor)(), 3600.0)

    if sys.platform != "linux":
        test_time_while_the_machine_is_suspended_counts.skip = "There is no such clock."

    def test_a_test_owns_its_time(self) -> None:
        clock = Clock()
        clock.advance(5.0)
        self.assertEqual(elapsed_seconds(clock)(), 5.0)
