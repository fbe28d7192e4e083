"""`compact`, `snapshot save`, `snapshot status` and `restore`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import sys
import tempfile
from typing import Any, BinaryIO

import msgspec

from raftd.ctl.context import Context
from raftd.ctl.endpoints import DEFAULT, IDENTITY_NAME
from raftd.ctl.output import Cell, Output, size
from raftd.ctl.statuses import OK, Failed, Refused, Usage
from raftd.errors import BadAnswer, SnapshotDamaged
from raftd.names import canonical_name

#: What a backup begins with (`docs/backup-format.md`).
MAGIC = b"raftd backup 1\r\n"
#: How many bytes of a file are read at once.
READ_BYTES = 1 << 20
#: How often progress is shown, in seconds.
PROGRESS_S = 0.1

_CHECKSUM_BYTES = hashlib.sha256().digest_size
_LENGTH_BYTES = 4
#: The head of a store's state is shorter.
_MAX_HEAD_BYTES = 4096


class Checker:
    """Reads a backup along, piece by piece; `finish` says whether it is a whole one."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._tail = b""
        self._head = b""

    def feed(self, data: bytes) -> None:
        """The next piece."""
        self.size_bytes += len(data)
        if len(self._head) < _MAX_HEAD_BYTES:
            self._head += data[: _MAX_HEAD_BYTES - len(self._head)]
        # The checksum is what comes last, wherever that turns out to be.
        data = self._tail + data
        self._sha256.update(data[:-_CHECKSUM_BYTES])
        self._tail = data[-_CHECKSUM_BYTES:]

    def finish(self) -> int:
        """The revision that it is of; `SnapshotDamaged` if it is not whole."""
        if not self._head.startswith(MAGIC):
            raise SnapshotDamaged(
                "it is no backup of raftd, or one of a version not known here."
            )
        if self._tail != self._sha256.digest():
            raise SnapshotDamaged("it is damaged or not complete: its checksum does not match.")
        begin = len(MAGIC) + _LENGTH_BYTES
        length = int.from_bytes(self._head[len(MAGIC) : begin], "little")
        try:
            head = msgspec.msgpack.decode(self._head[begin : begin + length])
            revision = head[1]
        except (msgspec.DecodeError, TypeError, IndexError, KeyError):
            revision = None
        if not isinstance(revision, int):
            raise SnapshotDamaged(
                "its checksum matches, but it says of no revision that it is."
            )
        return revision

    @property
    def checksum(self) -> str:
        """That of what is whole, in hexadecimal digits."""
        return self._tail.hex()


# -- compact ---------------------------------------------------------------------


async def compact(context: Context) -> int:
    arguments = context.arguments
    oldest = await context.client.compact(arguments.revision or 0, keep=arguments.keep)
    context.output.result(
        {"compacted_revision": oldest}, oldest, [("oldest revision", str(oldest))]
    )
    return OK


# -- snapshot save -----------------------------------------------------------------


class _Progress:
    """How much has come, for whoever looks."""

    def __init__(self, context: Context) -> None:
        self._output = context.output
        self._seconds = context.reactor.seconds
        self.began = self._seconds()
        self._shown = self.began - PROGRESS_S

    def show(self, count: int) -> None:
        now = self._seconds()
        if now - self._shown >= PROGRESS_S and self._output.shows_progress:
            self._shown = now
            rate = count / max(now - self.began, PROGRESS_S)
            self._output.progress(f"{size(count)}  {size(int(rate))}/s")


async def save(context: Context) -> int:
    if context.arguments.file == "-":
        return await _save_to_output(context)
    path = os.path.abspath(context.arguments.file)
    directory = os.path.dirname(path)
    if os.path.isdir(path):
        raise Usage(f"{path} is a directory; name a file.")
    try:
        fd, temporary = tempfile.mkstemp(
            dir=directory, prefix=f".{os.path.basename(path)}.", suffix=".part"
        )
    except OSError as e:
        raise Usage(f"Nothing can be written in {directory}: {e.strerror}.") from None
    try:
        with os.fdopen(fd, "wb") as file:
            revision, checker = await _receive(context, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        _flush_directory(directory)
    except OSError as e:
        raise Failed(f"{path} could not be written: {e.strerror}.") from None
    finally:
        context.output.end_progress()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _print(context.output, context.arguments.file, revision, checker)
    return OK


async def _receive(context: Context, file: BinaryIO) -> tuple[int, Checker]:
    """The backup, checked, into an empty file; its revision."""
    progress = _Progress(context)
    checker = Checker()

    def begin(revision: int) -> None:
        nonlocal checker
        checker = Checker()
        file.seek(0)
        file.truncate()

    def write(data: bytes) -> None:
        checker.feed(data)
        file.write(data)
        progress.show(checker.size_bytes)

    await context.admin.snapshot(begin, write)
    return _finished(checker, "What came"), checker


async def _save_to_output(context: Context) -> int:
    output = context.output
    if output.is_terminal:
        raise Usage("A backup is nothing for a terminal; name a file, or use a pipe.")
    progress, checker = _Progress(context), Checker()

    def begin(revision: int) -> None:
        if checker.size_bytes:
            raise Failed("A server broke off; what was written is no whole backup.")

    def write(data: bytes) -> None:
        checker.feed(data)
        output.write(data)
        progress.show(checker.size_bytes)

    try:
        await context.admin.snapshot(begin, write)
    finally:
        output.end_progress()
    _finished(checker, "What came")
    return OK


def _finished(checker: Checker, what: str) -> int:
    try:
        return checker.finish()
    except SnapshotDamaged as e:
        raise Refused(f"{what} is no backup to rely on: {e}") from None


def _flush_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _print(output: Output, name: str, revision: int, checker: Checker) -> None:
    fields: dict[str, Any] = {
        "file": name,
        "revision": revision,
        "size_bytes": checker.size_bytes,
        "sha256": checker.checksum,
    }
    pairs: list[tuple[str, str | int | bytes | Cell]] = [
        ("file", name),
        ("revision", str(revision)),
        ("size", size(checker.size_bytes) if output.is_table else str(checker.size_bytes)),
        ("sha256", checker.checksum),
    ]
    output.details(fields, revision, pairs)


# -- snapshot status ---------------------------------------------------------------


def check_file(context: Context, name: str) -> tuple[int, Checker]:
    """The revision of a backup, all of which is read; `Refused` if it is not whole."""
    progress, checker = _Progress(context), Checker()
    try:
        with open(name, "rb") as file:
            while data := file.read(READ_BYTES):
                checker.feed(data)
                progress.show(checker.size_bytes)
    except OSError as e:
        raise Usage(f"{name} cannot be read: {e.strerror}.") from None
    finally:
        context.output.end_progress()
    return _finished(checker, name), checker


async def file_status(context: Context) -> int:
    name = context.arguments.file
    revision, checker = check_file(context, name)
    _print(context.output, name, revision, checker)
    return OK


# -- restore -----------------------------------------------------------------------


async def restore(context: Context) -> int:
    """A new cluster is begun by its first member; this says, or becomes, how."""
    arguments, output = context.arguments, context.output
    revision, _ = check_file(context, arguments.file)
    directory = os.path.abspath(arguments.to or ".")
    if os.path.exists(os.path.join(directory, IDENTITY_NAME)):
        raise Refused(
            f"{directory} is a member's already; a new cluster begins in an empty directory "
            "(--to)."
        )
    try:
        name = canonical_name(arguments.name or DEFAULT)
    except BadAnswer as e:
        raise Usage(str(e)) from None
    path = os.path.abspath(arguments.file)
    command = ["raftd", "--data-dir", directory, "--name", name, "--init", "--restore", path]
    if arguments.ahead is not None:
        command += ["--restore-ahead", str(arguments.ahead)]
    if arguments.start:
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as e:
            raise Failed(f"{directory} cannot be made: {e.strerror}.") from None
        context.become = _executable(command)
        return OK
    text = f"mkdir -p {shlex.quote(directory)} && {shlex.join(command)}"
    if output.format is None and output.is_terminal:
        output.say(
            f"{arguments.file} is whole, as of revision {revision}. This begins a new cluster "
            "with it, of one member; others join that one (raftctl member add):"
        )
    output.result(
        {"revision": revision, "command": command},
        text,
        [("revision", str(revision)), ("command", text)],
    )
    return OK


def _executable(command: list[str]) -> list[str]:
    """The server of this very installation, on the path or not."""
    beside = os.path.join(os.path.dirname(sys.executable), command[0])
    found = beside if os.access(beside, os.X_OK) else shutil.which(command[0])
    if found is None:
        program = "import sys; from raftd.tap import main; sys.argv[0] = 'raftd'; main()"
        return [sys.executable, "-c", program, *command[1:]]
    return [found, *command[1:]]
