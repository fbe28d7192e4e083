"""
`If-Match` and `If-None-Match` (RFC 9110, 13.1): compare-and-set in HTTP's words.

An entity tag is the revision that last changed a key, in quotes.  A write with
conditions is a transaction: the conditions are its compares, and if they do
not hold it reads what is there, for the 412 to say so.  A read's conditions
are looked at once the record is known.

`If-Match` compares strongly, so that a weak tag matches nothing, and
`If-None-Match` weakly (8.8.3.2).  A tag that raftd never gave matches nothing.
For a write, a list of tags is refused: nobody who read a key once has two.
"""

from __future__ import annotations

import re

from raftd.errors import BadRequest
from raftd.kv.operations import EQUAL, GREATER, MOD_REVISION, NOT_EQUAL, VERSION, Compare
from raftd.kv.results import KeyValue
from raftd.web.parameters import MAX_NUMBER

#: What a tag of somebody else's stands for: no key has this revision.
_NEVER = -1
#: What is meant by `*`.
_ANY = None

#: RFC 9110, 8.8.3.
_TAG = rb'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"'
_is_tag = re.compile(_TAG).fullmatch
_tags = re.compile(_TAG).finditer
_tags_in = re.compile(_TAG).subn
_is_revision = re.compile(rb"[1-9][0-9]{0,18}").fullmatch


def compares(key: bytes, if_match: bytes | None, if_none_match: bytes | None) -> list[Compare]:
    """
    What must hold for a write of `key`; nothing if there is no condition.

    `BadRequest` if a condition is malformed.
    """
    found = []
    if if_match is not None:
        revision = _one_tag(if_match, "If-Match", weak=False)
        if revision is _ANY:
            found.append(Compare(key, b"", VERSION, GREATER, 0))
        else:
            found.append(Compare(key, b"", MOD_REVISION, EQUAL, revision))
    if if_none_match is not None:
        revision = _one_tag(if_none_match, "If-None-Match", weak=True)
        if revision is _ANY:
            found.append(Compare(key, b"", VERSION, EQUAL, 0))
        else:
            found.append(Compare(key, b"", MOD_REVISION, NOT_EQUAL, revision))
    return found


def check_read(if_match: bytes | None, if_none_match: bytes | None) -> None:
    """`BadRequest` if a condition of a read is malformed."""
    for field, name in ((if_match, "If-Match"), (if_none_match, "If-None-Match")):
        if field is not None and field != b"*" and not _is_list(field):
            raise _malformed(name)


def status_of_read(kv: KeyValue, if_match: bytes | None, if_none_match: bytes | None) -> int:
    """Of a read that has found `kv`: 200, 304 or 412, in the order of RFC 9110, 13.2.2."""
    if if_match is not None and not _matches(kv, if_match, weak=False):
        return 412
    if if_none_match is not None and _matches(kv, if_none_match, weak=True):
        return 304
    return 200


def _matches(kv: KeyValue, field: bytes, weak: bool) -> bool:
    if field == b"*":
        return True
    own = b"%d" % kv.mod_revision
    return any(tag[2] == own and (weak or not tag[1]) for tag in _tags(field))


def _one_tag(field: bytes, name: str, weak: bool) -> int | None:
    """The revision that the only tag of `field` stands for."""
    if field == b"*":
        return _ANY
    tag = _is_tag(field)
    if tag is None:
        if _is_list(field):
            raise BadRequest(f"{name} has one entity tag in a write, not a list of them.")
        raise _malformed(name)
    if (tag[1] and not weak) or not _is_revision(tag[2]):
        return _NEVER
    revision = int(tag[2])
    return revision if revision <= MAX_NUMBER else _NEVER


def _is_list(field: bytes) -> bool:
    """Whether there are tags, and nothing between them that could be anything else."""
    rest, count = _tags_in(b"", field)
    return count > 0 and not rest.strip(b" \t,")


def _malformed(name: str) -> BadRequest:
    return BadRequest(f'{name} is *, or an entity tag with its quotes, like "17".')
