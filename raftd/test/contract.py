"""
The OpenAPI document as a judge: whatever the web face answers must be in it.

The schemas are JSON Schema, of which `violations` knows what they use.  An
answer is judged more strictly than by a client: it has no property that is
not documented.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from raftd.web.openapi import document

DOCUMENT = document("26.11.0")
PATHS: dict[str, dict[str, Any]] = DOCUMENT["paths"]

_KEYWORDS = {
    "$ref", "type", "properties", "required", "items", "enum", "pattern", "minimum", "maximum",
    "exclusiveMinimum", "minLength", "maxLength", "minItems", "maxItems", "oneOf", "anyOf",
    "allOf", "minProperties", "additionalProperties", "description", "format", "examples",
    "default", "contentEncoding",
}  # fmt: skip

#: Fields that are not for the client's program, but for what is between.
_FOR_OTHERS = {
    "Cache-Control", "Content-Disposition", "X-Accel-Buffering", "X-Content-Type-Options"
}  # fmt: skip

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def resolved(value: Any) -> Any:
    """What a `$ref` leads to."""
    while "$ref" in value:
        found: Any = DOCUMENT
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        value = found
    return value


def template(path: str) -> str | None:
    """The documented path that `path` is an instance of."""
    if path.startswith("/db/") and path != "/db/":
        return "/db/{key}"
    for known in PATHS:
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), path):
            return known
    return None


def check(
    method: str,
    target: bytes,
    status: int,
    content_type: str,
    headers: Mapping[str, str],
    body: bytes,
) -> None:
    """`AssertionError` if this answer is not documented."""
    where = template(target.partition(b"?")[0].decode("latin-1"))
    if where is None:
        assert status in (400, 404, 503, 204), (target, status)
        return
    operation = PATHS[where].get(method.lower())
    if operation is None:
        # Before there is a cluster, it is not looked at what is asked.
        assert status in (405, 503, 400), f"{method} {where} is not documented"
        return
    assert str(status) in operation["responses"], f"{method} {where}: {status} not documented"
    response = resolved(operation["responses"][str(status)])
    content = response.get("content", {})
    unknown = set(headers) - set(response.get("headers", {})) - _FOR_OTHERS
    assert not unknown, f"{method} {where} {status}: {unknown} not documented"
    if method == "HEAD" or not body:
        return
    kind = content_type.partition(";")[0]
    assert kind in content, f"{method} {where} {status}: {kind} not documented"
    if kind == "application/json":
        found = list(violations(json.loads(body), content[kind]["schema"], "the answer"))
        assert not found, f"{method} {where} {status}: {found}"


def violations(value: Any, schema: Any, where: str) -> Iterator[str]:
    """Everything in `value` that is not as `schema` says."""
    unknown = set(schema) - _KEYWORDS
    if unknown:
        raise NotImplementedError(f"{unknown} of JSON Schema")
    if "$ref" in schema:
        yield from violations(value, resolved(schema), where)
        return
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kinds = {kind for name in names for kind in _TYPES[name]}
        if type(value) not in kinds:
            yield f"{where} is {value!r}, not {names}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}, none of {schema['enum']}"
    yield from _combined(value, schema, where)
    if isinstance(value, str):
        yield from _bounded(len(value), schema, "Length", where)
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{where} is {value!r}, not like {schema['pattern']}"
    elif isinstance(value, list):
        yield from _bounded(len(value), schema, "Items", where)
        for i, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), f"{where}[{i}]")
    elif isinstance(value, dict):
        yield from _object(value, schema, where)
    elif isinstance(value, (int, float)):
        yield from _bounded(value, schema, "imum", where)
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            yield f"{where} is {value}"


def _bounded(value: float, schema: Any, suffix: str, where: str) -> Iterator[str]:
    if value < schema.get(f"min{suffix}", value) or value > schema.get(f"max{suffix}", value):
        yield f"{where} is out of bounds"


def _combined(value: Any, schema: Any, where: str) -> Iterator[str]:
    for part in schema.get("allOf", ()):
        yield from violations(value, part, where)
    for keyword in ("oneOf", "anyOf"):
        if keyword in schema:
            found = [list(violations(value, part, where)) for part in schema[keyword]]
            right = found.count([])
            if right == 0 or (keyword == "oneOf" and right > 1):
                yield f"{where} is {right} of {keyword}: {found}"


def _object(value: dict[str, Any], schema: Any, where: str) -> Iterator[str]:
    properties = schema.get("properties")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where} has no {name!r}"
    if len(value) < schema.get("minProperties", 0):
        yield f"{where} is empty"
    if properties is None:
        return
    for name, inside in value.items():
        if name in properties:
            yield from violations(inside, properties[name], f"{where}.{name}")
        else:
            yield f"{where} has {name!r}, which is not documented"
