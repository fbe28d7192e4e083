"""
`POST /leader`: let another voter lead.

The body is `{"to": NAME}`; without it, whoever is best prepared is asked.
Answered with `{"leader": NAME}` when another leads, at once if that member
does already; null if the new leader's name is not known here yet.
"""

from __future__ import annotations

from raftd.core.messages import MemberId
from raftd.errors import RaftdError
from raftd.interfaces import INode, IRequest
from raftd.web import bodies
from raftd.web.answers import is_offered, json
from raftd.web.members import Members, answer, find, refused, with_members
from raftd.web.parameters import no_parameters

PATH = b"/leader"

ALLOW = b"POST, OPTIONS"

_EXAMPLE = '{"to": "localhost:4002"}'


def handle(request: IRequest, node: INode) -> None:
    """Answer a request for `PATH`."""
    if not is_offered(request, ALLOW):
        return
    try:
        _post(request, node)
    except RaftdError as e:
        refused(request, e)


def _post(request: IRequest, node: INode) -> None:
    no_parameters(request.query, "/leader")
    name = _successor(request.body)
    if name is None:
        _transfer(request, node, None)
        return

    def act(members: Members) -> None:
        _transfer(request, node, find(members, name).id)

    with_members(request, node, act)


def _successor(body: bytes) -> str | None:
    if not body:
        return None
    value = bodies.parse(body, _EXAMPLE)
    bodies.check_keys(value, ("to",), "The body")
    return bodies.text(value["to"], "to") if value else None


def _transfer(request: IRequest, node: INode, successor: MemberId | None) -> None:
    def transferred(_: None) -> None:
        leader = node.status().leader
        json(request, 200, {"leader": None if leader is None else leader.name})

    answer(request, node.transfer(successor), transferred)
