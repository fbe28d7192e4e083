"""
What the store keeps of a key: a version for each revision that changed it.

A version is a `KeyValue`, the very object that readers are given.  It never
changes, and refers to nothing that the garbage collector has to look at.
"""

from __future__ import annotations

from raftd.kv.results import KeyValue

#: The revision of a store that nothing was ever written to.
FIRST_REVISION = 1

#: What a version takes in memory beside its key and its value, in bytes, about:
#: 240 for the first of a key, less for others (`bench/store.py`).  It is part of
#: what the state machine is: nodes that differed here would disagree about the quota.
VERSION_OVERHEAD_BYTES = 256


def tombstone(key: bytes, revision: int) -> KeyValue:
    """The version of a key that `revision` deleted."""
    return KeyValue(key, b"", 0, revision, 0)


def size_of(record: KeyValue) -> int:
    """What a version adds to `Store.size_bytes`."""
    return len(record.key) + len(record.value) + VERSION_OVERHEAD_BYTES
