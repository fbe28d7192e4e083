"""
Leases, as far as they are replicated: their ids, their times to live, their keys.

Whether one has expired is for the leader to say, who then proposes to revoke it.
"""

from __future__ import annotations

from operator import attrgetter

from raftd.kv.keys import SortedKeys
from raftd.kv.results import LeaseResult

#: Leases that there may be at once.  It is part of what the state machine is,
#: and changes only with the format of snapshots.
MAX_LEASES = 100_000


class Leases:
    """
    Invariants: a key is in `_keys` under the lease of its newest version, if
    that has one and is no tombstone, and under no other.  The numbers are
    above 0, below `next_number`, and rise in the order of `_granted`, in which
    leases without one come first.
    """

    __slots__ = ("_granted", "_keys", "_numbers", "next_number")

    def __init__(self) -> None:
        #: In the order in which they were granted.
        self._granted: dict[int, LeaseResult] = {}
        #: Which grant it was that made a lease, of those that were numbered: so
        #: one is told from an earlier one with the same id.
        self._numbers: dict[int, int] = {}
        #: That of the next grant; 0 as long as they are not numbered.
        self.next_number = 0
        #: Most leases have one key, and that alone is then here.
        self._keys: dict[int, bytes | SortedKeys] = {}

    def __len__(self) -> int:
        return len(self._granted)

    def __contains__(self, id: int) -> bool:
        return id in self._granted

    def get(self, id: int) -> LeaseResult | None:
        """The lease, None if there is none."""
        return self._granted.get(id)

    def number(self, id: int) -> int:
        """Which grant has made the lease; 0 if it was not numbered, or there is no lease."""
        return self._numbers.get(id, 0)

    def begin_to_number(self) -> None:
        """From here on grants are numbered; they may be already."""
        self.next_number = self.next_number or 1

    def pinned_numbers(self) -> dict[int, int]:
        """The numbers of all leases that have one."""
        return self._numbers.copy()

    def pinned(self) -> list[LeaseResult]:
        """All leases, in the order in which they were granted."""
        return list(self._granted.values())

    def sorted(self) -> list[LeaseResult]:
        """All leases, in the order of their ids."""
        return sorted(self._granted.values(), key=attrgetter("id"))

    def grant(self, lease: LeaseResult) -> None:
        """Add a lease, which must not be there, with the next number if they have one."""
        self._granted[lease.id] = lease
        if self.next_number:
            self._numbers[lease.id] = self.next_number
            self.next_number += 1

    def load(self, lease: LeaseResult, number: int) -> None:
        """Add a lease as it was in another store, with its number, 0 for none."""
        self._granted[lease.id] = lease
        if number:
            self._numbers[lease.id] = number

    def drop(self, id: int) -> None:
        """Remove a lease and forget what keys it had."""
        del self._granted[id]
        self._numbers.pop(id, None)
        self._keys.pop(id, None)

    def attach(self, id: int, key: bytes) -> None:
        """`key`, which is not there, belongs to the lease now."""
        keys = self._keys.get(id)
        if keys is None:
            self._keys[id] = key
            return
        if isinstance(keys, bytes):
            single, keys = keys, SortedKeys()
            self._keys[id] = keys
            keys.add(single)
        keys.add(key)

    def detach(self, id: int, key: bytes) -> None:
        """`key` does not belong to the lease any more."""
        keys = self._keys[id]
        if isinstance(keys, bytes):
            del self._keys[id]
            return
        keys.remove(key)
        if not keys:
            del self._keys[id]

    def keys(self, id: int, start: bytes, limit: int) -> list[bytes]:
        """The first `limit` keys of the lease from `start` on, in order."""
        keys = self._keys.get(id)
        if keys is None:
            return []
        if isinstance(keys, bytes):
            return [keys] if keys >= start and limit > 0 else []
        return keys.range(start, None, limit)

    def orphan(self) -> int:
        """The id of a lease that has keys and was never granted; 0 if there is none."""
        return next((id for id in self._keys if id not in self._granted), 0)
