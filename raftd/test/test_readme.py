"""The README's section of curl lines, letter for letter, against a real node."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import raftd
from raftd.test.processes import NodeProcess, free_ports

SECTION = "## More than keys and values\n"
README = Path(raftd.__file__).parent.parent / "README.md"

#: How long a line that streams is listened to, in seconds.
STREAM_S = 2


def commands(section: str) -> list[tuple[str, str]]:
    """Each command of the section's transcripts, and what it shows."""
    found = []
    for block in re.findall(r"```\n(.*?)```", section, re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command, shown))
    return found


class ReadmeTests(SynchronousTestCase):
    def test_one_line_each(self) -> None:
        if not README.exists():
            self.skipTest("raftd is installed without its README")
        if shutil.which("curl") is None:
            self.skipTest("there is no curl here")
        section = README.read_text(encoding="utf-8").split(SECTION)[1].split("\n## ")[0]
        (port,) = free_ports(1)
        node = NodeProcess(self.mktemp(), port)
        self.addCleanup(node.end)
        node.start("--init")
        node.await_output("New raftd cluster created.")
        # The README's first hour has made two revisions.
        node.request("PUT", "/db/greeting", b"hello")
        node.request("DELETE", "/db/greeting")
        lease = None
        lines = commands(section)
        self.assertGreater(len(lines), 9)
        for line, shown in lines:
            command = re.sub(r"localhost:400\d", f"localhost:{port}", line)
            output = self.run_line(command, streams=" -N " in command)
            if lease is None and (found := re.search(r'"lease":"(\w{16})"', output)):
                lease = found[1]
            expected = shown.rstrip("\n")
            if lease is not None:
                expected = re.sub(r'"lease":"\w{16}"', f'"lease":"{lease}"', expected)
            if shown:
                self.assertEqual(output.rstrip("\n"), expected, command)
        self.assertEqual(node.stop(), 0)

    def run_line(self, command: str, streams: bool) -> str:
        """What a line prints; one that would go on for ever is ended."""
        limit = f"timeout {STREAM_S} " if streams else ""
        shell = ["bash", "-c", limit + command]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=30, check=False)
        self.assertIn(done.returncode, (0, 124), done.stderr)
        return done.stdout
