"""The dialogue, as a person sees it: every transcript is compared to the letter."""

from __future__ import annotations

import os
from textwrap import dedent
from typing import TextIO

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from raftd.console import (
    MAX_ANSWER,
    Answers,
    Console,
    Dialogue,
    EndOfInput,
    OptionRefused,
    Prompter,
    open_prompter,
)
from raftd.errors import BadAnswer, Fatal, StorageFailed
from raftd.interfaces import Stage
from raftd.test.fake_setup import FakeServer


class Screen:
    """A terminal with a person who types the given lines and then Ctrl-D."""

    def __init__(self, *typed: bytes, terminal: bool = True) -> None:
        self.typed = list(typed)
        self.shown = ""
        self.errors = ""
        self.terminal = terminal
        self.console = Console(self._line, self._say, self._warn, echo=not terminal)

    def _line(self) -> Deferred[bytes]:
        if not self.typed:
            return fail(EndOfInput("End of input."))
        line = self.typed.pop(0)
        if self.terminal:
            self.shown += line.decode("utf-8", "replace") + "\n"
        return succeed(line)

    def _say(self, text: str) -> None:
        self.shown += text

    def _warn(self, text: str) -> None:
        self.errors += text


class DialogueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = FakeServer()

    def run_dialogue(self, screen: Screen, answers: Answers | None = None) -> Failure | None:
        """The whole dialogue; how it failed, if it did."""
        dialogue = Dialogue(self.server, screen.console, answers or Answers())
        done = Deferred.fromCoroutine(dialogue.run())
        outcomes: list[Failure | None] = []
        done.addBoth(outcomes.append)
        self.assertEqual(len(outcomes), 1, "the dialogue has not ended")
        return outcomes[0]

    def assert_transcript(
        self, screen: Screen, expected: str, answers: Answers | None = None
    ) -> None:
        self.assertIsNone(self.run_dialogue(screen, answers))
        self.assertEqual(screen.shown, dedent(expected).lstrip("\n"))
        self.assertEqual(screen.errors, "")

    def assert_ends(
        self,
        screen: Screen,
        error: type[Exception],
        answers: Answers | None = None,
    ) -> str:
        """That the dialogue ends with `error`; its sentence."""
        failure = self.run_dialogue(screen, answers)
        assert failure is not None
        failure.trap(error)
        return failure.getErrorMessage()

    # -- the README's transcripts

    def test_initialize(self) -> None:
        self.assert_transcript(
            Screen(b"localhost:4001", b"i"),
            """
            Enter host:port> localhost:4001
            Initialize or join? [ij] i
            New raftd cluster created.
            """,
        )
        self.assertEqual(self.server.steps, ["take_name localhost:4001", "initialize"])

    def test_join(self) -> None:
        self.assert_transcript(
            Screen(b"localhost:4002", b"j", b"localhost:4001"),
            """
            Enter host:port> localhost:4002
            Initialize or join? [ij] j
            Server to join: localhost:4001
            Joining cluster... joined.
            """,
        )
        self.assertEqual(self.server.steps[1:], ["join localhost:4001"])

    def test_restart_with_the_recorded_name(self) -> None:
        self.server = FakeServer(Stage.MEMBER, "localhost:4001")
        self.assert_transcript(
            Screen(b""),
            "Enter host:port> \nRecovered localhost:4001: term 3, 7 log entries.\n",
        )
        self.assertEqual(self.server.steps, ["take_name localhost:4001", "recover"])

    # -- wrong answers

    def test_wrong_answers_are_explained_and_asked_again(self) -> None:
        self.assert_transcript(
            Screen(b"", b"nonsense", b"localhost:4002", b"", b"ij", b"j", b"", b"x", b"h:4001"),
            """
            Enter host:port> 
            '' is no host:port.
            Enter host:port> nonsense
            'nonsense' is no host:port.
            Enter host:port> localhost:4002
            Initialize or join? [ij] 
            Please answer i for a new cluster, or j to join one.
            Initialize or join? [ij] ij
            Please answer i for a new cluster, or j to join one.
            Initialize or join? [ij] j
            Server to join: 
            Please give the host:port of a member, like localhost:4001.
            Server to join: x
            'x' is not of the form host:port, like localhost:4001.
            Server to join: h:4001
            Joining cluster... joined.
            """,  # noqa: W291
        )

    def test_another_name_is_refused_and_asked_again(self) -> None:
        self.server = FakeServer(Stage.MEMBER, "localhost:4001")
        self.assert_transcript(
            Screen(b"localhost:4002", b"localhost:4001"),
            """
            Enter host:port> localhost:4002
            This directory belongs to localhost:4001.
            Enter host:port> localhost:4001
            Recovered localhost:4001: term 3, 7 log entries.
            """,
        )

    def test_spaces_carriage_returns_and_capitals_do_not_matter(self) -> None:
        self.run_dialogue(Screen(b"  localhost:4001 \r", b" I\r"))
        self.assertEqual(self.server.steps, ["take_name localhost:4001", "initialize"])
        self.server = FakeServer()
        self.run_dialogue(Screen(b"h:4002", b"J", b" h:4001 , h:4003\r"))
        self.assertEqual(self.server.steps[1:], ["join h:4001,h:4003"])

    def test_what_is_not_text_is_a_wrong_answer(self) -> None:
        screen = Screen(b"\xff\xfe", b"local\x1b[Dhost:4001", b"a\0b", b"localhost:4001", b"i")
        self.assertIsNone(self.run_dialogue(screen))
        self.assertEqual(screen.shown.count("Enter host:port> "), 4)
        self.assertIn("\nThat is not text in UTF-8.\n", screen.shown)
        self.assertIn(
            "\nThat has control characters in it; please type it anew.\n", screen.shown
        )
        self.assertEqual(self.server.steps, ["take_name localhost:4001", "initialize"])

    def test_an_explanation_is_one_line(self) -> None:
        def take_name(name: str) -> Deferred[None]:
            return succeed(None) if name == "ok" else fail(BadAnswer("No.\n  Not that.\n"))

        self.patch(self.server, "take_name", take_name)
        self.assert_transcript(
            Screen(b"x", b"ok", b"i"),
            """
            Enter host:port> x
            No. Not that.
            Enter host:port> ok
            Initialize or join? [ij] i
            New raftd cluster created.
            """,
        )

    # -- joining

    def test_a_failed_join_says_why_and_asks_again(self) -> None:
        self.assert_transcript(
            Screen(b"localhost:4002", b"j", b"localhost:1", b"localhost:4001"),
            """
            Enter host:port> localhost:4002
            Initialize or join? [ij] j
            Server to join: localhost:1
            Joining cluster... failed: nothing listens at localhost:1.
            Server to join: localhost:4001
            Joining cluster... joined.
            """,
        )

    def test_a_restart_goes_on_joining(self) -> None:
        self.server = FakeServer(Stage.JOINING, "localhost:4002")
        self.assert_transcript(Screen(b""), "Enter host:port> \nJoining cluster... joined.\n")
        self.assertEqual(self.server.steps[1:], ["join "])

    def test_a_restart_that_cannot_go_on_joining_asks_for_servers(self) -> None:
        self.server = FakeServer(Stage.JOINING, "localhost:4002")
        answers = Answers(name="localhost:4002", join=())
        join = self.server.join
        self.patch(self.server, "join", lambda servers: join(servers or ["recorded:1"]))
        self.assert_transcript(
            Screen(b"localhost:4001"),
            """
            Joining cluster... failed: nothing listens at recorded:1.
            Server to join: localhost:4001
            Joining cluster... joined.
            """,
            answers,
        )

    def test_a_restart_goes_on_initializing(self) -> None:
        self.server = FakeServer(Stage.INITIALIZING, "localhost:4001")
        self.assert_transcript(Screen(b""), "Enter host:port> \nNew raftd cluster created.\n")

    # -- options

    def test_nothing_is_asked_that_was_given(self) -> None:
        self.assert_transcript(
            Screen(),
            "New raftd cluster created.\n",
            Answers(name="localhost:4001", initialize=True),
        )
        self.server = FakeServer()
        self.assert_transcript(
            Screen(),
            "Joining cluster... joined.\n",
            Answers(name="localhost:4002", join=("localhost:4001", "localhost:4003")),
        )
        self.assertEqual(self.server.steps[1:], ["join localhost:4001,localhost:4003"])

    def test_what_was_not_given_is_asked(self) -> None:
        self.assert_transcript(
            Screen(b"localhost:4001"),
            "Enter host:port> localhost:4001\nNew raftd cluster created.\n",
            Answers(initialize=True),
        )
        self.server = FakeServer()
        self.assert_transcript(
            Screen(b"i"),
            "Initialize or join? [ij] i\nNew raftd cluster created.\n",
            Answers(name="localhost:4001"),
        )

    def test_40_the_same_options_just_restart(self) -> None:
        for answers in (
            Answers(name="localhost:4001", initialize=True),
            Answers(name="localhost:4001", join=("localhost:4002",)),
        ):
            self.server = FakeServer(Stage.MEMBER, "localhost:4001")
            self.assert_transcript(
                Screen(), "Recovered localhost:4001: term 3, 7 log entries.\n", answers
            )
            self.assertEqual(self.server.steps, ["take_name localhost:4001", "recover"])

    def test_40_the_same_options_go_on_joining(self) -> None:
        self.server = FakeServer(Stage.JOINING, "localhost:4002")
        answers = Answers(name="localhost:4002", join=("localhost:4001",))
        self.assert_transcript(Screen(), "Joining cluster... joined.\n", answers)
        self.assertEqual(self.server.steps[1:], ["join localhost:4001"])

    def test_a_refused_option_ends_it(self) -> None:
        screen = Screen(b"localhost:4001", b"i")
        sentence = self.assert_ends(screen, OptionRefused, Answers(name="nonsense"))
        self.assertEqual(sentence, "'nonsense' is no host:port.")
        self.assertEqual(screen.shown, "")

    def test_a_join_by_option_that_fails_ends_it_and_is_said_once(self) -> None:
        screen = Screen(b"localhost:4001")
        answers = Answers(name="localhost:4002", join=("localhost:1",))
        self.assertEqual(self.assert_ends(screen, OptionRefused, answers), "")
        self.assertEqual(
            screen.shown, "Joining cluster... failed: nothing listens at localhost:1.\n"
        )

    def test_options_cannot_turn_back_what_has_begun(self) -> None:
        self.server = FakeServer(Stage.JOINING, "localhost:4002")
        self.assert_ends(Screen(), OptionRefused, Answers(initialize=True))
        self.server = FakeServer(Stage.INITIALIZING, "localhost:4002")
        self.assert_ends(Screen(), OptionRefused, Answers(join=("localhost:4001",)))
        self.assertEqual(self.server.steps, [])

    # -- ends

    def test_the_end_of_input_ends_it_at_every_prompt(self) -> None:
        for typed in ([], [b"h:4001"], [b"h:4001", b"j"], [b"h:4001", b"j", b"h:1"]):
            self.server = FakeServer()
            screen = Screen(*typed)
            self.assertEqual(self.assert_ends(screen, EndOfInput), "End of input.")
            screen.console.complain("End of input.")
            self.assertTrue(screen.shown.endswith("\n"), screen.shown)
            self.assertEqual(screen.errors, "End of input.\n")

    def test_the_end_of_input_does_not_matter_after_the_last_answer(self) -> None:
        joining: Deferred[None] = Deferred()
        self.patch(self.server, "join", lambda servers: joining)
        screen = Screen(b"h:4002", b"j", b"h:4001")
        dialogue = Dialogue(self.server, screen.console, Answers())
        done = Deferred.fromCoroutine(dialogue.run())
        self.assertNoResult(done)
        joining.callback(None)
        self.assertIsNone(self.successResultOf(done))
        self.assertTrue(screen.shown.endswith("Joining cluster... joined.\n"))

    def test_a_fatal_failure_ends_it(self) -> None:
        self.server.failure = StorageFailed("The log cannot be flushed.")
        self.assertEqual(
            self.assert_ends(Screen(b"h:4001", b"i"), Fatal), "The log cannot be flushed."
        )
        self.server = FakeServer()
        self.server.failure = StorageFailed("The log cannot be flushed.")
        screen = Screen(b"h:4002", b"j", b"h:4001")
        self.assert_ends(screen, Fatal)
        self.assertTrue(screen.shown.endswith("Joining cluster... failed.\n"))

    # -- pipes

    def test_a_pipe_reads_like_a_terminal(self) -> None:
        typed = (b"nonsense\r", b"localhost:4001 ", b"\x1b", b"i")
        screen = Screen(*typed, terminal=False)
        self.assert_transcript(
            screen,
            """
            Enter host:port> nonsense
            'nonsense' is no host:port.
            Enter host:port> localhost:4001
            Initialize or join? [ij] ?
            That has control characters in it; please type it anew.
            Initialize or join? [ij] i
            New raftd cluster created.
            """,
        )

    def test_the_stage_is_looked_at_after_each_attempt_to_join(self) -> None:
        stages: list[Stage] = []
        screen = Screen(b"h:4002", b"j", b"h:1", b"h:4001")
        dialogue = Dialogue(
            self.server, screen.console, Answers(), lambda: stages.append(self.server.stage)
        )
        self.successResultOf(Deferred.fromCoroutine(dialogue.run()))
        self.assertEqual(stages, [Stage.JOINING, Stage.MEMBER])


class PrompterTests(TestCase):
    """On real descriptors and the real reactor."""

    def setUp(self) -> None:
        reader_end, self.writer_end = os.pipe()
        self.stream = os.fdopen(reader_end)
        self.addCleanup(self.stream.close)
        self.reader = self.open(self.stream)

    def open(self, stream: TextIO | None) -> Prompter:
        from twisted.internet import reactor

        prompter = open_prompter(reactor, stream)
        self.addCleanup(self.close, prompter)
        return prompter

    def close(self, prompter: Prompter) -> None:
        if prompter.transport is not None:
            prompter.transport.loseConnection()

    def write(self, data: bytes) -> None:
        os.write(self.writer_end, data)

    async def test_lines_come_one_by_one_and_the_last_needs_no_end(self) -> None:
        self.write(b"one\ntwo\r\n\nthree")
        os.close(self.writer_end)
        lines = [await self.reader.line() for _ in range(4)]
        self.assertEqual(lines, [b"one", b"two\r", b"", b"three"])
        await self.assertFailure(self.reader.line(), EndOfInput)

    async def test_nothing_is_read_before_it_is_asked_for(self) -> None:
        self.write(b"one\n")
        self.assertEqual(await self.reader.line(), b"one")
        self.write(b"not asked for\n")
        self.assertEqual(self.stream.readline(), "not asked for\n")
        os.close(self.writer_end)

    async def test_the_mode_of_what_is_shared_stays_as_it_was(self) -> None:
        self.assertTrue(os.get_blocking(self.stream.fileno()))
        line = self.reader.line()
        self.assertTrue(os.get_blocking(self.stream.fileno()))
        self.write(b"one\n")
        self.assertEqual(await line, b"one")
        os.close(self.writer_end)

    async def test_a_file(self) -> None:
        path = self.mktemp()
        with open(path, "w+", encoding="ascii") as file:
            file.write("one\ntwo")
            file.seek(0)
            reader = self.open(file)
            self.assertEqual([await reader.line() for _ in range(2)], [b"one", b"two"])
            await self.assertFailure(reader.line(), EndOfInput)
        os.close(self.writer_end)

    async def test_nothing_at_all(self) -> None:
        with open(os.devnull, encoding="ascii") as file:
            await self.assertFailure(self.open(file).line(), EndOfInput)
        os.close(self.writer_end)

    async def test_a_long_line_is_refused_and_skipped(self) -> None:
        self.write(b"x" * (MAX_ANSWER + 1) + b"\n" + b"y" * (5 * MAX_ANSWER) + b"\nnext\n")
        os.close(self.writer_end)
        await self.assertFailure(self.reader.line(), BadAnswer)
        await self.assertFailure(self.reader.line(), BadAnswer)
        self.assertEqual(await self.reader.line(), b"next")

    async def test_a_descriptor_made_nonblocking_by_somebody_else(self) -> None:
        os.set_blocking(self.stream.fileno(), False)
        line = self.reader.line()
        self.write(b"late\n")
        self.assertEqual(await line, b"late")
        os.close(self.writer_end)

    async def test_a_closed_standard_input_is_its_end(self) -> None:
        os.close(self.writer_end)
        await self.assertFailure(self.open(None).line(), EndOfInput)

    async def test_a_cancelled_question_is_forgotten(self) -> None:
        from twisted.internet.defer import CancelledError

        line = self.reader.line()
        line.cancel()
        await self.assertFailure(line, CancelledError)
        os.close(self.writer_end)
