"""
Configurations: which members the cluster has, and the rules for changing them.

A configuration takes effect when its entry is appended and goes back when
that entry is truncated (thesis 4.1); `ConfigurationHistory` holds exactly the
configurations that the log holds.

While `outgoing_voters` is empty there is one majority.  When it is not, the
configuration is joint, and every decision needs a majority of both
(thesis 4.3).  A member may be an outgoing voter and a learner at once: it is
on its way from one to the other.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from raftd.core.messages import Entry, EntryKind, Member, MemberId
from raftd.errors import ChangeInProgress, ChangeRefused, NameTaken, ProtocolViolation

#: Removed members that a configuration remembers.
MAX_REMOVED = 256

#: Changes that a member asks another for at once.
MAX_CHANGES = 64

#: Members of a cluster, learners included: everybody who talks to everybody.
MAX_MEMBERS = 64


class Configuration(msgspec.Struct, array_like=True, frozen=True):
    """The members by role, each tuple sorted by id.  The data of its log entry."""

    voters: tuple[Member, ...] = ()
    outgoing_voters: tuple[Member, ...] = ()
    learners: tuple[Member, ...] = ()
    #: Ids of members that were removed, the latest last: they are turned away.
    removed: tuple[MemberId, ...] = ()

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing_voters)

    def members(self) -> dict[MemberId, Member]:
        """Every member once, by id."""
        everyone = (*self.outgoing_voters, *self.learners, *self.voters)
        return {member.id: member for member in everyone}

    def voter_ids(self) -> frozenset[MemberId]:
        """Whoever has a vote in either half of the configuration."""
        return frozenset(m.id for m in (*self.voters, *self.outgoing_voters))

    def majorities(self) -> tuple[frozenset[MemberId], ...]:
        """The sets of which every decision needs a majority: one, or two when joint."""
        incoming = frozenset(m.id for m in self.voters)
        if not self.outgoing_voters:
            return (incoming,)
        return (incoming, frozenset(m.id for m in self.outgoing_voters))

    def is_voter(self, member_id: MemberId) -> bool:
        return any(m.id == member_id for m in (*self.voters, *self.outgoing_voters))

    # -- changes -------------------------------------------------------------

    def changed(self, changes: Iterable[Change]) -> Configuration:
        """
        The configuration to propose so that all of `changes` come about.

        If at most one vote is given or taken it is the final one: any two
        majorities before and after share a voter (thesis 4.1).  Otherwise it
        is joint, and `left` gives the final one (thesis 4.3).  Unchanged if
        `changes` say nothing new.

        `ChangeRefused`, or `NameTaken`, if they cannot be carried out.
        """
        if self.is_joint:
            raise ChangeInProgress("Another membership change is under way. Try again.")
        roster = _Roster(self)
        for change in changes:
            change.apply_to(roster)
        target = roster.configuration()
        if not target.voters:
            raise ChangeRefused("A cluster needs a voter.")
        before, after = self.voter_ids(), target.voter_ids()
        if len(before ^ after) <= 1:
            return target
        # Who has a vote still is not turned away: `left` says that it was removed.
        removed = tuple(m for m in target.removed if m not in before)
        return msgspec.structs.replace(target, outgoing_voters=self.voters, removed=removed)

    def left(self) -> Configuration:
        """What a joint configuration is on the way to."""
        staying = {m.id for m in (*self.voters, *self.learners)}
        leaving = tuple(m.id for m in self.outgoing_voters if m.id not in staying)
        removed = (*self.removed, *leaving)[-MAX_REMOVED:]
        return msgspec.structs.replace(self, outgoing_voters=(), removed=removed)


class _Roster:
    """A configuration while changes are made to it."""

    def __init__(self, configuration: Configuration) -> None:
        self.voters = {m.id: m for m in configuration.voters}
        self.learners = {m.id: m for m in configuration.learners}
        self._removed = list(configuration.removed)

    def add(self, member: Member) -> None:
        known = self.find(member.id)
        if known is not None and known.name != member.name:
            raise ChangeRefused(f"Member {member.id:016x} has the name {known.name}.")
        if member.id in self._removed:
            raise ChangeRefused(
                f"Member {member.id:016x} was removed from this cluster. Empty its "
                "directory and let it join as a new member."
            )
        if known is not None:
            return
        for other in list(self.learners.values()):
            if other.name == member.name:
                # It never had a vote, and somebody else is there now.
                self.remove(other.id)
        self.check_name(member)
        if len(self.voters) + len(self.learners) >= MAX_MEMBERS:
            raise ChangeRefused(f"A cluster has at most {MAX_MEMBERS} members.")
        self.learners[member.id] = member

    def check_name(self, member: Member) -> None:
        for other in (*self.voters.values(), *self.learners.values()):
            if other.name == member.name and other.id != member.id:
                raise NameTaken(
                    f"{member.name} is already a member of this cluster with another "
                    f"identity ({other.id:016x}); its directory was lost or replaced. "
                    "Remove that member first, or join under another name, from an empty "
                    "directory."
                )

    def find(self, member_id: MemberId) -> Member | None:
        return self.voters.get(member_id) or self.learners.get(member_id)

    def need(self, member_id: MemberId) -> Member:
        member = self.find(member_id)
        if member is None:
            raise ChangeRefused(f"{member_id:016x} is not a member of this cluster.")
        return member

    def remove(self, member_id: MemberId) -> None:
        if member_id in self._removed:
            return
        self.need(member_id)
        self.voters.pop(member_id, None)
        self.learners.pop(member_id, None)
        self._removed.append(member_id)

    def configuration(self) -> Configuration:
        return Configuration(
            voters=_sorted(self.voters.values()),
            learners=_sorted(self.learners.values()),
            removed=tuple(self._removed[-MAX_REMOVED:]),
        )


# Changes are sent between members, each an array that begins with its tag
# (`docs/peer-protocol.md`).


class AddLearner(msgspec.Struct, array_like=True, frozen=True, tag="add_learner"):
    """
    Let a member in, without a vote.  Nothing if it is a member already.

    A learner of its name makes way: it has given up, or lost its directory.
    """

    member: Member

    def apply_to(self, roster: _Roster) -> None:
        roster.add(self.member)


class Promote(msgspec.Struct, array_like=True, frozen=True, tag="promote"):
    """Give a learner a vote.  Nothing if it has one."""

    member_id: MemberId

    def apply_to(self, roster: _Roster) -> None:
        member = roster.need(self.member_id)
        roster.learners.pop(self.member_id, None)
        roster.voters[self.member_id] = member


class Demote(msgspec.Struct, array_like=True, frozen=True, tag="demote"):
    """Make a voter a learner.  Nothing if it is one."""

    member_id: MemberId

    def apply_to(self, roster: _Roster) -> None:
        member = roster.need(self.member_id)
        roster.voters.pop(self.member_id, None)
        roster.learners[self.member_id] = member


class Remove(msgspec.Struct, array_like=True, frozen=True, tag="remove"):
    """Let a member go.  Nothing if it has gone."""

    member_id: MemberId

    def apply_to(self, roster: _Roster) -> None:
        roster.remove(self.member_id)


class Rename(msgspec.Struct, array_like=True, frozen=True, tag="rename"):
    """Give a member another name: another address under the same id."""

    member_id: MemberId
    name: str

    def apply_to(self, roster: _Roster) -> None:
        roster.need(self.member_id)
        renamed = Member(self.member_id, self.name)
        roster.check_name(renamed)
        for group in (roster.voters, roster.learners):
            if self.member_id in group:
                group[self.member_id] = renamed


Change = AddLearner | Promote | Demote | Remove | Rename


class ConfigurationHistory:
    """
    The configurations of the log, oldest first, each with the index of its entry.

    Invariant: indexes grow strictly, and the last is at most the log's last.
    """

    def __init__(self, base: Configuration, base_index: int) -> None:
        self._history: list[tuple[int, Configuration]] = [(base_index, base)]

    @property
    def latest(self) -> Configuration:
        """The configuration in force, committed or not."""
        return self._history[-1][1]

    @property
    def latest_index(self) -> int:
        """Where the log holds `latest`."""
        return self._history[-1][0]

    def gives_vote(self, member_id: MemberId, commit_index: int) -> bool:
        """
        Whether a member may be needed as a leader (thesis 4.2.2).

        That is so in the configuration in force, and in the one before it as
        long as this is not committed.  All before those are: no leader
        changes what is not committed.
        """
        index, latest = self._history[-1]
        if latest.is_voter(member_id):
            return True
        pending = index > commit_index and len(self._history) > 1
        return pending and self._history[-2][1].is_voter(member_id)

    def at(self, index: int) -> Configuration:
        """The configuration in force when `index` was the last entry."""
        return next(c for i, c in reversed(self._history) if i <= index)

    def append(self, changes: Iterable[tuple[int, Configuration]]) -> None:
        """Take note of what `configurations_in` found in appended entries."""
        self._history.extend(changes)

    def truncate(self, first_removed: int) -> None:
        """Forget what entries from `first_removed` on had set."""
        while len(self._history) > 1 and self._history[-1][0] >= first_removed:
            self._history.pop()

    def compact(self, index: int) -> None:
        """Forget what was in force only before `index`."""
        while len(self._history) > 1 and self._history[1][0] <= index:
            self._history.pop(0)


def configurations_in(entries: Iterable[Entry]) -> list[tuple[int, Configuration]]:
    """(index, configuration) of each such entry; `ProtocolViolation` if it holds none."""
    return [
        (entry.index, decode_configuration(entry.data))
        for entry in entries
        if entry.kind == EntryKind.CONFIGURATION
    ]


def _sorted(members: Iterable[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Configuration).decode


def encode_configuration(configuration: Configuration) -> bytes:
    """The data of an entry of kind `CONFIGURATION`."""
    return _encode(configuration)


def decode_configuration(data: bytes) -> Configuration:
    """The reverse of `encode_configuration`; `ProtocolViolation` for anything else."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolViolation(f"not a configuration: {e}") from None
