"""What a node tells its observers, each as a value; see `Node.observe`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from raftd.core.membership import Configuration
from raftd.core.messages import Member
from raftd.core.snapshot import SnapshotMetadata


class TermChanged(msgspec.Struct, frozen=True):
    """A new term has begun, as far as this node knows."""

    term: int


class LeaderChanged(msgspec.Struct, frozen=True):
    """Another member leads, or none that this node knows of."""

    term: int
    leader: Member | None


class MembershipChanged(msgspec.Struct, frozen=True):
    """A configuration is committed, and applied at this node."""

    index: int
    configuration: Configuration


class Committed(msgspec.Struct, frozen=True):
    """Everything up to `index` is applied at this node."""

    index: int


class SnapshotTaken(msgspec.Struct, frozen=True):
    """A snapshot of this node's state is durable."""

    metadata: SnapshotMetadata


class SnapshotRestored(msgspec.Struct, frozen=True):
    """This node's state was replaced by a snapshot from its leader."""

    metadata: SnapshotMetadata


Event = (
    TermChanged
    | LeaderChanged
    | MembershipChanged
    | Committed
    | SnapshotTaken
    | SnapshotRestored
)

#: Called with each event, in the reactor's thread, in order; it must not raise.
Observer = Callable[[Event], None]
