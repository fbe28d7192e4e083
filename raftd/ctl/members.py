"""`member`, `status` and `leader`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from raftd.client import Client
from raftd.client.admin import ClusterMember
from raftd.ctl.context import Context
from raftd.ctl.output import JSON, Cell, Output, size
from raftd.ctl.statuses import NO, OK, Refused, Usage, status_of
from raftd.errors import BadAnswer, RaftdError
from raftd.names import canonical_name

#: How long a single member may take to say how it is, in seconds.
STATUS_TIMEOUT_S = 2.0
#: How many members a new one is told to join through: any one of them will do.
JOIN_THROUGH = 3

_ROLE_STYLES = {"leader": "green", "follower": "", "learner": "cyan"}


def _name(text: str) -> str:
    try:
        return canonical_name(text)
    except BadAnswer as e:
        raise Usage(str(e)) from None


# -- member ----------------------------------------------------------------------


async def list_members(context: Context) -> int:
    _print(context.output, await context.admin.members())
    return OK


def _print(output: Output, members: Sequence[ClusterMember]) -> None:
    if output.format == JSON:
        rows = [{"name": m.name, "id": m.id, "role": m.role} for m in members]
        output.json({"members": rows})
    else:
        output.rows(("name", "role", "id"), [[m.name, m.role, m.id] for m in members])


async def add(context: Context) -> int:
    """A node adds itself, by joining: what to type for that."""
    name = _name(context.arguments.name)
    members = await context.admin.members()
    if any(member.name == name for member in members):
        raise Refused(f"{name} is a member already.")
    through = ",".join(member.name for member in members[:JOIN_THROUGH])
    command = ["raftd", "--name", name, "--join", through]
    if context.arguments.learner:
        command.append("--learner")
    if context.output.format is None and context.output.is_terminal:
        context.output.say("On its machine, in an empty directory:")
    text = shlex.join(command)
    context.output.result({"command": command}, text, [("command", text)])
    return OK


async def promote(context: Context) -> int:
    name, force = _name(context.arguments.name), context.arguments.force
    _print(context.output, await context.admin.promote(name, force=force))
    return OK


async def demote(context: Context) -> int:
    name, force = _name(context.arguments.name), context.arguments.force
    _print(context.output, await context.admin.demote(name, force=force))
    return OK


async def remove(context: Context) -> int:
    name, force = _name(context.arguments.name), context.arguments.force
    _print(context.output, await context.admin.remove(name, force=force))
    return OK


async def move(context: Context) -> int:
    arguments = context.arguments
    name, to = _name(arguments.name), _name(arguments.to)
    try:
        members = await context.admin.rename(name, to, force=arguments.force)
    except RaftdError as e:
        # The answer to a first try may have been lost, and then the old name is gone.
        if status_of(e) != NO:
            raise
        members = await context.admin.members()
        if not any(member.name == to for member in members):
            raise e from None
    _print(context.output, members)
    return OK


# -- leader ----------------------------------------------------------------------


async def leader(context: Context) -> int:
    to = context.arguments.to
    if to is None:
        name = (await context.client.status())["leader"]
        if name is None:
            raise Refused("No leader is known.")
    else:
        name = await context.admin.transfer(_name(to) if to else "")
    context.output.result({"leader": name}, name or "", [("leader", name or "not known yet")])
    return OK


# -- status ----------------------------------------------------------------------


async def status(context: Context) -> int:
    """Ask one for the members, and then each of them."""
    seen = await context.client.status()
    names = [member["name"] for member in seen["members"]]
    asked = [
        Deferred.fromCoroutine(
            _ask(context.client_of((name,), min(STATUS_TIMEOUT_S, context.arguments.timeout)))
        )
        for name in names
    ]
    answers = await gatherResults(asked, consumeErrors=True)
    found = [
        {
            "name": member["name"],
            "id": member["id"],
            "role": member["role"],
            **({"error": answer} if isinstance(answer, str) else {"status": answer}),
            "problems": _problems(member, answer),
        }
        for member, answer in zip(seen["members"], answers, strict=True)
    ]
    healthy = not any(member["problems"] for member in found)
    output = context.output
    if output.format == JSON:
        output.json({"leader": seen["leader"], "healthy": healthy, "members": found})
    else:
        _table(output, found)
    return OK if healthy else NO


async def _ask(client: Client) -> dict[str, Any] | str:
    """What a member says, or why it says nothing."""
    try:
        return await client.status()
    except RaftdError as e:
        return str(e)


def _problems(member: dict[str, Any], answer: dict[str, Any] | str) -> list[str]:
    if isinstance(answer, str):
        return ["does not answer"]
    problems = []
    if answer["member_id"] != member["id"]:
        problems.append("is another node")
    if answer["leader"] is None:
        problems.append("knows no leader")
    if differs := answer.get("digest", {}).get("differs_index"):
        problems.append(f"differs from the leader since index {differs}")
    return problems


_TITLES = ("name", "role", "term", "applied", "revision", "keys", "size")


def _table(output: Output, found: Sequence[dict[str, Any]]) -> None:
    rows: list[list[str | int | bytes | Cell]] = []
    for member in found:
        said: dict[str, Any] = member.get("status", {})
        role = _role(member, said)
        row: list[str | int | bytes | Cell] = [
            member["name"],
            Cell(role, _ROLE_STYLES.get(role, "yellow")),
        ]
        row += [said.get(field, "") for field in ("term", "applied_index", "revision", "keys")]
        row.append(size(said["size_bytes"]) if said else "")
        row.append(Cell("; ".join(member["problems"]), "red"))
        rows.append(row)
    titles = [*_TITLES, "problem"]
    if output.is_table and not any(member["problems"] for member in found):
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    output.rows(titles, rows)


def _role(member: dict[str, Any], said: dict[str, Any]) -> str:
    if not said:
        return "?"
    return "learner" if member["role"] == "learner" else str(said["role"])
