"""
`GET /openapi.json`: what HTTP offers, for programs (OpenAPI 3.1).

Written by hand, and held against the handlers by `raftd/test/test_web_contract.py`
and `.ci/check_openapi.py`: a parameter or a status that is only here, or only
there, fails.
"""

from __future__ import annotations

from typing import Any

import msgspec

from raftd.errors import RaftdError
from raftd.interfaces import IRequest
from raftd.kv.interfaces import MAX_BACKUPS
from raftd.web import db, lease, ranges, watch
from raftd.web.answers import JSON, failed_read, is_offered
from raftd.web.fields import MAX_IDEMPOTENCY_KEY_BYTES
from raftd.web.parameters import no_parameters
from raftd.web.ranges import LIMIT, MAX_LIMIT
from raftd.web.schemas import (
    BOOLEAN,
    COUNT,
    HEX,
    HEX_ASKED,
    NAME,
    REVISION,
    SCHEMAS,
    SORT,
    STRING,
    TTL,
    Schema,
    ref,
    whole,
)

PATH = b"/openapi.json"

ALLOW = b"GET, HEAD, OPTIONS"

Operation = dict[str, Any]

_KEY = {"type": "string", "minLength": 1, "maxLength": 4096}
_TAG = {"type": "string", "pattern": '^"[0-9]+"$', "examples": ['"17"']}
_CONDITION = {"type": "string", "pattern": r'^(\*|"[0-9]+")$', "examples": ['"17"']}


def handle(request: IRequest, document: bytes) -> None:
    """Answer a request for `PATH` with the encoded document."""
    if not is_offered(request, ALLOW):
        return
    try:
        no_parameters(request.query, "/openapi.json")
    except RaftdError as e:
        failed_read(request, e)
        return
    request.respond(200, document, JSON)


def encoded(version: str) -> bytes:
    """The document as it is answered."""
    return msgspec.json.format(msgspec.json.encode(document(version)), indent=1) + b"\n"


# -- parts -----------------------------------------------------------------------


def _parameter(name: str, about: str, schema: Schema, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": about, "schema": schema, **more}


def _flag(name: str, about: str) -> dict[str, Any]:
    return _parameter(name, about, BOOLEAN, allowEmptyValue=True)


#: Everything that can be behind a question mark, by name.
QUERY = {
    parameter["name"]: parameter
    for parameter in (
        _parameter(
            "consistency",
            "`local`: what this node has applied, which may be behind.",
            {"enum": ["linearizable", "local"], "default": "linearizable"},
        ),
        _parameter(
            "max_staleness_ms",
            "Writes that were acknowledged so recently may be missing; without `consistency`.",
            COUNT,
        ),
        _parameter("revision", "As of this revision; of a watch: from it on.", REVISION),
        _parameter("ttl", "Give the key a lease of its own, of so many seconds.", TTL),
        _parameter("lease", "Attach the key to this lease; without `ttl`.", HEX_ASKED),
        _flag("prev", "Tell what was there before."),
        _parameter("prefix", "The keys that begin so; without `start` and `end`.", STRING),
        _parameter("start", "The keys from this one on.", STRING),
        _parameter(
            "end", "The keys up to but not including this one.", {**STRING, "minLength": 1}
        ),
        _parameter("after", "Only what comes behind this key, in the order.", STRING),
        _parameter("limit", "How many keys.", {**whole(1, MAX_LIMIT), "default": LIMIT}),
        _parameter("order", "Of the keys.", {"enum": ["asc", "desc"], "default": "asc"}),
        _parameter("sort", "By what; but by the key, without pages.", SORT),
        _flag("keys_only", "Leave the values out."),
        _flag("count_only", "Leave the keys out, too."),
        _flag("watch", "Stream what changes, as server-sent events."),
        _parameter("wait", "Long poll: the first change behind this revision.", COUNT),
        _parameter("timeout_ms", "Of a long poll.", whole(0, watch.MAX_POLL_TIMEOUT_MS)),
        _parameter("events", "Leave the other kind out.", {"enum": ["put", "delete"]}),
        _parameter("force", "Also if too few voters that answer would be left.", BOOLEAN),
    )
}


def _field(name: str, about: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": about, "schema": schema}


_IF_MATCH = _field("If-Match", "`*`, or the `ETag` that must still be right.", _CONDITION)
_IF_NONE_MATCH = _field(
    "If-None-Match", "`*`, or the `ETag` that must not be right.", _CONDITION
)
_LAST_EVENT_ID = _field("Last-Event-ID", "Of a watch: go on behind this revision.", COUNT)
_IDEMPOTENCY_KEY = _field(
    "Idempotency-Key",
    "A retry with the same key, within ten minutes, is not carried out again, and gets the "
    "first answer.",
    {"type": "string", "pattern": rf"^[\x21-\x7e]{{1,{MAX_IDEMPOTENCY_KEY_BYTES}}}$"},
)


def _path(name: str, about: str, schema: Schema) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": about,
        "schema": schema,
    }


def _header(about: str, schema: Schema) -> dict[str, Any]:
    return {"description": about, "schema": schema}


_ETAG = {"ETag": _header("The revision of the last change, in quotes.", _TAG)}
_RAFTD_REVISION = {"Raftd-Revision": _header("The revision that was come to.", COUNT)}
_RETRY_AFTER = {"Retry-After": _header("When to try again, in seconds.", COUNT)}
_ALLOW = {"Allow": _header("The methods that there are.", STRING)}

_JSON = "application/json"
_OCTETS = "application/octet-stream"
_EVENTS = "text/event-stream"


def _answer(
    about: str, schema: str = "", headers: dict[str, Any] | None = None, **content: Schema
) -> dict[str, Any]:
    """A response: JSON of a schema, or whatever is in `content`, or nothing."""
    response: dict[str, Any] = {"description": about}
    if headers:
        response["headers"] = headers
    if schema:
        response["content"] = {_JSON: {"schema": ref(schema)}}
    return response


def _with_content(response: dict[str, Any], content: dict[str, Schema]) -> dict[str, Any]:
    there = response.get("content", {})
    more = {kind: {"schema": schema} for kind, schema in content.items()}
    return {**response, "content": {**there, **more}}


#: What any error is, by its status.
RESPONSES: dict[str, Any] = {
    "400": _answer("The request is wrong; or `future_revision`.", "BadRequest"),
    "403": _answer("`cross_origin`: a page of another origin may change nothing.", "Error"),
    "404": _answer("`not_found`, `lease_not_found`.", "Error"),
    "409": _answer("It does not go together with what is there.", "Error"),
    "410": _answer("`compacted`: so old a revision is gone.", "Compacted"),
    "412": _answer("`precondition_failed`.", "PreconditionFailed", _ETAG),
    "413": _answer("`too_large`.", "Error"),
    "414": _answer("`uri_too_long`.", "Error"),
    "415": _answer("The body is encoded.", "Error"),
    "422": _answer("`idempotency_key_reused`: it came with another request before.", "Error"),
    "429": _answer("`idempotency_table_full`.", "Error", _RETRY_AFTER),
    "431": _answer("`headers_too_large`.", "Error"),
    "500": _answer("A defect of the server.", "Error"),
    "503": _answer(
        "`no_leader`, `no_quorum`, `overloaded` and the like: nothing was changed.",
        "Error",
        _RETRY_AFTER,
    ),
    "504": _answer("`outcome_unknown`: a write that may have happened.", "Error"),
    "507": _answer("`quota_reached`: the quota is reached.", "Error"),
}

#: Errors that any request may meet, most of them in the protocol.
EVERYWHERE = "400 403 413 414 431 500 503"
#: Those of a write through the log.
_OF_WRITES = "415 422 429 504"


def _operation(
    name: str,
    about: str,
    answers: dict[str, Any],
    errors: str = "",
    parameters: tuple[Any, ...] = (),
    query: tuple[str, ...] = (),
    body: dict[str, Any] | None = None,
) -> Operation:
    """`answers` by status; `errors` and `query` by name."""
    statuses = sorted(f"{EVERYWHERE} {errors}".split())
    responses = {**answers}
    responses.update((s, {"$ref": f"#/components/responses/{s}"}) for s in statuses)
    operation: Operation = {
        "operationId": name,
        "summary": about,
        "responses": dict(sorted(responses.items())),
    }
    wanted = [*parameters, *({"$ref": f"#/components/parameters/{name}"} for name in query)]
    if wanted:
        operation["parameters"] = wanted
    if body is not None:
        operation["requestBody"] = body
    return operation


def _json_body(schema: str, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {_JSON: {"schema": ref(schema)}}}


def _resource(*shared: dict[str, Any], **operations: Operation) -> dict[str, Any]:
    """A path, with the HEAD that belongs to a GET, and OPTIONS."""
    found: dict[str, Any] = {"parameters": list(shared)} if shared else {}
    found.update(operations)
    if "get" in operations:
        found["head"] = _head(operations["get"])
    found["options"] = {
        "operationId": f"{next(iter(operations.values()))['operationId']}_options",
        "summary": "What is offered here.",
        "responses": {
            "204": _answer("It is in `Allow`.", headers=_ALLOW),
            **{s: {"$ref": f"#/components/responses/{s}"} for s in EVERYWHERE.split()},
        },
    }
    return found


def _head(get: Operation) -> Operation:
    """A GET without the body."""
    responses = {
        status: {
            "description": there.get("description", "As of GET."),
            **({"headers": there["headers"]} if "headers" in there else {}),
        }
        for status, response in get["responses"].items()
        for there in [RESPONSES[status] if "$ref" in response else response]
    }
    return {
        **get,
        "operationId": f"{get['operationId']}_head",
        "summary": f"{get['summary']} Without the body.",
        "responses": responses,
    }


# -- the document ----------------------------------------------------------------

_ANY_BYTES: Schema = {}
_VALUE_BODY = {"required": False, "content": {"*/*": {"schema": _ANY_BYTES}}}
_CONDITIONS = (_IF_MATCH, _IF_NONE_MATCH)

_LONG_POLL_OVER = _answer("A long poll that has seen no change.", headers=_RAFTD_REVISION)


def _put(name: str) -> Operation:
    return _operation(
        name,
        "Set a key.",
        {
            "200": _answer("It was replaced.", "Written", _ETAG),
            "201": _answer("It is new.", "Written", _ETAG),
        },
        f"404 412 507 {_OF_WRITES}",
        (*_CONDITIONS, _IDEMPOTENCY_KEY),
        db.PUT_PARAMETERS,
        _VALUE_BODY,
    )


def _keys() -> dict[str, Any]:
    found = _with_content(
        _answer(
            "The value; or a watch, or the change that a long poll has met.",
            headers={
                **_ETAG,
                "Raftd-Create-Revision": _header("What brought the key into being.", COUNT),
                "Raftd-Version": _header("How often it was put since.", COUNT),
                "Raftd-Lease": _header("The lease that it is attached to.", HEX),
            },
        ),
        {_OCTETS: _ANY_BYTES, _EVENTS: STRING, _JSON: ref("Changes")},
    )
    listing = _answer(
        "A page; or a watch, or the change that a long poll has met.",
        headers={"Link": _header("With `rel=next`: the next page.", STRING)},
    )
    either = {"anyOf": [ref("Listing"), ref("Changes")]}
    return {
        "/db/{key}": _resource(
            _path("key", "The key, percent-encoded; a slash may stand for itself.", _KEY),
            get=_operation(
                "get_key",
                "The value of a key.",
                {
                    "200": found,
                    "204": _LONG_POLL_OVER,
                    "304": _answer("It has not changed.", headers=_ETAG),
                },
                "404 410 412",
                (*_CONDITIONS, _LAST_EVENT_ID),
                _together(db.READ_PARAMETERS, watch.PARAMETERS),
            ),
            put=_put("put_key"),
            post=_put("post_key"),
            delete=_operation(
                "delete_key",
                "Remove a key.",
                {"200": _answer("It is gone.", "Written", _ETAG)},
                f"404 412 {_OF_WRITES}",
                (*_CONDITIONS, _IDEMPOTENCY_KEY),
                db.DELETE_PARAMETERS,
            ),
        ),
        "/db/": _resource(
            get=_operation(
                "list_keys",
                "Many keys, page by page.",
                {
                    "200": _with_content(listing, {_JSON: either, _EVENTS: STRING}),
                    "204": _LONG_POLL_OVER,
                },
                "410",
                (_LAST_EVENT_ID,),
                _together(ranges.LIST_PARAMETERS, watch.PARAMETERS),
            ),
            delete=_operation(
                "delete_keys",
                "Remove a range, which must be named, in one revision.",
                {"200": _answer("It is gone.", "RangeDeleted")},
                _OF_WRITES,
                (_IDEMPOTENCY_KEY,),
                ranges.DELETE_PARAMETERS,
            ),
        ),
    }


def _together(*names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in names for name in group))


def _store() -> dict[str, Any]:
    return {
        "/txn": _resource(
            post=_operation(
                "transact",
                "If all compares hold, carry out `then`, else `else`, in one revision.",
                {"200": _answer("It was carried out.", "TransactionResult")},
                f"404 410 507 {_OF_WRITES}",
                (_IDEMPOTENCY_KEY,),
                body=_json_body("Transaction"),
            )
        ),
        "/compact": _resource(
            post=_operation(
                "compact",
                "Forget what only old revisions show.",
                {"200": _answer("It is forgotten.", "CompactResult")},
                f"410 {_OF_WRITES}",
                (_IDEMPOTENCY_KEY,),
                body=_json_body("Compaction"),
            )
        ),
        "/snapshot": _resource(
            get=_operation(
                "snapshot",
                "A backup as of one revision, with a checksum at its end; `overloaded` if this "
                f"node is making {MAX_BACKUPS} already.",
                {
                    "200": _with_content(
                        _answer("The backup.", headers=_RAFTD_REVISION), {_OCTETS: _ANY_BYTES}
                    )
                },
            )
        ),
    }


def _leases() -> dict[str, Any]:
    lease_path = _path("id", "The lease.", HEX_ASKED)
    return {
        "/lease": _resource(
            get=_operation(
                "list_leases",
                "All leases.",
                {"200": _answer("They are.", "Leases")},
                query=lease.LIST_PARAMETERS,
            ),
            post=_operation(
                "grant_lease",
                "A new lease.",
                {
                    "201": _answer(
                        "It is granted; its TTL may be longer than asked.",
                        "Lease",
                        {"Location": _header("Its path.", STRING)},
                    )
                },
                f"409 507 {_OF_WRITES}",
                (_IDEMPOTENCY_KEY,),
                body=_json_body("Grant"),
            ),
        ),
        "/lease/{id}": _resource(
            lease_path,
            get=_operation(
                "get_lease",
                "Its time left and its first keys.",
                {"200": _answer("It is there.", "LeaseStatus")},
                "404",
            ),
            delete=_operation(
                "revoke_lease",
                "End it, and delete its keys.",
                {"200": _answer("It is gone.", "Revoked")},
                f"404 {_OF_WRITES}",
                (_IDEMPOTENCY_KEY,),
            ),
        ),
        "/lease/{id}/keepalive": _resource(
            lease_path,
            post=_operation(
                "keep_alive",
                "Begin its time anew; a client counts it from when it sent this.",
                {"200": _answer("It lives.", "Lease")},
                "404",
            ),
        ),
    }


def _cluster() -> dict[str, Any]:
    changed = _answer("The members that result.", "Members")
    return {
        "/members": _resource(
            get=_operation(
                "list_members",
                "The members, as this node knows them.",
                {"200": _answer("They are.", "Members")},
            ),
            post=_operation(
                "change_members",
                "Make changes, all of them together.",
                {"200": changed},
                "404 409 504",
                body=_json_body("MembersChange"),
            ),
        ),
        "/members/{name}": _resource(
            _path("name", "The member's `host:port`.", NAME),
            get=_operation(
                "get_member", "One member.", {"200": _answer("It is there.", "Member")}, "404"
            ),
            patch=_operation(
                "change_member",
                "Give or take its vote, or another name, or both.",
                {"200": changed},
                "404 409 504",
                query=("force",),
                body=_json_body("MemberPatch"),
            ),
            delete=_operation(
                "remove_member",
                "Remove it.",
                {"200": changed},
                "404 409 504",
                query=("force",),
            ),
        ),
        "/leader": _resource(
            post=_operation(
                "transfer_leadership",
                "Let another voter lead; without a name, whoever is best prepared.",
                {"200": _answer("Another leads.", "Leader")},
                "404 409 504",
                body=_json_body("Transfer", required=False),
            )
        ),
    }


def _node() -> dict[str, Any]:
    metrics = _with_content(_answer("Text format 0.0.4."), {"text/plain": STRING})
    document = _with_content(_answer("OpenAPI 3.1."), {_JSON: {"type": "object"}})
    return {
        "/status": _resource(
            get=_operation(
                "status",
                "What this node knows of itself, its cluster and its store.",
                {"200": _answer("As of now.", "Status")},
            )
        ),
        "/metrics": _resource(
            get=_operation("metrics", "The same for Prometheus.", {"200": metrics})
        ),
        "/openapi.json": _resource(
            get=_operation("openapi", "This document.", {"200": document})
        ),
    }


def document(version: str) -> dict[str, Any]:
    """The document, as Python data."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "raftd",
            "summary": "A replicated key-value server.",
            "description": (
                "Any node answers any request. Keys and values are bytes: percent-encoded in "
                "a path or a query, where a `+` is refused; in JSON, text if they are UTF-8, "
                "else base64 under a name that ends in `_base64`. A method that is not "
                "offered is answered 405, what is no HTTP of ours 400, 408, 417, 501 or 505."
            ),
            "version": version,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {**_keys(), **_store(), **_leases(), **_node(), **_cluster()},
        "components": {"schemas": SCHEMAS, "responses": RESPONSES, "parameters": QUERY},
    }
