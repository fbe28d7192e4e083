"""`lease grant`, `revoke`, `keepalive`, `list` and `show`."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import TimeoutError
from twisted.internet.task import deferLater

from raftd.client.admin import LeaseInfo
from raftd.client.leases import KEEP_ALIVES_PER_TTL
from raftd.client.values import named
from raftd.ctl.context import Context
from raftd.ctl.output import JSON, Cell
from raftd.ctl.statuses import OK, LostHold, Usage
from raftd.errors import DidNotHappen, LeaseNotFound

_HEX = frozenset("0123456789abcdef")


def lease_id(text: str) -> str:
    """An id as it was typed; `Usage` if it cannot be one."""
    lowered = text.lower()
    if len(lowered) != 16 or not _HEX.issuperset(lowered):
        raise Usage(f"{text!r} is no id of a lease: that is 16 hexadecimal digits.")
    return lowered


def _print(context: Context, lease: LeaseInfo) -> None:
    context.output.result(
        {"id": lease.id, "ttl": lease.ttl_s},
        lease.id,
        [("id", lease.id), ("ttl", f"{lease.ttl_s:g} s")],
    )


async def grant(context: Context) -> int:
    _print(context, await context.admin.grant(context.arguments.ttl))
    return OK


async def revoke(context: Context) -> int:
    lease = lease_id(context.arguments.id)
    deleted = await context.admin.revoke(lease)
    context.output.result(
        {"id": lease, "deleted": deleted}, deleted, [("id", lease), ("deleted", str(deleted))]
    )
    return OK


async def keep_alive(context: Context) -> int:
    lease = lease_id(context.arguments.id)
    reactor, output = context.reactor, context.output
    sent = reactor.seconds()
    info = await context.admin.keep_alive(lease)
    if context.arguments.once:
        _print(context, info)
        return OK
    if output.format is None and output.is_terminal:
        output.say(f"Keeping {info.id} alive for {info.ttl_s:g} seconds at a time.")
    while True:
        # Counted from when it was sent: it is over here no later than there.
        ends = sent + info.ttl_s
        pause_s = sent + info.ttl_s / KEEP_ALIVES_PER_TTL - reactor.seconds()
        await deferLater(reactor, max(0.0, pause_s))
        sent, info = await _insist(context, lease, ends)


async def _insist(context: Context, lease: str, ends: float) -> tuple[float, LeaseInfo]:
    """Keep it alive once, however often that fails before it `ends`; when it was sent."""
    reactor = context.reactor
    while True:
        sent = reactor.seconds()
        asked = context.admin.keep_alive(lease)
        asked.addTimeout(max(0.0, ends - sent), reactor)
        try:
            return sent, await asked
        except LeaseNotFound as e:
            raise LostHold(str(e)) from None
        except TimeoutError:
            raise LostHold("The lease may be over: nobody could keep it alive.") from None
        except DidNotHappen as e:
            if reactor.seconds() >= ends:
                raise LostHold(f"The lease may be over: {e}") from None


async def list_leases(context: Context) -> int:
    leases = await context.admin.leases()
    if context.output.format == JSON:
        context.output.json(
            {"leases": [{"id": lease.id, "ttl": lease.ttl_s} for lease in leases]}
        )
    else:
        context.output.rows(("id", "ttl"), [[lease.id, f"{lease.ttl_s:g}"] for lease in leases])
    return OK


async def show(context: Context) -> int:
    lease = await context.admin.show_lease(lease_id(context.arguments.id))
    fields: dict[str, Any] = {
        "id": lease.id,
        "ttl": lease.ttl_s,
        "ttl_left": lease.ttl_left_s,
        "keys": [named("key", key) for key in lease.keys],
        "more": lease.more,
    }
    pairs: list[tuple[str, str | int | bytes | Cell]] = [
        ("id", lease.id),
        ("ttl", f"{lease.ttl_s:g} s"),
        ("ttl left", f"{lease.ttl_left_s:.1f} s"),
        *(("key", key) for key in lease.keys),
    ]
    if lease.more:
        pairs.append(("", "and more keys"))
    context.output.details(fields, f"{lease.ttl_left_s:g}", pairs)
    return OK
