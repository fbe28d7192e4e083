"""
A node of PySyncObj, with a client in the process: many callbacks at once.

    python bench/pysyncobj_node.py DIRECTORY PORT OWN_ADDRESS OTHER...

Answers on PORT: `/leads`, true, false or null; `/load?clients=N&seconds=S`,
what so many clients, each putting 256 bytes as soon as its last put was
acknowledged, came to.  The journal is on, as in its documentation; PySyncObj
does not flush it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated  # type: ignore

VALUE = "v" * 256
KEYS = 100_000


class Store(SyncObj):  # type: ignore[misc]
    def __init__(self, own: str, others: list[str], directory: str) -> None:
        journal = os.path.join(directory, "journal")
        super().__init__(own, others, SyncObjConf(journalFile=journal))
        self._data: dict[str, str] = {}

    @replicated  # type: ignore[untyped-decorator]
    def put(self, key: str, value: str) -> None:
        self._data[key] = value


class Clients:
    """Each has one put under way, until `over`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.over = False
        self.errors = 0
        self.took_s: list[float] = []

    def next_put(self) -> None:
        began = time.perf_counter()

        def done(result: object, error: int) -> None:
            if error == FAIL_REASON.SUCCESS:
                self.took_s.append(time.perf_counter() - began)
            else:
                self.errors += 1
            if not self.over:
                self.next_put()

        self._store.put(f"bench/{random.randrange(KEYS):09d}", VALUE, callback=done)


def load(store: Store, clients: int, seconds: float) -> dict[str, float]:
    together = Clients(store)
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(clients):
        together.next_put()
    time.sleep(seconds)
    together.over = True
    took = time.perf_counter() - began
    sorted_s = sorted(together.took_s)
    if not sorted_s:
        return {"rate": 0.0, "errors": together.errors, "p50_ms": 0.0, "p99_ms": 0.0}
    return {
        "rate": len(sorted_s) / took,
        "errors": together.errors,
        "p50_ms": sorted_s[len(sorted_s) // 2] * 1e3,
        "p99_ms": sorted_s[len(sorted_s) * 99 // 100] * 1e3,
        "leader_us": (time.process_time() - cpu_began) / len(sorted_s) * 1e6,
    }


def main() -> None:
    directory, port, own, *others = sys.argv[1:]
    store = Store(own, others, directory)
    busy = threading.Lock()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            answer: Any
            if url.path == "/load":
                query = dict(parse_qsl(url.query))
                with busy:
                    answer = load(store, int(query["clients"]), float(query["seconds"]))
            else:
                leader = store._getLeader()
                answer = None if leader is None else str(leader) == own
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", int(port)), Answers).serve_forever()


if __name__ == "__main__":
    main()
