"""raftd over HTTP, read by its own page (`docs/http.md`), not by its own client."""

from __future__ import annotations

import base64
import http.client
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from raftd.test.chaos.systems import SILENCE_S, Seen, System
from raftd.test.chaos.wire import Answer, Improper, Refused, Uncertain, Wire
from raftd.test.judge import calls
from raftd.test.judge.calls import Call, Result
from raftd.test.judge.history import Change

REQUEST_TIMEOUT_MS = 2_000
#: Small, so that snapshots are taken and sent all the time.
SNAPSHOT_THRESHOLD_BYTES = 200_000
#: Few, so that compaction never rests; yet more than a watch is ever behind.
KEEP_REVISIONS = 20_000

#: Nothing was changed, whatever the request (docs/http.md, the last table).
_REFUSALS = {409, 429, 503, 507}

_decode = msgspec.json.decode
_encode = msgspec.json.encode


class RaftdSystem(System):
    """`twist raftd`, one process a node."""

    name = "raftd"
    has_members = True
    has_recipes = True
    can_retry = True

    def command(self, number: int, directory: Path, is_first: bool) -> Sequence[str]:
        network = self.network
        others = [network.name(n) for n in range(self.count) if n != number]
        listen = network.listen(number)
        return (
            *(sys.executable, "-m", "twisted", "raftd", "--name", network.name(number)),
            *("--data-dir", str(directory), "--insecure"),
            *("--log-file", str(directory.parent / "raftd.log")),
            *(("--listen", listen) if listen else ()),
            *("--request-timeout-ms", str(REQUEST_TIMEOUT_MS)),
            *("--snapshot-threshold-bytes", str(SNAPSHOT_THRESHOLD_BYTES)),
            *("--keep-revisions", str(KEEP_REVISIONS)),
            *(("--init",) if is_first else ("--join", ",".join(others))),
        )

    # -- the cluster -----------------------------------------------------------

    def status(self, wire: Wire, number: int) -> dict[str, Any]:
        """`/status`; empty if there is no answer."""
        try:
            answer = wire.ask(number, "GET", "/status", timeout_s=1.0)
        except (Refused, Uncertain):
            return {}
        return dict(_decode(answer.body)) if answer.status == 200 else {}

    def is_ready(self, wire: Wire, number: int) -> bool:
        status = self.status(wire, number)
        roles = {m["name"]: m["role"] for m in status.get("members", ())}
        is_voter = roles.get(self.network.name(number)) == "voter"
        return is_voter and status["leader"] is not None

    def leader(self, wire: Wire, numbers: Sequence[int]) -> int | None:
        found = [(self.status(wire, number), number) for number in numbers]
        leaders = [(s["term"], n) for s, n in found if s.get("role") == "leader"]
        return max(leaders)[1] if leaders else None

    def transfer(self, wire: Wire, number: int) -> bool:
        return self._order(wire, "POST", "/leader", {"to": self.network.name(number)}) == 200

    def set_role(self, wire: Wire, number: int, role: str) -> int:
        """Give a member its vote, or take it; the status of the answer, 0 if there is none."""
        path = f"/members/{self.network.name(number)}"
        return self._order(wire, "PATCH", path, {"role": role})

    def remove(self, wire: Wire, number: int) -> int:
        """Remove a member; likewise."""
        return self._order(wire, "DELETE", f"/members/{self.network.name(number)}", None)

    def members(self, wire: Wire) -> dict[str, str]:
        """Roles by name, as a leader has them; empty if nobody says so."""
        leader = self.leader(wire, range(self.count))
        status = {} if leader is None else self.status(wire, leader)
        return {m["name"]: m["role"] for m in status.get("members", ())}

    def _order(self, wire: Wire, method: str, path: str, body: object) -> int:
        """Say it to the first that answers."""
        data = None if body is None else _encode(body)
        for number in range(self.count):
            try:
                return wire.ask(number, method, path, data).status
            except Refused:
                continue
            except Uncertain:
                return 0
        return 0

    # -- operations --------------------------------------------------------------

    def perform(self, wire: Wire, number: int, call: Call, retry: str) -> Result:
        headers = {"Idempotency-Key": retry} if retry else {}
        if isinstance(call, calls.Get):
            return _got(wire.ask(number, "GET", _path(call.key)))
        if isinstance(call, calls.Range):
            query = urlencode({"start": call.key, "end": call.end}, quote_via=quote)
            answer = wire.ask(number, "GET", f"/db/?{query}")
            return _page(_proper(answer, {200}, is_read=True))
        if isinstance(call, calls.Put):
            body = str(call.value).encode()
            answer = wire.ask(number, "PUT", _path(call.key), body, headers)
            return _put(answer.status, _proper(answer, {200, 201}))
        if isinstance(call, calls.Delete) and not call.end:
            answer = wire.ask(number, "DELETE", _path(call.key), None, headers)
            return _deleted(answer.status, _proper(answer, {200, 404}))
        assert isinstance(call, calls.Transaction)
        condition = _condition(call)
        if condition is not None:
            return self._conditional(wire, number, call, {**headers, **condition})
        answer = wire.ask(number, "POST", "/txn", _encode(_transaction(call)), headers)
        return _transacted(call, _proper(answer, {200}))

    def _conditional(
        self, wire: Wire, number: int, call: calls.Transaction, headers: dict[str, str]
    ) -> Result:
        """One put or delete of one key, if it is as it was: `If-Match`, `If-None-Match`."""
        step = call.success[0]
        if isinstance(step, calls.Put):
            body = str(step.value).encode()
            answer = wire.ask(number, "PUT", _path(step.key), body, headers)
        else:
            assert isinstance(step, calls.Delete)
            answer = wire.ask(number, "DELETE", _path(step.key), None, headers)
        is_put = isinstance(step, calls.Put)
        value = _proper(answer, {200, 201, 412} if is_put else {200, 404, 412})
        if answer.status == 412:
            seen = Result(mod_revision=value["mod_revision"])
            return Result(succeeded=False, results=(seen,))
        if answer.status == 404:
            # There is no such key, so it is not of that revision.
            return Result(succeeded=False, results=(Result(mod_revision=0),))
        return Result(succeeded=True, revision=value["revision"])

    # -- watches -------------------------------------------------------------------

    def watch(self, wire: Wire, number: int, prefix: str, revision: int) -> Iterator[Seen]:
        path = f"/db/?prefix={quote(prefix, safe='')}&watch&prev"
        headers = {"Last-Event-ID": str(revision - 1)} if revision else {}
        response = wire.stream(number, "GET", path, None, headers, SILENCE_S)
        with response:
            if response.status == 410:
                value = _decode(response.read())
                yield Seen(value["compacted_revision"], is_compacted=True)
            elif response.status == 200:
                yield from _events(response)
            elif response.status != 503:
                raise Improper(f"a watch was answered {response.status} {response.read()!r}")

    # -- the end ---------------------------------------------------------------------

    def contents(self, wire: Wire, number: int) -> object:
        status = self.status(wire, number)
        if not status:
            return None
        differs = status["digest"]["differs_index"]
        if differs:
            raise Improper(f"node {number} is not what the leader is, from index {differs} on")
        kvs: list[object] = []
        path = "/db/?consistency=local"
        while path:
            try:
                answer = wire.ask(number, "GET", path)
            except (Refused, Uncertain):
                return None
            if answer.status != 200:
                return None
            page = _decode(answer.body)
            kvs += page["kvs"]
            path = page.get("next", "")
        return (page["revision"], kvs)


def _path(key: str) -> str:
    return f"/db/{quote(key, safe='')}"


def _proper(answer: Answer, expected: set[int], is_read: bool = False) -> dict[str, Any]:
    """The JSON of an answer that is as it should be."""
    status = answer.status
    if status in expected:
        return dict(_decode(answer.body))
    if status in _REFUSALS:
        raise Refused(f"{status}")
    if status == 504 and not is_read:
        raise Uncertain("504")
    raise Improper(f"answered {status} {answer.body[:200]!r}")


def _got(answer: Answer) -> Result:
    if answer.status == 404:
        return Result(value=None)
    if answer.status != 200:
        _proper(answer, set(), is_read=True)
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Result(
        value=answer.body.decode(),
        mod_revision=int(headers["etag"].strip('"')),
        create_revision=int(headers["raftd-create-revision"]),
        version=int(headers["raftd-version"]),
    )


def _put(status: int, value: dict[str, Any]) -> Result:
    return Result(created=status == 201, revision=value["revision"])


def _deleted(status: int, value: dict[str, Any]) -> Result:
    if status == 404:
        return Result(count=0)
    return Result(count=1, revision=value["revision"])


def _text(value: dict[str, Any], name: str) -> str:
    if name in value:
        return str(value[name])
    return base64.b64decode(value[f"{name}_base64"]).decode()


def _record(kv: dict[str, Any]) -> calls.Record:
    return calls.Record(
        key=_text(kv, "key"),
        value=_text(kv, "value"),
        create_revision=kv["create_revision"],
        mod_revision=kv["mod_revision"],
        version=kv["version"],
    )


def _page(value: dict[str, Any]) -> Result:
    return Result(
        kvs=tuple(map(_record, value["kvs"])),
        count=value["count"],
        revision=value["revision"],
    )


# -- transactions ----------------------------------------------------------------


def _condition(call: calls.Transaction) -> dict[str, str] | None:
    """The header that says the same as the compare; None if none does."""
    if len(call.compares) != 1 or len(call.success) != 1 or len(call.failure) != 1:
        return None
    (compare,), (step,), (other,) = call.compares, call.success, call.failure
    is_one_key = (
        isinstance(step, calls.Put | calls.Delete)
        and isinstance(other, calls.Get)
        and {step.key, other.key} == {compare.key}
        and (compare.target, compare.relation) == ("mod_revision", "=")
    )
    if not is_one_key:
        return None
    if compare.operand:
        return {"If-Match": f'"{compare.operand}"'}
    return {"If-None-Match": "*"} if isinstance(step, calls.Put) else None


def _transaction(call: calls.Transaction) -> dict[str, Any]:
    return {
        "compare": [
            {"key": c.key, c.target: c.operand, "op": c.relation} for c in call.compares
        ],
        "then": list(map(_step, call.success)),
        "else": list(map(_step, call.failure)),
    }


def _step(call: Call) -> dict[str, Any]:
    if isinstance(call, calls.Put):
        return {"put": {"key": call.key, "value": call.value}}
    if isinstance(call, calls.Delete):
        return {"delete": {"key": call.key}}
    assert isinstance(call, calls.Get)
    return {"get": {"key": call.key}}


def _transacted(call: calls.Transaction, value: dict[str, Any]) -> Result:
    succeeded = value["succeeded"]
    return Result(
        succeeded=succeeded,
        revision=value["revision"],
        results=tuple(map(_step_result, value["results"])),
    )


def _step_result(value: dict[str, Any]) -> Result:
    if "put" in value:
        return Result(created=value["put"]["created"])
    if "delete" in value:
        return Result(count=value["delete"]["deleted"])
    kvs = value["get"]["kvs"]
    if not kvs:
        return Result(value=None)
    record = _record(kvs[0])
    return Result(
        value=record.value,
        create_revision=record.create_revision,
        mod_revision=record.mod_revision,
        version=record.version,
    )


# -- server-sent events ------------------------------------------------------------


def _events(response: http.client.HTTPResponse) -> Iterator[Seen]:
    """A stream, event by event, until it ends; a part of an event is nothing."""
    kind, number, data = "", 0, ""
    while line := response.readline():
        name, _, text = line.decode().rstrip("\r\n").partition(":")
        if name == "id":
            number = int(text)
        elif name == "data":
            data += text.removeprefix(" ")
        elif name == "event":
            kind = text.strip()
        elif not line.strip():
            if kind == "cut_off":
                return
            if kind == "compacted":
                yield Seen(_decode(data)["compacted_revision"], is_compacted=True)
                return
            if data:
                yield _changed(number, _decode(data))
            elif number:
                yield Seen(number)
            kind, number, data = "", 0, ""


def _changed(number: int, value: dict[str, Any]) -> Seen:
    if number != value["revision"]:
        raise Improper(f"an event has the id {number}, and is of revision {value['revision']}")
    return Seen(number, tuple(map(_change, value["events"])))


def _change(event: dict[str, Any]) -> Change:
    previous = event.get("previous")
    before = None if previous is None else _text(previous, "value")
    if event["type"] == "delete":
        return Change(_text(event, "key"), None, previous=before)
    return Change(
        _text(event, "key"),
        _text(event, "value"),
        create_revision=event["create_revision"],
        version=event["version"],
        previous=before,
    )
