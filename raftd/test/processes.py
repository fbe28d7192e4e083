"""What tests need to start the real thing in processes of its own."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack

import raftd

#: How long a process of ours may take for what it does at once; only a broken
#: one takes so long.
PATIENCE_S = 60.0

PYTHON = sys.executable


def environment(**more: str) -> dict[str, str]:
    """The environment of a child that runs the same code, installed or not."""
    tree = os.path.dirname(os.path.dirname(os.path.abspath(raftd.__file__)))
    path = os.pathsep.join(p for p in (tree, os.environ.get("PYTHONPATH")) if p)
    return {**os.environ, "PYTHONPATH": path, **more}


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, on either loopback."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    return ports
