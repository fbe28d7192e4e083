"""
raftd's HTTP, answering each request with the same bytes that a write has.

    python bench/constant_server.py PORT
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor as global_reactor

from raftd.interfaces import IRequest
from raftd.listening import listen
from raftd.net.http1 import HTTPFactory

reactor: Any = global_reactor

BODY = b'{"key":"bench/000000000","revision":1000000}'
HEADERS = ((b"ETag", b'"1000000"'),)


def answer(request: IRequest) -> None:
    request.respond(200, BODY, b"application/json", HEADERS)


def main() -> None:
    factory = HTTPFactory(answer, reactor)
    listen(reactor, ["127.0.0.1"], int(sys.argv[1]), factory)
    reactor.run()


if __name__ == "__main__":
    main()
