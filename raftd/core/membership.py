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
from raftd.errors import ChangeRefused, NameTaken, ProtocolViolation

#: Members of a cluster, learners included: everybody who talks to everybody.
MAX_MEMBERS = 64


class Configuration(msgspec.Struct, array_like=True, frozen=True):
    """The members by role, each tuple sorted by id.  The data of its log entry."""

    voters: tuple[Member, ...] = ()
    outgoing_voters: tuple[Member, ...] = ()
    learners: tuple[Member, ...] = ()

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

    # -- single-server changes (thesis 4.2) ----------------------------------

    def with_learner(self, member: Member) -> Configuration:
        """
        `member` added without a vote.  Unchanged if it is a member already.

        A learner of its name, which never had a vote and has given up, makes
        way.  `NameTaken` if a voter has its name; `ChangeRefused` if its id has
        another name, or if there are too many members.
        """
        for other in self.members().values():
            if other.name == member.name and other.id != member.id and self.is_voter(other.id):
                raise NameTaken(
                    f"{member.name} is already a member of this cluster with another "
                    f"identity ({other.id:016x}); its directory was lost or replaced. "
                    "Join under another name, from an empty directory."
                )
            if other.id == member.id and other.name != member.name:
                raise ChangeRefused(f"member {member.id:016x} has the name {other.name}.")
        if member.id in self.members():
            return self
        learners = [other for other in self.learners if other.name != member.name]
        if len(self.voter_ids()) + len(learners) >= MAX_MEMBERS:
            raise ChangeRefused(f"A cluster has at most {MAX_MEMBERS} members.")
        return msgspec.structs.replace(self, learners=_sorted((*learners, member)))

    def with_promoted(self, member_id: MemberId) -> Configuration:
        """The learner given a vote.  Unchanged if it is a voter already."""
        if self.is_voter(member_id):
            return self
        learner = self.members().get(member_id)
        if learner is None:
            raise ChangeRefused(f"{member_id:016x} is not a member of this cluster.")
        return msgspec.structs.replace(
            self,
            voters=_sorted((*self.voters, learner)),
            learners=tuple(m for m in self.learners if m.id != member_id),
        )


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

    def append(self, changes: Iterable[tuple[int, Configuration]]) -> None:
        """Take note of what `configurations_in` found in appended entries."""
        self._history.extend(changes)

    def truncate(self, first_removed: int) -> None:
        """Forget what entries from `first_removed` on had set."""
        while len(self._history) > 1 and self._history[-1][0] >= first_removed:
            self._history.pop()


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
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ProtocolViolation(f"not a configuration: {e}") from None
