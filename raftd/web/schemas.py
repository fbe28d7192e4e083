"""The JSON that HTTP takes and answers, as JSON Schema: the components of `/openapi.json`."""

from __future__ import annotations

from typing import Any

from raftd.core.membership import MAX_CHANGES
from raftd.web.lease import MAX_KEYS
from raftd.web.parameters import MAX_NUMBER
from raftd.web.ranges import MAX_LIMIT, SORTS
from raftd.web.records import MAX_TTL_S
from raftd.web.txn import MAX_LIST

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A schema of `SCHEMAS`, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def said(about: str, schema: Schema) -> Schema:
    """`schema`, with a description."""
    return {**schema, "description": about}


def whole(low: int = 0, high: int = MAX_NUMBER) -> Schema:
    """An integer."""
    return {"type": "integer", "format": "int64", "minimum": low, "maximum": high}


def listed(items: Schema, **more: Any) -> Schema:
    """An array."""
    return {"type": "array", "items": items, **more}


def answer(properties: dict[str, Schema], optional: str = "", **more: Any) -> Schema:
    """An object of the server's; later versions may have more properties."""
    left_out = optional.split()
    required = [name for name in properties if name not in left_out]
    return {"type": "object", "properties": properties, "required": required, **more}


def asked(properties: dict[str, Schema], required: str = "", **more: Any) -> Schema:
    """An object of the client's, which has no other properties."""
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required.split()
    return {**schema, **more}


STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}
HEX: Schema = {"type": "string", "pattern": "^[0-9a-f]{16}$", "examples": ["00c0ffee00c0ffee"]}
#: An id that a client gives may be in capitals.
HEX_ASKED: Schema = {**HEX, "pattern": "^[0-9a-fA-F]{16}$"}
REVISION = whole(1)
COUNT = whole()
NAME: Schema = {"type": "string", "minLength": 1, "examples": ["db1.example:4001"]}
TTL: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TTL_S}
SORT: Schema = {"enum": list(SORTS), "default": "key"}
SECONDS: Schema = {"type": "number", "minimum": 0}


def either(name: str) -> dict[str, Schema]:
    """Bytes: text under `name` if they are UTF-8, else base64 under another."""
    return {name: STRING, f"{name}_base64": BASE64}


def _one_of(*names: str) -> list[Schema]:
    """For `oneOf`: exactly one of the properties called `names` is there."""
    return [{"required": [name]} for name in names]


def _choose(*groups: Schema) -> dict[str, Any]:
    """An object that obeys all of `groups`, each a `oneOf` or the like."""
    return {"allOf": list(groups)}


_A_KEY: Schema = {"oneOf": _one_of("key", "key_base64")}
_RECORD = {
    **either("key"),
    **either("value"),
    "create_revision": said("The revision that brought the key into being.", REVISION),
    "mod_revision": said("The revision of its last change.", REVISION),
    "version": said("How often it was put since.", whole(1)),
    "lease": said("The lease that it is attached to, if it is.", HEX),
}
_OPTIONAL_IN_RECORD = "key key_base64 value value_base64 lease"

_DATA = {**either("key"), **either("prefix"), **either("start"), **either("end")}
#: What names a key, or a range of them, in an operation.
_KEYS: Schema = {
    "oneOf": [
        *_one_of("key", "key_base64", "prefix", "prefix_base64"),
        {"anyOf": _one_of("start", "start_base64", "end", "end_base64")},
    ]
}

_MEMBER = {"name": NAME, "id": HEX, "role": {"enum": ["voter", "learner"]}}
_INDEX = said("A log index; null if it is not known, or it is the leader itself.",
              {"type": ["integer", "null"]})  # fmt: skip

_ERROR = {
    "error": said("For programs.", STRING),
    "message": said("For people: one sentence.", STRING),
}

# -- what is answered ------------------------------------------------------------

ANSWERS: dict[str, Schema] = {
    "Error": answer(_ERROR),
    "Compacted": answer(
        {**_ERROR, "compacted_revision": said("The oldest that can be read.", COUNT)}
    ),
    "PreconditionFailed": answer(
        {**_ERROR, "mod_revision": said("Of what is there; 0: there is no such key.", COUNT)}
    ),
    "BadRequest": answer(
        {**_ERROR, "revision": said("The store's, if a later one was asked for.", COUNT)},
        "revision",
    ),
    "Record": answer(_RECORD, _OPTIONAL_IN_RECORD, **_A_KEY),
    "Written": answer(
        {
            **either("key"),
            "revision": REVISION,
            "lease": said("The lease that `ttl` has made.", HEX),
            "previous": said("What was there before, with `prev`.", ref("Record")),
        },
        "key key_base64 lease previous",
        **_A_KEY,
    ),
    "Listing": answer(
        {
            "revision": said("The one that is shown.", REVISION),
            "count": said("Keys in the range, whatever the limit.", COUNT),
            "more": said("Whether the limit has cut some off.", BOOLEAN),
            "kvs": listed(ref("Record")),
            "next": said("The URL of the next page, of the same revision.", STRING),
        },
        "next",
    ),
    "RangeDeleted": answer({"deleted": COUNT, "revision": REVISION}),
    "TransactionResult": answer(
        {"succeeded": BOOLEAN, "revision": REVISION, "results": listed(ref("OperationResult"))}
    ),
    "OperationResult": {
        **answer(
            {
                "put": answer({"created": BOOLEAN, "previous": ref("Record")}, "previous"),
                "get": answer({"count": COUNT, "more": BOOLEAN, "kvs": listed(ref("Record"))}),
                "delete": answer(
                    {"deleted": COUNT, "previous": listed(ref("Record"))}, "previous"
                ),
                "txn": answer(
                    {"succeeded": BOOLEAN, "results": listed(ref("OperationResult"))}
                ),
            },
            "put get delete txn",
        ),
        "oneOf": _one_of("put", "get", "delete", "txn"),
    },
    "Lease": answer({"id": HEX, "ttl": said("In seconds.", SECONDS)}),
    "Leases": answer({"leases": listed(ref("Lease"))}),
    "LeaseStatus": answer(
        {
            "id": HEX,
            "ttl": SECONDS,
            "ttl_left": SECONDS,
            "keys": listed(
                answer(either("key"), "key key_base64", **_A_KEY), maxItems=MAX_KEYS
            ),
            "more": said("Whether there are other keys.", BOOLEAN),
        }
    ),
    "Revoked": answer({"id": HEX, "revision": REVISION, "deleted": COUNT}),
    "CompactResult": answer({"compacted_revision": COUNT}),
    "Changes": answer({"revision": REVISION, "events": listed(ref("Event"))}),
    "Event": answer(
        {
            "type": {"enum": ["put", "delete"]},
            **_RECORD,
            "previous": said("What the key was before, with `prev`.", ref("Record")),
        },
        f"{_OPTIONAL_IN_RECORD} create_revision version previous",
        **_A_KEY,
    ),
    "Member": answer(
        {
            **_MEMBER,
            "match_index": _INDEX,
            "next_index": _INDEX,
            "last_contact_ms": {"type": ["integer", "null"]},
        },
        "match_index next_index last_contact_ms",
    ),
    "Members": answer({"members": listed(ref("Member"))}),
    "Leader": answer({"leader": {"type": ["string", "null"]}}),
    "Status": answer(
        {
            "name": NAME,
            "member_id": HEX,
            "cluster_id": HEX,
            "version": STRING,
            "role": {"enum": ["follower", "pre-candidate", "candidate", "leader", "learner"]},
            "term": COUNT,
            "leader": {"type": ["string", "null"]},
            "first_index": COUNT,
            "last_index": COUNT,
            "commit_index": COUNT,
            "applied_index": COUNT,
            "snapshot_index": COUNT,
            "revision": COUNT,
            "compacted_revision": COUNT,
            "keys": COUNT,
            "size_bytes": said("What the quota counts.", COUNT),
            "quota_bytes": said("0: no bound.", COUNT),
            "leases": COUNT,
            "watches": COUNT,
            "idempotency_keys": COUNT,
            "digest": answer(
                {
                    "agreed_index": said("The last checkpoint that agreed.", COUNT),
                    "differs_index": said("The first that did not; 0: none.", COUNT),
                }
            ),
            "uptime_seconds": SECONDS,
            "members": listed(ref("Member")),
        }
    ),
}

# -- what is asked ---------------------------------------------------------------

_FORCE = said("Also if too few voters that answer would be left.", BOOLEAN)
_OPERATIONS = listed(ref("Operation"), maxItems=MAX_LIST)
_TARGETS = ("value", "value_base64", "version", "create_revision", "mod_revision", "lease")

ASKED: dict[str, Schema] = {
    "Transaction": asked(
        {
            "compare": listed(ref("Compare"), maxItems=MAX_LIST),
            "then": _OPERATIONS,
            "else": _OPERATIONS,
        }
    ),
    "Compare": asked(
        {
            **either("key"),
            **either("end"),
            **either("prefix"),
            "op": {"enum": ["=", "!=", "<", ">"], "default": "="},
            **either("value"),
            "version": COUNT,
            "create_revision": COUNT,
            "mod_revision": COUNT,
            "lease": said("All zeros: none.", HEX_ASKED),
        },
        **_choose(
            {"oneOf": _one_of("key", "key_base64", "prefix", "prefix_base64")},
            {"oneOf": _one_of(*_TARGETS)},
        ),
    ),
    "Operation": asked(
        {
            "put": ref("Put"),
            "get": ref("Get"),
            "delete": ref("Delete"),
            "txn": ref("Transaction"),
        },
        oneOf=_one_of("put", "get", "delete", "txn"),
    ),
    "Put": asked(
        {
            **either("key"),
            **either("value"),
            "lease": HEX_ASKED,
            "prev": BOOLEAN,
            "keep_value": said("Of a key that is there.", BOOLEAN),
            "keep_lease": said("Of a key that is there.", BOOLEAN),
        },
        **_choose(_A_KEY),
    ),
    "Get": asked(
        {
            **_DATA,
            "limit": whole(1, MAX_LIMIT),
            "keys_only": BOOLEAN,
            "count_only": BOOLEAN,
            "order": {"enum": ["asc", "desc"], "default": "asc"},
            "sort": SORT,
            "revision": REVISION,
        },
        **_choose(_KEYS),
    ),
    "Delete": asked({**_DATA, "prev": BOOLEAN}, **_choose(_KEYS)),
    "Grant": asked({"ttl": said("In seconds.", TTL), "id": HEX_ASKED}, "ttl"),
    "Compaction": asked(
        {
            "revision": said("The oldest that stays readable.", REVISION),
            "keep": said("So many of the last revisions.", whole(1)),
        },
        oneOf=_one_of("revision", "keep"),
    ),
    "MembersChange": asked(
        {
            "changes": listed(ref("MemberChange"), minItems=1, maxItems=MAX_CHANGES),
            "force": _FORCE,
        },
        "changes",
    ),
    "MemberChange": asked(
        {"promote": NAME, "demote": NAME, "remove": NAME, "rename": NAME, "to": NAME},
        oneOf=[
            *_one_of("promote", "demote", "remove"),
            {"required": ["rename", "to"]},
        ],
    ),
    "MemberPatch": asked(
        {"role": {"enum": ["voter", "learner"]}, "name": NAME}, minProperties=1
    ),
    "Transfer": asked({"to": NAME}),
}

SCHEMAS: dict[str, Schema] = {**ANSWERS, **ASKED}
