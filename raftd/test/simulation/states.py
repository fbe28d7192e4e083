"""
A number for a whole state, quick enough to be compared after every entry.

It covers what the digest does (`IStateMachine.digest`): the table of sessions,
that of idempotency keys, leases, and every version that can be read; and what a
store keeps beside that and the digest leaves out: the newest versions by their
keys, the keys of leases, the size that a quota is held against.

The digest encodes all of it and takes a SHA-256; this takes Python's hash of the
objects as they are, which each object mostly has at hand.  Only numbers of one
process can be compared, for strings have other hashes in another.
"""

from __future__ import annotations

from typing import Any

from raftd.idempotency import _head as record_head
from raftd.kv.records import FIRST_REVISION

#: More keys than any simulated store has.
_ALL = 1 << 30
#: More records than those of one run; they are forgotten when there are so many.
_MAX_CONTENTS = 10_000


def number_of(sessions: Any) -> int:
    """Of the state of a `Sessions` around an `Idempotency` around a `Store`."""
    keys = sessions._machine
    return hash((_sessions(sessions), _keys(keys._table), _store(keys._machine)))


def _sessions(sessions: Any) -> int:
    rows = [
        (
            session.id,
            session.last_active_ms,
            session.first_unacknowledged,
            session.size,
            # Ascending in a table that was restored; as they came in another.
            frozenset(session.results.items()),
        )
        for session in sessions._table.values()
    ]
    return hash((sessions._now_ms, sessions._size, tuple(rows)))


def _keys(table: Any) -> int:
    names: list[bytes] = []
    records: list[bytes] = []
    for shard in table.records._shards:
        if shard:
            names += shard
            records += shard.values()
    contents = tuple(map(_CONTENTS.__getitem__, records))
    return hash((table.now_ms, table.size, tuple(names), contents))


class _Contents(dict[bytes, int]):
    """
    Numbers of records of idempotency keys, without their places: a restore
    numbers anew.  The records of all nodes are equal, so each is taken apart once.
    """

    def __missing__(self, record: bytes) -> int:
        if len(self) >= _MAX_CONTENTS:
            self.clear()
        fingerprint, time_ms, _ = record_head.unpack_from(record)
        number = self[record] = hash((fingerprint, time_ms, record[record_head.size :]))
        return number


_CONTENTS = _Contents()


def _store(store: Any) -> int:
    versions = store._versions
    leases = versions.leases
    since = max(store.compacted_revision, FIRST_REVISION)
    head = (store.revision, store.compacted_revision, store.quota_bytes, store.size_bytes)
    granted = leases.pinned()
    rows: list[object] = [leases.next_number, *granted]
    rows += [(leases.number(x.id), *leases.keys(x.id, b"", _ALL)) for x in granted]
    if since > FIRST_REVISION:
        at = versions.at
        rows += [at(key, since) for key in versions.keys(b"", None, _ALL)]
    for records in versions.history.walk(since, store.revision):
        rows += records
    # What is there now, by its keys.
    rows += map(versions.get, versions.live.range(b"", None, _ALL))
    return hash((head, len(store), tuple(rows)))
