"""
`POST /compact`: forget what only old revisions show.

The body is `{"revision": N}`, the oldest that stays readable, or `{"keep": N}`,
the last N revisions.  If so many are not there, nothing is compacted, and that
is a success.
"""

from __future__ import annotations

from raftd.errors import BadRequest, RaftdError
from raftd.interfaces import IRequest
from raftd.kv.interfaces import LINEARIZABLE, IDatabase
from raftd.kv.operations import Compact, Range
from raftd.kv.results import CompactResult, RangeResult, Result
from raftd.web import bodies, spans
from raftd.web.answers import failed_read, failed_result, is_offered, json
from raftd.web.fields import read_unconditional_retry
from raftd.web.parameters import MAX_NUMBER, no_parameters

PATH = b"/compact"

ALLOW = b"POST, OPTIONS"

_EXAMPLE = '{"revision": 100} or {"keep": 1000}'


def handle(request: IRequest, database: IDatabase) -> None:
    """Answer a request for `PATH`."""
    if not is_offered(request, ALLOW):
        return
    try:
        _post(request, database)
    except RaftdError as e:
        # Nothing was asked of the database yet.
        failed_read(request, e)


def _post(request: IRequest, database: IDatabase) -> None:
    no_parameters(request.query, "/compact")
    retry = read_unconditional_retry(request)
    value = bodies.parse(request.body, _EXAMPLE)
    bodies.check_keys(value, ("revision", "keep"), "The body")
    if len(value) != 1:
        raise BadRequest(f"The body has one of 'revision' and 'keep', like {_EXAMPLE}.")
    ((name, number),) = value.items()
    number = bodies.number(number, name, 1, MAX_NUMBER)
    if name == "revision":
        _compact(request, database, number, retry)
    else:
        _keep(request, database, number, retry)


def _keep(request: IRequest, database: IDatabase, count: int, retry: bytes) -> None:
    """Compact to the last `count` revisions, as of a moment after the request came in."""

    def done(outcome: RangeResult | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            failed_read(request, outcome)
            return
        revision = outcome.revision - count + 1
        oldest = database.compacted_revision
        if revision > oldest:
            _compact(request, database, revision, retry)
        else:
            json(request, 200, {"compacted_revision": oldest})

    # Any read would do: its result has the store's revision.
    database.range(Range(spans.FIRST_KEY, keys_only=True), LINEARIZABLE, done)


def _compact(request: IRequest, database: IDatabase, revision: int, retry: bytes) -> None:
    def done(outcome: Result | RaftdError) -> None:
        if isinstance(outcome, CompactResult):
            json(request, 200, {"compacted_revision": outcome.compacted_revision})
        else:
            failed_result(request, outcome)

    database.change(Compact(revision), done, retry)
