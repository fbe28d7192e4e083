"""Coordination on leases and transactions: see `docs/coordination.md`."""

from __future__ import annotations

from raftd.client.recipes.barriers import Barrier, DoubleBarrier
from raftd.client.recipes.counters import Counter
from raftd.client.recipes.elections import Campaign, Election, Leader
from raftd.client.recipes.locks import (
    Held,
    Lock,
    LockDisturbed,
    ReadLock,
    ReadWriteLock,
    Semaphore,
    WriteLock,
)
from raftd.client.recipes.queues import Queue

__all__ = [
    "Barrier",
    "Campaign",
    "Counter",
    "DoubleBarrier",
    "Election",
    "Held",
    "Leader",
    "Lock",
    "LockDisturbed",
    "Queue",
    "ReadLock",
    "ReadWriteLock",
    "Semaphore",
    "WriteLock",
]
