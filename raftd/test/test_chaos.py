"""
The chaos suite: a short run of it, that it leaves nothing behind, and its own parts.

`python -m raftd.test.chaos --nodes 3 --minutes 10` is a longer one.
"""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from raftd.test.chaos import __main__ as command
from raftd.test.chaos import nemesis, sandbox
from raftd.test.chaos.clients import Client
from raftd.test.chaos.faults import Fault
from raftd.test.chaos.locks import TTL_S, Event, judge
from raftd.test.chaos.network import between, both_ways
from raftd.test.chaos.proxy import Proxies
from raftd.test.chaos.raftd_system import _condition, _events
from raftd.test.chaos.rounds import Round
from raftd.test.chaos.run import audit
from raftd.test.chaos.systems import Seen, System
from raftd.test.chaos.tally import Tally, percentile
from raftd.test.chaos.wire import Refused, Wire
from raftd.test.judge import judge as judge_history
from raftd.test.judge.calls import Call, Compare, Delete, Get, Put, Result, Transaction
from raftd.test.judge.files import read_history
from raftd.test.judge.history import Change
from raftd.test.processes import PYTHON, environment, free_ports, wait_until

#: How long a short run may take on a busy machine, in seconds.
PATIENCE_S = 300.0
#: Of a short run.
MINUTES = "0.15"

LAST_LINE = re.compile(
    r"operations (\d+), faults \((.*)\), linearizable (\d+)/(\d+), share unknown (.*)%, "
    r"locks held (\d+), time without service p50 (.*) s p99 (.*) s, violations (\d+)"
)


class RunTests(SynchronousTestCase):
    """The command, as people use it."""

    def begin(self, *options: str) -> subprocess.Popen[str]:
        self.temporary = Path(self.mktemp()).resolve()
        self.temporary.mkdir()
        child = subprocess.Popen(
            [
                *(PYTHON, "-m", "raftd.test.chaos", "--nodes", "3", "--seed", "1"),
                *("--minutes", MINUTES, "--verbose", *options),
            ],
            env=environment(TMPDIR=str(self.temporary)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(self.end, child)
        return child

    def end(self, child: subprocess.Popen[str]) -> None:
        child.kill()
        child.communicate()

    def left(self) -> list[str]:
        """Command lines of processes that the run has left."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.temporary) in text:
                found.append(text)
        return found

    def assert_nothing_left(self) -> None:
        if sys.platform == "linux":
            wait_until(lambda: not self.left(), "all processes are gone")
        self.assertEqual(list(self.temporary.iterdir()), [])

    def await_line(self, child: subprocess.Popen[str], text: str) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if text in line:
                return
        self.fail(f"it ended before it said {text!r}")

    def test_short_run(self) -> None:
        child = self.begin()
        output, _ = child.communicate(timeout=PATIENCE_S)
        self.assertEqual(child.returncode, 0, output)
        match = LAST_LINE.fullmatch(output.splitlines()[-1])
        assert match is not None, output
        self.assertGreater(int(match[1]), 10)
        self.assertRegex(match[2], r"[a-z] [1-9]")
        self.assertEqual(match[3], match[4])
        self.assertEqual(match[9], "0")
        self.assert_nothing_left()

    def test_short_run_through_proxies(self) -> None:
        child = self.begin(
            "--network", "loopback", "--only", "one way,slow link,isolate leader"
        )
        output, _ = child.communicate(timeout=PATIENCE_S)
        self.assertEqual(child.returncode, 0, output)
        self.assertIn("in a proxy on loopback", output)
        self.assert_nothing_left()

    def test_defect_is_found(self) -> None:
        """It can fail, and then says how to see it again, and keeps what it has."""
        defect = "linearizable-reads-are-local"
        child = self.begin("--only", "isolate leader,split", "--defect", defect)
        output, _ = child.communicate(timeout=PATIENCE_S)
        self.assertEqual(child.returncode, 1, output)
        self.assertIn("NOT LINEARIZABLE", output)
        self.assertIn(f"--defect {defect}", output)
        (kept,) = self.temporary.iterdir()
        self.assertIn(f"kept: {kept}", output)
        self.assertTrue((kept / "history0.jsonl").exists())
        self.assertTrue((kept / "node0" / "raftd.log").exists())

    def test_interrupted(self) -> None:
        child = self.begin()
        self.await_line(child, "started")
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=PATIENCE_S)
        self.assertEqual(child.returncode, 130)
        self.assert_nothing_left()

    def test_interrupted_on_loopback(self) -> None:
        child = self.begin("--network", "loopback")
        self.await_line(child, "started")
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=PATIENCE_S)
        self.assertEqual(child.returncode, 130)
        self.assert_nothing_left()

    def test_killed(self) -> None:
        """Namespaces go with the process that made them, whatever becomes of it."""
        child = self.begin()
        assert child.stdout is not None
        if "namespaces" not in child.stdout.readline():
            raise SkipTest("this machine does not allow namespaces")
        self.await_line(child, "started")
        self.assertNotEqual(self.left(), [])
        child.kill()
        child.communicate(timeout=PATIENCE_S)
        wait_until(lambda: not self.left(), "all processes are gone")


class OptionTests(SynchronousTestCase):
    def test_nonsense_is_refused(self) -> None:
        """Before anything is started."""
        self.patch(sys, "stderr", io.StringIO())
        for module, name in ((sandbox, "command"), (command, "_run")):
            self.patch(module, name, lambda *_: self.fail("it is started"))
        for options in (
            ("--system", "paper"),
            ("--nodes", "2"),
            ("--only", "kill,earthquake"),
            ("--defect", "too-good"),
            ("--keep", os.curdir),
        ):
            refused = self.assertRaises(SystemExit, command.main, ["--nodes", "3", *options])
            self.assertEqual(refused.code, 2, options)


class LockTests(SynchronousTestCase):
    def test_one_after_the_other(self) -> None:
        verdict = judge(
            [
                Event("held", 0, 5, 0.0),
                Event("put", 0, 5, 0.1),
                Event("ended", 0, 5, 0.2),
                Event("held", 1, 7, 0.3),
                Event("put", 1, 7, 0.4, before=5),
            ]
        )
        self.assertEqual((verdict.held, verdict.puts, verdict.wrong), (2, 2, []))

    def test_two_hold(self) -> None:
        events = [Event("held", 0, 5, 0.0), Event("held", 1, 7, 0.1)]
        self.assertEqual(judge(events).wrong, ["7 holds, and 5 still does"])

    def test_two_hold_where_clocks_differ(self) -> None:
        """Up to one lease behind, and then neither of those."""
        events = [
            Event("held", 0, 5, 0.0),
            Event("held", 1, 7, 20.0),
            Event("ended", 1, 7, 21.0),
            Event("held", 2, 9, 30.0),
        ]
        first, second = "7 holds, and 5 still does", "9 holds, and 5 still does"
        for window, wrong in (
            ((19.0, 20.5), [second]),
            ((10.0, 20.0 - TTL_S + 0.1), [second]),
            ((10.0, 20.0 - TTL_S - 0.1), [first, second]),
            ((20.1, 20.5), [first, second]),
            ((19.0, 28.0), []),
        ):
            self.assertEqual(judge(events, [window]).wrong, wrong, str(window))

    def test_token_goes_back_where_clocks_differ(self) -> None:
        events = [Event("held", 0, 7, 0.0), Event("ended", 0, 7, 0.1), Event("held", 1, 5, 9.0)]
        self.assertEqual(judge(events, [(8.0, 8.5)]).wrong, [])
        self.assertEqual(judge(events, [(4.0, 5.0)]).wrong, ["token 5 came after 7"])

    def test_token_goes_back(self) -> None:
        events = [
            Event("held", 0, 7, 0.0),
            Event("ended", 0, 7, 0.1),
            Event("held", 1, 5, 0.2),
        ]
        self.assertEqual(judge(events).wrong, ["token 5 came after 7"])

    def test_guarded_write_goes_back(self) -> None:
        """Whatever clocks do: the store itself is the judge of who holds."""
        events = [Event("put", 0, 5, 0.0, before=7)]
        for windows in ([], [(0.0, 9.0)]):
            self.assertEqual(judge(events, windows).wrong, ["token 5 was put after 7"])

    def test_guarded_write_is_lost(self) -> None:
        """Acknowledged, and the next one has not found it."""
        events = [
            Event("put", 0, 5, 0.0),
            Event("put", 0, 5, 0.1, before=5),
            Event("put", 1, 7, 0.2, before=3),
        ]
        for windows in ([], [(0.0, 9.0)]):
            self.assertEqual(judge(events, windows).wrong, ["token 7 found 3, not 5"])
        # What was acknowledged late was put before.
        late = [Event("put", 1, 7, 0.0, before=5), Event("put", 0, 5, 0.1)]
        self.assertEqual(judge(late).wrong, [])


class _Memory(System):
    """A store of one process, which loses what it is told to."""

    def __init__(self) -> None:
        self.count = 2
        self.kvs: dict[str, Result] = {}
        self.revision = 1
        self.refuses = 0

    def perform(self, wire: Wire, number: int, call: Call, retry: str) -> Result:
        if self.refuses:
            self.refuses -= 1
            raise Refused("not now")
        if isinstance(call, Get):
            return self.kvs.get(call.key, Result(value=None))
        assert isinstance(call, Put)
        self.revision += 1
        self.kvs[call.key] = Result(value=call.value, mod_revision=self.revision)
        return Result(revision=self.revision)

    def _nothing(self, *arguments: object) -> Any:
        raise NotImplementedError

    command = is_ready = leader = transfer = watch = contents = _nothing  # type: ignore[assignment]


class AuditTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.system, self.tally = _Memory(), Tally()
        path = Path(self.mktemp())
        path.mkdir()
        self.rounds = [Round(n, path / f"history{n}") for n in range(2)]
        client = self.client(0)
        for round_ in self.rounds:
            self.assertTrue(client.put_last(round_))

    def client(self, process: int) -> Client:
        return Client(process, "seed", self.system, (), self.tally, threading.Event())

    def verdicts(self) -> list[bool]:
        audit(self.rounds, self.client(1), self.tally)
        return [judge_history(read_history(r.path)).is_good for r in self.rounds]

    def test_everything_is_there(self) -> None:
        self.system.refuses = 3
        self.assertEqual(self.verdicts(), [True, True])
        self.assertEqual(self.tally.violations, [])

    def test_what_is_lost_when_its_round_is_over(self) -> None:
        del self.system.kvs[self.rounds[0].last_key]
        self.assertEqual(self.verdicts(), [False, True])


class NemesisTests(SynchronousTestCase):
    def test_only_what_was_done_counts(self) -> None:
        acts: dict[str, Fault] = {
            "pause": lambda cluster, random: True,
            "kill": lambda cluster, random: None,
        }
        self.patch(nemesis, "FAULTS", acts)
        said: list[str] = []
        tally, stopping = Tally(), threading.Event()
        cluster = cast(Any, SimpleNamespace(tally=tally, heal=int, recover=int))
        for kind in acts:
            it = nemesis.Nemesis(cluster, [kind], 1, stopping, said.append)
            stopping.set()
            it._strike()
        self.assertEqual(dict(tally.faults), {"pause": 1})
        self.assertIn("kill: it could not be done", said)


class TallyTests(SynchronousTestCase):
    def test_time_without_service(self) -> None:
        tally = Tally()
        tally._acknowledged_s = [1.0, 2.0, 2.5, 6.0, 6.1]
        tally.window(2.0, 6.1)
        tally.window(0.5, 1.5)
        tally.window(7.0, 9.0)
        self.assertEqual(tally.without_service_s(), [0.5, 2.0, 3.5])

    def test_only_answered_writes_are_service(self) -> None:
        tally = Tally()
        for how, is_write in (("ok", False), ("unknown", True), ("fail", True)):
            tally.end(how, is_write)
        self.assertEqual(tally.last_acknowledged_s(), 0.0)
        tally.end("ok", True)
        self.assertGreater(tally.last_acknowledged_s(), 0.0)
        self.assertEqual((tally.operations, tally.share_unknown), (4, 0.25))

    def test_percentiles(self) -> None:
        ordered = [float(n) for n in range(1, 101)]
        self.assertEqual([percentile(ordered, p) for p in (1, 50, 99, 100)], [1, 50, 99, 100])
        self.assertEqual([percentile([], 50), percentile([3.0], 99)], [0, 3])


class StreamTests(SynchronousTestCase):
    def seen(self, text: str) -> list[Seen]:
        return list(_events(cast(HTTPResponse, io.BytesIO(text.encode()))))

    def test_events(self) -> None:
        event = (
            'id: 7\ndata: {"revision":7,"events":[{"type":"put","key":"a","value":"1",\n'
            'data: "create_revision":7,"mod_revision":7,"version":1},'
            '{"type":"delete","key":"b","mod_revision":7,"previous":{"value":"x"}}]}\n\n'
        )
        self.assertEqual(
            self.seen(f"id: 5\n\n: alive\n\n{event}"),
            [
                Seen(5),
                Seen(
                    7,
                    (
                        Change("a", "1", create_revision=7, version=1, previous=None),
                        Change("b", None, previous="x"),
                    ),
                ),
            ],
        )

    def test_part_of_an_event_is_nothing(self) -> None:
        self.assertEqual(self.seen('id: 7\ndata: {"revision":7,"events":[]}\n'), [])

    def test_ends(self) -> None:
        compacted = 'event: compacted\ndata: {"compacted_revision":9}\n\n'
        self.assertEqual(self.seen(compacted), [Seen(9, is_compacted=True)])
        self.assertEqual(
            self.seen('event: cut_off\ndata: {"resume_revision":9}\n\nid: 9\n\n'), []
        )


class ConditionTests(SynchronousTestCase):
    def test_what_a_header_can_say(self) -> None:
        for revision, step, header in (
            (7, Put("a", "x"), {"If-Match": '"7"'}),
            (7, Delete("a"), {"If-Match": '"7"'}),
            (0, Put("a", "x"), {"If-None-Match": "*"}),
            (0, Delete("a"), None),
            (7, Put("b", "x"), None),
        ):
            compare = Compare("a", revision, "mod_revision")
            call = Transaction((compare,), (step,), (Get("a"),))
            self.assertEqual(_condition(call), header)


class WayTests(SynchronousTestCase):
    def test_ways(self) -> None:
        self.assertEqual(between([0], [0, 1, 2]), [(0, 1), (0, 2)])
        self.assertEqual(both_ways([(0, 1)]), [(0, 1), (1, 0)])


class ProxyTests(SynchronousTestCase):
    """A proxy before one node, which says again what it hears."""

    def setUp(self) -> None:
        front, other, back = free_ports(3)
        self.front = front
        self.server = socket.create_server(("127.0.0.1", back))
        self.addCleanup(self.server.close)
        threading.Thread(target=self.serve, daemon=True).start()
        self.proxies = Proxies([(front, back), (other, back)])
        self.addCleanup(self.proxies.close)
        self.caller = f"localhost:{other}".encode()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.echo, args=(connection,), daemon=True).start()

    def echo(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1024):
                connection.sendall(data)

    def hello(self) -> bytes:
        texts = (b"_command", b"Hello", b"name", self.caller)
        return b"".join(len(text).to_bytes(2, "big") + text for text in texts) + b"\0\0"

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.front), PATIENCE_S)
        self.addCleanup(connection.close)
        connection.sendall(self.hello())
        return connection

    def receive(self, connection: socket.socket, data: bytes) -> None:
        got = b""
        while len(got) < len(data):
            got += connection.recv(1024)
        self.assertEqual(got, data)

    def assert_silent(self, connection: socket.socket) -> None:
        connection.settimeout(0.2)
        self.assertRaises(TimeoutError, connection.recv, 1)
        connection.settimeout(PATIENCE_S)

    def test_each_way_by_itself(self) -> None:
        connection = self.connect()
        self.receive(connection, self.hello())
        for way in ((1, 0), (0, 1)):
            self.proxies.cut([way])
            connection.sendall(b"a")
            self.assert_silent(connection)
            self.proxies.heal()
            # It is late, as TCP has it, and not lost.
            self.receive(connection, b"a")

    def test_others_pass(self) -> None:
        self.proxies.cut([(0, 1)])
        connection = self.connect()
        self.assert_silent(connection)
        plain = socket.create_connection(("127.0.0.1", self.front), PATIENCE_S)
        self.addCleanup(plain.close)
        plain.sendall(b"GET / HTTP/1.1\r\n")
        self.receive(plain, b"GET / HTTP/1.1\r\n")
