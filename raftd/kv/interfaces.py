"""
The replicated store as its faces see it: promises, and the values in them.

Operations and results (`raftd.kv.operations`, `raftd.kv.results`) are the
rest of the vocabulary.  Outcomes come through `done`, as everywhere
(`raftd.interfaces`).

How fresh a read must be is one number, `max_staleness_s`: 0 is linearizable;
infinity is whatever this node has applied, and needs no leader; between them,
writes acknowledged within so many seconds may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from zope.interface import Attribute, Interface

from raftd.interfaces import Done
from raftd.kv.operations import Operation, Range
from raftd.kv.results import KeyValue, LeaseResult, RangeResult, Result

LINEARIZABLE: Final = 0.0
LOCAL: Final = math.inf

#: Backups that a node draws at once.  Each keeps alive what was there when it
#: began: lists of all leases and changes, and what a compaction removes before
#: it has come there.
MAX_BACKUPS: Final = 8


class Event(msgspec.Struct, frozen=True):
    """
    One change of one key.

    For a put, `record` is the key as it became; for a delete it has only the
    key and `mod_revision`, and version 0.  `previous` is what the key was
    before, if that was asked for and there was something.
    """

    record: KeyValue
    previous: KeyValue | None = None

    @property
    def is_delete(self) -> bool:
        return self.record.version == 0


class Changes(msgspec.Struct, frozen=True, eq=False):
    """
    What one revision has changed in a watched range, in order: a part of it,
    unless `last`, which says that nothing of this revision follows.  The last of
    several parts may have no events.

    Watches of the same range are given the same object, so that a face need
    encode it only once.
    """

    revision: int
    events: tuple[Event, ...]
    last: bool = True


class Selection(msgspec.Struct, frozen=True):
    """What a watch sees: a range (as in `Range`), with or without the records before."""

    key: bytes
    range_end: bytes = b""
    previous: bool = False
    puts: bool = True
    deletes: bool = True


class IWatch(Interface):
    """
    The changes of a range, drawn by their reader at its own pace.

    Nothing is kept for a reader: what it has not drawn is in the store's
    history, until that is compacted.
    """

    progress: int = Attribute("Whatever changed up to this revision was given already.")

    def take() -> Changes | None:
        """
        The next changes, at most about 64 KiB of them; None if there are none
        now, and then `on_ready`, given to `IDatabase.watch`, is called once
        there are more, or once `progress` has moved on.

        `Compacted` raised if they were compacted.
        """

    def close() -> None:
        """End it; `on_ready` is not called any more."""


class LeaseStatus(msgspec.Struct, frozen=True):
    """A lease; `ttl_left_ms` is what the leader says."""

    id: int
    ttl_ms: int
    ttl_left_ms: int
    keys: list[bytes]
    more: bool


class DigestStatus(msgspec.Struct, frozen=True):
    """
    How this member's state compares with the leader's.

    `agreed_index`: the last checkpoint at which both were equal.
    `differs_index`: the first at which they were not, 0 if there was none.
    """

    agreed_index: int = 0
    differs_index: int = 0


class StoreStatus(msgspec.Struct, frozen=True):
    """The store of this node at one moment; sizes as `Store.size_bytes` counts."""

    revision: int
    compacted_revision: int
    keys: int
    size_bytes: int
    quota_bytes: int
    leases: int
    watches: int
    idempotency_keys: int
    digest: DigestStatus


class IDatabase(Interface):
    """The replicated store: a node, and the state machine that it applies to."""

    revision: int = Attribute("The last revision that is complete at this node.")
    compacted_revision: int = Attribute("The oldest that can be read here.")

    def change(operation: Operation, done: Done[Result], retry: bytes = b"") -> None:
        """
        Carry out `operation`; its result, of the type that belongs to it.

        Outcomes as of `INode.propose`; `BadRequest`, `TooLarge`, `QuotaReached`,
        `LeaseNotFound` and the like if the store refuses.  With a `retry`
        (`raftd.idempotency.retry_of`), one that was carried out before is not
        carried out again, and has the first result.
        """

    def get(
        key: bytes, max_staleness_s: float, done: Done[KeyValue | None], revision: int = 0
    ) -> None:
        """
        The record of `key`, None if there is none; as of `revision`, 0 for now.

        Outcomes as of `INode.read`; `Compacted`, `FutureRevision`.
        """

    def range(query: Range, max_staleness_s: float, done: Done[RangeResult]) -> None:
        """The records of a range; outcomes as of `get`."""

    def watch(selection: Selection, revision: int, on_ready: Callable[[], None]) -> IWatch:
        """
        What changes in a range from `revision` on; 0: from now on.

        `revision` may be in the future.  `Compacted` raised if it was compacted,
        `Overloaded` if there are too many.
        `on_ready` is called from the reactor, never from within `take`.
        """

    def grant(
        ttl_ms: int, done: Done[LeaseResult], lease_id: int = 0, retry: bytes = b""
    ) -> None:
        """
        A new lease, with an id chosen here if `lease_id` is 0; its TTL is raised
        to `lease_ttl_ms(ttl_ms)`.
        """

    def lease_ttl_ms(ttl_ms: int) -> int:
        """What a TTL becomes: not below the floor, and a whole second."""

    def draw_lease_id() -> int:
        """An id for a lease that is to be granted in a transaction."""

    def keep_alive(lease_id: int, done: Done[LeaseResult]) -> None:
        """
        Begin its TTL anew, at the leader; `LeaseNotFound`.

        Answered after a quorum round that began after the call; the caller
        counts the TTL from the call.
        """

    def lease(lease_id: int, max_keys: int, done: Done[LeaseStatus]) -> None:
        """How long it has yet, and its keys; `LeaseNotFound`."""

    def leases(max_staleness_s: float, done: Done[list[LeaseResult]]) -> None:
        """All leases, in the order of their ids."""

    def backup(done: Done[tuple[int, Iterator[bytes]]]) -> None:
        """
        The whole store as of one revision, linearizable: that revision, and
        slices, as `docs/backup-format.md` says.

        Drawn slice by slice, as a snapshot is; `close` the iterator to give it up.
        `Overloaded` if this node draws `MAX_BACKUPS` already.
        """

    def status() -> StoreStatus:
        """What this node knows of its store right now."""
