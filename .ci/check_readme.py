"""
The README's line that installs and starts raftd, as a newcomer types it.

In a home of its own, with the answers of the first transcript and a free port.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from readme_line import readme_line

TREE = Path(__file__).parent.parent.resolve()
CREATED = "New raftd cluster created.\n"

#: A line that has not started a server by then never will.
TIMEOUT_S = 300


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = readme_line("twist raftd")
    print("$", line)
    with tempfile.TemporaryDirectory() as home:
        child = subprocess.Popen(
            ["sh", "-c", line],
            cwd=TREE,
            env={**os.environ, "HOME": home},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        give_up = threading.Timer(TIMEOUT_S, os.killpg, (child.pid, signal.SIGKILL))
        give_up.start()
        child.stdin.write(f"localhost:{port}\ni\n")
        child.stdin.close()
        shown = ""
        for text in child.stdout:
            shown += text
            if text == CREATED:
                os.killpg(child.pid, signal.SIGTERM)
                break
        print(shown, end="")
        child.stdout.read()
        child.wait()
        give_up.cancel()
    expected = f"Enter host:port> localhost:{port}\nInitialize or join? [ij] i\n{CREATED}"
    if not shown.endswith(expected):
        sys.exit("that is not the transcript of the README")


if __name__ == "__main__":
    main()
