"""
Snapshots of a running node: taking them, sending them, receiving them.

Each is a slow conversation with the disk or with a peer beside the node's
turns, in steps that keep the reactor for a millisecond or two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.applier import Applier
from raftd.core.messages import (
    MAX_SNAPSHOT_PIECE_BYTES,
    InstallSnapshot,
    InstallSnapshotResponse,
    MemberId,
)
from raftd.core.raft import Raft, Random
from raftd.core.ready import Piece
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import Fatal, RaftdError, SnapshotDamaged, Stopped, StorageFailed
from raftd.interfaces import (
    ILogStorage,
    IPeer,
    ISnapshotReader,
    ISnapshotStore,
    ISnapshotWriter,
    IStateMachine,
)

#: A snapshot is taken at the latest when the log has grown by this much since the
#: last one, or by the size of the last one if that is more.
DEFAULT_THRESHOLD_BYTES = 64 << 20
#: The least share of that at which one is taken.  Each member draws its own for
#: each snapshot: their logs grow alike, and if all of them were busy with theirs
#: at the same time, there would be no quorum that is not.
LEAST_SHARE = 0.75
#: When it is tried again after one that could not be written, as on a full disk:
#: the next one gives the room of the log back, so it must not wait for more writes.
TAKE_RETRY_S = 30.0
#: How long at least between two that take the place of damaged ones: on a disk
#: that damages whatever it is given, they are all there would be.
REPLACE_RETRY_S = 30.0
#: How long drawing slices may keep the reactor at a time, and how long it rests
#: then: little of the time goes into a snapshot, and of the turns that a write
#: waits for hardly one has a slice before it.
SLICE_S = 0.001
REST_S = 0.009
#: Entries of the log that are let go of at a time: about a millisecond.
FREED_ENTRIES = 5_000
#: Slices that may wait for the disk; then it rests until there are fewer.
MAX_PENDING_BYTES = 4 << 20
#: How often a snapshot is sent again from the beginning before it is given up
#: for a while.
MAX_RESTARTS = 3


class Snapshotter:
    """
    All snapshots of one node.

    Invariants: one snapshot is taken at a time; one is sent to a member at a
    time; what is compacted is behind a durable snapshot, and behind the one
    before it while a member is being sent that.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        raft: Raft,
        applier: Applier,
        state_machine: IStateMachine,
        storage: ILogStorage,
        store: ISnapshotStore,
        threshold_bytes: int,
        *,
        random: Random,
        wake: Callable[[], None],
        defect: Callable[[Failure], None],
        on_taken: Callable[[SnapshotMetadata], None],
        on_restored: Callable[[SnapshotMetadata], None],
    ) -> None:
        """`wake` asks for a turn; `defect` takes the errors that stop the node."""
        self._clock = clock
        self._random = random
        self._raft = raft
        self._applier = applier
        self._state_machine = state_machine
        self._storage = storage
        self._store = store
        self._threshold_bytes = threshold_bytes
        self._wake = wake
        self._defect = defect
        self._on_taken = on_taken
        self._on_restored = on_restored
        #: `Applier.applied_bytes` as of the last one, and how many more make the next one due.
        self._bytes_before = 0
        self._due_bytes = self._draw_due()
        self._taking = False
        self._take_not_before = self._replace_not_before = -math.inf
        #: What is to be restored, and what is being restored.
        self._to_restore: ISnapshotReader | None = None
        self._restoring: ISnapshotReader | None = None
        #: The last included index of what each of some members is being sent.
        self._sending: dict[MemberId, int] = {}
        #: That of the snapshot which the log was last compacted for.
        self._compacted_for = 0
        #: The pause between slices of the one that is being taken.
        self._rest: tuple[IDelayedCall, Deferred[bool]] | None = None
        #: Why the last one that was sent here could not be kept, as it was logged.
        self._not_kept = ""
        self._stopped = False

    def stop(self) -> Deferred[None]:
        """Give up what is under way; fires when no file is open any more."""
        self._stopped = True
        if self._rest is not None:
            (call, rested), self._rest = self._rest, None
            call.cancel()
            rested.callback(False)
        return self._store.close()

    @property
    def latest_index(self) -> int:
        """The last included index of the newest snapshot; 0 if there is none."""
        latest = self._store.latest
        return 0 if latest is None else latest.last_included_index

    def _ended(self, failure: Failure) -> None:
        """A step has failed; when the node is stopping, that is what was wanted."""
        if not (self._stopped and failure.check(Stopped)):
            self._defect(failure)

    # -- taking one ----------------------------------------------------------

    def _draw_due(self) -> int:
        share = LEAST_SHARE + (1 - LEAST_SHARE) * self._random.random()
        return math.ceil(share * max(self._threshold_bytes, self._store.latest_size))

    def take_if_due(self) -> None:
        """
        Begin to take a snapshot if the log has grown enough, or in place of a
        newest one that is damaged: what that holds is nowhere else but in memory,
        so that this does not wait because another one has failed before.
        """
        has_grown = self._applier.applied_bytes - self._bytes_before >= self._due_bytes
        if (
            (
                (self._store.is_damaged and self._may_replace())
                or (has_grown and self._clock.seconds() >= self._take_not_before)
            )
            and not self._taking
            and not self._stopped
            and self._applier.is_between_entries
        ):
            self._taking = True
            if self._store.is_damaged:
                self._replace_not_before = self._clock.seconds() + REPLACE_RETRY_S
            taken = Deferred.fromCoroutine(self._take())
            taken.addErrback(self._ended)

    def _may_replace(self) -> bool:
        return self._clock.seconds() >= self._replace_not_before

    async def _take(self) -> None:
        index = self._applier.applied_index
        term = self._raft.log.term_at(index)
        assert term is not None, "the log holds what was applied last"
        metadata = SnapshotMetadata(
            index, term, self._raft.configuration_at(index), self._applier.time_ms
        )
        bytes_before, self._bytes_before = self._bytes_before, self._applier.applied_bytes
        # From here on the iterator holds the state as of `index`, whatever is applied.
        slices = self._state_machine.snapshot()
        writer = self._store.create(metadata)
        try:
            if not await write_snapshot(self._clock, writer, slices, self._take_rest):
                return
        except StorageFailed as e:
            self._log.error("A snapshot could not be taken: {reason}", reason=str(e))
            self._bytes_before = bytes_before
            self._take_not_before = self._clock.seconds() + TAKE_RETRY_S
            return
        finally:
            self._taking = False
        if not self._stopped:
            self._due_bytes = self._draw_due()
            self._compact(index)
            self._on_taken(metadata)

    def _take_rest(self) -> Deferred[bool]:
        rested: Deferred[bool] = Deferred()
        self._rest = self._clock.callLater(REST_S, self._rested), rested
        return rested

    def _rested(self) -> None:
        assert self._rest is not None
        rested, self._rest = self._rest[1], None
        rested.callback(True)

    def _compact(self, index: int) -> None:
        """
        There is a durable snapshot at `index`: the log need not have what it replaces.

        But a member that is just being sent the one before needs what is behind
        that: else it would need the next as well, and so on under much load.
        """
        before, self._compacted_for = self._compacted_for, index
        needed = [sent for sent in self._sending.values() if before <= sent < index]
        self._storage.compact(self._raft.compact(min(needed, default=index)))
        self._free()

    def _free(self) -> None:
        if self._raft.free(FREED_ENTRIES) and not self._stopped:
            self._clock.callLater(0, self._free)

    # -- sending one ---------------------------------------------------------

    def send(self, member_id: MemberId, peer: IPeer | None) -> None:
        """Send the newest snapshot to a member that needs one, unless that goes on already."""
        if member_id in self._sending:
            return
        if peer is None or self._store.latest is None or self._store.is_damaged:
            # It is asked for again; one that is damaged is being replaced.
            self._raft.unreachable(member_id)
            return
        self._sending[member_id] = self._store.latest.last_included_index
        sent = Deferred.fromCoroutine(self._send(member_id, peer))
        sent.addErrback(self._ended)

    async def _send(self, member_id: MemberId, peer: IPeer) -> None:
        term = self._raft.term
        reader = self._store.open()
        index = reader.metadata.last_included_index
        installed: bool | None = None
        try:
            installed = await self._send_pieces(member_id, peer, reader, term)
        except Fatal:
            raise
        except RaftdError as e:
            self._log.info("Sending a snapshot was broken off: {reason}", reason=str(e))
        finally:
            reader.close()
            del self._sending[member_id]
        if self._stopped:
            return
        if installed is None:
            self._raft.unreachable(member_id)
        elif installed:
            self._raft.snapshot_installed(member_id, term, index)
        else:
            self._raft.snapshot_refused(member_id, self._clock.seconds())
        self._wake()

    async def _send_pieces(
        self, member_id: MemberId, peer: IPeer, reader: ISnapshotReader, term: int
    ) -> bool | None:
        """
        Piece by piece, from where the receiver wants to go on; whether it has
        all.  None if that is not known: this node does not lead any more.
        """
        offset = restarts = 0
        metadata = reader.metadata
        while restarts <= MAX_RESTARTS:
            data = await reader.read(offset, MAX_SNAPSHOT_PIECE_BYTES)
            if not self._leads_in(term):
                return None
            response = await peer.send(
                InstallSnapshot(
                    term,
                    metadata.last_included_index,
                    metadata.last_included_term,
                    offset,
                    data,
                    offset + len(data) >= reader.size,
                )
            )
            assert isinstance(response, InstallSnapshotResponse)
            if not self._leads_in(term):
                return None
            self._raft.receive_response(member_id, response, self._clock.seconds())
            if response.term != term:
                return None
            if response.installed:
                return True
            restarts += response.next_offset <= offset
            offset = min(response.next_offset, reader.size)
        return False

    def _leads_in(self, term: int) -> bool:
        leads = self._raft.term == term and self._raft.leadership is not None
        return leads and not self._stopped

    # -- receiving one -------------------------------------------------------

    def keep(self, piece: Piece) -> None:
        """Keep a piece that the leader has sent, and answer it."""
        kept = Deferred.fromCoroutine(self._keep(piece))
        kept.addErrback(self._ended)

    async def _keep(self, piece: Piece) -> None:
        request = piece.request
        receiver = self._store.receive(request.last_included_index, request.last_included_term)
        metadata = None
        try:
            next_offset = await receiver.write(request.offset, request.data)
            if request.done and next_offset == request.offset + len(request.data):
                metadata = await receiver.finish()
        except SnapshotDamaged as e:
            self._log.warn("{reason}", reason=str(e))
            next_offset = 0
        except Stopped:
            # Another one has come, and this one was given up.
            next_offset = 0
        except StorageFailed as e:
            # The log is sound, and space may come back; the sender gives up
            # and tries again later.
            if self._not_kept != str(e):
                self._not_kept = str(e)
                self._log.error("A snapshot could not be received: {reason}", reason=str(e))
            next_offset = request.offset
        if self._stopped:
            return
        if metadata is None:
            self._raft.piece_kept(piece, next_offset)
        else:
            self._not_kept = ""
            self._raft.install_snapshot(piece, metadata)
        self._wake()

    def restore(self, metadata: SnapshotMetadata) -> None:
        """Restore the state from a snapshot that has just arrived."""
        # This very one: a newer may be here that came in another term, and of
        # which the core knows nothing.
        superseded, self._to_restore = self._to_restore, self._store.open(metadata)
        if superseded is not None and superseded is not self._restoring:
            superseded.close()
        self._applier.restore(self._begin_restore)

    def _begin_restore(self) -> None:
        if self._restoring is None:
            restored = Deferred.fromCoroutine(self._restore())
            restored.addErrback(self._ended)

    async def _restore(self) -> None:
        reader = None
        while reader is not self._to_restore:  # a later one may arrive meanwhile
            reader = self._restoring = self._to_restore
            assert reader is not None
            try:
                await reader.restore(self._state_machine)
            finally:
                reader.close()
        self._to_restore = self._restoring = None
        if self._stopped or reader is None:
            return
        metadata = reader.metadata
        self._bytes_before, self._due_bytes = self._applier.applied_bytes, self._draw_due()
        self._applier.restored(metadata)
        self._compact(metadata.last_included_index)
        self._on_restored(metadata)
        self._wake()


async def write_snapshot(
    clock: IReactorTime,
    writer: ISnapshotWriter,
    slices: Iterator[bytes],
    rest: Callable[[], Deferred[bool]],
) -> bool:
    """
    Draw all `slices` into `writer`, in slices of time, and finish it.

    False if it was given up because a `rest` between them has said so.
    `StorageFailed` if the disk refuses.
    """
    until = clock.seconds() + SLICE_S
    for data in slices:
        writer.write(data)
        if clock.seconds() >= until or writer.pending_bytes > MAX_PENDING_BYTES:
            goes_on = await rest()
            while goes_on and writer.pending_bytes > MAX_PENDING_BYTES:
                goes_on = await rest()
            if not goes_on:
                writer.abort()
                return False
            until = clock.seconds() + SLICE_S
    await writer.finish()
    return True
