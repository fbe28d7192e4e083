"""
A place of its own for a run: whatever is started in it ends with it.

On Linux, where one may, that is a network and a process namespace: everything
in them is gone with their first process, however that ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

#: Set in the environment of a run that is inside.
INSIDE = "RAFTD_CHAOS_INSIDE"

#: How long a run that was interrupted may take to end in order, in seconds.
GRACE_S = 10.0

_UNSHARE = ("unshare", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
_TOOLS = ("unshare", "nsenter", "ip")


def command() -> tuple[str, ...] | None:
    """What puts a command into namespaces of its own; None if that is not possible here."""
    if sys.platform != "linux" or not all(map(shutil.which, _TOOLS)):
        return None
    for prefix in (_UNSHARE, (_UNSHARE[0], "--user", "--map-root-user", *_UNSHARE[1:])):
        probe = "ip link add probe type bridge && ip link set lo up && unshare --net true"
        if not _status([*prefix, "sh", "-c", probe]):
            return prefix
    return None


def _status(arguments: Sequence[str]) -> int:
    return subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode


def run_inside(prefix: Sequence[str], arguments: Sequence[str]) -> int:
    """
    Run this very program with `arguments` inside; its exit status.

    It is told of an interruption, and if this process dies it ends at once.
    """
    inside = subprocess.Popen(
        [*prefix, sys.executable, "-m", "raftd.test.chaos", *arguments],
        env={**os.environ, INSIDE: "1"},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )

    def interrupt(number: int, frame: FrameType | None) -> None:
        # `unshare` itself does not listen; its child does.
        os.killpg(inside.pid, signal.SIGINT)
        if kill.ident is None:
            kill.start()

    kill = threading.Timer(GRACE_S, inside.kill)
    kill.daemon = True
    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        return inside.wait()
    finally:
        inside.kill()
        inside.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        kill.cancel()


def end_with_parent() -> None:
    """Inside: end, and all with it, as soon as the process outside is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
