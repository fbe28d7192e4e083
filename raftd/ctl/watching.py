"""`watch`."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from raftd.client import Changes, Event
from raftd.client.values import named
from raftd.ctl.children import Child, environment_of, exit_status
from raftd.ctl.context import Context
from raftd.ctl.keys import optional, record_json
from raftd.ctl.output import JSON, RAW, TABLE, Cell, Output, escaped
from raftd.ctl.statuses import OK, Usage

_STYLES = {"put": "green", "delete": "red"}


def event_json(event: Event) -> dict[str, Any]:
    """An event as HTTP has it."""
    if event.is_delete:
        fields = {**named("key", event.key), "mod_revision": event.record.mod_revision}
    else:
        fields = record_json(event.record)
    if event.previous is not None:
        fields["previous"] = record_json(event.previous)
    return {"type": _kind(event), **fields}


def _kind(event: Event) -> str:
    return "delete" if event.is_delete else "put"


async def watch(context: Context) -> int:
    arguments, output = context.arguments, context.output
    spans = (arguments.key, arguments.prefix, arguments.start or arguments.end)
    if sum(span is not None for span in spans) != 1:
        raise Usage("What is watched is KEY, or --prefix, or from --start to --end.")
    seen = 0
    async with context.client.watch(
        optional(arguments.key),
        prefix=optional(arguments.prefix),
        start=optional(arguments.start),
        end=optional(arguments.end),
        revision=arguments.revision,
        previous=arguments.prev,
        events=arguments.only or "",
    ) as watching:
        async for changes in watching:
            if arguments.exec is None:
                _print(output, changes, arguments.prev)
                output.flush()
            elif status := await _execute(context, changes):
                return status
            seen += 1
            if seen == arguments.count:
                return OK
    return OK


def _print(output: Output, changes: Changes, with_previous: bool) -> None:
    if output.format == JSON:
        events = [event_json(event) for event in changes.events]
        output.json({"revision": changes.revision, "events": events})
        return
    for event in changes.events:
        if output.format == RAW:
            if not event.is_delete:
                output.write(event.value + b"\n")
        elif output.format == TABLE or output.is_terminal:
            _show(output, changes.revision, event)
        else:
            row: list[str | int | bytes | Cell] = [
                changes.revision,
                _kind(event),
                event.key,
                event.value,
            ]
            if with_previous:
                row.append(b"" if event.previous is None else event.previous.value)
            output.fields(row)


def _show(output: Output, revision: int, event: Event) -> None:
    """One line, in columns as far as a stream can have them."""
    kind = _kind(event)
    cells = [
        output.styled(f"{revision:>8}", "dim"),
        output.styled(f"{kind:<6}", _STYLES[kind]),
        output.styled(escaped(event.key), "bold"),
    ]
    if not event.is_delete:
        cells.append(escaped(event.value))
    if event.previous is not None:
        cells.append(output.styled(f"(was {escaped(event.previous.value)})", "dim"))
    output.line("  ".join(cells))


async def _execute(context: Context, changes: Changes) -> int:
    """Run the command for each event; the exit status of the first that is not 0."""
    for event in changes.events:
        variables = {
            b"RAFTCTL_REVISION": b"%d" % changes.revision,
            b"RAFTCTL_TYPE": _kind(event).encode("ascii"),
            b"RAFTCTL_KEY_BASE64": b64encode(event.key),
        }
        if b"\0" not in event.key:  # which no environment can hold
            variables[b"RAFTCTL_KEY"] = event.key
        child = Child(
            context.reactor,
            ["/bin/sh", "-c", context.arguments.exec],
            {**environment_of(context.environ), **variables},
            stdin=event.value,
        )
        try:
            code = await child.ended()
        finally:
            child.kill()
        if code:
            context.output.complain(
                f"The command has failed for revision {changes.revision}; "
                f"--revision {changes.revision} begins with it again."
            )
            return exit_status(code)
    return OK
