"""All defects, in the order of the pitfalls' numbers."""

from __future__ import annotations

from raftd.test.defects.clients import CLIENTS
from raftd.test.defects.disk import DISK
from raftd.test.defects.elections import ELECTIONS
from raftd.test.defects.members import MEMBERS
from raftd.test.defects.reads import READING
from raftd.test.defects.replication import REPLICATION
from raftd.test.defects.snapshots import SNAPSHOTS
from raftd.test.defects.timing import TIMING

ALL = tuple(
    sorted(
        (
            *ELECTIONS,
            *REPLICATION,
            *READING,
            *CLIENTS,
            *MEMBERS,
            *SNAPSHOTS,
            *DISK,
            *TIMING,
        ),
        key=lambda defect: defect.number,
    )
)

#: Pitfalls of what there is not yet, and so no defect either.
NOT_BUILT = {
    54: "there are no watches: no events that could be lost, repeated or out of order",
    55: "there are no watches: nobody who could be slow to read them",
}

#: How many pitfalls the list has.
PITFALLS = 56
