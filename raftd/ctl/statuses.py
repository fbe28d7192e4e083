"""
What `raftctl` exits with, for scripts.

One that a signal ends exits with 128 and its number, as a shell has it: 130
after Ctrl-C, 141 when whoever reads its output has gone.
"""

from __future__ import annotations

from raftd.client import NotFound, PreconditionFailed
from raftd.errors import (
    BadAnswer,
    BadRequest,
    Compacted,
    FutureRevision,
    LeaseNotFound,
    OutcomeUnknown,
    RaftdError,
    TooLarge,
)

#: It was done.
OK = 0
#: The answer is no: not there, the condition does not hold, the lock is not free.
NO = 1
#: What was asked for can never be done: a wrong option, a request that makes no sense.
USAGE = 2
#: It did not happen, and nothing was changed; it may be tried again.
DID_NOT_HAPPEN = 3
#: It may have happened, or may happen yet: nobody could say in time.
UNKNOWN = 4
#: The lock, the leadership or the lease was lost while it was needed.
LOST = 5
#: A defect of raftctl itself (EX_SOFTWARE of sysexits.h).
DEFECT = 70

#: The table of `docs/raftctl.md`.
MEANINGS = {
    OK: "done",
    NO: "no: not found, the condition does not hold, the lock is not free",
    USAGE: "it cannot be done as asked: a wrong option or value",
    DID_NOT_HAPPEN: "it did not happen, nothing was changed; try again",
    UNKNOWN: "a write that may have happened, or may happen yet",
    LOST: "the lock, the leadership or the lease was lost",
}


class Refused(RaftdError):
    """The answer is no, and the sentence says why."""

    code = "refused"


class Usage(RaftdError):
    """What was typed cannot be meant; the sentence says why."""

    code = "usage"


class LostHold(RaftdError):
    """What was held was lost, or may have been."""

    code = "lost"


class Failed(RaftdError):
    """Something on this machine, a file for one, did not let it happen."""

    code = "failed"


def status_of(error: RaftdError) -> int:
    """What to exit with after `error`."""
    if isinstance(error, LostHold):
        return LOST
    if isinstance(error, OutcomeUnknown):
        return UNKNOWN
    if isinstance(error, (Refused, PreconditionFailed, NotFound, LeaseNotFound, Compacted)):
        return NO
    if isinstance(error, (Usage, BadAnswer, BadRequest, FutureRevision, TooLarge)):
        return USAGE
    return DID_NOT_HAPPEN
