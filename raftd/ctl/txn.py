"""`txn`."""

from __future__ import annotations

import json
from typing import Any

from raftd.client import Deleted, Outcome, Page, Written
from raftd.client.transactions import Compare, Operation
from raftd.ctl.context import Context
from raftd.ctl.keys import read_input, record_json
from raftd.ctl.output import JSON, RAW, Cell, Output, escaped
from raftd.ctl.statuses import NO, OK, Usage

_PARTS = ("compare", "then", "else")


async def txn(context: Context) -> int:
    parts = read_txn(read_input(context, context.arguments.file))
    outcome = await context.client.transact(
        [Compare(fields) for fields in parts["compare"]],
        [Operation(fields) for fields in parts["then"]],
        [Operation(fields) for fields in parts["else"]],
    )
    _print(context.output, outcome)
    return OK if outcome.succeeded else NO


def read_txn(data: bytes) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a transaction; what is in them is for the server to judge."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise Usage(f"A transaction is JSON, and this is none: {e}.") from None
    if not isinstance(fields, dict):
        raise Usage("A transaction is a JSON object with compare, then and else.")
    if unknown := sorted(set(fields) - set(_PARTS)):
        raise Usage(f"A transaction has compare, then and else, but no {unknown[0]!r}.")
    parts = {name: fields.get(name, []) for name in _PARTS}
    for name, items in parts.items():
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise Usage(f"{name!r} is a list of JSON objects.")
    return parts


def outcome_json(outcome: Outcome, *, inner: bool = False) -> dict[str, Any]:
    """An outcome as HTTP has it; only the outermost has a revision."""
    fields: dict[str, Any] = {"succeeded": outcome.succeeded}
    if not inner:
        fields["revision"] = outcome.revision
    fields["results"] = [_result_json(result) for result in outcome.results]
    return fields


def _result_json(result: Written | Deleted | Page | Outcome) -> dict[str, Any]:
    if isinstance(result, Outcome):
        return {"txn": outcome_json(result, inner=True)}
    if isinstance(result, Page):
        kvs = [record_json(kv) for kv in result.kvs]
        return {"get": {"count": result.count, "more": result.more, "kvs": kvs}}
    if isinstance(result, Deleted):
        fields: dict[str, Any] = {"deleted": result.deleted}
        if result.previous:
            fields["previous"] = [record_json(kv) for kv in result.previous]
        return {"delete": fields}
    fields = {"created": result.created}
    if result.previous is not None:
        fields["previous"] = record_json(result.previous)
    return {"put": fields}


def _print(output: Output, outcome: Outcome) -> None:
    if output.format == JSON:
        output.json(outcome_json(outcome))
    elif output.format == RAW:
        _raw(output, outcome)
    else:
        word = Cell("succeeded", "green") if outcome.succeeded else Cell("failed", "red")
        if output.is_terminal:
            output.line(f"{output.styled(*word)} at revision {outcome.revision}")
        else:
            output.fields([word, outcome.revision])
        _results(output, outcome, "")


def _raw(output: Output, outcome: Outcome) -> None:
    """The values that were read, each with a line's end."""
    for result in outcome.results:
        if isinstance(result, Outcome):
            _raw(output, result)
        elif isinstance(result, Page):
            for record in result.kvs:
                output.write(record.value + b"\n")


def _results(output: Output, outcome: Outcome, number: str) -> None:
    """A line for each result, and for each key that was read, with its number."""
    for i, result in enumerate(outcome.results, 1):
        place = f"{number}{i}"
        if isinstance(result, Outcome):
            word = "succeeded" if result.succeeded else "failed"
            _line(output, place, "txn", word)
            _results(output, result, f"{place}.")
        elif isinstance(result, Page):
            for record in result.kvs:
                _line(output, place, "get", escaped(record.key), escaped(record.value))
            if not result.kvs:
                _line(output, place, "get", f"count {result.count}")
        elif isinstance(result, Deleted):
            _line(output, place, "delete", str(result.deleted))
        else:
            _line(output, place, "put", "created" if result.created else "replaced")


def _line(output: Output, *texts: str) -> None:
    if output.is_terminal:
        output.line("  ".join(texts))
    else:
        output.fields(texts)
