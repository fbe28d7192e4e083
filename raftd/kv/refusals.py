"""
Why the store did not do what it was asked: part of its answers' format.

The texts are fixed but for `details`, which are functions of the state, for
the results of all nodes must be equal.
"""

from __future__ import annotations

import msgspec

from raftd.errors import (
    BadRequest,
    Compacted,
    FutureRevision,
    LeaseExists,
    LeaseNotFound,
    QuotaReached,
    RaftdError,
    TooManyLeases,
)


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """
    An operation that changed nothing: `code` for programs, a sentence for people.

    `revision` belongs to the code: the compacted one, or the store's.
    """

    code: str
    message: str
    revision: int = 0


#: Those that need no details, by code.  `unknown_operation`: the bytes are no
#: operation that this version knows.
REFUSALS = {
    refusal.code: refusal
    for refusal in (
        Refusal(
            "unknown_operation",
            "This version of raftd does not know the operation; nothing was changed.",
        ),
        Refusal("empty_key", "A key must have at least one byte."),
        Refusal(
            "key_not_found", "The key has no value, or no lease, to keep: it is not there."
        ),
        Refusal("lease_not_found", "There is no lease with this id."),
        Refusal("lease_exists", "There is a lease with this id already."),
        Refusal("too_many_leases", "The store has as many leases as it keeps."),
        Refusal("duplicate_key", "A transaction puts a key twice, or puts and deletes it."),
        Refusal(
            "too_many_operations",
            "A transaction has at most 128 operations on a side, and 512 with both sides "
            "and all compares.",
        ),
        Refusal(
            "result_too_large",
            "The records from before, of all keys that are put, are too large for one answer.",
        ),
        Refusal("quota_reached", "The store has reached its quota: delete something, compact."),
    )
}


def compacted(revision: int) -> Refusal:
    """The revision that was asked for is below `revision`, the compacted one."""
    return Refusal(
        "compacted", f"Revisions below {revision} were compacted, and are gone.", revision
    )


def future_revision(revision: int) -> Refusal:
    """The revision that was asked for is above `revision`, the store's."""
    return Refusal("future_revision", f"The store is at revision {revision} only.", revision)


def error_of(refusal: Refusal) -> RaftdError:
    """A refusal as the error that its proposer is given, with the refusal's own code."""
    if refusal.code == Compacted.code:
        return Compacted(refusal.message, refusal.revision)
    if refusal.code == FutureRevision.code:
        return FutureRevision(refusal.message, refusal.revision)
    kind = _ERRORS.get(refusal.code, BadRequest)
    error = kind(refusal.message)
    error.code = refusal.code
    return error


_ERRORS: dict[str, type[RaftdError]] = {
    error.code: error for error in (LeaseExists, LeaseNotFound, QuotaReached, TooManyLeases)
}
