"""`get`, `put`, `del` and `list`."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from raftd.client import KeyValue, Page, PreconditionFailed
from raftd.client.values import named
from raftd.ctl.arguments import LIST_LIMIT
from raftd.ctl.context import Context
from raftd.ctl.output import JSON, RAW, TABLE, Cell, Output, Row, escaped, shown
from raftd.ctl.statuses import OK, Refused, Usage

#: The most that is read from a file or from standard input, in bytes: far more
#: than a server takes, which has the last word.
MAX_INPUT_BYTES = 16 << 20


def record_json(record: KeyValue, *, keys_only: bool = False) -> dict[str, Any]:
    """A record as HTTP has it."""
    fields: dict[str, Any] = named("key", record.key)
    if not keys_only:
        fields.update(named("value", record.value))
    fields.update(
        create_revision=record.create_revision,
        mod_revision=record.mod_revision,
        version=record.version,
    )
    if record.lease:
        fields["lease"] = record.lease
    return fields


def record_pairs(record: KeyValue) -> list[tuple[str, str | int | bytes | Cell]]:
    """A record as the rows of a table."""
    pairs: list[tuple[str, str | int | bytes | Cell]] = [
        ("key", record.key),
        ("value", record.value),
        ("create revision", str(record.create_revision)),
        ("mod revision", str(record.mod_revision)),
        ("version", str(record.version)),
    ]
    if record.lease:
        pairs.append(("lease", record.lease))
    return pairs


def max_staleness_s(arguments: Namespace) -> float:
    """How old what is read may be; 0: not at all."""
    if arguments.local:
        return math.inf
    return (arguments.max_staleness_ms or 0) / 1000


def read_input(context: Context, name: str) -> bytes:
    """What is in a file, or comes on standard input if its name is `-`."""
    try:
        if name == "-":
            data = context.stdin.read(MAX_INPUT_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = _read(file)
    except OSError as e:
        raise Usage(f"{name} cannot be read: {e.strerror}.") from None
    if len(data) > MAX_INPUT_BYTES:
        raise Usage(f"{name} has more than {MAX_INPUT_BYTES} bytes.")
    return data


def _read(file: BinaryIO) -> bytes:
    return file.read(MAX_INPUT_BYTES + 1)


def optional(text: str | None) -> bytes | None:
    """An argument as bytes, those that were typed."""
    return None if text is None else os.fsencode(text)


# -- one key ---------------------------------------------------------------------


async def get(context: Context) -> int:
    arguments, output = context.arguments, context.output
    key = os.fsencode(arguments.key)
    record = await context.client.get(
        key, revision=arguments.revision, max_staleness_s=max_staleness_s(arguments)
    )
    if record is None:
        raise Refused(f"There is no key {escaped(key)}.")
    if output.format == JSON:
        output.json(record_json(record))
    elif output.format == TABLE:
        output.table((), [[Cell(name, "dim"), value] for name, value in record_pairs(record)])
    elif output.format == RAW or not output.is_terminal:
        output.write(record.value)
    else:
        text = shown(record.value)
        output.line(text.removesuffix("\n"))
    return OK


async def put(context: Context) -> int:
    arguments, output = context.arguments, context.output
    key = os.fsencode(arguments.key)
    if (arguments.value is None) == (arguments.file is None):
        raise Usage("A put has one value: VALUE, - for standard input, or --file.")
    if arguments.file is not None:
        value = read_input(context, arguments.file)
    elif arguments.value == "-":
        value = read_input(context, "-")
    else:
        value = os.fsencode(arguments.value)
    with _told(key):
        written = await context.client.put(
            key,
            value,
            if_revision=0 if arguments.if_absent else arguments.if_revision,
            lease=arguments.lease or "",
            ttl_s=arguments.ttl,
            previous=arguments.prev,
        )
    fields: dict[str, Any] = {**named("key", key), "revision": written.revision}
    pairs: list[tuple[str, str | int | bytes | Cell]] = [
        ("key", key),
        ("revision", str(written.revision)),
        ("created", "yes" if written.created else "no"),
    ]
    fields["created"] = written.created
    if written.lease:
        fields["lease"] = written.lease
        pairs.append(("lease", written.lease))
    _previous(output, fields, pairs, written.previous, arguments.prev)
    return OK


@contextmanager
def _told(key: bytes) -> Iterator[None]:
    """What a condition has failed at, for people."""
    try:
        yield
    except PreconditionFailed as e:
        if not e.mod_revision:
            raise Refused(f"There is no key {escaped(key)}; nothing was changed.") from None
        raise Refused(
            f"{escaped(key)} is there, at revision {e.mod_revision}; nothing was changed."
        ) from None


def _previous(
    output: Output,
    fields: dict[str, Any],
    pairs: list[tuple[str, str | int | bytes | Cell]],
    previous: KeyValue | None,
    wanted: bool,
) -> None:
    """Print what came of a write, with what was there before if that was `wanted`."""
    if previous is not None:
        fields["previous"] = record_json(previous)
        pairs.append(("previous value", previous.value))
        pairs.append(("previous revision", str(previous.mod_revision)))
    if wanted and output.format == RAW:
        if previous is not None:
            output.write(previous.value)
        return
    text = None
    if wanted:
        text = f"{fields['revision']}" + (
            "" if previous is None else f"\t{escaped(previous.value)}"
        )
    output.result(fields, fields["revision"], pairs, text)


async def delete(context: Context) -> int:
    arguments, output = context.arguments, context.output
    if (arguments.key is None) == (arguments.prefix is None):
        raise Usage("What is deleted is KEY, or all that --prefix names.")
    if arguments.prefix is not None:
        if arguments.if_revision is not None or arguments.prev:
            raise Usage("--if-revision and --prev are for the delete of one key.")
        deleted = await context.client.delete_range(os.fsencode(arguments.prefix))
        fields = {"deleted": deleted.deleted, "revision": deleted.revision}
        pairs = [("deleted", str(deleted.deleted)), ("revision", str(deleted.revision))]
        output.result(fields, deleted.deleted, [(name, value) for name, value in pairs])
        return OK
    key = os.fsencode(arguments.key)
    with _told(key):
        written = await context.client.delete(
            key, if_revision=arguments.if_revision, previous=arguments.prev
        )
    if written is None:
        raise Refused(f"There is no key {escaped(key)}.")
    _previous(
        output,
        {**named("key", key), "revision": written.revision},
        [("key", key), ("revision", str(written.revision))],
        written.previous,
        arguments.prev,
    )
    return OK


# -- many keys -------------------------------------------------------------------


async def list_keys(context: Context) -> int:
    arguments, output = context.arguments, context.output
    if arguments.prefix is not None and (arguments.start or arguments.end):
        raise Usage("A list is of a PREFIX, or from --start to --end: not both.")
    if arguments.count:
        page = await _page(context, arguments.revision, None, None)
        fields = {"count": page.count, "revision": page.revision}
        output.result(
            fields, page.count, [("count", str(page.count)), ("revision", str(page.revision))]
        )
        return OK
    if arguments.all:
        rows = []
        async for page in _pages(context):
            for record in page.kvs:
                if output.is_table:
                    rows.append(record)
                else:
                    _print(output, record, arguments.keys_only)
        if output.is_table:
            _table(output, rows, arguments.keys_only)
        return OK
    limit = arguments.limit or LIST_LIMIT
    page = await _page(context, arguments.revision, None, limit)
    if output.format == JSON:
        kvs = [record_json(kv, keys_only=arguments.keys_only) for kv in page.kvs]
        output.json(
            {"revision": page.revision, "count": page.count, "more": page.more, "kvs": kvs}
        )
    elif output.is_table:
        _table(output, page.kvs, arguments.keys_only)
    else:
        for record in page.kvs:
            _print(output, record, arguments.keys_only)
    if page.more and arguments.limit is None:
        output.say(
            f"These are {len(page.kvs):,} of {page.count:,} keys; --all lists all of them."
        )
    return OK


async def _page(
    context: Context, revision: int, after: bytes | None, limit: int | None
) -> Page:
    arguments = context.arguments
    return await context.client.page(
        optional(arguments.prefix),
        start=optional(arguments.start),
        end=optional(arguments.end),
        after=after,
        limit=limit,
        keys_only=arguments.keys_only,
        count_only=arguments.count,
        descending=arguments.reverse,
        revision=revision,
        max_staleness_s=max_staleness_s(arguments),
    )


async def _pages(context: Context) -> AsyncIterator[Page]:
    """All pages of a range, as of one revision."""
    revision, after = context.arguments.revision, None
    while True:
        page = await _page(context, revision, after, LIST_LIMIT)
        yield page
        if not page.more or not page.kvs:
            return
        revision, after = revision or page.revision, page.kvs[-1].key


def _table(output: Output, records: Sequence[KeyValue], keys_only: bool) -> None:
    if keys_only:
        output.table(("key",), [[kv.key] for kv in records])
        return
    rows: list[Row] = [
        (kv.key, kv.value, kv.mod_revision, kv.version, kv.lease) for kv in records
    ]
    titles = ["key", "value", "revision", "version", "lease"]
    if not any(kv.lease for kv in records):
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    output.table(titles, rows)


def _print(output: Output, record: KeyValue, keys_only: bool) -> None:
    if output.format == JSON:
        output.json(record_json(record, keys_only=keys_only))
    elif output.format == RAW:
        output.write((record.key if keys_only else record.value) + b"\n")
    else:
        output.fields([record.key] if keys_only else [record.key, record.value])
