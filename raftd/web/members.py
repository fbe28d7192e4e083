"""
`/members`: who belongs to the cluster.

    GET, HEAD /members        the members as this node knows them, as in `/status`
    POST /members             make changes, all of them together
    GET, HEAD /members/NAME   one member
    PATCH /members/NAME       give or take its vote, or another name, or both
    DELETE /members/NAME      remove it

POST takes `{"changes": [...]}`; each change is one of `{"promote": NAME}`,
`{"demote": NAME}`, `{"remove": NAME}` and `{"rename": NAME, "to": NEW_NAME}`.
PATCH takes `{"role": "voter"}` or `"learner"`, and `{"name": NEW_NAME}`.  A
node is added by itself, when it joins.

A change that would leave too few voters that answer is refused unless it has
`"force": true` (POST) or `?force=true` (PATCH, DELETE).  Every change is
answered, once it is committed, with the members that result.  One that
changes nothing is a success, so that a change whose answer was lost may be
sent again; but a member that is gone is not found any more.

Names are those of the present members, looked up as of a moment after the
request came in, whichever node it came to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from raftd.core.membership import (
    MAX_CHANGES,
    Change,
    Configuration,
    Demote,
    Promote,
    Remove,
    Rename,
)
from raftd.core.messages import Member
from raftd.errors import BadRequest, RaftdError, TooLarge
from raftd.interfaces import INode, IRequest
from raftd.web import bodies
from raftd.web.answers import (
    NO_CACHE,
    error,
    failed_change,
    failed_read,
    json,
    not_allowed,
    options,
)
from raftd.web.parameters import no_parameters
from raftd.web.status import member_as_json

PATH = b"/members"
PREFIX = b"/members/"

ALLOW_ALL = b"GET, HEAD, POST, OPTIONS"
ALLOW_ONE = b"GET, HEAD, PATCH, DELETE, OPTIONS"

_EXAMPLE = '{"changes": [{"promote": "localhost:4002"}], "force": false}'
_EXAMPLE_CHANGE = (
    '{"promote": "localhost:4002"} or {"rename": "localhost:4002", "to": "b:4002"}'
)
_EXAMPLE_PATCH = '{"role": "voter"} or {"name": "localhost:4002"}'

_malformed_percent = re.compile(rb"%(?![0-9A-Fa-f]{2})").search

_log = Logger()

T = TypeVar("T")

#: The present members by name.
Members = dict[str, Member]


class NotAMember(BadRequest):
    """The request names somebody who does not belong to the cluster."""

    code = "not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"{bodies.quote(name)} is not a member of this cluster.")


def handle(request: IRequest, node: INode) -> None:
    """Answer a request whose path is `PATH`, or begins with `PREFIX`."""
    try:
        if request.path == PATH:
            _all(request, node)
        else:
            _one(request, node, _name_in_path(request.path))
    except RaftdError as e:
        refused(request, e)


def _all(request: IRequest, node: INode) -> None:
    method = request.method
    if method == "OPTIONS":
        options(request, ALLOW_ALL)
    elif method not in ("GET", "HEAD", "POST"):
        not_allowed(request, ALLOW_ALL)
    elif method == "POST":
        no_parameters(request.query, "/members")
        changes, force = _wanted(request.body)
        _change(request, node, force, lambda members: [make(members) for make in changes])
    else:
        no_parameters(request.query, "/members")
        status = node.status()
        is_leader = status.role == "leader"
        found = [member_as_json(member, is_leader) for member in status.members]
        json(request, 200, {"members": found}, (NO_CACHE,))


def _one(request: IRequest, node: INode, name: str) -> None:
    method = request.method
    if method == "OPTIONS":
        options(request, ALLOW_ONE)
    elif method == "GET" or method == "HEAD":
        if request.query:
            raise BadRequest("A member has no parameters to be read with.")
        _get(request, node, name)
    elif method == "PATCH":
        force, patch = _force(request.query), _patch(request.body)
        _change(request, node, force, lambda members: patch(find(members, name).id))
    elif method == "DELETE":
        force = _force(request.query)
        if request.body:
            raise BadRequest("A DELETE has no body; there is ?force=true.")
        _change(request, node, force, lambda members: [Remove(find(members, name).id)])
    else:
        not_allowed(request, ALLOW_ONE)


def _get(request: IRequest, node: INode, name: str) -> None:
    status = node.status()
    for member in status.members:
        if member.member.name == name:
            json(request, 200, member_as_json(member, status.role == "leader"), (NO_CACHE,))
            return
    raise NotAMember(name)


# -- what is asked for ---------------------------------------------------------------


def _name_in_path(path: bytes) -> str:
    encoded = path[len(PREFIX) :]
    if not encoded:
        raise BadRequest("The path names no member: what follows /members/ is its name.")
    if _malformed_percent(encoded):
        raise BadRequest("In the name, a % must be followed by two hexadecimal digits.")
    try:
        return unquote_to_bytes(encoded).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The name is not UTF-8.") from None


def _force(query: bytes) -> bool:
    if query not in (b"", b"force=true", b"force=false"):
        raise BadRequest("A change has one parameter, force, which is true or false.")
    return query == b"force=true"


def _wanted(body: bytes) -> tuple[list[Callable[[Members], Change]], bool]:
    """The changes that a POST asks for, once the members are known; and force."""
    value = bodies.parse(body, _EXAMPLE)
    bodies.check_keys(value, ("changes", "force"), "The body")
    changes = value.get("changes")
    if not isinstance(changes, list) or not changes:
        raise BadRequest(f"'changes' must be a list, and not an empty one, as in {_EXAMPLE}.")
    if len(changes) > MAX_CHANGES:
        raise TooLarge(f"More than {MAX_CHANGES} changes cannot be made together.")
    force = bodies.boolean(value.get("force", False), "force")
    return [_wanted_change(change) for change in changes], force


def _wanted_change(value: object) -> Callable[[Members], Change]:
    change = bodies.as_object(value, "A change", _EXAMPLE_CHANGE)
    kinds = [kind for kind in ("promote", "demote", "remove", "rename") if kind in change]
    if "add" in change or "join" in change:
        raise BadRequest("A node is added by starting it: it joins by itself.")
    if len(kinds) != 1:
        raise BadRequest(
            "A change has one of 'promote', 'demote', 'remove' and 'rename', "
            f"like {_EXAMPLE_CHANGE}."
        )
    kind = kinds[0]
    name = bodies.text(change[kind], kind)
    if kind == "rename":
        bodies.check_keys(change, ("rename", "to"), "A change of a name")
        to = bodies.new_name(change.get("to"), "to")
        return lambda members: Rename(find(members, name).id, to)
    bodies.check_keys(change, (kind,), f"A change with {kind!r}")
    if kind == "promote":
        return lambda members: Promote(find(members, name).id)
    if kind == "demote":
        return lambda members: Demote(find(members, name).id)
    return lambda members: Remove(find(members, name).id)


def _patch(body: bytes) -> Callable[[int], list[Change]]:
    """The changes that a PATCH asks for, once the id of its member is known."""
    value = bodies.parse(body, _EXAMPLE_PATCH)
    bodies.check_keys(value, ("role", "name"), "The body")
    if not value:
        raise BadRequest(f"The body says nothing to be changed; it may be {_EXAMPLE_PATCH}.")
    makes: list[Callable[[int], Change]] = []
    if "name" in value:
        to = bodies.new_name(value["name"], "name")
        makes.append(lambda member_id: Rename(member_id, to))
    if "role" in value:
        if value["role"] not in ("voter", "learner"):
            raise BadRequest("'role' must be 'voter' or 'learner'.")
        makes.append(Promote if value["role"] == "voter" else Demote)
    return lambda member_id: [make(member_id) for make in makes]


# -- doing it ------------------------------------------------------------------------


def with_members(request: IRequest, node: INode, act: Callable[[Members], None]) -> None:
    """
    Call `act` with the members of now, or of a moment later.

    This node's own view may be behind: a name that it knows may have gone to
    another member, and one that it does not know may be there.  A read of the
    whole cluster brings it up to date.  What `act` raises is answered.
    """

    def done(outcome: RaftdError | None) -> None:
        if outcome is not None:
            failed_read(request, outcome)
            return
        try:
            act({status.member.name: status.member for status in node.status().members})
        except RaftdError as e:
            refused(request, e)

    node.read(done)


def find(members: Members, name: str) -> Member:
    """The member called `name`; `NotAMember`."""
    member = members.get(name)
    if member is None:
        raise NotAMember(name)
    return member


def answer(request: IRequest, asked: Deferred[T], done: Callable[[T], None]) -> None:
    """Let `done` answer when `asked` has fired; answer its failure."""

    def failed(failure: Failure) -> None:
        if isinstance(failure.value, RaftdError):
            failed_change(request, failure.value)
        else:
            _log.failure("A change in the cluster failed unexpectedly", failure)
            error(request, 500, "internal_error", "The server failed; its log says how.")

    asked.addCallbacks(done, failed)


def refused(request: IRequest, reason: RaftdError) -> None:
    """Answer a request that was found wrong before anything was done."""
    if isinstance(reason, NotAMember):
        error(request, 404, reason.code, str(reason), (NO_CACHE,))
    else:
        failed_change(request, reason)


def _change(
    request: IRequest, node: INode, force: bool, make: Callable[[Members], list[Change]]
) -> None:
    def changed(configuration: Configuration) -> None:
        json(request, 200, {"members": _as_json(configuration)})

    with_members(
        request,
        node,
        lambda members: answer(request, node.change_membership(make(members), force), changed),
    )


def _as_json(configuration: Configuration) -> list[dict[str, object]]:
    """The members, in the order of their names; of a joint configuration, those to be."""
    members = [(m.name, m.id, "voter") for m in configuration.voters]
    members += [(m.name, m.id, "learner") for m in configuration.learners]
    return [
        {"name": name, "id": f"{member_id:016x}", "role": role}
        for name, member_id, role in sorted(members)
    ]
