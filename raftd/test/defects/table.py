"""All defects, in the order of the pitfalls' numbers; those of no pitfall first."""

from __future__ import annotations

from raftd.test.defects.clients import CLIENTS
from raftd.test.defects.disk import DISK
from raftd.test.defects.elections import ELECTIONS
from raftd.test.defects.idempotency import IDEMPOTENCY
from raftd.test.defects.leases import LEASES
from raftd.test.defects.members import MEMBERS
from raftd.test.defects.reads import READING
from raftd.test.defects.replication import REPLICATION
from raftd.test.defects.requests import REQUESTS
from raftd.test.defects.snapshots import SNAPSHOTS
from raftd.test.defects.store import STORES
from raftd.test.defects.timing import TIMING
from raftd.test.defects.watches import WATCHES

ALL = tuple(
    sorted(
        (
            *ELECTIONS,
            *REPLICATION,
            *REQUESTS,
            *READING,
            *CLIENTS,
            *MEMBERS,
            *SNAPSHOTS,
            *DISK,
            *TIMING,
            *WATCHES,
            *IDEMPOTENCY,
            *LEASES,
            *STORES,
        ),
        key=lambda defect: defect.number,
    )
)

#: Pitfalls of what there is not yet, and so no defect either.
NOT_BUILT: dict[int, str] = {}

#: How many pitfalls the list has.
PITFALLS = 56
