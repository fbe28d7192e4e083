"""The options, and the life of the service: what is said, and the exit status."""

from __future__ import annotations

import os
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, jsonFileLogObserver, textFileLogObserver
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from raftd.client.requester import MAX_TIMEOUT_S
from raftd.console import Answers, Console, EndOfInput
from raftd.errors import DirectoryInUse, Fatal
from raftd.idempotency import KEY_TTL_MS
from raftd.interfaces import Stage
from raftd.logs import HeldLog
from raftd.outlet import Outlet
from raftd.tap import (
    MAX_REQUEST_TIMEOUT_MS,
    MAX_THRESHOLD_BYTES,
    MAX_TIMEOUT_MS,
    STOP_TIMEOUT_S,
    LogTarget,
    Options,
    RaftdService,
    Signals,
)
from raftd.test.fake_setup import FakeServer


class OptionsTests(SynchronousTestCase):
    def parse(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(arguments)
        return options

    def refused(self, *arguments: str) -> str:
        """The sentence that refuses `arguments`."""
        error = self.assertRaises(UsageError, self.parse, *arguments)
        sentence = str(error)
        self.assertTrue(sentence.endswith("."), sentence)
        return sentence

    def test_defaults(self) -> None:
        options = self.parse()
        self.assertEqual(options["data-dir"], os.getcwd())
        self.assertEqual(options.answers, Answers())
        self.assertEqual(options["heartbeat-interval-ms"], 100)
        self.assertEqual(options["election-timeout-ms"], 600)
        self.assertEqual(options["request-timeout-ms"], 5000)
        self.assertIsNone(options["listen"])
        self.assertEqual(options["snapshot-threshold-bytes"], 64 << 20)
        for flag in ("insecure", "learner", "lease-reads"):
            self.assertFalse(options[flag], flag)

    def test_answers(self) -> None:
        self.assertEqual(
            self.parse("--name", "localhost:4001", "--init").answers,
            Answers(name="localhost:4001", initialize=True),
        )
        self.assertEqual(
            self.parse("--name=h:1", "--join=h:2,h:3").answers,
            Answers(name="h:1", join=("h:2", "h:3")),
        )

    def test_init_and_join_exclude_one_another(self) -> None:
        self.assertIn("not both", self.refused("--init", "--join", "h:1"))

    def test_names_are_checked(self) -> None:
        self.assertIn("host:port", self.refused("--name", "localhost"))
        self.assertIn("'x'", self.refused("--join", "h:1,x"))
        self.assertIn("host:port", self.refused("--join", " , "))
        self.assertIn("not a port", self.refused("--listen", "0.0.0.0:none"))
        self.assertIn("an address", self.refused("--listen", "localhost:4001"))
        self.assertEqual(self.parse("--listen", "[::]:4001")["listen"], "[::]:4001")

    def test_an_election_timeout_below_five_heartbeats_is_refused(self) -> None:
        self.assertIn("five heartbeats", self.refused("--election-timeout-ms", "499"))
        self.assertEqual(self.parse("--election-timeout-ms=500")["election-timeout-ms"], 500)
        self.assertIn("five heartbeats", self.refused("--heartbeat-interval-ms", "121"))

    def test_times_are_checked(self) -> None:
        for option, most in (
            ("heartbeat-interval", MAX_TIMEOUT_MS),
            ("election-timeout", MAX_TIMEOUT_MS),
            ("request-timeout", MAX_REQUEST_TIMEOUT_MS),
        ):
            for value in ("0", "-1", "soon", "", "1.5", str(most + 1)):
                self.assertIn(f"--{option}-ms takes", self.refused(f"--{option}-ms={value}"))

    def test_29_no_write_waits_for_longer_than_its_idempotency_key_is_kept(self) -> None:
        """Behind a client that has tried for as long as it may, and asked here last."""
        self.assertLess(MAX_REQUEST_TIMEOUT_MS + 1000 * MAX_TIMEOUT_S, KEY_TTL_MS)

    def test_bytes_are_checked(self) -> None:
        option = "--snapshot-threshold-bytes"
        for value in ("0", "-1", "much", "", "1.5", "64MB", str(MAX_THRESHOLD_BYTES + 1)):
            self.assertIn(f"{option} takes bytes", self.refused(f"{option}={value}"))
        self.assertEqual(self.parse(f"{option}=1")["snapshot-threshold-bytes"], 1)

    def test_flags(self) -> None:
        options = self.parse("--learner", "--lease-reads", "--insecure")
        for flag in ("insecure", "learner", "lease-reads"):
            self.assertTrue(options[flag], flag)

    def test_more_arguments_are_refused(self) -> None:
        self.assertIn("'localhost:4001'", self.refused("localhost:4001"))

    def test_the_log_of_twist_is_held(self) -> None:
        from twisted.application.twist._options import TwistOptions

        twist = TwistOptions()
        twist["fileLogObserverFactory"] = jsonFileLogObserver
        options = Options()
        options.parent = twist
        options.parseOptions([])
        self.assertIs(twist["fileLogObserverFactory"](None), options.log)


class ServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = FakeServer()
        self.reactor = MemoryReactorClock()
        self.patch(self.reactor, "stop", self.reactor_stop)
        self.signals = Signals()
        self.patch(self.signals, "install", lambda: None)
        self.log = HeldLog(textFileLogObserver)
        self.logged: list[str] = []
        self.shown = ""
        self.errors = ""
        self.lines: list[Deferred[bytes]] = []
        self.statuses: list[int] = []
        self.stops = 0

    def reactor_stop(self) -> None:
        self.stops += 1

    def service(
        self, answers: Answers | None = None, shares_terminal: bool = True
    ) -> RaftdService:
        def make_server(on_fatal: Any) -> FakeServer:
            self.server.on_fatal = on_fatal
            return self.server

        def put(text: str) -> bool:
            self.logged.append(text)
            return True

        return RaftdService(
            cast(Any, self.reactor),
            make_server,
            answers or Answers(name="localhost:4001", initialize=True),
            Console(self._line, self._say, self._warn),
            Outlet(),
            self.log,
            LogTarget(put, Outlet(), shares_terminal),
            self.signals,
            self.statuses.append,
        )

    def _line(self) -> Deferred[bytes]:
        self.lines.append(Deferred())
        return self.lines[-1]

    def _say(self, text: str) -> None:
        self.shown += text

    def _warn(self, text: str) -> None:
        self.errors += text

    def start(self, service: RaftdService) -> None:
        """As `twist` does."""
        service.startService()
        self.log({"log_format": "Starting", "log_level": LogLevel.info})
        self.reactor.run()
        self.stops -= 1  # that one is the fake reactor's own

    def shut_down(self, service: RaftdService) -> None:
        """As the reactor does when it is stopped, by a signal or otherwise."""
        self.successResultOf(service.stopService())
        self.after_shutdown()

    def after_shutdown(self) -> None:
        ((function, arguments, keywords),) = self.reactor.triggers["after"]["shutdown"]
        function(*arguments, **keywords)

    def test_a_healthy_node_that_is_stopped_exits_0(self) -> None:
        service = self.service()
        self.start(service)
        self.assertEqual(self.shown, "New raftd cluster created.\n")
        self.signals.number = 15
        self.shut_down(service)
        self.assertEqual(self.server.steps[0], "open")
        self.assertEqual(self.server.steps[-1], "stop")
        self.assertEqual((self.statuses, self.errors), ([0], ""))

    def test_a_directory_in_use_is_refused_before_anything_else(self) -> None:
        self.server.failure = DirectoryInUse("Somebody else is here.")
        error = self.assertRaises(SystemExit, self.service().startService)
        self.assertEqual(error.code, 1)
        self.assertEqual((self.shown, self.errors), ("", "Somebody else is here.\n"))
        self.assertEqual(self.server.steps, ["open"])

    def test_the_end_of_input_exits_1(self) -> None:
        service = self.service(Answers())
        self.start(service)
        self.assertEqual(self.shown, "Enter host:port> ")
        self.lines[0].errback(EndOfInput("That was all."))
        self.assertEqual(self.shown, "Enter host:port> \n")
        self.assertEqual(self.errors, "That was all.\n")
        self.assertEqual(self.stops, 1)
        self.shut_down(service)
        self.assertEqual(self.statuses, [1])

    def test_a_refused_option_exits_1(self) -> None:
        service = self.service(Answers(name="localhost:4001", join=("localhost:1",)))
        self.start(service)
        self.shut_down(service)
        self.assertEqual(
            self.shown, "Joining cluster... failed: nothing listens at localhost:1.\n"
        )
        self.assertEqual((self.statuses, self.errors), ([1], ""))

    def test_ctrl_c_at_a_prompt_exits_130(self) -> None:
        service = self.service(Answers())
        self.start(service)
        self.signals.number = 2
        self.shut_down(service)
        self.assertEqual(self.shown, "Enter host:port> \n")
        self.assertEqual((self.statuses, self.errors), ([130], ""))

    def test_ctrl_c_while_joining_exits_130_and_breaks_it_off(self) -> None:
        service = self.service(Answers(name="localhost:4001", join=("localhost:2",)))
        self.start(service)
        self.signals.number = 2
        self.shut_down(service)
        self.assertEqual(self.shown, "Joining cluster... \n")
        self.assertEqual((self.statuses, self.errors), ([130], ""))

    def test_47_a_fatal_failure_of_a_serving_node_exits_1(self) -> None:
        service = self.service()
        self.start(service)
        self.server.on_fatal(Fatal("The disk is on fire."))
        self.server.on_fatal(Fatal("The house, too."))
        self.assertGreaterEqual(self.stops, 1)
        self.shut_down(service)
        self.assertEqual((self.statuses, self.errors), ([1], "The disk is on fire.\n"))

    def test_a_fatal_failure_while_joining_begins_a_line(self) -> None:
        service = self.service(Answers(name="localhost:4001", join=("localhost:2",)))
        self.start(service)
        self.server.on_fatal(Fatal("The disk is on fire."))
        self.shut_down(service)
        self.assertEqual(self.shown, "Joining cluster... \n")
        self.assertEqual((self.statuses, self.errors), ([1], "The disk is on fire.\n"))

    def test_a_stop_that_hangs_ends_all_the_same(self) -> None:
        service = self.service()
        self.server.stopped = Deferred()
        self.start(service)
        stopped = service.stopService()
        self.reactor.advance(STOP_TIMEOUT_S - 0.1)
        self.assertNoResult(stopped)
        self.reactor.advance(0.1)
        self.successResultOf(stopped)
        self.after_shutdown()
        self.assertEqual(self.statuses, [1])
        self.assertIn("TimeoutError", self.errors)
        self.assertEqual(len(self.flushLoggedErrors()), 1)

    def test_an_unexpected_error_is_said_and_logged(self) -> None:
        service = self.service()
        self.patch(self.server, "initialize", lambda: succeed(1 / 0))
        self.start(service)
        self.shut_down(service)
        self.assertIn("ZeroDivisionError", self.errors)
        self.assertEqual(self.errors.count("\n"), 1)
        self.assertEqual(self.statuses, [1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    # -- the log

    def test_a_log_at_the_terminal_waits_for_the_end_of_the_dialogue(self) -> None:
        self.server = FakeServer(Stage.MEMBER, "localhost:4001")
        self.start(self.service(Answers()))
        self.assertEqual(self.logged, [])
        self.lines[0].callback(b"")
        self.assertEqual(len(self.logged), 1)
        self.assertIn("Starting", self.logged[0])

    def test_a_log_file_waits_for_an_identity(self) -> None:
        service = self.service(Answers(), shares_terminal=False)
        self.start(service)
        for answer in (b"localhost:4002", b"j"):
            self.lines[-1].callback(answer)
            self.assertEqual(self.logged, [])
        self.lines[-1].callback(b"localhost:1")  # fails, and the directory has an id
        self.assertEqual(len(self.logged), 1)

    def test_a_log_file_of_a_member_begins_at_once(self) -> None:
        self.server = FakeServer(Stage.MEMBER, "localhost:4001")
        self.start(self.service(Answers(), shares_terminal=False))
        self.assertEqual(len(self.logged), 1)

    def test_errors_are_shown_if_the_log_goes_nowhere(self) -> None:
        service = self.service(Answers(), shares_terminal=False)
        self.start(service)
        self.log({"log_format": "Ouch", "log_level": LogLevel.error})
        self.signals.number = 2
        self.shut_down(service)
        self.assertEqual(self.logged, [])
        self.assertIn("Ouch", self.errors)
        self.assertNotIn("Starting", self.errors)
