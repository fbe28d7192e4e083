"""Which request goes where."""

from __future__ import annotations

from typing import NamedTuple

from raftd.interfaces import IDatabase, INode, IRequest
from raftd.web import db, leader, members, status
from raftd.web.answers import RETRY_AFTER, error, options

#: What is offered anywhere.
ALLOW = b"GET, HEAD, PUT, POST, PATCH, DELETE, OPTIONS"


class Site(NamedTuple):
    """What the web face shows: a node, and the database over it."""

    node: INode
    database: IDatabase


class Routes:
    """
    The handler of all requests (`handle`).

    `site` is None until the node is a member of a cluster, for the port is
    bound before that; requests are then answered 503.
    """

    def __init__(self, version: str) -> None:
        self.site: Site | None = None
        self._version = version

    def handle(self, request: IRequest) -> None:
        """Answer `request`, now or later."""
        site = self.site
        path = request.path
        if site is None:
            error(
                request,
                503,
                "not_ready",
                "This node is running but does not belong to a cluster yet.",
                (RETRY_AFTER,),
            )
        elif path.startswith(db.PREFIX):
            db.handle(request, site.database)
        elif path == status.PATH:
            status.handle(request, site.node, site.database, self._version)
        elif path == members.PATH or path.startswith(members.PREFIX):
            members.handle(request, site.node)
        elif path == leader.PATH:
            leader.handle(request, site.node)
        elif path == b"*":
            # Only OPTIONS comes with it, and it asks about the server as a whole.
            options(request, ALLOW)
        else:
            error(
                request,
                404,
                "not_found",
                "There is nothing here but /db/KEY, /status, /members and /leader.",
            )
