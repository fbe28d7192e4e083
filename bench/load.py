"""
Load by `wrk`: the script that makes its requests, a run, and what it comes to.

wrk keeps one request under way on each connection.  Its latencies are as it
corrects them: a connection that was kept waiting counts also for the requests
that it would have sent meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection

from processes import Failed
from systems import BATCH_KEYS, HTTPCluster, exchange, key

#: Connections that fill a store.
FILLERS = 8

#: wrk gives up on a request after so long, and counts it as failed.
TIMEOUT_S = 10

#: How long before a load: the end of a thousand connections is work, and not its own.
SETTLE_S = 1.0

_SCRIPT = """
local triples = {}
for i = 0, 999 do triples[i] = %(triples)s[i + 1] end
local prefix = %(prefix)s
local put, put_end = %(put)s, %(put_end)s
local get, get_end = %(get)s, %(get_end)s
local random, floor = math.random, math.floor
function init() math.randomseed(%(seed)d) end
function request()
  local n = random(0, %(keys)d - 1)
  local thousands = floor(n / 1000)
  local key = prefix .. triples[floor(thousands / 1000)] .. triples[thousands %% 1000]
    .. triples[n %% 1000]
  if random(100) <= %(writes_percent)d then return put .. key .. put_end end
  return get .. key .. get_end
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%%d,"duration_us":%%d,"failed":%%d,"p50_us":%%f,"p99_us":%%f,' ..
    '"longest_us":%%f}\\n', summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
"""


@dataclass(frozen=True)
class Load:
    """What the connections ask for, each key with the same chance."""

    connections: int
    writes_percent: int = 100
    local: bool = False
    keys: int = 100_000
    value_bytes: int = 256
    #: Reads are of so many keys at once, if not 0.
    list_keys: int = 0


@dataclass(frozen=True)
class Sample:
    """What one run has come to; times of the processor are per request."""

    rate: float
    p50_ms: float
    p99_ms: float
    longest_ms: float = 0.0
    #: Of the node that was asked, of the others together, and of wrk.
    asked_us: float = 0.0
    others_us: float = 0.0
    generator_us: float = 0.0
    #: What only some of the measurements have.
    more: dict[str, float] = field(default_factory=dict)
    #: Of an occasion that was repeated: what each time took, in seconds.
    each: list[float] = field(default_factory=list)


def lua_string(data: bytes) -> str:
    """`data` as a literal of Lua."""
    return '"' + "".join(f"\\{byte:03d}" for byte in data) + '"'


def script(cluster: HTTPCluster, load: Load, seed: int) -> str:
    """For wrk: random keys, put or read."""
    put, put_end = cluster.put_request(load.value_bytes)
    if load.list_keys:
        get, get_end = cluster.list_request(load.list_keys)
    else:
        get, get_end = cluster.get_request(load.local)
    # In base64 as in plain text, each three digits are the same bytes anywhere.
    triples = ",".join(lua_string(cluster.encoded(f"{n:03d}").encode()) for n in range(1000))
    prefix = cluster.encoded(key(0)[:-9]).encode()
    return _SCRIPT % {
        "triples": "({" + triples + "})",
        "prefix": lua_string(prefix),
        "put": lua_string(put),
        "put_end": lua_string(put_end),
        "get": lua_string(get),
        "get_end": lua_string(get_end),
        "seed": seed,
        "keys": load.keys,
        "writes_percent": load.writes_percent,
    }


def parse(output: str) -> Sample:
    """What wrk has printed; `Failed` if a request was not answered with success."""
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if len(lines) != 1:
        raise Failed(f"wrk has printed no result: {output[-500:]!r}")
    result = json.loads(lines[0].removeprefix("RESULT "))
    if result["failed"]:
        raise Failed(f"{result['failed']} of {result['requests']} requests have failed.")
    if not result["requests"]:
        raise Failed("No request was answered.")
    return Sample(
        rate=result["requests"] / result["duration_us"] * 1e6,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        longest_ms=result["longest_us"] / 1e3,
    )


def run(cluster: HTTPCluster, node: int, load: Load, seconds: float, seed: int = 1) -> Sample:
    """Load one node of the cluster for so long, when all is quiet again after the last one."""
    time.sleep(SETTLE_S)
    with tempfile.NamedTemporaryFile("w", suffix=".lua", dir=cluster.directory) as file:
        file.write(script(cluster, load, seed))
        file.flush()
        command = [
            "wrk",
            "--threads=1",
            f"--connections={load.connections}",
            f"--duration={max(1, round(seconds))}s",
            f"--timeout={TIMEOUT_S}s",
            f"--script={file.name}",
            f"http://127.0.0.1:{cluster.ports[node]}",
        ]
        before = [child.cpu_s() for child in cluster.children]
        children_before = os.times().children_user + os.times().children_system
        ended = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        generator_s = os.times().children_user + os.times().children_system - children_before
        after = [child.cpu_s() for child in cluster.children]
    sample = parse(ended.stdout)
    per_request = 1e6 / (sample.rate * max(1, round(seconds)))
    took = [(b - a) * per_request for a, b in zip(before, after, strict=True)]
    return Sample(
        sample.rate,
        sample.p50_ms,
        sample.p99_ms,
        sample.longest_ms,
        asked_us=took[node],
        others_us=sum(took) - took[node],
        generator_us=generator_s * per_request,
    )


def fill(cluster: HTTPCluster, keys: int, value_bytes: int) -> float:
    """Put the keys that a load will ask for, many in a transaction; the seconds it took."""
    port = cluster.ports[cluster.leader()]
    local = threading.local()
    batch = max(1, min(BATCH_KEYS, (1 << 20) // (2 * value_bytes)))

    def put(first: int) -> None:
        if not hasattr(local, "connection"):
            local.connection = HTTPConnection("127.0.0.1", port, timeout=60)
        body = cluster.batch(range(first, min(first + batch, keys)), value_bytes)
        exchange(local.connection, "POST", cluster.txn_path, body)

    began = time.perf_counter()
    with ThreadPoolExecutor(FILLERS) as pool:
        for _ in pool.map(put, range(0, keys, batch)):
            pass
    return time.perf_counter() - began
