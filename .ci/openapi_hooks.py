"""
What schemathesis is told about raftd that the document cannot say.

A watch never ends, so none is asked for here; a long poll is kept short.
Parameters that exclude each other mostly do not come together, and keys and
conditions are mostly of a few, so that requests meet something.
"""

from __future__ import annotations

from random import Random
from typing import Any

import schemathesis

_random = Random(20_000)

KEYS = ("a", "b", "c/d", "é")
#: Of each, the first that is there stays.
EXCLUSIVE = (
    ("wait", "revision"),
    ("consistency", "max_staleness_ms"),
    ("prefix", "start"),
    ("prefix", "end"),
    ("lease", "ttl"),
)
#: A long poll has these, and what names its range.
POLL = {"wait", "timeout_ms", "prev", "events", "prefix", "start", "end"}


def _mostly() -> bool:
    return _random.random() < 0.8


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    parameters = case.path_parameters
    if parameters and "key" in parameters and _mostly():
        parameters["key"] = _random.choice(KEYS)
    query = case.query
    if not query:
        return
    query.pop("watch", None)
    if _mostly():
        query.pop("wait", None)
    if "wait" in query:
        query["timeout_ms"] = 20
    if not _mostly():
        return
    for first, second in EXCLUSIVE:
        if first in query:
            query.pop(second, None)
    unwanted = set(query) - POLL if "wait" in query else {"timeout_ms", "events"}
    if case.operation.method.upper() == "GET" and "wait" not in query:
        unwanted |= {"prev"}
    for name in unwanted:
        query.pop(name, None)
