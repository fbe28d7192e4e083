"""Coordination on leases and transactions: see `docs/coordination.md`."""

from __future__ import annotations

from raftd.client.recipes.barriers import Barrier, DoubleBarrier
from raftd.client.recipes.contenders import TooManyContenders
from raftd.client.recipes.counters import Counter
from raftd.client.recipes.elections import Campaign, Election, Leader, Observation
from raftd.client.recipes.locks import (
    Held,
    Lock,
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
    "Observation",
    "Queue",
    "ReadLock",
    "ReadWriteLock",
    "Semaphore",
    "TooManyContenders",
    "WriteLock",
]
