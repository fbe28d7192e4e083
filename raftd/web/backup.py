"""
`GET /snapshot`: the whole store as of one revision, as `docs/backup-format.md` says.

It is made while the client takes it, with a checksum at its end: one that was
broken off is seen to be.
"""

from __future__ import annotations

from collections.abc import Iterator

from raftd.errors import RaftdError
from raftd.interfaces import IRequest
from raftd.kv.interfaces import IDatabase
from raftd.web import streams
from raftd.web.answers import NO_CACHE, NOSNIFF, OCTETS, failed_read, is_offered
from raftd.web.parameters import no_parameters

PATH = b"/snapshot"

ALLOW = b"GET, HEAD, OPTIONS"


def handle(request: IRequest, database: IDatabase) -> None:
    """Answer a request for `PATH`."""
    if not is_offered(request, ALLOW):
        return
    try:
        no_parameters(request.query, "/snapshot")
    except RaftdError as e:
        failed_read(request, e)
        return
    _get(request, database)


def _get(request: IRequest, database: IDatabase) -> None:
    def done(outcome: tuple[int, Iterator[bytes]] | RaftdError) -> None:
        if isinstance(outcome, RaftdError):
            failed_read(request, outcome)
            return
        revision, pieces = outcome
        headers = (
            (b"Raftd-Revision", b"%d" % revision),
            (b"Content-Disposition", b'attachment; filename="raftd-%d.backup"' % revision),
            NO_CACHE,
            NOSNIFF,
        )
        streams.stream(request, 200, pieces, OCTETS, headers)

    database.backup(done)
