"""
The two commands as processes, at terminals and pipes, on a fake server.

What is tested here is what only a process has: the terminal, signals, the
exit status, closed descriptors.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

import pexpect
from twisted.trial.unittest import SynchronousTestCase

from raftd.replica import ReplicaOptions
from raftd.test.processes import PATIENCE_S, PYTHON, environment

NAME = "Enter host:port> "
CHOICE = "Initialize or join? [ij] "
SERVER = "Server to join: "

COMMANDS = ("raftd", "twist raftd")


def command(words: str, *arguments: str) -> list[str]:
    return [PYTHON, "-m", "raftd.test.fake_setup", *words.split(), *arguments]


class TerminalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)

    def spawn(self, arguments: Sequence[str], **variables: str) -> pexpect.spawn[str]:
        child = pexpect.spawn(
            arguments[0],
            list(arguments[1:]),
            cwd=self.directory,
            env=environment(**variables),
            timeout=PATIENCE_S,
            encoding="utf-8",
        )
        self.addCleanup(child.close, force=True)
        return child

    def shows(self, child: pexpect.spawn[str], text: str) -> None:
        """That exactly `text` comes next."""
        child.expect_exact(text.replace("\n", "\r\n"))
        self.assertEqual(child.before, "")

    def answer(self, child: pexpect.spawn[str], prompt: str, answer: str) -> None:
        self.shows(child, prompt)
        child.sendline(answer)
        self.shows(child, answer + "\n")

    def ends(self, child: pexpect.spawn[str]) -> int | None:
        """Its exit status; None if a signal killed it."""
        child.expect(pexpect.EOF)
        child.wait()
        status: int | None = child.exitstatus
        return status

    def files(self) -> list[str]:
        return sorted(os.listdir(self.directory))

    def test_raftd_shows_the_dialogue_and_nothing_else(self) -> None:
        child = self.spawn(command("raftd"))
        self.answer(child, NAME, "localhost:4001")
        self.answer(child, CHOICE, "i")
        self.shows(child, "New raftd cluster created.\n")
        child.kill(signal.SIGTERM)
        self.assertEqual(self.ends(child), 0)
        self.assertEqual(child.before, "")
        self.assertEqual(self.files(), ["raftd.log"])
        with open(os.path.join(self.directory, "raftd.log")) as log:
            self.assertIn("Starting reactor...", log.readline())

    def test_twist_raftd_shows_its_log_after_the_dialogue(self) -> None:
        child = self.spawn(command("twist raftd"))
        self.answer(child, NAME, "localhost:4002")
        self.answer(child, CHOICE, "j")
        self.answer(child, SERVER, "localhost:4001")
        self.shows(child, "Joining cluster... joined.\n")
        child.expect_exact("Starting reactor...\r\n")
        child.kill(signal.SIGTERM)
        self.assertEqual(self.ends(child), 0)
        self.assertIn("Received SIGTERM", child.before)
        self.assertEqual(self.files(), [])

    def test_the_end_of_input_at_each_prompt(self) -> None:
        for answers in ([], ["localhost:4001"], ["localhost:4001", "j"]):
            child = self.spawn(command("raftd"))
            prompts = [NAME, CHOICE, SERVER]
            for answer in answers:
                self.answer(child, prompts.pop(0), answer)
            self.shows(child, prompts[0])
            child.sendeof()
            self.shows(child, "\nEnd of input: raftd was not started.\n")
            self.assertEqual(self.ends(child), 1)
            self.assertEqual(self.files(), [])

    def test_ctrl_c_at_each_prompt(self) -> None:
        for words, answers in (
            ("raftd", []),
            ("twist raftd", ["localhost:4001"]),
            ("raftd", ["localhost:4001", "j"]),
        ):
            child = self.spawn(command(words))
            prompts = [NAME, CHOICE, SERVER]
            for answer in answers:
                self.answer(child, prompts.pop(0), answer)
            self.shows(child, prompts[0])
            child.sendintr()
            self.shows(child, "^C\n")
            self.assertEqual(self.ends(child), 130)
            self.assertEqual(self.files(), [])

    def test_ctrl_c_while_joining(self) -> None:
        child = self.spawn(command("raftd", "--name=localhost:4002", "--join=localhost:2"))
        self.shows(child, "Joining cluster... ")
        child.sendintr()
        self.shows(child, "^C\n")
        self.assertEqual(self.ends(child), 130)
        self.assertEqual(self.files(), ["raftd.log"])  # it has an identity

    def test_a_fatal_failure_is_said_and_exits_1(self) -> None:
        for words in COMMANDS:
            arguments = command(words, "--name=localhost:4001", "--init")
            child = self.spawn(arguments, FAKE_FATAL="The disk is on fire.")
            self.shows(child, "New raftd cluster created.\n")
            child.expect_exact("The disk is on fire.\r\n")
            self.assertEqual(self.ends(child), 1)

    def test_the_terminal_is_left_as_it_was(self) -> None:
        look = (
            f"{PYTHON} -c 'import os, sys, termios; "
            "sys.stderr.write(str([os.get_blocking(n) for n in (0, 1, 2)]"
            " + termios.tcgetattr(0)) + chr(10))'"
        )
        raftd = " ".join(command("raftd"))
        script = f"{look}; trap : INT; {raftd}; echo status $?; {look}"
        child = self.spawn(["/bin/sh", "-c", script])
        child.expect(r"\[True.*\r\n")
        before = child.after
        child.expect_exact(NAME)
        child.sendline("localhost:4001")
        child.expect_exact(CHOICE)
        child.sendline("i")
        child.expect_exact("created.\r\n")
        child.sendintr()
        child.expect_exact("status 0")
        child.expect(r"\[True.*\r\n")
        self.assertEqual(child.after, before)

    def test_53_a_stopped_terminal_stops_nothing(self) -> None:
        child = self.spawn(command("twist raftd", "--name=localhost:4001", "--init"))
        child.expect_exact("Starting reactor...\r\n")
        child.send("\x13")  # Ctrl-S
        child.kill(signal.SIGTERM)
        # Its last words wait for a while, and then it ends without them.
        self.assertEqual(self.ends(child), 0)

    def test_a_second_signal_ends_it_at_once(self) -> None:
        arguments = command("twist raftd", "--name=localhost:4001", "--init")
        child = self.spawn(arguments, FAKE_STOP_HANGS="1")
        child.expect_exact("Starting reactor...\r\n")
        child.sendintr()
        child.expect_exact("Received SIGINT")  # two at once would be one
        child.sendintr()
        self.assertEqual(self.ends(child), 130)


class PipeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)

    def start(self, script: str, **variables: str) -> subprocess.Popen[bytes]:
        """A shell that runs `script`, with RAFTD in it replaced by the command."""
        script = script.replace("RAFTD", "exec " + " ".join(command("raftd")))
        child = subprocess.Popen(
            ["/bin/sh", "-c", script],
            cwd=self.directory,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.addCleanup(self.end, child)
        return child

    def end(self, child: subprocess.Popen[bytes]) -> None:
        """End the shell and all that it started, which may have outlived it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()

    def finishes(self, child: subprocess.Popen[bytes]) -> tuple[int, str, str]:
        output, errors = child.communicate(timeout=PATIENCE_S)
        return child.returncode, output.decode(), errors.decode()

    def test_answers_from_a_pipe_leave_a_running_server(self) -> None:
        child = self.start("printf 'localhost:4001\\ni\\n' | (RAFTD)")
        assert child.stdout is not None
        lines = [child.stdout.readline().decode() for _ in range(3)]
        self.assertEqual(
            lines, [f"{NAME}localhost:4001\n", f"{CHOICE}i\n", "New raftd cluster created.\n"]
        )
        self.assertIsNone(child.poll())

    def test_answers_from_a_file(self) -> None:
        with open(os.path.join(self.directory, "answers"), "w") as file:
            file.write("nonsense\n")
        status, output, errors = self.finishes(self.start("RAFTD < answers"))
        self.assertEqual(status, 1)
        self.assertEqual(output, f"{NAME}nonsense\n'nonsense' is no host:port.\n{NAME}\n")
        self.assertEqual(errors, "End of input: raftd was not started.\n")

    def test_no_input_is_needed_if_everything_is_given(self) -> None:
        for source in ("< /dev/null", "<&-"):
            child = self.start(
                f"RAFTD --name=localhost:4001 --init {source}",
                FAKE_FATAL="The disk is on fire.",
            )
            status, output, errors = self.finishes(child)
            self.assertEqual(status, 1)
            self.assertEqual(output, "New raftd cluster created.\n")
            self.assertEqual(errors, "The disk is on fire.\n")

    def test_what_is_given_reaches_the_server(self) -> None:
        """And what is not given is as the library has it."""
        joins = "RAFTD --name=localhost:4001 --join=localhost:4002 < /dev/null"
        for given, options in (
            ("", ReplicaOptions()),
            (
                "--heartbeat-interval-ms=20 --election-timeout-ms=200 "
                "--request-timeout-ms=700 --snapshot-threshold-bytes=1234 --lease-reads",
                ReplicaOptions(20, 200, 700, 1234, lease_reads=True),
            ),
        ):
            script = f"{joins} {given}"
            child = self.start(script, FAKE_FATAL="{options.replica} {options.learner}.")
            status, _, errors = self.finishes(child)
            self.assertEqual((status, errors), (1, f"{options} False.\n"))
        child = self.start(f"{joins} --learner", FAKE_FATAL="{options.learner}.")
        self.assertEqual(self.finishes(child)[2], "True.\n")

    def test_no_input_is_its_end_if_something_is_asked(self) -> None:
        for source in ("< /dev/null", "<&-"):
            status, output, errors = self.finishes(self.start(f"RAFTD {source}"))
            self.assertEqual((status, output), (1, f"{NAME}\n"))
            self.assertEqual(errors, "End of input: raftd was not started.\n")

    def test_closed_outputs_break_nothing(self) -> None:
        child = self.start(
            "RAFTD --name=localhost:4001 --init >&- 2>&- <&-", FAKE_FATAL="The disk is on fire."
        )
        self.assertEqual(self.finishes(child)[0], 1)
        with open(os.path.join(self.directory, "raftd.log")) as log:
            self.assertIn("Starting reactor...", log.readline())

    def test_a_directory_in_use_is_refused_at_once(self) -> None:
        status, output, errors = self.finishes(self.start("RAFTD", FAKE_LOCKED="1"))
        self.assertEqual((status, output), (1, ""))
        self.assertEqual(errors, f"{os.path.realpath(self.directory)} is in use.\n")

    def test_wrong_options_are_a_sentence(self) -> None:
        status, output, errors = self.finishes(self.start("RAFTD --name=x"))
        self.assertEqual((status, output), (64, ""))
        self.assertEqual(
            errors,
            "raftd: 'x' is not of the form host:port, like localhost:4001.\n"
            "See raftd --help.\n",
        )
