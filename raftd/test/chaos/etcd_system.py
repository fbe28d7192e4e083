"""etcd 3.4 through its JSON gateway: the control."""

from __future__ import annotations

import base64
import http.client
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from raftd.test.chaos.systems import SILENCE_S, Seen, System
from raftd.test.chaos.wire import Refused, Uncertain, Wire
from raftd.test.judge import calls
from raftd.test.judge.calls import Call, Result
from raftd.test.judge.history import Change

_TARGETS = {
    "value": "VALUE",
    "mod_revision": "MOD",
    "create_revision": "CREATE",
    "version": "VERSION",
}
_RELATIONS = {"=": "EQUAL", "!=": "NOT_EQUAL", "<": "LESS", ">": "GREATER"}

_decode = msgspec.json.decode
_encode = msgspec.json.encode


class EtcdSystem(System):
    """`etcd` of Debian's package, one process a node."""

    name = "etcd"
    lacks = {  # noqa: RUF012
        "clock step": "libfaketime does not reach programs in Go",
        "clock rate": "libfaketime does not reach programs in Go",
        "replace": "the control keeps its members",
        "demote": "the control keeps its members",
    }
    # Go's default for a signal that was handled, and one that was not.
    stop_statuses = frozenset({0, -15})

    def command(self, number: int, directory: Path, is_first: bool) -> Sequence[str]:
        network = self.network
        peers = ",".join(f"n{n}=http://{network.peer_name(n)}" for n in range(self.count))
        me, peer = network.name(number), network.peer_name(number)
        return (
            *("etcd", "--name", f"n{number}", "--data-dir", str(directory)),
            *(
                "--listen-client-urls",
                f"http://{me}",
                "--advertise-client-urls",
                f"http://{me}",
            ),
            *("--listen-peer-urls", f"http://{peer}"),
            *("--initial-advertise-peer-urls", f"http://{peer}"),
            *("--initial-cluster", peers, "--initial-cluster-token", "chaos"),
            *("--heartbeat-interval", "100", "--election-timeout", "600"),
            *("--snapshot-count", "2000"),
        )

    # -- the cluster -----------------------------------------------------------

    def _status(self, wire: Wire, number: int) -> dict[str, Any]:
        try:
            answer = wire.ask(number, "POST", "/v3/maintenance/status", b"{}", timeout_s=1.0)
        except (Refused, Uncertain):
            return {}
        return dict(_decode(answer.body)) if answer.status == 200 else {}

    def is_ready(self, wire: Wire, number: int) -> bool:
        return str(self._status(wire, number).get("leader", "0")) != "0"

    def leader(self, wire: Wire, numbers: Sequence[int]) -> int | None:
        found = [(self._status(wire, number), number) for number in numbers]
        leaders = [
            (int(s.get("raftTerm", 0)), n)
            for s, n in found
            if s and s.get("leader") == s["header"]["member_id"]
        ]
        return max(leaders)[1] if leaders else None

    def transfer(self, wire: Wire, number: int) -> bool:
        leader, status = self.leader(wire, range(self.count)), self._status(wire, number)
        if leader is None or leader == number or not status:
            return False
        body = _encode({"targetID": status["header"]["member_id"]})
        try:
            path = "/v3/maintenance/transfer-leadership"
            return wire.ask(leader, "POST", path, body).status == 200
        except (Refused, Uncertain):
            return False

    # -- operations ----------------------------------------------------------------

    def perform(self, wire: Wire, number: int, call: Call, retry: str) -> Result:
        if isinstance(call, calls.Transaction):
            value = self._ask(wire, number, "/v3/kv/txn", _transaction(call))
            steps = call.success if value.get("succeeded") else call.failure
            parts = value.get("responses", [])
            results = tuple(map(_step_result, steps, parts))
            return Result(
                succeeded=value.get("succeeded", False),
                results=results,
                revision=_revision(value),
            )
        name, body = _request(call)
        path = "/v3/kv/" + {"delete_range": "deleterange"}.get(name, name)
        value = self._ask(wire, number, path, body)
        result = _result(call, value)
        return msgspec.structs.replace(result, revision=_revision(value))

    def _ask(self, wire: Wire, number: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = wire.ask(number, "POST", path, _encode(body))
        if answer.status != 200:
            # Its codes do not say for certain whether it happened.
            raise Uncertain(f"{answer.status} {answer.body[:100]!r}")
        return dict(_decode(answer.body))

    # -- watches -------------------------------------------------------------------

    def watch(self, wire: Wire, number: int, prefix: str, revision: int) -> Iterator[Seen]:
        request: dict[str, Any] = {**_span(prefix, _after(prefix)), "prev_kv": True}
        if revision:
            request["start_revision"] = str(revision)
        body = _encode({"create_request": request})
        with wire.stream(number, "POST", "/v3/watch", body, {}, SILENCE_S) as response:
            if response.status == 200:
                yield from _stream(response, is_from_now=not revision)

    # -- the end ---------------------------------------------------------------------

    def contents(self, wire: Wire, number: int) -> object:
        body = _encode({**_span("\0", "\0"), "serializable": True})
        try:
            answer = wire.ask(number, "POST", "/v3/kv/range", body)
        except (Refused, Uncertain):
            return None
        if answer.status != 200:
            return None
        value = _decode(answer.body)
        return (_revision(value), value.get("kvs"))


def _revision(value: dict[str, Any]) -> int:
    return int(value["header"]["revision"])


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(value: dict[str, Any], name: str) -> str:
    return base64.b64decode(value.get(name, "")).decode()


def _after(prefix: str) -> str:
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _span(key: str, end: str = "") -> dict[str, Any]:
    span: dict[str, Any] = {"key": _b64(key)}
    if end:
        span["range_end"] = _b64(end)
    return span


def _request(call: Call) -> tuple[str, dict[str, Any]]:
    """The name of a request, and its fields."""
    if isinstance(call, calls.Put):
        return "put", {**_span(call.key), "value": _b64(str(call.value)), "prev_kv": True}
    if isinstance(call, calls.Delete):
        return "delete_range", _span(call.key, call.end)
    if isinstance(call, calls.Range):
        return "range", _span(call.key, call.end)
    assert isinstance(call, calls.Get)
    return "range", _span(call.key)


def _transaction(call: calls.Transaction) -> dict[str, Any]:
    return {
        "compare": [
            {
                "key": _b64(c.key),
                "target": _TARGETS[c.target],
                "result": _RELATIONS[c.relation],
                c.target: _b64(str(c.operand)) if c.target == "value" else str(c.operand),
            }
            for c in call.compares
        ],
        "success": list(map(_step, call.success)),
        "failure": list(map(_step, call.failure)),
    }


def _step(call: Call) -> dict[str, Any]:
    name, body = _request(call)
    return {f"request_{name}": body}


def _step_result(call: Call, value: dict[str, Any]) -> Result:
    name, _ = _request(call)
    return _result(call, value[f"response_{name}"])


def _record(kv: dict[str, Any]) -> calls.Record:
    return calls.Record(
        key=_text(kv, "key"),
        value=_text(kv, "value"),
        create_revision=int(kv["create_revision"]),
        mod_revision=int(kv["mod_revision"]),
        version=int(kv["version"]),
    )


def _result(call: Call, value: dict[str, Any]) -> Result:
    if isinstance(call, calls.Put):
        return Result(created="prev_kv" not in value)
    if isinstance(call, calls.Delete):
        return Result(count=int(value.get("deleted", 0)))
    kvs = tuple(map(_record, value.get("kvs", [])))
    if isinstance(call, calls.Range):
        return Result(kvs=kvs, count=int(value.get("count", 0)))
    if not kvs:
        return Result(value=None)
    return Result(
        value=kvs[0].value,
        create_revision=kvs[0].create_revision,
        mod_revision=kvs[0].mod_revision,
        version=kvs[0].version,
    )


def _stream(response: http.client.HTTPResponse, is_from_now: bool) -> Iterator[Seen]:
    while line := response.readline():
        value = _decode(line).get("result")
        if value is None:
            return
        if value.get("canceled"):
            if "compact_revision" in value:
                yield Seen(int(value["compact_revision"]) - 1, is_compacted=True)
            return
        if value.get("created") and is_from_now:
            yield Seen(_revision(value))
        events = value.get("events", [])
        for revision, some in groupby(events, lambda event: int(event["kv"]["mod_revision"])):
            yield Seen(revision, tuple(map(_change, some)))


def _change(event: dict[str, Any]) -> Change:
    previous = event.get("prev_kv")
    before = None if previous is None else _text(previous, "value")
    kv = event["kv"]
    if event.get("type") == "DELETE":
        return Change(_text(kv, "key"), None, previous=before)
    return Change(
        _text(kv, "key"),
        _text(kv, "value"),
        create_revision=int(kv["create_revision"]),
        version=int(kv["version"]),
        previous=before,
    )
