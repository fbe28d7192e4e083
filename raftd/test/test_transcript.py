"""
The README's transcripts, letter for letter: real processes at real terminals.

Nothing here sleeps; every wait is for something to be said, or for an answer
that the server itself holds back until it can be given.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pexpect
from twisted.trial.unittest import SynchronousTestCase

import raftd
from raftd.test.processes import PATIENCE_S, PYTHON, environment, free_ports

INITIALIZE = """\
Enter host:port> localhost:4001
Initialize or join? [ij] i
New raftd cluster created.
"""
JOIN = """\
Enter host:port> localhost:4002
Initialize or join? [ij] j
Server to join: localhost:4001
Joining cluster... joined.
"""
JOIN_THROUGH_A_FOLLOWER = """\
Enter host:port> localhost:4003
Initialize or join? [ij] j
Server to join: localhost:4002
Joining cluster... joined.
"""
PROMPTS = ("Enter host:port> ", "Initialize or join? [ij] ", "Server to join: ")
RECOVERED = r"Recovered {name}: term [1-9][0-9]*, [1-9][0-9]* log entries\.\r\n"

TWIST = [PYTHON, "-m", "twisted", "raftd"]
RAFTD = [PYTHON, "-c", "from raftd.tap import main; main()"]


class Terminal:
    """A command at a terminal of its own, and somebody who reads along."""

    def __init__(self, case: SynchronousTestCase, command: Sequence[str], cwd: str) -> None:
        self.case = case
        self.child: pexpect.spawn[str] = pexpect.spawn(
            command[0],
            list(command[1:]),
            cwd=cwd,
            env=environment(),
            timeout=PATIENCE_S,
            encoding="utf-8",
        )
        case.addCleanup(self.child.close, force=True)

    def shows(self, text: str) -> None:
        """That exactly `text` comes next."""
        self.child.expect_exact(text.replace("\n", "\r\n"))
        self.case.assertEqual(self.child.before, "")

    def matches(self, pattern: str) -> None:
        """That what comes next is exactly a match of `pattern`."""
        self.child.expect(pattern)
        self.case.assertEqual(self.child.before, "")

    def answer(self, prompt: str, answer: str) -> None:
        self.shows(prompt)
        self.child.sendline(answer)
        self.shows(answer + "\n")

    def play(self, transcript: str) -> None:
        """Answer what the transcript answers, and see what it shows."""
        for line in transcript.splitlines():
            for prompt in PROMPTS:
                if line.startswith(prompt):
                    self.answer(prompt, line.removeprefix(prompt))
                    break
            else:
                self.shows(line + "\n")

    def kill(self, number: int) -> None:
        self.child.kill(number)

    def ends(self) -> int | None:
        """Wait for its end; the exit status, None if a signal killed it."""
        self.child.expect(pexpect.EOF)
        self.child.wait()
        status: int | None = self.child.exitstatus
        return status


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One HTTP request; status and body.  503 if nobody listens there."""
    connection = http.client.HTTPConnection("localhost", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionError:
        return 503, b""
    finally:
        connection.close()


class ClusterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ports = free_ports(3)
        self.directories = [os.path.abspath(self.mktemp()) for _ in self.ports]
        for directory in self.directories:
            os.mkdir(directory)
        self.nodes: dict[int, Terminal] = {}

    def with_ports(self, transcript: str) -> str:
        """A transcript of the README with the ports of this test."""
        return re.sub("localhost:400([123])", lambda m: self.name(int(m[1]) - 1), transcript)

    def name(self, index: int) -> str:
        return f"localhost:{self.ports[index]}"

    def start(self, index: int, *options: str, command: Sequence[str] = TWIST) -> Terminal:
        node = Terminal(self, [*command, *options], self.directories[index])
        self.nodes[index] = node
        return node

    def start_cluster(self) -> None:
        """The first hour of the README."""
        for index, transcript in enumerate((INITIALIZE, JOIN, JOIN_THROUGH_A_FOLLOWER)):
            self.start(index).play(self.with_ports(transcript))

    def recovers(self, index: int, node: Terminal) -> None:
        node.matches(RECOVERED.format(name=self.name(index)))

    def insist(self, index: int, method: str, path: str, body: bytes | None = None) -> bytes:
        """A request, until it is answered; a node holds it back while it may yet be."""
        give_up_at = time.monotonic() + PATIENCE_S
        status, answer = 0, b""
        while time.monotonic() < give_up_at:
            status, answer = request(self.ports[index], method, path, body)
            if status in (200, 201):
                return answer
        self.fail(f"{method} {path} at {self.name(index)}: {status} {answer!r}")

    def status(self, index: int) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.insist(index, "GET", "/status"))
        return status

    def assert_everywhere(self, values: dict[str, bytes]) -> None:
        for index in range(3):
            for key, value in values.items():
                self.assertEqual(self.insist(index, "GET", f"/db/{key}"), value)

    def test_the_transcripts_are_the_readmes(self) -> None:
        readme = Path(raftd.__file__).parent.parent / "README.md"
        if not readme.exists():
            self.skipTest("raftd is installed without its README")
        text = readme.read_text(encoding="utf-8")
        for number, transcript in enumerate((INITIALIZE, JOIN, JOIN_THROUGH_A_FOLLOWER), 1):
            command = f"$ mkdir ~/raftd.{number}; cd ~/raftd.{number}; twist raftd\n"
            self.assertIn(f"```\n{command}{transcript}```\n", text)

    def test_three_nodes_lose_their_leader_and_nothing_else(self) -> None:
        self.start_cluster()
        roles = [member["role"] for member in self.status(2)["members"]]
        self.assertEqual(roles, ["voter"] * 3)
        values = {"greeting": b"hello"}
        answer = self.insist(1, "PUT", "/db/greeting", b"hello")
        self.assertEqual(answer, b'{"key":"greeting","revision":2}\n')
        self.assert_everywhere(values)

        names = [self.name(index) for index in range(3)]
        leader = names.index(self.status(1)["leader"])
        self.nodes[leader].kill(signal.SIGKILL)
        self.assertIsNone(self.nodes[leader].ends())
        survivors = [index for index in range(3) if index != leader]
        for index in survivors:
            values[f"written-at-{index}"] = os.urandom(100)
            self.insist(index, "PUT", f"/db/written-at-{index}", values[f"written-at-{index}"])

        again = self.start(leader)
        again.answer(PROMPTS[0], "")
        self.recovers(leader, again)
        self.assert_everywhere(values)
        self.assertEqual({self.status(i)["leader"] for i in range(3)} - set(names), set())

        # And now all at once.
        for node in self.nodes.values():
            node.kill(signal.SIGKILL)
        for node in self.nodes.values():
            self.assertIsNone(node.ends())
        for index in range(3):
            self.start(index, "--name", self.name(index))
        for index in range(3):
            self.recovers(index, self.nodes[index])
        self.assert_everywhere(values)
        for node in self.nodes.values():
            node.kill(signal.SIGTERM)
        self.assertEqual([node.ends() for node in self.nodes.values()], [0, 0, 0])

    def test_a_directory_belongs_to_one_name_and_one_process(self) -> None:
        first = self.start(0, command=RAFTD)
        first.play(self.with_ports(INITIALIZE))

        second = Terminal(self, RAFTD, self.directories[0])
        self.assertNotEqual(second.ends(), 0)
        self.assertIn(self.directories[0], str(second.child.before))
        self.assertNotIn(PROMPTS[0], str(second.child.before))

        first.kill(signal.SIGTERM)
        self.assertEqual(first.ends(), 0)
        self.assertEqual(first.child.before, "")
        again = self.start(0)
        again.answer(PROMPTS[0], self.name(1))
        again.child.expect_exact("\r\n")
        self.assertIn(self.name(0), str(again.child.before))
        again.answer(PROMPTS[0], self.name(0))
        self.recovers(0, again)

        again.kill(signal.SIGTERM)
        self.assertEqual(again.ends(), 0)
        refused = self.start(0, "--name", self.name(1))
        self.assertEqual(refused.ends(), 1)
        self.assertIn(self.name(0), str(refused.child.before))

    def test_wrong_answers_are_explained_in_a_line_and_asked_again(self) -> None:
        with socket.socket() as taken, socket.socket() as foreign:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            foreign.bind(("127.0.0.1", 0))
            foreign.listen()
            in_use, strange = (s.getsockname()[1] for s in (taken, foreign))
            node = self.start(1)
            for answer in (
                "",
                "localhost",
                "localhost:http",
                f"localhost:{in_use}",
                "no-such-host.invalid:4001",
                "192.0.2.1:4001",
            ):
                node.answer(PROMPTS[0], answer)
                node.matches(r"[^\r\n>]{10,}\.\r\n")
            node.answer(PROMPTS[0], self.name(1))
            for answer in ("", "x", "initialize"):
                node.answer(PROMPTS[1], answer)
                node.shows("Please answer i for a new cluster, or j to join one.\n")
            node.answer(PROMPTS[1], "J")
            node.answer(PROMPTS[2], "")
            node.matches(r"[^\r\n>]{10,}\.\r\n")
            node.answer(PROMPTS[2], self.name(0))
            node.matches(
                rf"Joining cluster\.\.\. failed: nothing is listening at {self.name(0)}\.\r\n"
            )
            node.answer(PROMPTS[2], f"localhost:{strange}")
            node.shows("Joining cluster... ")
            stranger, _ = foreign.accept()
            with stranger:
                stranger.recv(1000)
                stranger.sendall(b"220 mail.example ESMTP\r\n")
            node.matches(r"failed: [^\r\n]*is not a raftd server\.\r\n")
        self.start(0, "--name", self.name(0), "--init").shows("New raftd cluster created.\n")
        node.answer(PROMPTS[2], self.name(0))
        node.shows("Joining cluster... joined.\n")

    def test_until_there_is_an_identity_the_directory_is_left_alone(self) -> None:
        answers = [self.name(0), "j"]
        for count in range(3):
            for command in (TWIST, RAFTD):
                for control in ("eof", "intr"):
                    node = self.start(0, command=command)
                    for prompt, answer in zip(PROMPTS[:count], answers, strict=False):
                        node.answer(prompt, answer)
                    node.shows(PROMPTS[count])
                    node.child.sendeof() if control == "eof" else node.child.sendintr()
                    status = node.ends()
                    self.assertEqual(status, 1 if control == "eof" else 130)
                    self.assertEqual(os.listdir(self.directories[0]), [])

    def test_40_a_join_that_was_broken_off_goes_on(self) -> None:
        status = b'{"name": "n:1", "member_id": "1", "cluster_id": "2", "leader": "n:1"}'
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", self.ports[0]))
            server.listen()
            node = self.start(1, command=RAFTD)
            node.answer(PROMPTS[0], self.name(1))
            node.answer(PROMPTS[1], "j")
            node.answer(PROMPTS[2], self.name(0))
            node.shows("Joining cluster... ")
            probe, _ = server.accept()
            with probe:
                # As long as it has only been looked at, nobody knows of this node.
                self.assertEqual(os.listdir(self.directories[1]), [])
                probe.recv(1000)
                probe.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + status)
            asked, _ = server.accept()
            with asked:
                node.child.sendintr()
                self.assertEqual(node.ends(), 130)
        self.assertIn("identity.json", os.listdir(self.directories[1]))

        options = ("--name", self.name(0), "--init")
        self.start(0, *options).shows("New raftd cluster created.\n")
        node = self.start(1)
        node.answer(PROMPTS[0], "")
        node.shows("Joining cluster... joined.\n")
        self.assertEqual(len(self.status(1)["members"]), 2)

    def test_40_options_in_place_of_answers(self) -> None:
        options = ("--name", self.name(0), "--init")
        joining = ("--name", self.name(1), "--join", f"{self.name(2)},{self.name(0)}")
        node = self.start(1, *joining)
        node.matches(r"Joining cluster\.\.\. failed: [^\r\n]+\.\r\n")
        self.assertEqual(node.ends(), 1)
        self.start(0, *options).shows("New raftd cluster created.\n")
        self.start(1, *joining).shows("Joining cluster... joined.\n")
        for node in self.nodes.values():
            node.kill(signal.SIGTERM)
        self.assertEqual([node.ends() for node in self.nodes.values()], [0, 0])
        self.recovers(0, self.start(0, *options))
        self.recovers(1, self.start(1, *joining))
        self.insist(1, "PUT", "/db/key", b"value")

    def test_answers_from_a_pipe_leave_a_running_server(self) -> None:
        child = subprocess.Popen(
            RAFTD,
            cwd=self.directories[0],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{self.name(0)}\ni\n".encode())
        child.stdin.close()
        shown = b"".join(child.stdout.readline() for _ in range(3))
        self.assertEqual(shown.decode(), self.with_ports(INITIALIZE))
        self.insist(0, "PUT", "/db/key", b"value")
        child.terminate()
        self.assertEqual(child.wait(PATIENCE_S), 0)
        self.assertEqual(child.stdout.read(), b"")
        child.stdout.close()
