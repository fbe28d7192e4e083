"""Which request goes where."""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.interfaces import IReactorTime

from raftd.interfaces import INode, IRequest
from raftd.kv.interfaces import IDatabase
from raftd.web import (
    backup,
    compact,
    db,
    leader,
    lease,
    members,
    metrics,
    openapi,
    status,
    txn,
)
from raftd.web.answers import RETRY_AFTER, error, options
from raftd.web.watch import Watching

#: What is offered anywhere.
ALLOW = b"GET, HEAD, PUT, POST, PATCH, DELETE, OPTIONS"

#: Targets whose bodies may be longer, in bytes, than any value.
MAX_BODY_BYTES_AT = {txn.PATH: txn.MAX_BODY_BYTES}


class Site(NamedTuple):
    """What the web face shows: a node, and the database over it."""

    node: INode
    database: IDatabase


class Routes:
    """
    The handler of all requests (`handle`).

    `site` is None until the node is a member of a cluster, for the port is
    bound before that; requests are then answered 503.  `clock` is the
    reactor's; `watching.stop` is to be called before the server of HTTP stops.
    """

    def __init__(self, version: str, clock: IReactorTime) -> None:
        self.site: Site | None = None
        self.watching = Watching(clock)
        self._version = version
        self._document = openapi.encoded(version)

    def handle(self, request: IRequest) -> None:
        """Answer `request`, now or later."""
        site = self.site
        path = request.path
        if path.startswith(db.PREFIX) and site is not None:
            db.handle(request, site.database, self.watching)
        elif path == openapi.PATH:
            openapi.handle(request, self._document)
        elif site is None:
            error(
                request,
                503,
                "not_ready",
                "This node is running but does not belong to a cluster yet.",
                (RETRY_AFTER,),
            )
        else:
            self._handle_rarer(request, path, site.node, site.database)

    def _handle_rarer(
        self, request: IRequest, path: bytes, node: INode, database: IDatabase
    ) -> None:
        if path == txn.PATH:
            txn.handle(request, database)
        elif path == lease.PATH or path.startswith(lease.PREFIX):
            lease.handle(request, database)
        elif path == status.PATH:
            status.handle(request, node, database, self._version)
        elif path == metrics.PATH:
            metrics.handle(request, node, database, self._version)
        elif path == compact.PATH:
            compact.handle(request, database)
        elif path == backup.PATH:
            backup.handle(request, database)
        elif path == members.PATH or path.startswith(members.PREFIX):
            members.handle(request, node)
        elif path == leader.PATH:
            leader.handle(request, node)
        elif path == b"*":
            # Only OPTIONS comes with it, and it asks about the server as a whole.
            options(request, ALLOW)
        else:
            error(
                request,
                404,
                "not_found",
                "There is nothing here but /db/, /txn, /lease, /compact, /snapshot, /status, "
                "/metrics, /members, /leader and /openapi.json.",
            )
