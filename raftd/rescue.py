"""
The way out when a quorum is lost for good: one surviving member goes on alone.

    raftd-rescue DIRECTORY

The member in the directory becomes the only one of a new cluster, with all
that its own log and snapshots hold.  Nothing can bring back what it had never
received, so this prints what may be lost, and asks before it acts.  The new
cluster has an id of its own: the others, should they come back, are refused.

It works on a directory that no node is using.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twisted.python import usage
from zope.interface import implementer

from raftd.core.log import Log
from raftd.core.membership import (
    Configuration,
    ConfigurationHistory,
    configurations_in,
    encode_configuration,
)
from raftd.core.messages import Command, Entry, EntryKind, HardState, Member
from raftd.core.snapshot import SnapshotMetadata
from raftd.errors import BadAnswer, Fatal, RaftdError
from raftd.interfaces import IRestore, IStateMachine, Stage
from raftd.storage import recovery
from raftd.storage.directory import DataDirectory, draw_id
from raftd.storage.files import Files
from raftd.storage.snapshots import SnapshotStore
from raftd.storage.wal import Wal

#: What has to be typed.
CONFIRMATION = "yes"


class _Calls:
    """What stands in for a reactor: calls of the log's thread, run when they are waited for."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = (
            queue.SimpleQueue()
        )

    def callFromThread(self, call: Callable[..., object], *args: object) -> None:
        self._calls.put((call, args))

    def run_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            call, args = self._calls.get()
            call(*args)


@implementer(IStateMachine)
class _Blind:
    """A state machine to which a snapshot can be given, only to have it checked."""

    def apply(self, index: int, time_ms: int, command: Command) -> bytes:
        return b""

    def snapshot(self) -> Iterator[bytes]:
        return iter(())

    def restore(self) -> IRestore:
        return _BlindRestore()

    def digest(self) -> bytes:
        return b""


@implementer(IRestore)
class _BlindRestore:
    def write(self, data: bytes) -> None:
        pass

    def finish(self) -> None:
        pass


class Survivor:
    """
    A member's directory, opened without its node.

    Until `go_on_alone` nothing in it is changed: not even repaired.
    """

    def __init__(self, path: str) -> None:
        """`RaftdError` if it is in use, damaged, or no member's."""
        self._directory = DataDirectory(path)
        self._directory.open()
        self._calls = _Calls()
        self._wal: Wal | None = None
        try:
            self._look(path)
        except BaseException:
            self.close()
            raise

    def _look(self, path: str) -> None:
        identity = self._directory.identity
        if identity is None or not identity.log_created:
            raise _no_member(path)
        self.identity = identity
        log = recovery.look(Files(), self._directory.log_path, identity.member_id)
        newest = self._snapshots().look(_Blind(), log.base_index, log.entries)
        snapshot = newest or SnapshotMetadata(0, 0, Configuration(), 0)
        self._term = log.hard_state.term
        self._log = Log(log.entries, log.base_index, log.base_term)
        self._log.fit(snapshot, log.commit_index)
        history = ConfigurationHistory(snapshot.configuration, snapshot.last_included_index)
        behind = self._log.entries(snapshot.last_included_index + 1, self._log.last_index)
        history.append(configurations_in(behind))
        self.configuration = history.latest
        # A voter may have crashed before it recorded that it is a member.
        self._has_vote = self.configuration.is_voter(identity.member_id)
        if identity.stage is not Stage.MEMBER and not (
            identity.stage is Stage.JOINING and self._has_vote
        ):
            raise _no_member(path)

    def _snapshots(self) -> SnapshotStore:
        return SnapshotStore(
            self._directory.snapshots_path,
            self._calls,  # type: ignore[arg-type]
        )

    def _repair(self) -> None:
        """
        Open log and snapshots as a start does.

        What a crash has left is put right, and what was looked at is durable.
        """
        wal = self._wal = Wal.open(
            self._directory.log_path,
            self.identity.member_id,
            reactor=self._calls,  # type: ignore[arg-type]
        )
        self._snapshots().recover(_Blind(), wal.base_index, wal.entries)

    def account(self) -> str:
        """What is there, what becomes of it, and what may be lost, for a person to read."""
        identity, log = self.identity, self._log
        others = sorted(
            m.name for m in self.configuration.members().values() if m.id != identity.member_id
        )
        return (
            f"This directory belongs to {identity.name}, a member of the cluster "
            f"{identity.cluster_id:016x}.\n"
            f"The others, as far as it knows: {', '.join(others) or 'none'}.\n"
            f"It holds everything up to entry {log.last_index} of term {log.last_term}.\n"
            "\n"
            f"If you go on, {identity.name} becomes the only member of a new cluster:\n"
            "- whatever the others had committed and this member had not yet received is "
            "lost,\n"
            "  writes among it that clients were told had happened;\n"
            "- whatever this member had received and was not yet committed happens now,\n"
            "  writes among it whose outcome clients were told was unknown;\n"
            "- the others can never come back with their directories: empty them, and let\n"
            "  them join anew. If a quorum of them is still alive, do not go on: remove\n"
            "  this member there instead.\n"
        )

    def go_on_alone(self) -> int:
        """
        Make it a cluster of its own, durably; the id of that.

        The new id is durable first: a crash before the new configuration is
        leaves a node that the former others refuse, and this can be repeated.
        """
        self._repair()
        cluster_id = draw_id()
        self._directory.change_cluster(cluster_id, has_vote=self._has_vote)
        identity = self.identity
        me = Member(identity.member_id, identity.name)
        known = {*self.configuration.members(), *self.configuration.removed}
        configuration = Configuration(
            voters=(me,), removed=tuple(sorted(known - {identity.member_id}))
        )
        term = max(self._term, self._log.last_term) + 1
        entry = Entry(
            self._log.last_index + 1,
            term,
            EntryKind.CONFIGURATION,
            self._log.last_time_ms,
            encode_configuration(configuration),
        )
        self._write(HardState(term), entry)
        return cluster_id

    def _write(self, hard_state: HardState, entry: Entry) -> None:
        assert self._wal is not None
        persisted: list[int] = []
        failures: list[Fatal] = []
        self._wal.start(persisted.append, failures.append)
        self._wal.write(1, hard_state, (entry,), self._log.base_to_write())
        self._calls.run_until(lambda: persisted or failures)
        if failures:
            raise failures[0]

    def close(self) -> None:
        closed: list[object] = []
        if self._wal is not None:
            self._wal.close().addBoth(closed.append)
            self._calls.run_until(lambda: closed)
        self._directory.close()


def _no_member(path: str) -> BadAnswer:
    return BadAnswer(f"{path} is not the directory of a member of a cluster.")


class Options(usage.Options):
    """The command line."""

    synopsis = "Usage: raftd-rescue [--yes] DIRECTORY"
    longdesc = (
        "Makes the member in DIRECTORY the only one of a new cluster, when a quorum of "
        "its own is lost for good. Says what may be lost, and asks first."
    )
    optFlags = [["yes", None, "Do not ask: it has been read and decided before."]]  # noqa: RUF012

    def parseArgs(self, *args: str) -> None:
        if len(args) != 1:
            raise usage.UsageError("one directory, please.")
        (self["directory"],) = args


def main(
    arguments: Sequence[str] | None = None,
    ask: Callable[[str], str] = input,
    say: Callable[[str], object] = print,
) -> int:
    """The `raftd-rescue` command; its exit status."""
    try:
        options = Options()  # type: ignore[no-untyped-call]
        options.parseOptions(sys.argv[1:] if arguments is None else arguments)  # type: ignore[no-untyped-call]
        survivor = Survivor(options["directory"])
    except (usage.UsageError, RaftdError) as e:
        say(f"raftd-rescue: {e}")
        return 1
    try:
        say(survivor.account())
        if not options["yes"] and not _agreed(ask):
            say("Nothing was changed.")
            return 1
        cluster_id = survivor.go_on_alone()
        name = survivor.identity.name
        say(f"{name} is a cluster of its own now: {cluster_id:016x}. Start it as before.")
        return 0
    except RaftdError as e:
        say(f"raftd-rescue: {e}")
        return 1
    finally:
        survivor.close()


def _agreed(ask: Callable[[str], str]) -> bool:
    try:
        return ask(f'Type "{CONFIRMATION}" to go on: ').strip() == CONFIRMATION
    except EOFError:
        return False
