"""How fresh a read must be: `consistency` and `max_staleness_ms` (`docs/reads.md`)."""

from __future__ import annotations

from raftd.errors import BadRequest
from raftd.kv.interfaces import LINEARIZABLE, LOCAL
from raftd.web.parameters import Parameters

#: The parameters that every read of the store has.
NAMES = ("consistency", "max_staleness_ms")


def max_staleness_s(parameters: Parameters) -> float:
    """What `IDatabase` calls it; linearizable if nothing is said."""
    consistency = parameters.choice("consistency", ("linearizable", "local"))
    bound_ms = parameters.number("max_staleness_ms", 0)
    if bound_ms is None:
        return LINEARIZABLE if consistency == "linearizable" else LOCAL
    if "consistency" in parameters:
        raise BadRequest("A read has either a consistency, or a max_staleness_ms.")
    return bound_ms / 1000
