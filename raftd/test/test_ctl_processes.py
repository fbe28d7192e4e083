"""`raftctl` as people have it: real processes, pipes and terminals, against a real node."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pexpect

import raftd
from raftd.test.processes import (
    PATIENCE_S,
    PYTHON,
    ClusterProcessCase,
    NodeProcess,
    environment,
    free_ports,
    wait_until,
)

PAGE = Path(raftd.__file__).parent.parent / "docs" / "raftctl.md"
RAFTCTL = [PYTHON, "-m", "raftd.ctl"]


class CtlProcessCase(ClusterProcessCase):
    def setUp(self) -> None:
        (self.node,) = self.start_cluster(1)

    def environment(self, **more: str) -> dict[str, str]:
        clean = {k: v for k, v in environment().items() if k != "NO_COLOR"}
        return {**clean, "TERM": "xterm", "RAFTCTL_ENDPOINTS": self.node.name, **more}

    def run_ctl(self, *typed: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """A command in pipes, to its end."""
        return subprocess.run(
            [*RAFTCTL, *typed],
            env=self.environment(),
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def begin(self, *typed: str) -> subprocess.Popen[bytes]:
        """A command in pipes, without a terminal anywhere."""
        child = subprocess.Popen(
            [*RAFTCTL, *typed],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.addCleanup(self._end, child)
        return child

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        if child.poll() is None:
            child.kill()
        child.communicate()

    def terminal(self, *typed: str, **more: str) -> pexpect.spawn[str]:
        """A command at a terminal of its own."""
        child: pexpect.spawn[str] = pexpect.spawn(
            RAFTCTL[0],
            [*RAFTCTL[1:], *typed],
            env=self.environment(**more),
            timeout=PATIENCE_S,
            encoding="utf-8",
            dimensions=(24, 80),
        )
        self.addCleanup(child.close, force=True)
        return child

    def shown(self, child: pexpect.spawn[str]) -> str:
        """All that it shows, until it ends."""
        child.expect(pexpect.EOF)
        child.wait()
        return str(child.before)

    # Straight to the node, for starting a raftctl takes a while.

    def put(self, key: str, value: bytes) -> None:
        status, _ = self.node.request("PUT", f"/db/{key}", value)
        self.assertIn(status, (200, 201))

    def leases(self) -> list[str]:
        _, body = self.node.request("GET", "/lease")
        return [lease["id"] for lease in json.loads(body)["leases"]]


def is_alive(process_id: int) -> bool:
    """Whether there is such a process, and it is more than a name."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rpartition(")")[2]
    except OSError:
        return False
    return state.split()[0] != "Z"


class Transcript(CtlProcessCase):
    skip = None if PAGE.exists() else "the pages are not installed"

    def test_the_page_is_true(self) -> None:
        page = PAGE.read_text(encoding="utf-8")
        (transcript,) = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        command = Path(directory, "raftctl")
        command.write_text(f'#!/bin/sh\nexec {" ".join(RAFTCTL)} "$@"\n', encoding="utf-8")
        command.chmod(0o755)
        ports = dict(zip(("4002", "4009"), map(str, free_ports(2)), strict=True))
        ports["4001"] = str(self.node.port)
        path = f"{directory}{os.pathsep}{os.environ['PATH']}"
        transcript = re.sub(
            r"localhost:(400\d)", lambda m: f"localhost:{ports[m[1]]}", transcript
        )
        steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", transcript, re.MULTILINE)
        self.assertGreater(len(steps), 12)
        for typed, expected in steps:
            done = subprocess.run(
                ["sh", "-c", typed],
                cwd=directory,
                env=self.environment(PATH=path),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE_S,
                check=False,
                text=True,
            )
            said = re.sub(r"^size\t\d+$", "size\tSIZE", done.stdout, flags=re.MULTILINE)
            said = re.sub(r"\b[0-9a-f]{64}\b", "SHA256", said)
            if typed == "raftctl get greeting" or typed.startswith(
                "raftctl get greeting --rev"
            ):
                said += "\n"  # which a terminal would get
            pattern = re.escape(expected).replace(r"\.\.\.", ".*")
            self.assertRegex(said, f"^{pattern}$", typed)
        self.assertEqual(os.stat(os.path.join(directory, "backup")).st_mode & 0o777, 0o600)


class Pipes(CtlProcessCase):
    def test_plain_and_quiet(self) -> None:
        """No colours, no boxes, no progress."""
        for typed in (("put", "k", "v"), ("status",)):
            done = self.run_ctl(*typed)
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertNotIn(b"\x1b", done.stdout)
            self.assertTrue(done.stdout.isascii())
        path = self.mktemp()
        done = self.run_ctl("snapshot", "save", path)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        streamed = self.run_ctl("snapshot", "save", "-")
        self.assertEqual((streamed.returncode, streamed.stderr), (0, b""))
        self.assertEqual(streamed.stdout, Path(path).read_bytes())

    def test_whoever_read_has_gone(self) -> None:
        for i in range(20):
            self.put(f"k{i:04}", b"v" * 50_000)
        child = self.begin("list")
        assert child.stdout is not None
        assert child.stderr is not None
        self.assertTrue(child.stdout.readline().startswith(b"k0000\t"))
        child.stdout.close()
        self.assertEqual(child.stderr.read(), b"")
        self.assertEqual(child.wait(PATIENCE_S), -signal.SIGPIPE)
        child.stderr.close()

    def test_stopped_in_the_middle(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            child = self.begin("watch", "--prefix", "", "--revision", "1")
            assert child.stdout is not None
            self.put("k", b"v")
            self.assertIn(b"\tput\tk\tv", child.stdout.readline())
            child.send_signal(number)
            _, said = child.communicate(timeout=PATIENCE_S)
            self.assertEqual((child.returncode, said), (-number, b""))

    def test_what_a_watch_runs(self) -> None:
        self.put("a", b"1")
        self.put("a", b"2")
        self.node.request("DELETE", "/db/a")
        command = 'echo "$RAFTCTL_TYPE $RAFTCTL_KEY at $RAFTCTL_REVISION: $(cat)"'
        watch = ("watch", "a", "--revision", "2", "--exec")
        done = self.run_ctl(*watch, command, "--count", "3")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(done.stdout, b"put a at 2: 1\nput a at 3: 2\ndelete a at 4: \n")
        done = self.run_ctl(*watch, "test $RAFTCTL_REVISION -lt 3 || exit 9")
        self.assertEqual(done.returncode, 9)
        self.assertIn(b"--revision 3 begins with it again", done.stderr)

    def test_what_needs_no_cluster(self) -> None:
        done = self.run_ctl("--version")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stdout, rb"^raftctl \d+\.\d+\.\d+\n$")
        for typed, said in (
            ((), b"A command is missing"),
            (("get",), b"See raftctl get --help"),
            (("get", "k", "-e", "x"), b"host:port"),
        ):
            done = self.run_ctl(*typed)
            self.assertEqual((done.returncode, done.stdout), (2, b""))
            self.assertIn(said, done.stderr)
            self.assertEqual(done.stderr.count(b"\n"), 1)


class Terminals(CtlProcessCase):
    def test_tables_and_colours(self) -> None:
        self.put("key", b"\x1b]0;owned\x07")
        shown = self.shown(self.terminal("list"))
        self.assertIn("╭─", shown)
        self.assertIn("\x1b[1mKEY", shown)
        self.assertIn("\\x1b]0;owned\\x07", shown)
        self.assertNotIn("\x1b]0", shown)
        plain = self.shown(self.terminal("list", NO_COLOR="1"))
        self.assertNotIn("\x1b", plain)
        self.assertIn("│ key │", plain)
        status = self.shown(self.terminal("status"))
        self.assertIn("\x1b[32mleader\x1b[0m", status)
        self.assertLessEqual(
            max(len(re.sub(r"\x1b\[\d*m", "", line)) for line in status.splitlines()), 80
        )
        self.assertIn(
            "\x1b[31mraftctl:\x1b[0m There is no key", self.shown(self.terminal("get", "x"))
        )

    def test_progress(self) -> None:
        self.put("k", os.urandom(500_000))
        path = self.mktemp()
        child = self.terminal("snapshot", "save", path, NO_COLOR="1")
        shown = self.shown(child)
        self.assertEqual(child.exitstatus, 0, shown)
        self.assertRegex(shown, r"\r[\d.]+ [KMi]*B  [\d.]+ [KMi]*B/s\x1b\[K")
        # In the end only the result is to be seen.
        self.assertRegex(shown, r"\r\x1b\[K╭─")
        self.assertIn(" revision ", shown)

    def test_control_c(self) -> None:
        child = self.terminal("watch", "--prefix", "", "--revision", "1")
        self.put("k", b"v")
        child.expect("put.*k.*v")
        child.sendintr()
        shown = self.shown(child)
        self.assertNotIn("Traceback", shown)
        self.assertEqual(child.signalstatus, signal.SIGINT)

        holder = self.begin("lock", "l")
        assert holder.stdout is not None
        holder.stdout.readline()
        child = self.terminal("lock", "l", "--", "true")
        child.expect("Waiting for l")
        child.sendintr()
        self.assertNotIn("Traceback", self.shown(child))
        self.assertEqual(child.signalstatus, signal.SIGINT)
        self.assertEqual(len(self.leases()), 1)
        holder.send_signal(signal.SIGTERM)
        self.assertEqual(holder.wait(PATIENCE_S), 0)
        self.assertEqual(self.leases(), [])

    def test_control_c_is_for_the_command(self) -> None:
        script = "trap 'echo told; exit 42' INT; echo ready; while :; do sleep 0.05; done"
        child = self.terminal("lock", "l", "--", "sh", "-c", script)
        child.expect("ready")
        child.sendintr()
        self.assertIn("told", self.shown(child))
        self.assertEqual(child.exitstatus, 42)
        self.assertEqual(self.leases(), [])

    def test_a_command_can_read_the_terminal(self) -> None:
        child = self.terminal("lock", "l", "--", "sh", "-c", "read line; echo got $line")
        child.sendline("hello")
        self.assertIn("got hello", self.shown(child))
        self.assertEqual(child.exitstatus, 0)


class Commands(CtlProcessCase):
    """What `lock` runs, and how it ends."""

    def start(self, script: str, *options: str) -> tuple[subprocess.Popen[bytes], list[int]]:
        """A lock with a shell script; the ids of processes that the script prints."""
        child = self.begin("lock", "l", *options, "--", "sh", "-c", script)
        assert child.stdout is not None
        ids = [int(word) for word in child.stdout.readline().split()]
        self.assertTrue(all(map(is_alive, ids)))
        for process_id in ids:
            self.addCleanup(self._kill, process_id)
        return child, ids

    def _kill(self, process_id: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if is_alive(process_id):
                os.kill(process_id, signal.SIGKILL)

    def all_gone(self, ids: list[int]) -> None:
        wait_until(lambda: not any(map(is_alive, ids)), f"{ids} are gone")

    def test_lost_it_is_gone_with_all_that_it_has_started(self) -> None:
        child, ids = self.start("trap '' TERM; sleep 1000 & echo $$ $!; wait")
        (lease,) = self.leases()
        self.node.request("DELETE", f"/lease/{lease}")
        _, said = child.communicate(timeout=PATIENCE_S)
        self.assertEqual(child.returncode, 5, said)
        self.assertIn(b"may be lost", said)
        self.assertEqual(said.count(b"\n"), 1)
        self.all_gone(ids)

    def test_the_node_is_gone(self) -> None:
        """Nothing runs on when the lease's time is over."""
        child, ids = self.start("trap '' TERM; echo $$; sleep 1000", "--ttl", "2")
        self.node.signal(signal.SIGSTOP)
        began = time.monotonic()
        self.addCleanup(self.node.signal, signal.SIGCONT)
        _, said = child.communicate(timeout=PATIENCE_S)
        self.assertEqual(child.returncode, 5, said)
        self.assertLess(time.monotonic() - began, 4)
        self.all_gone(ids)

    def test_killed_ourselves(self) -> None:
        """A holder that is no more cannot guard what it has started."""
        child, ids = self.start("echo $$; exec sleep 1000")
        child.kill()
        self.all_gone(ids)

    def test_told_to_end_the_command_is_told(self) -> None:
        # The shell itself says of what dies with it that it was terminated.
        trap = "exec 2>/dev/null; trap 'echo told; exit 7' TERM"
        script = f"{trap}; echo $$; while :; do sleep 0.05; done"
        child, ids = self.start(script)
        child.terminate()
        out, said = child.communicate(timeout=PATIENCE_S)
        self.assertEqual((child.returncode, out, said), (7, b"told\n", b""))
        self.all_gone(ids)
        self.assertEqual(self.leases(), [])

    def test_not_there(self) -> None:
        done = self.run_ctl("lock", "l", "--", "/there/is/no/such-command")
        self.assertEqual((done.returncode, done.stdout), (127, b""))
        done = self.run_ctl("lock", "l", "--", "/etc")
        self.assertEqual(done.returncode, 126)
        self.assertEqual(self.leases(), [])


class Restores(CtlProcessCase):
    def test_a_new_cluster_has_what_was_saved(self) -> None:
        for i in range(3):
            self.put("key", b"value %d" % i)
        path = os.path.abspath(self.mktemp())
        self.assertEqual(self.run_ctl("snapshot", "save", path).returncode, 0)
        self.node.stop()
        (port,) = free_ports(1)
        name, directory = f"localhost:{port}", os.path.abspath(self.mktemp())
        self.begin(
            "restore", path, "--to", directory, "--name", name, "--ahead", "1000", "--start"
        )
        log = Path(directory, "raftd.log")
        wait_until(lambda: log.exists() and "leader is" in log.read_text(), "a leader")
        done = self.run_ctl("get", "key", "--data-dir", directory, "-o", "json")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        record = json.loads(done.stdout)
        self.assertEqual(record["value"], "value 2")
        self.assertGreater(json.loads(self.put_at(directory))["revision"], 1000)

    def put_at(self, directory: str) -> bytes:
        return self.run_ctl("put", "key", "v", "--data-dir", directory, "-o", "json").stdout


class Members(ClusterProcessCase):
    def test_a_cluster_is_looked_after(self) -> None:
        nodes = self.start_cluster(2)

        def ctl(*typed: str, node: NodeProcess = nodes[0]) -> tuple[int, str]:
            done = subprocess.run(
                [*RAFTCTL, "-e", node.name, *typed],
                env=environment(),
                capture_output=True,
                timeout=PATIENCE_S,
                check=False,
                text=True,
            )
            return done.returncode, done.stdout or done.stderr

        first, second = nodes[0].name, nodes[1].name
        _, command = ctl("member", "add", f"localhost:{free_ports(1)[0]}")
        through = ",".join(sorted((first, second)))
        self.assertRegex(command, rf"^raftd --name localhost:\d+ --join {through}\n$")
        third = self.add_node(nodes[1])
        status, said = ctl("status")
        self.assertEqual((status, said.count("\n")), (0, 3), said)
        leader = ctl("leader")[1].strip()
        follower = next(n.name for n in (*nodes, third) if n.name != leader)
        self.assertEqual(ctl("leader", "--to", follower), (0, f"{follower}\n"))
        self.assertIn(f"{third.name}\tlearner", ctl("member", "demote", third.name)[1])
        self.assertIn(f"{third.name}\tvoter", ctl("member", "promote", third.name)[1])
        status, said = ctl("member", "remove", third.name)
        self.assertEqual((status, said.count("\n")), (0, 2))
        status, said = ctl("member", "remove", third.name)
        self.assertEqual(status, 1)
        self.assertIn("not a member", said)
        (port,) = free_ports(1)
        status, said = ctl("member", "move", second, f"localhost:{port}")
        self.assertEqual(status, 0, said)
        self.assertIn(f"localhost:{port}\tvoter", said)
        # Again, as somebody would whose first answer was lost.
        self.assertEqual(ctl("member", "move", second, f"localhost:{port}")[0], 0)
