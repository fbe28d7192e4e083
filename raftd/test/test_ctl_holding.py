"""`raftctl lock` and `elect`: what is held, for how long, and what ends with it."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred

from raftd.client.recipes import Lock
from raftd.ctl import holding
from raftd.ctl.children import CannotRun
from raftd.test.ctlrig import CtlCase, Running


class FakeChild:
    """A command that does as the test says."""

    made: list[FakeChild]
    has_group = True

    def __init__(self, reactor: Any, command: Sequence[str], environ: Mapping[bytes, bytes]):
        if command[0] == "not-there":
            raise CannotRun("There is no command 'not-there'.", 127)
        self.command = list(command)
        self.environ = dict(environ)
        #: What it was sent, and when.
        self.signals: list[tuple[float, int]] = []
        self._reactor = reactor
        self._ended: Deferred[int] = Deferred()
        #: Of the signals, those that it does not die of.
        self.ignores: set[int] = set()
        self.made.append(self)

    def ended(self) -> Deferred[int]:
        return self._ended

    def end(self, code: int) -> None:
        if not self._ended.called:
            self._ended.callback(code)

    def signal(self, number: int) -> None:
        if self._ended.called:
            return
        self.signals.append((self._reactor.seconds(), number))
        if number not in (*self.ignores, signal.SIGCONT):
            self.end(-number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)


class HoldingCase(CtlCase):
    def setUp(self) -> None:
        super().setUp()
        FakeChild.made = []
        self.patch(holding, "Child", FakeChild)

    def begin_holding(self, *typed: str) -> tuple[Running, FakeChild]:
        """Begin a command that holds something, and let it get that."""
        before = len(FakeChild.made)
        running = self.begin(*typed)
        self.cluster.advance_until(lambda: len(FakeChild.made) > before)
        return running, FakeChild.made[-1]

    def take(self, name: str) -> Deferred[float]:
        """Somebody else wants the lock; fires with when they have it."""
        client = self.cluster.client()
        taken: Deferred[float] = Deferred()

        def acquired(_: object) -> None:
            taken.callback(self.cluster.clock.seconds())

        Lock(client, name).acquire().addCallback(acquired)
        return taken


class Locks(HoldingCase):
    def test_the_command_runs_while_it_is_held_and_its_status_is_ours(self) -> None:
        running, child = self.begin_holding("lock", "a/b", "--", "work", "-x", "--ttl")
        self.assertEqual(child.command, ["work", "-x", "--ttl"])
        self.assertEqual(child.environ[b"RAFTCTL_LOCK_NAME"], b"a/b")
        self.assertGreater(int(child.environ[b"RAFTCTL_LOCK_TOKEN"]), 1)
        self.assertIn(b"PATH", child.environ)
        key = child.environ[b"RAFTCTL_LOCK_KEY"].decode()
        self.assertEqual(self.ok("list", "a/b/", "--keys-only").text, f"{key}\n")
        taken = self.take("a/b")
        self.cluster.advance(60)
        self.assertNoResult(running.done)
        self.assertNoResult(taken)
        child.end(7)
        self.assertEqual(self.cluster.result(running.done), 7)
        self.assertEqual(child.signals, [])
        # It was let go, and did not just end.
        began = self.cluster.clock.seconds()
        self.assertLess(self.cluster.result(taken) - began, 1)

    def test_killed_by_a_signal_it_is_as_in_a_shell(self) -> None:
        running, child = self.begin_holding("lock", "l", "--", "work")
        child.end(-signal.SIGSEGV)
        self.assertEqual(self.cluster.result(running.done), 128 + signal.SIGSEGV)

    def test_nothing_runs_once_it_may_be_lost(self) -> None:
        """SIGTERM a grace before, SIGKILL at that moment; nobody else has it earlier."""
        running, child = self.begin_holding("lock", "l", "--ttl", "9", "--", "work")
        child.ignores.add(signal.SIGTERM)
        taken = self.take("l")
        self.cluster.advance(20)
        mine = self.cluster.clients["c1"]
        self.assertIs(running.context.client, mine)
        began = self.cluster.clock.seconds()
        self.cluster.partition(["c1"], [self.leader, "c2"])
        self.assertEqual(self.cluster.result(running.done, 60), 5)
        sent = [number for _, number in child.signals]
        self.assertEqual(sent, [signal.SIGTERM, signal.SIGCONT, signal.SIGKILL])
        asked, killed = child.signals[0][0] - began, child.signals[-1][0] - began
        # The last keep-alive was answered up to a third of the TTL before.
        self.assertTrue(2.5 <= asked <= 6.1, asked)
        self.assertApproximates(killed - asked, 3.0, 0.1)
        self.assertLessEqual(killed, 9.0)
        self.assertIn("may be lost; work was ended", running.err.text())
        self.assertGreater(self.cluster.result(taken, 60), began + killed)

    def test_asked_to_end_it_ends(self) -> None:
        running, child = self.begin_holding("lock", "l", "--grace", "4", "--", "work")
        self.cluster.crash(self.leader)
        self.assertEqual(self.cluster.result(running.done, 60), 5)
        self.assertEqual([number for _, number in child.signals], [signal.SIGTERM])

    def test_taken_away_it_is_killed_at_once(self) -> None:
        running, child = self.begin_holding("lock", "l", "--", "work")
        self.ok("lease", "revoke", self.ok("lease", "list", "-o", "raw").text.strip())
        self.assertEqual(self.cluster.result(running.done), 5)
        self.assertEqual([number for _, number in child.signals], [signal.SIGKILL])

    def test_signals_are_for_the_command(self) -> None:
        running, child = self.begin_holding("lock", "l", "--", "work")
        child.ignores = {signal.SIGTERM, signal.SIGINT}
        on_signal = running.context.on_signal
        assert on_signal is not None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            self.assertTrue(on_signal(number))
        # At a terminal, Ctrl-C has come to both already.
        child.has_group = False
        self.assertTrue(on_signal(signal.SIGINT))
        self.assertEqual(
            [number for _, number in child.signals],
            [signal.SIGTERM, signal.SIGINT, signal.SIGTERM],
        )
        self.assertNoResult(running.done)
        child.end(0)
        # Too late for the command, it does not keep us from letting go.
        on_signal = running.context.on_signal
        assert on_signal is not None
        self.assertTrue(on_signal(signal.SIGINT))
        self.assertEqual(self.cluster.result(running.done), 0)
        self.assertEqual(self.ok("lease", "list").text, "")

    def test_a_delay_keeps_the_next_one_out(self) -> None:
        running, _ = self.begin_holding(
            "lock", "l", "--ttl", "6", "--delay", "20", "--", "work"
        )
        taken = self.take("l")
        self.cluster.advance(5)
        began = self.cluster.clock.seconds()
        self.cluster.partition(["c1"], [self.leader, "c2"])
        self.assertEqual(self.cluster.result(running.done, 60), 5)
        lost = self.cluster.clock.seconds()
        self.assertLess(lost - began, 6.1)
        self.assertGreater(self.cluster.result(taken, 60) - lost, 18)

    def test_it_is_somebody_elses(self) -> None:
        running, child = self.begin_holding("lock", "l", "--", "work")
        self.fails(1, "somebody else's", "lock", "l", "--wait", "0", "--", "work")
        began = self.cluster.clock.seconds()
        self.fails(1, "somebody else's", "lock", "l", "--wait", "5", "--", "work")
        self.assertApproximates(self.cluster.clock.seconds() - began, 5, 0.5)
        self.assertEqual(len(FakeChild.made), 1)
        # Nobody of them is in line any more.
        self.assertEqual(self.ok("list", "l/", "--count").text, "1\n")
        child.end(0)
        self.cluster.result(running.done)
        self.assertEqual(self.ok("lease", "list").text, "")

    def test_stopped_in_line_it_leaves_it(self) -> None:
        running, child = self.begin_holding("lock", "l", "--", "work")
        waiting = self.begin("lock", "l", "--", "work", terminal=True)
        self.cluster.advance(5)
        self.assertIn("Waiting for l", waiting.err.text())
        self.assertEqual(self.ok("list", "l/", "--count").text, "2\n")
        waiting.done.cancel()
        self.cluster.advance(1)
        self.failureResultOf(waiting.done, CancelledError)
        self.assertEqual(self.ok("list", "l/", "--count").text, "1\n")
        child.end(0)
        self.cluster.result(running.done)

    def test_a_command_that_is_not_there(self) -> None:
        self.fails(127, "not-there", "lock", "l", "--", "not-there")
        self.assertEqual(self.ok("lease", "list").text, "")

    def test_without_a_command(self) -> None:
        running = self.begin("lock", "l")
        self.cluster.advance_until(running.out.getvalue)
        token = int(running.out.getvalue())
        self.assertGreater(token, 1)
        self.cluster.advance(60)
        self.assertNoResult(running.done)
        on_signal = running.context.on_signal
        assert on_signal is not None
        self.assertTrue(on_signal(signal.SIGINT))
        self.assertEqual(self.cluster.result(running.done), 0)
        self.assertEqual(self.ok("lease", "list").text, "")

        again = self.begin("lock", "l", "-o", "json")
        self.cluster.advance_until(again.out.getvalue)
        self.assertGreater(msgspec.json.decode(again.out.getvalue())["token"], token)
        self.ok("lease", "revoke", self.ok("lease", "list", "-o", "raw").text.strip())
        self.assertEqual(self.cluster.result(again.done), 5)


class Elections(HoldingCase):
    def test_who_leads(self) -> None:
        self.fails(1, "Nobody leads", "elect", "e")
        observing = self.begin("elect", "e", "--observe")
        self.cluster.advance(1)
        first, child = self.begin_holding("elect", "e", "host-1", "--", "serve")
        token = child.environ[b"RAFTCTL_ELECTION_TOKEN"].decode()
        self.assertEqual(self.ok("elect", "e").text, f"host-1\t{token}\n")
        self.assertEqual(self.ok("elect", "e", "-o", "raw").text, "host-1\n")
        self.assertEqual(
            self.ok("elect", "e", "-o", "json").json,
            {"leader": {"value": "host-1", "token": int(token)}},
        )
        second = self.begin("elect", "e", "host-2", "--", "serve")
        self.cluster.advance(30)
        self.assertEqual(len(FakeChild.made), 1)
        child.end(3)
        self.assertEqual(self.cluster.result(first.done), 3)
        self.cluster.advance_until(lambda: len(FakeChild.made) == 2)
        FakeChild.made[1].end(0)
        self.assertEqual(self.cluster.result(second.done), 0)
        self.cluster.advance(1)
        told = [line.split("\t")[0] for line in observing.out.text().splitlines()]
        self.assertEqual(told, ["", "host-1", "host-2", ""])
        observing.done.cancel()
        self.cluster.advance(1)
        self.failureResultOf(observing.done, CancelledError)

    def test_wrong(self) -> None:
        self.fails(2, "VALUE", "elect", "e", "--", "serve")
        self.fails(2, "--observe", "elect", "e", "v", "--observe")
