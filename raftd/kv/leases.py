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
    that has one and is no tombstone, and under no other.  Each lease that was
    ever granted has had a number of its own: those that are there are above 0,
    below `next_number`, and rise in the order of `_granted`.
    """

    __slots__ = ("_granted", "_keys", "_numbers", "next_number")

    def __init__(self) -> None:
        #: In the order in which they were granted.
        self._granted: dict[int, LeaseResult] = {}
        #: Which grant it was that made a lease: so it is told from an earlier one
        #: with the same id.
        self._numbers: dict[int, int] = {}
        #: That of the next grant.
        self.next_number = 1
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
        """Which grant has made the lease; 0 if there is none."""
        return self._numbers.get(id, 0)

    def pinned_numbers(self) -> dict[int, int]:
        """The numbers of all leases."""
        return self._numbers.copy()

    def pinned(self) -> list[LeaseResult]:
        """All leases, in the order in which they were granted."""
        return list(self._granted.values())

    def sorted(self) -> list[LeaseResult]:
        """All leases, in the order of their ids."""
        return sorted(self._granted.values(), key=attrgetter("id"))

    def grant(self, lease: LeaseResult) -> None:
        """Add a lease, which must not be there, with the next number."""
        self.load(lease, self.next_number)
        self.next_number += 1

    def load(self, lease: LeaseResult, number: int) -> None:
        """Add a lease with the number that it has had before."""
        self._granted[lease.id] = lease
        self._numbers[lease.id] = number

    def drop(self, id: int) -> None:
        """Remove a lease and forget what keys it had."""
        del self._granted[id]
        del self._numbers[id]
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
