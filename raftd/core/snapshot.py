"""What a snapshot is, as far as Raft is concerned (thesis 5.1)."""

from __future__ import annotations

import msgspec

from raftd.core.membership import Configuration


class SnapshotMetadata(msgspec.Struct, array_like=True, frozen=True):
    """
    The effect of all entries up to `last_included_index`, and what else was
    true there: the term of that entry, the configuration in force, the
    greatest leader's time, in milliseconds.

    It stands at the head of every snapshot file: a format (`docs/snapshot-format.md`).
    """

    last_included_index: int
    last_included_term: int
    configuration: Configuration
    time_ms: int
