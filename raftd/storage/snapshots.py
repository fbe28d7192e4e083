"""
The snapshots of one node on disk.

All work on files is done by one thread, job by job, in the order in which it
was asked for (`snapshot_files.py`); here, in the reactor's thread, is what
there is and who uses it.  No job takes longer than a few megabytes take, so
that a snapshot that is sent does not wait for one that is being checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from raftd.core.messages import Entry
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import (
    DirectoryDamaged,
    InvariantViolated,
    RaftdError,
    SnapshotDamaged,
    StorageFailed,
)
from raftd.interfaces import ISnapshotReceiver, ISnapshotStore, ISnapshotWriter, IStateMachine
from raftd.storage.files import Files
from raftd.storage.frames import Damage
from raftd.storage.segments import ADVICE
from raftd.storage.snapshot_files import (
    RECEIVED,
    WRITTEN,
    Draft,
    Key,
    Scan,
    SnapshotDirectory,
    unusable,
)
from raftd.storage.snapshot_format import BLOCK_BYTES, SnapshotEncoder, VersionUnknown
from raftd.storage.snapshot_reader import STEP_BYTES, SnapshotReader, finish, give
from raftd.storage.snapshot_thread import Reactor, SnapshotThread, ignore
from raftd.storage.workers import ThreadWorker, Worker

#: Whole snapshots that are kept, besides those that are being read.
KEPT_SNAPSHOTS = 2

#: Bytes of one snapshot that may wait for the disk, while it is written or
#: received.  Whoever writes pauses far below this (`pending_bytes`); reaching
#: it is a defect there.  A piece received beyond it is not kept, and asked for
#: again.
MAX_PENDING_BYTES = 16 << 20


class _Kept(msgspec.Struct, eq=False):
    """A whole snapshot on the disk."""

    key: Key
    #: None for one that was only kept, and never read, since the start.
    metadata: SnapshotMetadata | None
    size: int
    #: It was found so by who read it.
    is_damaged: bool = False


@implementer(ISnapshotStore)
class SnapshotStore:
    """
    See `ISnapshotStore`.  Several stores, each in its directory, share a process.

    Invariants:

    - `_kept` has every whole snapshot but those that are about to be removed,
      oldest first
    - `latest` is what the last one holds of those that are not damaged; but
      while `is_damaged`, that of the damaged one, for none has taken its place
    """

    _log = Logger()

    def __init__(
        self,
        path: str,
        reactor: Reactor,
        *,
        files: Files | None = None,
        start_worker: Callable[[str], Worker] = ThreadWorker,
    ) -> None:
        """The store in the directory `path`, which need not exist; nothing happens yet."""
        self.latest: SnapshotMetadata | None = None
        self.is_damaged = False
        self._reactor = reactor
        self._files = files or Files()
        self._directory = SnapshotDirectory(self._files, path)
        self.thread = SnapshotThread(reactor, start_worker)
        self._kept: list[_Kept] = []
        self._drafts: set[Draft] = set()
        #: What was finished last stays, however old: it may be about to be read.
        self._finished_last: Key | None = None
        self._readers: set[SnapshotReader] = set()
        self._writer: SnapshotWriter | None = None
        self._receiver: SnapshotReceiver | None = None
        self._is_open = False
        self._is_closed = False

    # -- at the start --------------------------------------------------------

    def recover(
        self,
        machine: IStateMachine,
        log_base_index: int | None = None,
        log_entries: Sequence[Entry] = (),
    ) -> None:
        """
        See `ISnapshotStore.recover`.

        `log_base_index` and `log_entries` are those of the log which is to be
        replayed behind the snapshot.  If they are given, a gap between the two
        is refused; and if the newest snapshot is damaged, the one before it is
        taken, provided the log leads from that one to the very entry with
        which the damaged one ends: then nothing is lost.  Otherwise a damaged
        snapshot is refused, for what it held is nowhere else; the directory
        then stays as it was found.
        """
        if self._is_open:
            raise InvariantViolated("the snapshots were recovered twice")
        keys, aside, newest = self._find(machine, log_base_index, log_entries)
        self._kept[:0] = [_Kept(key, None, 0) for key in keys]
        if newest is not None:
            self._kept.append(newest)
            self.latest = newest.metadata
        self._directory.settle(aside, [kept.key for kept in self._take_surplus()])
        self._is_open = True

    def look(
        self, machine: IStateMachine, log_base_index: int, log_entries: Sequence[Entry]
    ) -> SnapshotMetadata | None:
        """
        What `recover` would restore `machine` from, with the same errors.

        Nothing on the disk is changed, and the store is not open by it.
        """
        _, _, newest = self._find(machine, log_base_index, log_entries)
        return None if newest is None else newest.metadata

    def _find(
        self,
        machine: IStateMachine,
        log_base_index: int | None,
        log_entries: Sequence[Entry],
    ) -> tuple[list[Key], list[Key], _Kept | None]:
        """Which are older than the one that is used, which are damaged, and that one."""
        keys, aside = self._directory.keys(), []
        newest = None
        while keys and newest is None:
            key = keys.pop()
            try:
                newest = self._restore_from(key, machine)
            except Damage as e:
                damaged = unusable(self._directory.file(key), e)
                if isinstance(e, VersionUnknown) or log_base_index is None:
                    raise damaged from e
                before = keys[-1][0] if keys else 0
                _check_covered(damaged, key, before, log_base_index, log_entries)
                self._log.critical(
                    "{reason} This once no harm is done: the log leads from the snapshot "
                    "before it to its end, and that one is used instead.",
                    reason=str(damaged),
                )
                aside.append(key)
        self._check_gap(newest, log_base_index)
        return keys, aside, newest

    def _restore_from(self, key: Key, machine: IStateMachine) -> _Kept:
        path = self._directory.file(key)
        try:
            fd = self._files.open(path)
            try:
                scan = Scan(self._files, fd, key)
                restore = machine.restore()
                while (blocks := scan.step(STEP_BYTES)) is not None:
                    for block in blocks:
                        give(restore, block, path)
                finish(restore, path)
            finally:
                self._files.close(fd)
        except OSError as e:
            raise StorageFailed(f"{path} could not be read: {e}.") from e
        return _Kept(key, scan.metadata, scan.size)

    def _check_gap(self, newest: _Kept | None, log_base_index: int | None) -> None:
        last = 0 if newest is None else newest.key[0]
        if log_base_index is not None and log_base_index > last:
            holds = f"the newest snapshot ends with entry {last}" if last else "there is none"
            raise DirectoryDamaged(
                f"The log begins with entry {log_base_index + 1}, which needs a snapshot up "
                f"to entry {log_base_index} in {self._directory.path}, but {holds}: what is "
                f"between them is missing. {ADVICE}"
            )

    # -- ISnapshotStore ------------------------------------------------------

    @property
    def latest_size(self) -> int:
        newest_first = reversed(self._kept)
        return next((kept.size for kept in newest_first if kept.metadata == self.latest), 0)

    def create(self, metadata: SnapshotMetadata) -> SnapshotWriter:
        self._check_open()
        if self._writer is not None:
            raise InvariantViolated("one snapshot is written at a time")
        draft = self._new_draft(_key(metadata), WRITTEN)
        self._writer = SnapshotWriter(self, draft, metadata)
        return self._writer

    def receive(self, last_included_index: int, last_included_term: int) -> ISnapshotReceiver:
        self._check_open()
        key = last_included_index, last_included_term
        if self.latest is not None and _key(self.latest) == key and not self.is_damaged:
            return _HeldAlready(self.latest)
        receiver = self._receiver
        if receiver is not None:
            if receiver.key == key:
                return receiver
            receiver.give_up()
        self._receiver = SnapshotReceiver(self, self._new_draft(key, RECEIVED))
        return self._receiver

    def open(self, metadata: SnapshotMetadata | None = None) -> SnapshotReader:
        self._check_open()
        wanted = metadata
        if metadata is None and not self.is_damaged:
            wanted = self.latest
        # That of the newest is always known, and of all that have arrived.
        found = [kept for kept in self._kept if kept.metadata == wanted]
        if not found or wanted is None:
            raise InvariantViolated("there is no such snapshot to read")
        kept = found[-1]
        assert kept.metadata is not None
        reader = SnapshotReader(
            self._files,
            self._directory.file(kept.key),
            kept.key,
            kept.metadata,
            kept.size,
            reactor=self._reactor,
            thread=self.thread,
            on_close=self._released,
            on_damage=partial(self._found_damaged, kept),
        )
        self._readers.add(reader)
        return reader

    def close(self) -> Deferred[None]:
        """See `ISnapshotStore.close`; whatever is still waited for fails with `Stopped`."""
        if self._is_closed:
            raise InvariantViolated("the snapshots were closed twice")
        self._is_closed = True
        for draft in self._drafts:
            ignore(self.thread.call(draft.discard))
        for reader in list(self._readers):
            reader.close()
        return self.thread.close()

    def _check_open(self) -> None:
        if not self._is_open or self._is_closed:
            raise InvariantViolated("the snapshots are not open")

    # -- what writers, receivers and readers tell -----------------------------

    def _new_draft(self, key: Key, suffix: str) -> Draft:
        # One of the same name may still be at work, being checked.
        while any(draft.path == self._directory.file(key, suffix) for draft in self._drafts):
            suffix = "again." + suffix
        replaces = _key(self.latest) if self.is_damaged and self.latest else None
        draft = Draft(self._directory, key, suffix, replaces=replaces)
        self._drafts.add(draft)
        return draft

    def finished(self, draft: Draft, metadata: SnapshotMetadata, size: int) -> None:
        """A snapshot is whole and durable."""
        self.ended(draft)
        self._finished_last = draft.key
        for kept in self._kept:
            if kept.key == draft.key != draft.replaces:
                kept.metadata, kept.size = metadata, size
                return
        # A reader of the one that is replaced may yet find damage: in that, not in this.
        self._kept = [kept for kept in self._kept if kept.key != draft.key]
        self._kept.append(_Kept(draft.key, metadata, size))
        self._kept.sort(key=lambda kept: kept.key)
        if not self.is_damaged or self._takes_place(draft):
            self.latest = [kept for kept in self._kept if not kept.is_damaged][-1].metadata
            self.is_damaged = False
        self._remove_surplus()

    def _takes_place(self, draft: Draft) -> bool:
        """
        Whether a finished draft is as good as the newest, which is damaged.

        One that ends earlier and was begun before that was known is not: the
        log may begin behind the damaged one by now.
        """
        assert self.latest is not None
        newest = _key(self.latest)
        return draft.key >= newest or draft.replaces == newest

    def ended(self, draft: Draft) -> None:
        """Nobody works on the draft any more: it was kept, or it is gone."""
        self._drafts.discard(draft)
        if self._writer is not None and self._writer.draft is draft:
            self._writer = None
        if self._receiver is not None and self._receiver.draft is draft:
            self._receiver = None

    def discard(self, draft: Draft) -> None:
        """The draft is given up."""
        self.ended(draft)
        ignore(self.thread.call(draft.discard))

    def _found_damaged(self, kept: _Kept, reason: SnapshotDamaged) -> None:
        """By who read it, to send it; nobody else looks before the next start."""
        if kept.is_damaged:
            return
        kept.is_damaged = True
        if kept in self._kept and kept.metadata == self.latest:
            self.is_damaged = True
        self._log.critical(
            "{reason} It is not sent. What it held is in memory as well, and no harm is done: "
            "a snapshot of the present state takes its place. Look at the disk.",
            reason=str(reason),
        )

    def _released(self, reader: SnapshotReader) -> None:
        self._readers.discard(reader)
        if not self._is_closed:
            self._remove_surplus()

    def _take_surplus(self) -> list[_Kept]:
        read: set[Key | None] = {reader.key for reader in self._readers}
        read.add(self._finished_last)
        if self.is_damaged and self.latest is not None:
            read.add(_key(self.latest))  # none has taken its place yet
        sound = [kept for kept in self._kept if not kept.is_damaged][-KEPT_SNAPSHOTS:]
        surplus = [kept for kept in self._kept if kept not in sound and kept.key not in read]
        self._kept = [kept for kept in self._kept if kept not in surplus]
        return surplus

    def _remove_surplus(self) -> None:
        keys = [kept.key for kept in self._take_surplus()]
        if keys:
            removed = self.thread.call(partial(self._directory.remove, keys))
            removed.addErrback(self._not_removed)

    def _not_removed(self, failure: Failure) -> None:
        """It takes room, and the next start removes it."""
        failure.trap(RaftdError)
        self._log.warn("{reason}", reason=failure.getErrorMessage())


# -- writing -----------------------------------------------------------------


@implementer(ISnapshotWriter)
class SnapshotWriter:
    """See `ISnapshotWriter`; made by `SnapshotStore.create`."""

    def __init__(self, store: SnapshotStore, draft: Draft, metadata: SnapshotMetadata) -> None:
        self.pending_bytes = 0
        self.draft = draft
        self._store = store
        self._metadata = metadata
        self._is_over = False
        # Only the thread uses these.
        self._encoder = SnapshotEncoder()
        self._rest = b""

    def write(self, data: bytes) -> None:
        if self._is_over:
            raise InvariantViolated("the snapshot is finished, or was given up")
        if self.pending_bytes + len(data) > MAX_PENDING_BYTES:
            raise InvariantViolated(
                f"more than {MAX_PENDING_BYTES} bytes of a snapshot wait for the disk"
            )
        self.pending_bytes += len(data)
        written = self._store.thread.call(partial(self._append, data))
        written.addBoth(self._written, len(data))

    def _written(self, result: object, length: int) -> None:
        # An error comes again from `finish`, which is the one to tell it.
        self.pending_bytes -= length

    def finish(self) -> Deferred[None]:
        if self._is_over:
            raise InvariantViolated("the snapshot is finished, or was given up")
        self._is_over = True
        return self._store.thread.call(self._finish).addCallbacks(self._finished, self._failed)

    def _finished(self, size: int) -> None:
        self._store.finished(self.draft, self._metadata, size)

    def _failed(self, failure: Failure) -> Failure:
        self._store.ended(self.draft)
        return failure

    def abort(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._store.discard(self.draft)

    # -- the thread ----------------------------------------------------------

    def _append(self, data: bytes) -> None:
        """Cut what there is into blocks of the same size."""
        head = self._head()
        data = self._rest + data
        whole = len(data) - len(data) % BLOCK_BYTES
        blocks = [
            self._encoder.block(data[at : at + BLOCK_BYTES])
            for at in range(0, whole, BLOCK_BYTES)
        ]
        self._rest = data[whole:]
        if head or blocks:
            self.draft.append(head + b"".join(blocks))

    def _finish(self) -> int:
        head = self._head()
        last = self._encoder.block(self._rest) if self._rest else b""
        self.draft.append(head + last + self._encoder.end())
        return self.draft.keep()

    def _head(self) -> bytes:
        """What the file begins with; nothing if it has begun."""
        return b"" if self._encoder.length else self._encoder.head(self._metadata)


# -- receiving ---------------------------------------------------------------


@implementer(ISnapshotReceiver)
class SnapshotReceiver:
    """See `ISnapshotReceiver`; made by `SnapshotStore.receive`."""

    def __init__(self, store: SnapshotStore, draft: Draft) -> None:
        self.draft = draft
        self._store = store
        #: What was taken, and how much of it has not reached the disk yet.
        self._size = 0
        self._pending_bytes = 0
        #: Who waits for the end; None before the last piece.
        self._waiting: list[Deferred[SnapshotMetadata]] | None = None
        self._result: SnapshotMetadata | Failure | None = None

    @property
    def key(self) -> Key:
        return self.draft.key

    def give_up(self) -> None:
        """Another snapshot is coming; but one that is complete is not given up."""
        if self._waiting is None:
            self._store.discard(self.draft)

    def write(self, offset: int, data: bytes) -> Deferred[int]:
        if self._waiting is not None:
            return succeed(self._size)  # It is being checked, or that is done.
        if offset != self._size or self._pending_bytes + len(data) > MAX_PENDING_BYTES:
            # The sender goes on behind what is here once that is written.
            checked = self._store.thread.call(self.draft.check)
            return checked.addCallback(lambda ignored: self._size)
        self._size += len(data)
        self._pending_bytes += len(data)
        written = self._store.thread.call(partial(self.draft.append, data))
        written.addBoth(self._written, len(data))
        return written.addCallback(lambda ignored: offset + len(data))

    def _written(self, result: object, length: int) -> object:
        self._pending_bytes -= length
        if isinstance(result, Failure):
            self._store.ended(self.draft)
        return result

    def finish(self) -> Deferred[SnapshotMetadata]:
        done: Deferred[SnapshotMetadata] = Deferred()
        if self._result is not None:
            done.callback(self._result)
        elif self._waiting is not None:
            self._waiting.append(done)
        else:
            self._waiting = [done]
            Deferred.fromCoroutine(self._finish()).addBoth(self._finished)
        return done

    def _finished(self, result: SnapshotMetadata | Failure) -> None:
        assert self._waiting is not None
        self._result = result
        for done in self._waiting:
            done.callback(result)

    async def _finish(self) -> SnapshotMetadata:
        call = self._store.thread.call
        try:
            scan = await call(self.draft.scan)
            while await call(partial(_check_step, scan)):
                pass
            size = await call(self.draft.keep)
        except Damage as e:
            self._store.discard(self.draft)
            raise SnapshotDamaged(
                f"The snapshot up to entry {self.key[0]} arrived damaged at offset "
                f"{e.offset}: {e.reason}. It has to be sent again."
            ) from e
        except BaseException:
            self._store.discard(self.draft)
            raise
        self._store.finished(self.draft, scan.metadata, size)
        return scan.metadata


def _check_step(scan: Scan) -> bool:
    """Check a few blocks; whether there is more to check."""
    return scan.step(STEP_BYTES) is not None


@implementer(ISnapshotReceiver)
class _HeldAlready:
    """Receives, without keeping it again, what is the newest snapshot here already."""

    def __init__(self, metadata: SnapshotMetadata) -> None:
        self._metadata = metadata

    def write(self, offset: int, data: bytes) -> Deferred[int]:
        return succeed(offset + len(data))

    def finish(self) -> Deferred[SnapshotMetadata]:
        return succeed(self._metadata)


def _check_covered(
    damaged: DirectoryDamaged,
    key: Key,
    before: int,
    log_base_index: int,
    log_entries: Sequence[Entry],
) -> None:
    """
    Raise `damaged` unless the log leads from the snapshot up to `before` to
    the end of the damaged one, `key`.

    The file may have come from the leader.  Then this node may have told it
    that everything up to `key` is here, while its own log had ended earlier
    or had another entry there; for a log that holds this very entry has all
    before it as well.
    """
    index, term = key
    position = index - log_base_index - 1
    if before < log_base_index:
        raise damaged
    if not 0 <= position < len(log_entries) or log_entries[position].term != term:
        raise DirectoryDamaged(
            f"{damaged} Nothing else here has what it held: the log does not lead to its "
            f"last entry, {index} of term {term}."
        ) from damaged


def _key(metadata: SnapshotMetadata) -> Key:
    return metadata.last_included_index, metadata.last_included_term
