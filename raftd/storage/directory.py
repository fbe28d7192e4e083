"""
The data directory: whose it is, how far it has come, and that nobody else has it.

`identity.json` says which member the directory belongs to; `log/` is its
write-ahead log, `snapshots/` holds its snapshots, once there are any.  The
order in which identity and log come about, so that every crash between two
steps restarts cleanly:

1. `identity.json` with stage INITIALIZING or JOINING and `log_created` false.
   Whatever log there is now holds no promise to anybody.
2. `discard_log`, then `log/`, made complete and durable under another name
   and renamed (`Wal.create`).
3. `identity.json` with `log_created` true; for a new cluster also with stage
   MEMBER.  Only now may the node answer or ask anybody for anything: from here
   on the log holds promises, and a directory without it is refused.
4. For a joiner, `identity.json` with stage MEMBER when it has become one.

A cluster that is to begin with a state (`restoring`) has it made durable as a
snapshot between `discard_log` and the log, which then begins behind it.

A crash before step 3 is durable begins again at step 2, with the ids of step
1.  Once there is an identity, a missing log is never made anew: a node that
forgot its vote could vote twice in a term.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from raftd.core.messages import NOBODY, MemberId
from raftd.errors import (
    BadAnswer,
    DirectoryDamaged,
    DirectoryInUse,
    InvariantViolated,
    StorageFailed,
)
from raftd.interfaces import Stage
from raftd.storage.files import Files, remove_tree
from raftd.storage.wal import unfinished_path

IDENTITY_NAME = "identity.json"
LOG_NAME = "log"
SNAPSHOTS_NAME = "snapshots"

#: Of `identity.json`.
FORMAT_VERSION = 1

#: Ids have 64 bits.
_ID_BOUND = 1 << 64

#: A longer `identity.json` is not ours: names are short and servers few.
MAX_IDENTITY_BYTES = 1 << 20


class Identity(msgspec.Struct, frozen=True):
    """
    Which member a data directory belongs to, and how far it has come.

    `cluster_id` is 0 while it is not known; `join_servers` are those last
    asked to join.  `log_created` false means that the log may be missing or
    left over, and holds nothing that anybody was promised.  `restoring`: the
    new cluster is to begin with a state, not with nothing.
    """

    stage: Stage
    name: str
    member_id: MemberId
    cluster_id: int = 0
    join_servers: tuple[str, ...] = ()
    log_created: bool = False
    restoring: bool = False
    format_version: int = FORMAT_VERSION


def draw_id(random_source: Callable[[int], bytes] = os.urandom) -> int:
    """A new id for a member or a cluster: 64 random bits, never 0."""
    while True:
        drawn = int.from_bytes(random_source(8), "little")
        if drawn != NOBODY:
            return drawn


class DataDirectory:
    """
    One node's directory.  All methods block, for a few flushes at most.

    Until `save` is called for the first time nothing at all is created in it.
    """

    def __init__(self, path: str, *, files: Files | None = None) -> None:
        self.path = os.path.abspath(path)
        #: What was read or saved last; None while the directory is nobody's.
        self.identity: Identity | None = None
        self._files = files or Files()
        self._lock: int | None = None

    @property
    def stage(self) -> Stage:
        """How far the directory has come."""
        return Stage.NEW if self.identity is None else self.identity.stage

    @property
    def log_path(self) -> str:
        """Where the log is, or will be."""
        return os.path.join(self.path, LOG_NAME)

    @property
    def snapshots_path(self) -> str:
        """Where the snapshots are, or will be; the directory is made with the first."""
        return os.path.join(self.path, SNAPSHOTS_NAME)

    @property
    def _identity_path(self) -> str:
        return os.path.join(self.path, IDENTITY_NAME)

    # -- open and close ------------------------------------------------------

    def open(self) -> None:
        """
        Lock the directory, read the identity, and check that both fit together.

        `BadAnswer` if it cannot be a data directory, `DirectoryInUse` if
        another node has it, `DirectoryDamaged` if something of it is missing
        or wrong.  After an error it is not locked.
        """
        if self._lock is not None:
            raise InvariantViolated(f"{self.path} is open already")
        self._lock = self._take_lock()
        try:
            self.identity = self._read_identity()
            self._check_log()
            self._keep_identity()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock; nothing happens if there is none."""
        self.identity = None
        if self._lock is not None:
            self._files.close(self._lock)
            self._lock = None

    def _take_lock(self) -> int:
        path = self.path
        try:
            if not self._files.exists(path):
                raise BadAnswer(f"There is no directory {path}.")
            if not self._files.is_directory(path):
                raise BadAnswer(f"{path} is not a directory.")
            if not self._files.is_writable(path):
                raise BadAnswer(f"The directory {path} is not writable for this user.")
            return self._files.lock_directory(path)
        except BlockingIOError:
            raise DirectoryInUse(
                f"The directory {path} is in use by another raftd; every node needs "
                "a directory of its own."
            ) from None
        except OSError as e:
            raise BadAnswer(f"The directory {path} cannot be used: {e}.") from e

    def _read_identity(self) -> Identity | None:
        path = self._identity_path
        try:
            if not self._files.exists(path):
                return None
            fd = self._files.open(path)
            try:
                data = self._files.read(fd, MAX_IDENTITY_BYTES + 1, 0)
            finally:
                self._files.close(fd)
        except OSError as e:
            raise StorageFailed(f"{path} could not be read: {e}.") from e
        return decode_identity(data, path)

    def _check_log(self) -> None:
        has_log = self._files.exists(self.log_path)
        if self.identity is None:
            for path in (
                self.log_path,
                unfinished_path(self.log_path),
                self.snapshots_path,
            ):
                if self._files.exists(path):
                    raise DirectoryDamaged(
                        f"{path} belongs to a node whose identity file, "
                        f"{self._identity_path}, is missing. Restore that file, or start "
                        "in another directory."
                    )
        elif self.identity.log_created and not has_log:
            raise DirectoryDamaged(
                f"The log of {self.identity.name}, {self.log_path}, is missing, and with "
                "it what this node has promised the others. Remove this member from its "
                "cluster, empty the directory and join again as a new member. Do not restore "
                "an older copy of the directory: it has forgotten what this node has "
                "promised since."
            )

    def _keep_identity(self) -> None:
        """A process that died may have left an identity that a power failure takes back."""
        if self.identity is not None:
            try:
                self._files.flush_directory(self.path)
            except OSError as e:
                raise StorageFailed(f"{self.path} could not be flushed: {e}.") from e

    # -- changes -------------------------------------------------------------

    def save(self, identity: Identity) -> None:
        """
        Put `identity` in the place of the one before; durable when it returns.

        After a crash there is the one or the other.  `StorageFailed` if the
        disk refuses: then it is not known which.
        """
        if self._lock is None:
            raise InvariantViolated(f"{self.path} is not open")
        self._check_change(identity)
        self._write(identity)

    def _write(self, identity: Identity) -> None:
        temporary = self._identity_path + ".tmp"
        data = encode_identity(identity)
        try:
            if self._files.exists(temporary):
                self._files.remove(temporary)
            fd = self._files.create(temporary)
            try:
                self._files.write(fd, data, 0)
                self._files.flush(fd)
            finally:
                self._files.close(fd)
            self._files.rename(temporary, self._identity_path)
            self._files.flush_directory(self.path)
            if self.identity is None:
                self._flush_parent()
        except OSError as e:
            raise StorageFailed(f"{self._identity_path} could not be written: {e}.") from e
        self.identity = identity

    def _flush_parent(self) -> None:
        """The directory itself may be as new as what is in it, and its parent not ours."""
        with contextlib.suppress(PermissionError):
            self._files.flush_directory(os.path.dirname(os.path.realpath(self.path)))

    def _check_change(self, new: Identity) -> None:
        """What is on the way into a cluster keeps its id, and never goes back."""
        if new.stage is Stage.NEW or new.member_id == NOBODY or not new.name:
            raise InvariantViolated("an identity has a stage, an id and a name")
        if new.format_version != FORMAT_VERSION:
            raise InvariantViolated(f"identities are written in format {FORMAT_VERSION}")
        if new.stage is Stage.MEMBER and not (new.log_created and new.cluster_id):
            raise InvariantViolated("a member has a log and a cluster")
        old = self.identity
        if old is None or not old.log_created:
            return
        if new.member_id != old.member_id or not new.log_created:
            raise InvariantViolated("an identity with a log cannot be replaced")
        if old.stage is Stage.MEMBER and (
            new.stage is not Stage.MEMBER or new.cluster_id != old.cluster_id
        ):
            raise InvariantViolated("a member stays one, of the same cluster")

    def change_cluster(self, cluster_id: int, *, has_vote: bool = False) -> None:
        """
        Make a member's directory that of another cluster; durable when it returns.

        Only for one that goes on alone, because the others are lost for good.
        One that is still JOINING holds nothing that a cluster could be made
        of, unless `has_vote`: its own log or snapshot gives it one, and the
        crash came before the stage was recorded.  It is MEMBER then, in one
        step with the new id: as a joiner it would look for its old cluster.
        """
        identity = self.identity
        is_member = identity is not None and (
            identity.stage is Stage.MEMBER
            or (identity.stage is Stage.JOINING and identity.log_created and has_vote)
        )
        if identity is None or not is_member:
            raise InvariantViolated("only a member can leave its cluster behind")
        self._write(
            msgspec.structs.replace(identity, stage=Stage.MEMBER, cluster_id=cluster_id)
        )

    def discard_log(self) -> None:
        """
        Remove a log that holds no promise, whole or half made, so that it can be created.

        Only while the identity says that there is none.  Snapshots that came
        before it go first.
        """
        if self._lock is None or self.identity is None or self.identity.log_created:
            raise InvariantViolated(f"the log in {self.path} must not be discarded")
        try:
            remove_tree(self._files, self.snapshots_path)
        except OSError as e:
            raise StorageFailed(f"{self.snapshots_path} could not be removed: {e}.") from e
        unfinished = unfinished_path(self.log_path)
        try:
            if self._files.exists(self.log_path):
                remove_tree(self._files, unfinished)
                # Half a log must never stand under the name of a whole one.
                self._files.rename(self.log_path, unfinished)
                self._files.flush_directory(self.path)
            remove_tree(self._files, unfinished)
            self._files.flush_directory(self.path)
        except OSError as e:
            raise StorageFailed(f"{self.log_path} could not be removed: {e}.") from e


# -- identity.json -----------------------------------------------------------


def encode_identity(identity: Identity) -> bytes:
    """
    JSON for people, ids as 16 hexadecimal digits.

    The checksum is over everything else, so that neither a flipped bit nor a
    slip of an editor makes a node another one.
    """
    fields: dict[str, Any] = {
        "format_version": identity.format_version,
        "stage": identity.stage.value,
        "name": identity.name,
        "member_id": f"{identity.member_id:016x}",
        "cluster_id": f"{identity.cluster_id:016x}",
        "join_servers": list(identity.join_servers),
        "log_created": identity.log_created,
    }
    if identity.restoring:
        fields["restoring"] = True
    fields["checksum"] = _checksum(fields)
    return json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n"


def decode_identity(data: bytes, path: str) -> Identity:
    """The reverse; `DirectoryDamaged`, naming `path`, for anything else."""
    try:
        fields = json.loads(data)
        check = fields.pop("checksum")
        version = fields["format_version"]
        intact = check == _checksum(fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise _damaged(path)
    if version != FORMAT_VERSION:
        # Version and checksum have their places in every format to come.
        raise DirectoryDamaged(
            f"{path} has format version {version}, and this raftd reads only version "
            f"{FORMAT_VERSION}. Start the version of raftd that wrote it, or a newer one."
        )
    try:
        fields["member_id"] = int(fields["member_id"], 16)
        fields["cluster_id"] = int(fields["cluster_id"], 16)
        identity = msgspec.convert(fields, Identity)
    except (ValueError, KeyError, TypeError):
        raise _damaged(path) from None
    is_member = NOBODY < identity.member_id < _ID_BOUND
    if identity.stage is Stage.NEW or not (is_member and 0 <= identity.cluster_id < _ID_BOUND):
        raise _damaged(path)
    return identity


def _checksum(fields: dict[str, Any]) -> str:
    """Over the other fields as compact JSON with sorted keys, so that layout does not count."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(canonical.encode()):08x}"


def _damaged(path: str) -> DirectoryDamaged:
    return DirectoryDamaged(
        f"{path} is damaged at offset 0: its checksum is wrong or it is no identity at all. "
        "Restore it from a copy; without it nobody can say whose directory this is."
    )
