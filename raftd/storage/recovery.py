"""
Recovery: from the segments on the disk to the log as it was.

First everything is read and judged, and nothing is changed; a log that is
refused stays as it was found.  Then what a crash left of one unfinished frame
is put back to zeros, and what was read is made durable: a process that died
may have left frames that only the kernel's memory holds, and the node will
build on them.

A log begins with its first segment, whatever the number: the segments before
it were removed when a snapshot had made their entries unnecessary.  A crash
between two removals may leave some that were about to go, and that lean on
entries which are gone already; then it begins with the first that does not.
"""

from __future__ import annotations

import os

import msgspec

from raftd.errors import DirectoryDamaged, InvariantViolated, StorageFailed
from raftd.storage.compaction import Beginnings
from raftd.storage.files import Files
from raftd.storage.frames import (
    SECTOR,
    Damage,
    checksum_seed,
    decode_header,
    decode_payload,
    torn_extent,
)
from raftd.storage.replay import Record, Replay
from raftd.storage.segments import (
    ADVICE,
    FORMAT_VERSION,
    Segment,
    SegmentHeader,
    damaged,
    decode_segment_header,
    is_temporary,
    segment_name,
    segment_number,
)

#: Unused segments that a crash can leave at the end: one prepared ahead, and
#: before it one in which only a torn frame was.
MAX_UNUSED_SEGMENTS = 2

_decode_records = msgspec.msgpack.Decoder(tuple[Record, ...]).decode


class Recovery(msgspec.Struct):
    """A recovered log, open for writing at `offset` in `segment`."""

    replay: Replay
    beginnings: Beginnings
    #: The number of the first segment.
    oldest: int
    header: SegmentHeader
    segment: Segment
    offset: int
    next_sequence: int
    unused: list[Segment]


class _Torn(msgspec.Struct):
    """What an unfinished frame left: `extent` bytes at `offset` in segment `number`."""

    number: int
    path: str
    offset: int
    extent: int


class _Scan:
    """Reads the segments in order; what is true after each is in its fields."""

    def __init__(self, member_id: int) -> None:
        self.replay = Replay()
        self.beginnings = Beginnings()
        self._member_id = member_id
        self._first: SegmentHeader | None = None
        self.next_sequence = 1
        #: Where the last whole frame lies, and its bytes.
        self.last_number = 0
        self.last_offset = 0
        self.last_frame = b""
        self.torn: _Torn | None = None
        #: The replay stands on a checkpoint, and on entries before it that are gone.
        self._stands_on_checkpoint = False
        #: Something cut these off, too, and no segment was begun since: why the
        #: log is refused if none follows.
        self.leaning: DirectoryDamaged | None = None

    @property
    def header(self) -> SegmentHeader:
        assert self._first is not None
        return self._first

    def segment(self, number: int, path: str, data: bytes) -> SegmentHeader:
        """Take over the next segment; `DirectoryDamaged` if it cannot be."""
        is_first = self._first is None
        header = self._check_header(number, path, data)
        seed = checksum_seed(header.salt)
        if is_first and number > 1:
            self._begin_at(header, path, data, seed)
        follows = is_first or self.last_number >= number - 1
        offset = self._frames(header, path, data, seed)
        try:
            extent = torn_extent(data, offset, self.next_sequence, seed)
        except Damage as e:
            raise damaged(path, e.offset, e.reason) from None
        if (offset > SECTOR or extent) and not follows:
            raise damaged(path, SECTOR, "it holds data, but the segment before it does not")
        if extent and self.torn is not None:
            raise self._not_last(path, len(data) - len(data[offset:].lstrip(b"\0")))
        if extent:
            self.torn = _Torn(number, path, offset, extent)
        return header

    def _check_header(self, number: int, path: str, data: bytes) -> SegmentHeader:
        if not data:
            raise damaged(path, 0, "the file is empty")
        header = decode_segment_header(data, path)
        if header.number != number:
            raise damaged(path, 0, f"it is segment {header.number} under another name")
        if header.member_id != self._member_id:
            raise damaged(
                path,
                0,
                f"it belongs to member {header.member_id:016x}, and this directory to "
                f"member {self._member_id:016x}",
            )
        if self._first is None:
            self._first = header
        elif header.salt != self._first.salt:
            raise damaged(path, 0, "it belongs to another log than the segments before it")
        if header.length != len(data):
            raise damaged(
                path,
                min(header.length, len(data)),
                f"the file has {len(data)} bytes, and its header says {header.length}",
            )
        return header

    def _begin_at(self, segment: SegmentHeader, path: str, data: bytes, seed: int) -> None:
        """
        Begin with another segment than the first one ever.

        A segment is removed only when the next one has a whole frame.
        """
        if not segment.has_checkpoint:
            raise _missing(os.path.dirname(path), segment.number - 1)
        header = decode_header(data, SECTOR, seed)
        if header is None:
            raise damaged(path, SECTOR, "the first frame of the log is missing")
        self.next_sequence = header.sequence

    def _frames(self, segment: SegmentHeader, path: str, data: bytes, seed: int) -> int:
        """Replay the whole frames of a segment; the offset of what follows them."""
        offset = SECTOR
        while True:
            header = decode_header(data, offset, seed)
            if header is None or header.sequence != self.next_sequence:
                return offset
            payload = decode_payload(data, offset, header, seed)
            if payload is None:
                return offset
            if self.torn is not None:
                raise self._not_last(path, offset)
            self._records(segment, path, offset, payload)
            end = offset + header.extent
            self.last_number, self.last_offset = segment.number, offset
            self.last_frame = data[offset:end]
            self.next_sequence += 1
            offset = end

    def _records(self, segment: SegmentHeader, path: str, offset: int, payload: bytes) -> None:
        try:
            records = _decode_records(payload)
            if offset == SECTOR and segment.has_checkpoint:
                self._checkpoint(segment.number, records[:1])
            for record in records:
                if self.leaning is None:
                    self._record(record, path, offset)
        except (msgspec.MsgspecError, RecursionError) as e:
            raise damaged(path, offset, f"the records of a frame do not decode ({e})") from None
        except InvariantViolated as e:
            raise damaged(
                path, offset, f"a frame does not follow what is before it: {e}"
            ) from e

    def _record(self, record: Record, path: str, offset: int) -> None:
        if record.entries and self._stands_on_checkpoint:
            first, base = record.entries[0].index, self.replay.base_index
            if first <= base and record.base in (None, self.replay.outline.last):
                why = f"entry {first} does not follow entry {self.replay.outline.last_index}"
                self.leaning = damaged(
                    path, offset, f"a frame does not follow what is before it: {why}"
                )
                return
        anew = self.replay.write(
            record.hard_state, record.entries, record.base, record.commit_index
        )
        if anew:
            self._stands_on_checkpoint = False
            self.beginnings.begin_anew()
        elif record.entries:
            self.beginnings.truncate(record.entries[0].index)

    def _checkpoint(self, number: int, first: tuple[Record, ...]) -> None:
        """
        The first record of a segment: `InvariantViolated` if it contradicts the log.

        If the segments before it lean on entries that are gone, the log begins with it.
        """
        if not first or first[0].hard_state is None or first[0].base is None:
            raise InvariantViolated("its segment does not begin with a checkpoint")
        hard_state, base = first[0].hard_state, first[0].base
        outline = self.replay.outline
        if not self.last_number or self.leaning is not None:
            self.replay, self.beginnings, self.leaning = Replay(), Beginnings(), None
            self.replay.begin(base)
            self._stands_on_checkpoint = number > 1
        elif (hard_state, base) != (outline.hard_state, outline.last):
            raise InvariantViolated(f"its checkpoint says {hard_state} and {base}")
        self.beginnings.begin(number, base[0])

    def _not_last(self, path: str, offset: int) -> DirectoryDamaged:
        """
        Only the very last frame of a log can be torn; there is data at `offset` of
        `path` as well.  Which of both is damaged cannot be told.
        """
        assert self.torn is not None
        return damaged(
            self.torn.path,
            self.torn.offset,
            f"a frame is incomplete, and data follows in {path} at offset {offset}",
        )


def recover(files: Files, directory: str, member_id: int) -> Recovery:
    """
    Read the log of member `member_id`; what it returns is durable.

    `DirectoryDamaged` names the file and the offset of what no crash can have
    left, `StorageFailed` what could not be read or written.
    """
    opened: list[Segment] = []
    try:
        return _recover(files, directory, member_id, opened)
    except BaseException as e:
        _give_up(files, directory, opened, e)
        raise


def look(files: Files, directory: str, member_id: int) -> Replay:
    """
    What `recover` would find, with the same errors; nothing on the disk is changed.

    What was read need not be durable.
    """
    opened: list[Segment] = []
    try:
        scan = _read(files, directory, member_id, opened)
    except BaseException as e:
        _give_up(files, directory, opened, e)
        raise
    for segment in opened:
        files.close(segment.fd)
    return scan.replay


def _give_up(files: Files, directory: str, opened: list[Segment], e: BaseException) -> None:
    """Close what is open, for `e` is about to be raised; what the system says, in our words."""
    for segment in opened:
        files.close(segment.fd)
    if isinstance(e, OSError):
        raise StorageFailed(f"The log in {directory} could not be opened: {e}.") from e


def _read(files: Files, directory: str, member_id: int, opened: list[Segment]) -> _Scan:
    """Read everything and judge it; `opened` are the segments that may be written."""
    scan = _Scan(member_id)
    for number in _segment_numbers(files, directory):
        path = os.path.join(directory, segment_name(number))
        segment = Segment(files.open(path), number, 0, path)
        opened.append(segment)
        segment.length = files.size(segment.fd)
        header = scan.segment(number, path, files.read(segment.fd, segment.length, 0))
        segment.version = header.version
        _close_used(files, opened, scan.last_number)
    _check_end(directory, scan, opened)
    return scan


def _recover(files: Files, directory: str, member_id: int, opened: list[Segment]) -> Recovery:
    scan = _read(files, directory, member_id, opened)
    _repair(files, directory, scan, opened)
    _remove_outdated(files, directory, opened)
    current, *unused = opened
    end = scan.last_offset + len(scan.last_frame)
    return Recovery(
        replay=scan.replay,
        beginnings=scan.beginnings,
        oldest=scan.header.number,
        header=scan.header,
        segment=current,
        # A segment of an older version counts as full.
        offset=end if current.version == FORMAT_VERSION else current.length,
        next_sequence=scan.next_sequence,
        unused=unused,
    )


def _segment_numbers(files: Files, directory: str) -> list[int]:
    """The numbers of all segments; `DirectoryDamaged` if one between them is missing."""
    names = files.names(directory)
    numbers = sorted(n for name in names if (n := segment_number(name)) is not None)
    if not numbers:
        raise _missing(directory, 1)
    for expected, number in enumerate(numbers, numbers[0]):
        if number != expected:
            raise _missing(directory, expected)
    return numbers


def _missing(directory: str, number: int) -> DirectoryDamaged:
    path = os.path.join(directory, segment_name(number))
    return DirectoryDamaged(f"{path} is missing: the log has a gap. {ADVICE}")


def _close_used(files: Files, opened: list[Segment], last_number: int) -> None:
    """Keep open only the segment of the last frame and those behind it."""
    while opened and opened[0].number < last_number:
        files.close(opened.pop(0).fd)


def _check_end(directory: str, scan: _Scan, opened: list[Segment]) -> None:
    """What the log as a whole must have once all of it was read."""
    if not scan.last_number:
        # A log gets its name only when its first frame is durable.
        path = os.path.join(directory, segment_name(scan.header.number))
        raise damaged(path, SECTOR, "the first frame of the log is missing")
    if scan.leaning is not None:
        raise scan.leaning
    if len(opened) - 1 > MAX_UNUSED_SEGMENTS:
        surplus = opened[MAX_UNUSED_SEGMENTS]
        raise damaged(surplus.path, SECTOR, "it is empty, and so are segments around it")


def _repair(files: Files, directory: str, scan: _Scan, opened: list[Segment]) -> None:
    """
    Zero what a torn frame left, and make durable what was read.

    The last frame is written again, with the same bytes: if the process
    before this one stopped because flushing it failed, the kernel may hold it
    as clean while the disk does not have it, and a flush alone would do
    nothing.  Every frame before it was flushed before it was written.
    """
    current = opened[0]
    files.write(current.fd, scan.last_frame, scan.last_offset)
    if scan.torn is not None:
        torn = scan.torn
        segment = next(s for s in opened if s.number == torn.number)
        files.write(segment.fd, bytes(torn.extent), torn.offset)
        if segment is not current:
            files.flush(segment.fd)
    files.flush(current.fd)
    for name in files.names(directory):
        if is_temporary(name):
            files.remove(os.path.join(directory, name))
    files.flush_directory(directory)
    files.flush_directory(os.path.dirname(directory) or ".")


def _remove_outdated(files: Files, directory: str, opened: list[Segment]) -> None:
    """
    Remove segments that were prepared by an older version.

    The last one first, each durably: a log with a gap is refused.
    """
    if all(segment.version == FORMAT_VERSION for segment in opened[1:]):
        return
    while len(opened) > 1:
        segment = opened.pop()
        files.close(segment.fd)
        files.remove(segment.path)
        files.flush_directory(directory)
