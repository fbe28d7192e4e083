"""
The write-ahead log: what a node has promised, on disk.

A write is queued in the reactor's thread.  A thread of the log takes
everything that is queued, makes one frame of it, writes that, flushes once,
and tells the reactor (group commit): the longer a flush takes, the more the
next one carries.  The reactor never waits for the disk.

The rules on which recovery rests (`recovery.py`, `docs/log-format.md`):

1. A frame is begun only after the flush of the one before has returned.
2. Behind the last frame there are only zeros.
3. After the first error nothing is written, ever.  A flush is never retried:
   after one that failed, the kernel may have dropped the data and report
   success the next time.
4. The first frame of a segment begins with a checkpoint: the hard state, the
   end of the log and the commit index before it.  So segments can be removed
   from the front (`compaction.py`), and what is left still says what it follows.

A full disk is no error as long as nothing of the log is half-written.  The
next segment is prepared as soon as the present one is begun; if there is no
room for it, the node is told, and what is left of the present one is for the
little that it must write to take part at all (terms, votes, entries without
commands).  When that is used up as well, what is queued waits: it is neither
acknowledged nor lost, and is written when there is room again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from zope.interface import implementer

from raftd.core.messages import Entry, HardState, MemberId, encode_entries
from raftd.errors import Fatal, InvariantViolated, StorageFailed
from raftd.interfaces import ILogStorage
from raftd.storage.compaction import Remover
from raftd.storage.files import Files, remove_tree
from raftd.storage.frames import SECTOR, checksum_seed, encode_frame, extent_of, payload_limit
from raftd.storage.recovery import Recovery, recover
from raftd.storage.replay import Position, Record, Replay
from raftd.storage.segments import (
    FORMAT_VERSION,
    RETRIES_PER_SEGMENT,
    SEGMENT_BYTES,
    NoRoom,
    Preparer,
    SegmentHeader,
    check_segment_bytes,
    make_segment,
)
from raftd.storage.workers import ThreadWorker, Worker

#: Encoded bytes that may wait for the disk.  A node bounds what is in flight
#: far below this; reaching it is a defect of the node, not a busy disk.
MAX_QUEUED_BYTES = 64 << 20

#: A record's own bytes around its entries: an array of four, a hard state and
#: a base, each an array of two 64-bit numbers, and a 64-bit commit index.
_RECORD_OVERHEAD = 1 + (1 + 9 + 9) + (1 + 9 + 9) + 9

#: A payload's own bytes around its records: the longest head of an array, and
#: a checkpoint, which is a record with an empty array of entries.
_PAYLOAD_OVERHEAD = 5 + _RECORD_OVERHEAD + 1

_NO_ENTRIES = msgspec.Raw(encode_entries(()))


class _EncodedRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A `Record` whose entries are encoded already."""

    hard_state: HardState | None
    entries: msgspec.Raw
    base: Position | None
    commit_index: int


class _Effect(NamedTuple):
    """What a record makes of the log, for the checkpoints to come."""

    hard_state: HardState | None
    #: It begins the log anew.
    anew: bool
    #: Index of its first entry; 0 without entries.
    first: int
    #: Where the log ends after it; None if that has not changed.
    last: Position | None
    commit_index: int


class _Queued(NamedTuple):
    """A record that waits for the disk; `number` is 0 unless it completes a write."""

    number: int
    size: int
    record: _EncodedRecord
    effect: _Effect


_encode_records = msgspec.msgpack.Encoder().encode


@implementer(ILogStorage)
class Wal:
    """
    The log in one directory; made by `create` or `open`, never directly.

    Entries are encoded when they are queued, not on the log's thread: both
    need the interpreter's lock, and the log's thread must win it from a busy
    reactor each time; so it does as little as it can.  It also makes the
    bounds exact, and a defect of the caller shows in the caller.
    """

    _log = Logger()

    @classmethod
    def create(
        cls,
        path: str,
        member_id: MemberId,
        hard_state: HardState,
        entries: Sequence[Entry],
        *,
        base: Position = (0, 0),
        reactor: IReactorFromThreads,
        segment_bytes: int = SEGMENT_BYTES,
        files: Files | None = None,
        start_worker: Callable[[str], Worker] = ThreadWorker,
        random_source: Callable[[int], bytes] = os.urandom,
    ) -> Wal:
        """
        Make the log directory `path`, its entries behind `base`; blocks.

        Everything is durable when it returns.  The log is made under another
        name and renamed when it is complete, so that after a crash there is
        either all of it or no `path`.  `StorageFailed` if the disk refuses;
        `InvariantViolated` if there is a log already.
        """
        check_segment_bytes(segment_bytes)
        files = files or Files()
        path = os.path.normpath(path)
        salt = int.from_bytes(random_source(8), "little")
        header = SegmentHeader(segment_bytes, 1, member_id, salt)
        frame = _first_frame(header, hard_state, entries, base)
        if files.exists(path):
            raise InvariantViolated(f"there is a log already: {path}")
        try:
            _create(files, path, header, frame)
        except OSError as e:
            raise StorageFailed(f"The log {path} could not be created: {e}.") from e
        return cls.open(
            path,
            member_id,
            reactor=reactor,
            segment_bytes=segment_bytes,
            files=files,
            start_worker=start_worker,
        )

    @classmethod
    def open(
        cls,
        path: str,
        member_id: MemberId,
        *,
        reactor: IReactorFromThreads,
        segment_bytes: int = SEGMENT_BYTES,
        files: Files | None = None,
        start_worker: Callable[[str], Worker] = ThreadWorker,
    ) -> Wal:
        """
        Recover the log of member `member_id` in the directory `path`; blocks.

        `hard_state`, base and `entries` are durable when it returns.
        `DirectoryDamaged` for anything that a crash alone cannot have left,
        and then nothing was changed; `StorageFailed` if the disk refuses.
        `segment_bytes` is the length of segments made from now on.
        """
        check_segment_bytes(segment_bytes)
        files = files or Files()
        path = os.path.normpath(path)
        recovery = recover(files, path, member_id)
        return cls(recovery, path, reactor, segment_bytes, files, start_worker)

    def __init__(
        self,
        recovery: Recovery,
        path: str,
        reactor: IReactorFromThreads,
        segment_bytes: int,
        files: Files,
        start_worker: Callable[[str], Worker],
    ) -> None:
        self.hard_state = recovery.replay.hard_state
        self.base_index = recovery.replay.base_index
        self.base_term = recovery.replay.base_term
        self.commit_index = recovery.replay.commit_index
        self.entries: Sequence[Entry] = recovery.replay.entries
        self._reactor = reactor
        self._start_worker = start_worker

        # The reactor's thread alone uses these.
        self._outline = recovery.replay.outline
        self._last_number = 0
        #: Encoded bytes that were written and are not yet reported as persisted.
        self._queued_bytes = 0
        self._started = False
        self._closing: Deferred[None] | None = None
        self._over = False

        # Both threads: one appends, the other takes from the left.
        self._queue: deque[_Queued] = deque()

        # Only the log's thread uses these, once it runs.
        self._writer = _Writer(recovery, path, segment_bytes, files)
        self._stopped = False
        #: What is queued waits for a segment that there is no room for.
        self._starved = False

        #: The troubles of preparer and remover that were told; their thread's alone.
        self._told = ("", "")
        #: Whether it was told that the disk is full; the same thread's.
        self._told_full = False

        lengths = [s.length for s in (recovery.segment, *recovery.unused)]
        capacity = min(segment_bytes, *lengths)
        self._payload_limit = payload_limit(capacity - SECTOR) - _PAYLOAD_OVERHEAD

    # -- the reactor's thread ------------------------------------------------

    def start(
        self,
        persisted: Callable[[int], None],
        failed: Callable[[Fatal], None],
        space: Callable[[bool], None] | None = None,
    ) -> None:
        if self._started or self._closing is not None:
            raise InvariantViolated("the log was started twice, or after it was closed")
        self._started = True
        self.entries = ()
        self._persisted = persisted
        self._failed = failed
        self._space = space
        self._log_worker = self._start_worker("raftd log")
        self._prepare_worker = self._start_worker("raftd log segments")
        self._prepare_worker.do(self._prepare)

    def write(
        self,
        number: int,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        base: Position | None = None,
        commit_index: int = 0,
    ) -> None:
        if not self._started or self._closing is not None:
            raise InvariantViolated("the log is not open for writing")
        if self._over:
            return  # The node has been told, and is about to stop.
        if number != self._last_number + 1:
            raise InvariantViolated(f"write {number} follows write {self._last_number}")
        pieces = self._encode(entries)
        size = sum(len(data) for _, data in pieces)
        if self._queued_bytes + size > MAX_QUEUED_BYTES:
            raise InvariantViolated(f"more than {MAX_QUEUED_BYTES} bytes wait for the disk")
        anew = self._outline.write(hard_state, entries, base, commit_index)
        self._last_number = number
        self._queued_bytes += size
        for i, (some, data) in enumerate(pieces):
            # Only with the last piece is there everything that is committed.
            last = i == len(pieces) - 1
            number_then, committed = (number, commit_index) if last else (0, 0)
            self._queue.append(
                _queued(number_then, hard_state, some, data, base, anew, committed)
            )
            hard_state, base, anew = None, None, False
        self._log_worker.do(self._drain)

    def compact(self, base_index: int) -> None:
        if not self._started or self._closing is not None:
            raise InvariantViolated("the log is not open for compaction")
        if not self._over and self._outline.compact(base_index):
            self._log_worker.do(partial(self._compact, base_index))

    def look_for_space(self) -> None:
        if self._started and self._closing is None and not self._over:
            self._prepare_worker.do(self._prepare)

    def _encode(self, entries: Sequence[Entry]) -> list[tuple[Sequence[Entry], bytes]]:
        """
        `entries` in pieces that each fit a frame, encoded: one, but for very
        large writes.
        """
        encoded = encode_entries(entries)
        if len(encoded) + _RECORD_OVERHEAD <= self._payload_limit:
            return [(entries, encoded)]
        if len(entries) == 1:
            raise InvariantViolated(
                f"entry {entries[0].index} takes {len(encoded)} bytes, more than the log's "
                f"{self._payload_limit - _RECORD_OVERHEAD}"
            )
        # Cutting a write in two is safe: until all of it is durable it is not
        # reported, and a crash between leaves what a shorter write would.
        middle = len(entries) // 2
        return self._encode(entries[:middle]) + self._encode(entries[middle:])

    def close(self) -> Deferred[None]:
        if self._closing is not None:
            raise InvariantViolated("the log was closed twice")
        self._closing = Deferred()
        if not self._started:
            self._writer.close()
            return succeed(None)
        self._prepare_worker.quit()
        self._log_worker.do(self._finish)
        self._log_worker.quit()
        return self._closing

    def _on_flushed(self, number: int, size: int) -> None:
        self._queued_bytes -= size
        if number and not self._over:
            self._persisted(number)

    def _on_failed(self, reason: Fatal) -> None:
        if not self._over:
            self._over = True
            self._failed(reason)

    def _on_trouble(self, reason: str) -> None:
        self._log.warn("{reason}", reason=reason)

    def _on_space(self, has_space: bool) -> None:
        if self._space is not None and not self._over and self._closing is None:
            self._space(has_space)

    def _on_finished(self) -> None:
        assert self._closing is not None
        self._closing.callback(None)

    # -- the log's thread ----------------------------------------------------

    def _drain(self) -> None:
        """Write what is queued, frame by frame; most often there is one, or nothing."""
        try:
            while self._queue and not (self._stopped or self._starved):
                number, size, batch = self._take()
                try:
                    rolled = self._writer.write(batch)
                except NoRoom as e:
                    self._wait_for_room(batch, e)
                    return
                self._reactor.callFromThread(self._on_flushed, number, size)
                if rolled or self._writer.wants_preparation():
                    self._prepare_worker.do(self._prepare)
                if self._writer.wants_removal():
                    self._prepare_worker.do(self._remove)
        except BaseException as e:
            self._stop(e)

    def _wait_for_room(self, batch: list[_Queued], reason: NoRoom) -> None:
        """Nothing of `batch` was written; it is the first thing to write when there is room."""
        if self._space is None:
            raise StorageFailed(str(reason)) from reason
        self._queue.extendleft(reversed(batch))
        self._starved = True
        # This tells the reactor, and goes on here if there is room by now.
        self._prepare_worker.do(self._prepare)

    def _take(self) -> tuple[int, int, list[_Queued]]:
        """As much of the queue as fits one frame: (last number or 0, bytes, records)."""
        queue = self._queue
        first = queue.popleft()
        number, size, batch = first.number, first.size, [first]
        room = self._payload_limit - _RECORD_OVERHEAD - size
        while queue and queue[0].size + _RECORD_OVERHEAD <= room:
            queued = queue.popleft()
            batch.append(queued)
            room -= queued.size + _RECORD_OVERHEAD
            size += queued.size
            number = queued.number or number
        return number, size, batch

    def _compact(self, base_index: int) -> None:
        """Which segments may go is decided here, in order with what is written."""
        self._writer.compact(base_index)
        if self._writer.wants_removal() and not self._stopped:
            self._prepare_worker.do(self._remove)

    def _finish(self) -> None:
        """
        The last job; everything queued was written by the jobs before it, or
        finds no room, and nobody was told of it.
        """
        try:
            self._writer.close()
        except BaseException as e:
            self._stop(e)
        self._reactor.callFromThread(self._on_finished)

    def _stop(self, e: BaseException) -> None:
        """Nothing more is written."""
        self._stopped = True
        self._queue.clear()
        self._reactor.callFromThread(self._on_failed, _fatal(e, self._writer.path))

    def _go_on(self) -> None:
        """There is room again for what waits."""
        self._starved = False
        self._drain()

    # -- the preparer's thread -----------------------------------------------

    def _prepare(self) -> None:
        try:
            self._writer.preparer.prepare()
        except BaseException as e:
            self._log_worker.do(partial(self._stop, e))
        else:
            self._tell_space(not self._writer.preparer.is_full)
        self._tell_trouble()

    def _tell_space(self, has_space: bool) -> None:
        """Whether the disk has room for more than what was prepared, once for each change."""
        if has_space and self._starved:
            self._log_worker.do(self._go_on)
        if has_space is self._told_full:
            self._told_full = not has_space
            self._reactor.callFromThread(self._on_space, has_space)

    def _remove(self) -> None:
        """One segment for each job, so that a preparation does not wait for many."""
        try:
            if self._writer.remover.remove_one():
                self._prepare_worker.do(self._remove)
        except BaseException as e:
            self._log_worker.do(partial(self._stop, e))
        self._tell_trouble()

    def _tell_trouble(self) -> None:
        """
        Warn of what does not stop the log yet, once for each reason: the next
        segment cannot be prepared, or an old one not be removed.
        """
        troubles = self._writer.preparer.trouble, self._writer.remover.trouble
        for trouble, told in zip(troubles, self._told, strict=True):
            if trouble not in ("", told):
                self._reactor.callFromThread(self._on_trouble, trouble)
        self._told = troubles


class _Writer:
    """Where the next frame goes.  After an error it must not be used again."""

    def __init__(self, recovery: Recovery, path: str, segment_bytes: int, files: Files) -> None:
        self._files = files
        self._segment = recovery.segment
        self._offset = recovery.offset
        self._next_sequence = recovery.next_sequence
        self._seed = checksum_seed(recovery.header.salt)
        last = [recovery.segment, *recovery.unused][-1]
        self.preparer = Preparer(
            files,
            path,
            recovery.header._replace(length=segment_bytes, version=FORMAT_VERSION),
            last.number + 1,
            recovery.unused,
        )
        self._retry_offset = 0
        outline = recovery.replay.outline
        #: What is on the disk, for the next checkpoint.
        self._hard_state, self._last = outline.hard_state, outline.last
        self._commit_index = outline.commit_index
        self._beginnings = recovery.beginnings
        self.remover = Remover(files, path, recovery.oldest)
        self._compacted_index = outline.base_index
        #: Whether more segments than before may have become unneeded.
        self._may_remove = False

    @property
    def path(self) -> str:
        """The segment that is being written."""
        return self._segment.path

    def write(self, batch: list[_Queued]) -> bool:
        """Write one frame and flush it; true if that began a new segment."""
        records: list[object] = [queued.record for queued in batch]
        payload = _encode_records(records)
        rolled = self._offset + extent_of(len(payload)) > self._segment.length
        if rolled:
            self._roll()
            records.insert(0, self._checkpoint())
            payload = _encode_records(records)
        frame = encode_frame(self._next_sequence, payload, self._seed)
        self._files.write_and_flush(self._segment.fd, frame, self._offset)
        self._offset += len(frame)
        self._next_sequence += 1
        if rolled:
            self._beginnings.begin(self._segment.number, self._last[0])
            self._may_remove = True
        for queued in batch:
            self._take_over(queued.effect)
        return rolled

    def _checkpoint(self) -> _EncodedRecord:
        return _EncodedRecord(self._hard_state, _NO_ENTRIES, self._last, self._commit_index)

    def _take_over(self, effect: _Effect) -> None:
        hard_state, anew, first, last, commit_index = effect
        if hard_state is not None:
            self._hard_state = hard_state
        if anew:
            self._beginnings.begin_anew()
            self._may_remove = True
        elif first:
            self._beginnings.truncate(first)
        if last is not None:
            self._last = last
        self._commit_index = max(self._commit_index, commit_index)

    def compact(self, base_index: int) -> None:
        """Entries up to `base_index` are not needed any more."""
        self._compacted_index = max(self._compacted_index, base_index)
        self._may_remove = True

    def wants_removal(self) -> bool:
        """Whether there are segments now that are not needed; asked once for each change."""
        if not self._may_remove:
            return False
        self._may_remove = False
        return self.remover.need_from(self._beginnings.first_needed(self._compacted_index))

    def _roll(self) -> None:
        full = self._segment
        self._segment = self.preparer.take()
        self._offset = SECTOR
        self._retry_offset = 0
        self._files.close(full.fd)

    def wants_preparation(self) -> bool:
        """Whether the last preparation failed and it is time to try again."""
        if not self.preparer.trouble or self._offset < self._retry_offset:
            return False
        self._retry_offset = self._offset + self._segment.length // RETRIES_PER_SEGMENT
        return True

    def close(self) -> None:
        self._files.close(self._segment.fd)
        self.preparer.close()
        self.remover.close()


def _queued(
    number: int,
    hard_state: HardState | None,
    entries: Sequence[Entry],
    data: bytes,
    base: Position | None,
    anew: bool,
    commit_index: int,
) -> _Queued:
    """A record of `entries`, whose encoding is `data`."""
    record = _EncodedRecord(hard_state, msgspec.Raw(data), base, commit_index)
    if entries:
        last = entries[-1].index, entries[-1].term
        effect = _Effect(hard_state, anew, entries[0].index, last, commit_index)
    else:
        effect = _Effect(hard_state, anew, 0, base, commit_index)
    return _Queued(number, len(data), record, effect)


def _first_frame(
    header: SegmentHeader, hard_state: HardState, entries: Sequence[Entry], base: Position
) -> bytearray:
    """The frame that a new log begins with; its first record is a checkpoint, too."""
    Replay().write(hard_state, entries, base)
    record = Record(hard_state, tuple(entries), base)
    payload = _encode_records([record])
    if len(payload) > payload_limit(header.length - SECTOR):
        raise InvariantViolated(f"a new log cannot begin with {len(payload)} bytes")
    return encode_frame(1, payload, checksum_seed(header.salt))


def _create(files: Files, path: str, header: SegmentHeader, frame: bytearray) -> None:
    """A log of one segment and one frame, durable in this order: contents, then name."""
    unfinished = unfinished_path(path)
    remove_tree(files, unfinished)
    files.make_directory(unfinished)
    segment = make_segment(files, unfinished, header)
    try:
        files.write(segment.fd, frame, SECTOR)
        files.flush(segment.fd)
    finally:
        files.close(segment.fd)
    files.rename(unfinished, path)
    files.flush_directory(os.path.dirname(path) or ".")


def unfinished_path(path: str) -> str:
    """Where the log directory `path` is while it is made."""
    return path + ".tmp"


def _fatal(e: BaseException, path: str) -> Fatal:
    """What a failure on a thread of the log means to the person who sees it."""
    if isinstance(e, Fatal):
        return e
    if isinstance(e, OSError):
        reason = StorageFailed(
            f"The log could not be written to {path}: {e}. Nothing more is written; "
            "mend the cause and start the node again."
        )
    else:
        reason = StorageFailed(f"The log's thread failed at {path}: {e!r}.")
    reason.__cause__ = e
    return reason
