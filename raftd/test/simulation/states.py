"""
A number for a whole state, quick enough to be compared after every entry.

It covers what the digest does (`IStateMachine.digest`): the table of sessions,
that of idempotency keys in the order in which they expire, leases, and what each
revision that can be read has changed; and what a store keeps beside that and the
digest leaves out: the newest and the older versions by their keys, the keys of
leases, the size that a quota is held against.

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
    order, find = table.order, table.records.get
    rows: list[object] = []
    for place in range(order.front, order.end):
        name = order.at(place)
        record = find(name)
        if record is not None:
            number, contents = _CONTENTS[record]
            if number == place:  # else left over from a key that has expired
                rows += (name, contents)
    return hash((table.now_ms, table.size, len(table.records), tuple(rows)))


class _Contents(dict[bytes, tuple[int, int]]):
    """
    Of records of idempotency keys: the place, and a number of the rest, for a
    restore numbers the places anew.  The records of nodes are mostly equal, so
    each is taken apart once.
    """

    def __missing__(self, record: bytes) -> tuple[int, int]:
        if len(self) >= _MAX_CONTENTS:
            self.clear()
        fingerprint, time_ms, place = record_head.unpack_from(record)
        rest = hash((fingerprint, time_ms, record[record_head.size :]))
        self[record] = place, rest
        return place, rest


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
        # What past revisions are read from; a restore does not know what was before.
        replaced = (versions.replaced_of(r.key, r.mod_revision) for r in records)
        rows += [old if old and old.mod_revision > since else None for old in replaced]
    # What is there now, by its keys.
    rows += map(versions.get, versions.live.range(b"", None, _ALL))
    return hash((head, len(store), tuple(rows)))
