"""The replicated store as its users see it: a node, and the state machine beneath it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from random import SystemRandom
from typing import Any, cast
from weakref import WeakSet

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from raftd import idempotency
from raftd.core.messages import Command, encode_command
from raftd.errors import OutcomeUnknown, Overloaded, ProtocolViolation, RaftdError
from raftd.idempotency import Idempotency
from raftd.interfaces import Done, INode
from raftd.kv.backup import Backup
from raftd.kv.compactor import PORTION_KEYS, compact_in_portions
from raftd.kv.interfaces import (
    LOCAL,
    MAX_BACKUPS,
    DigestStatus,
    IDatabase,
    IWatch,
    LeaseStatus,
    Selection,
    StoreStatus,
)
from raftd.kv.lease_keeper import MAX_TTL_MS, raised_ttl_ms, ttl_floor_ms
from raftd.kv.lease_questions import LeaseAsker, Left, lease_not_found
from raftd.kv.limits import (
    MAX_LEASE_ID,
    key_refusal,
    operation_refusal,
    put_refusal,
    range_refusal,
)
from raftd.kv.operations import Compact, GrantLease, Operation, Put, Range, encode_operation
from raftd.kv.results import KeyValue, LeaseResult, RangeResult, Result, decode_result
from raftd.kv.scans import Scans
from raftd.kv.store import Store
from raftd.kv.watches import WatchHub


@implementer(IDatabase)
class Database:
    """
    Changes go through the log; reads come from this node's own store, after
    the node has made sure that it is fresh enough.

    What `raftd.kv.limits` refuses never gets into the log.
    """

    def __init__(
        self,
        clock: IReactorTime,
        node: INode,
        machine: Idempotency,
        store: Store,
        watches: WatchHub,
        election_timeout_ms: int,
        *,
        digest: Callable[[], DigestStatus] = DigestStatus,
    ) -> None:
        """
        `machine` is the state machine of `node`, and wraps `store`; `watches`
        is the hub of that.  `digest` is what a checker has found.
        """
        self._node = node
        self._machine = machine
        self._store = store
        self._watches = watches
        self._ttl_floor_ms = ttl_floor_ms(election_timeout_ms)
        self._digest = digest
        self._scans = Scans(clock)
        self._leases = LeaseAsker(clock, node)
        self._random = SystemRandom()
        #: Those that are being drawn, and some that are over.  One that somebody
        #: drops half-way goes by itself.
        self._backups: WeakSet[Backup] = WeakSet()

    def stop(self) -> None:
        """Give up what is under way here; the node answers for what it was given."""
        self._scans.stop()
        self._leases.stop()

    @property
    def revision(self) -> int:
        return self._store.revision

    @property
    def compacted_revision(self) -> int:
        return self._store.compacted_revision

    def portion_end(self, max_keys: int, after: int = 0) -> int:
        """Up to where one entry of the log is to compact, of what is behind `after`."""
        return self._store.portion_end(max_keys, after)

    # -- changes ---------------------------------------------------------------

    def change(self, operation: Operation, done: Done[Result], retry: bytes = b"") -> None:
        """See `IDatabase.change`."""
        if isinstance(operation, Put) and not operation.lease:
            refusal = put_refusal(operation.key, operation.value)
        else:
            refusal = operation_refusal(operation, self._ttl_floor_ms, MAX_TTL_MS)
        if refusal is not None:
            done(refusal)
        elif isinstance(operation, Compact):
            revision = operation.revision
            portion_end = partial(self._portion_end, revision)
            compact_in_portions(self._propose, portion_end, revision, done, retry)
        else:
            self._propose(operation, done, retry)

    def _portion_end(self, revision: int, after: int) -> int:
        # One that is not there yet, or not here, goes as a whole: it may be refused.
        there = revision <= self.revision
        return self.portion_end(PORTION_KEYS, after) if there else revision

    def _propose(self, operation: Operation, done: Done[Result], retry: bytes = b"") -> None:
        def applied(outcome: bytes | RaftdError) -> None:
            if isinstance(outcome, bytes):
                done(_result(outcome, bool(retry)))
            else:
                done(outcome)

        command = Command(encode_operation(operation), idempotency_key=retry)
        self._node.propose(encode_command(command), applied)

    # -- reads -----------------------------------------------------------------

    def _when_fresh(self, max_staleness_s: float, done: Done[None]) -> None:
        if not max_staleness_s:
            self._node.read(done)
        elif max_staleness_s == LOCAL:
            done(None)
        else:
            self._node.read_recent(max_staleness_s, done)

    def get(
        self, key: bytes, max_staleness_s: float, done: Done[KeyValue | None], revision: int = 0
    ) -> None:
        """See `IDatabase.get`."""
        refusal = key_refusal(key)
        if refusal is not None:
            done(refusal)
            return

        def may_read(outcome: RaftdError | None) -> None:
            found: KeyValue | RaftdError | None = outcome
            if outcome is None:
                try:
                    found = self._store.get(key, revision)
                except RaftdError as e:
                    found = e
            done(found)

        self._when_fresh(max_staleness_s, may_read)

    def range(self, query: Range, max_staleness_s: float, done: Done[RangeResult]) -> None:
        """See `IDatabase.range`."""
        refusal = range_refusal(query)
        if refusal is not None:
            done(refusal)
            return

        def may_read(outcome: RaftdError | None) -> None:
            if outcome is not None:
                done(outcome)
                return
            try:
                walk = self._store.range_walk(query)
            except RaftdError as e:
                done(e)
            else:
                self._scans.run(walk, done)

        self._when_fresh(max_staleness_s, may_read)

    def watch(
        self, selection: Selection, revision: int, on_ready: Callable[[], None]
    ) -> IWatch:
        """See `IDatabase.watch`."""
        watch: IWatch = self._watches.watch(selection, revision, on_ready)
        return watch

    def backup(self, done: Done[tuple[int, Iterator[bytes]]]) -> None:
        """See `IDatabase.backup`."""

        def may_read(outcome: RaftdError | None) -> None:
            # Looked at here, where it begins: any number may have waited for this.
            outcome = outcome or self._backup_refusal()
            if outcome is None:
                backup = Backup(self._store.snapshot())
                self._backups.add(backup)
                done((self._store.revision, backup))
            else:
                done(outcome)

        self._node.read(may_read)

    def _backup_refusal(self) -> RaftdError | None:
        for backup in [backup for backup in self._backups if backup.is_over]:
            self._backups.remove(backup)
        if len(self._backups) < MAX_BACKUPS:
            return None
        return Overloaded(f"This node is making {MAX_BACKUPS} backups already; try again.")

    # -- leases ------------------------------------------------------------------

    def grant(
        self, ttl_ms: int, done: Done[LeaseResult], lease_id: int = 0, retry: bytes = b""
    ) -> None:
        """See `IDatabase.grant`."""
        operation = GrantLease(lease_id or self.draw_lease_id(), self.lease_ttl_ms(ttl_ms))
        # The result is of the type that belongs to the operation.
        self.change(operation, cast(Any, done), retry)

    def lease_ttl_ms(self, ttl_ms: int) -> int:
        """See `IDatabase.lease_ttl_ms`."""
        return raised_ttl_ms(ttl_ms, self._ttl_floor_ms)

    def draw_lease_id(self) -> int:
        """See `IDatabase.draw_lease_id`."""
        return self._random.randint(1, MAX_LEASE_ID)

    def keep_alive(self, lease_id: int, done: Done[LeaseResult]) -> None:
        """See `IDatabase.keep_alive`."""
        if 0 < lease_id <= MAX_LEASE_ID:
            self._leases.keep_alive(lease_id, done)
        else:
            done(lease_not_found())

    def lease(self, lease_id: int, max_keys: int, done: Done[LeaseStatus]) -> None:
        """See `IDatabase.lease`: the time from the leader, the keys from this node's store."""

        def time_known(left: Left | RaftdError) -> None:
            if isinstance(left, RaftdError):
                done(left)
            else:
                self._node.read(lambda outcome: may_read(left, outcome))

        def may_read(left: Left, outcome: RaftdError | None) -> None:
            if outcome is not None:
                done(outcome)
            elif self._store.lease(lease_id) is None:
                done(lease_not_found())
            else:
                keys = self._store.lease_keys(lease_id, max_keys + 1)
                more = len(keys) > max_keys
                done(LeaseStatus(lease_id, left.ttl_ms, left.left_ms, keys[:max_keys], more))

        if 0 < lease_id <= MAX_LEASE_ID:
            self._leases.time_left(lease_id, time_known)
        else:
            done(lease_not_found())

    def leases(self, max_staleness_s: float, done: Done[list[LeaseResult]]) -> None:
        """See `IDatabase.leases`."""

        def may_read(outcome: RaftdError | None) -> None:
            done(self._store.leases() if outcome is None else outcome)

        self._when_fresh(max_staleness_s, may_read)

    # -- looking at it -------------------------------------------------------------

    def status(self) -> StoreStatus:
        """See `IDatabase.status`."""
        store = self._store
        return StoreStatus(
            revision=store.revision,
            compacted_revision=store.compacted_revision,
            keys=len(store),
            size_bytes=store.size_bytes,
            quota_bytes=store.quota_bytes,
            leases=store.lease_count,
            watches=len(self._watches),
            idempotency_keys=len(self._machine),
            digest=self._digest(),
        )


def _result(data: bytes, had_key: bool) -> Result | RaftdError:
    """What the state machine has answered to a command, with an idempotency key or without."""
    try:
        if had_key:
            inner = idempotency.decode_result(data)
            if isinstance(inner, RaftdError):
                return inner
            data = inner
        return decode_result(data)
    except ProtocolViolation as e:
        return OutcomeUnknown(f"What came of the write cannot be told: {e}.")
