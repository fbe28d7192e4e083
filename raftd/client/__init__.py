"""
The client library: what programs talk to a raftd cluster with (`docs/client.md`).

    from raftd.client import Client
"""

from __future__ import annotations

from raftd.client.client import Client
from raftd.client.errors import NotFound, PreconditionFailed, Unreachable
from raftd.client.leases import Lease
from raftd.client.values import (
    Changes,
    Deleted,
    Event,
    KeyValue,
    Outcome,
    Page,
    Written,
)
from raftd.client.watching import Watch

__all__ = [
    "Changes",
    "Client",
    "Deleted",
    "Event",
    "KeyValue",
    "Lease",
    "NotFound",
    "Outcome",
    "Page",
    "PreconditionFailed",
    "Unreachable",
    "Watch",
    "Written",
]
