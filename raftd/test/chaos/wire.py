"""HTTP as a client speaks it that must know what became of each request."""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

#: How long a client waits for an answer, in seconds: longer than a node does.
TIMEOUT_S = 4.0
CONNECT_TIMEOUT_S = 1.0


class Refused(Exception):
    """It certainly did not happen."""


class Uncertain(Exception):
    """It may have happened, or may happen yet."""


class Improper(Exception):
    """An answer that the documentation does not allow: a finding."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """One client's connections, one to each node; for one thread."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names` are HOST:PORT."""
        self.names = names
        self._open: dict[int, http.client.HTTPConnection] = {}

    def ask(
        self,
        number: int,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        """One request to one node; `Refused` or `Uncertain` if there is no answer."""
        connection = self._connection(number, timeout_s)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        except (OSError, http.client.HTTPException) as e:
            self._drop(number)
            raise Uncertain(f"{type(e).__name__}: {e}") from None

    def stream(
        self,
        number: int,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> http.client.HTTPResponse:
        """The same, for an answer that goes on; on a connection of its own, which it closes."""
        connection = self._connect(number, timeout_s)
        try:
            connection.request(method, path, body, dict(headers))
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            raise Uncertain(f"{type(e).__name__}: {e}") from None

    def close(self) -> None:
        for number in list(self._open):
            self._drop(number)

    def _connection(self, number: int, timeout_s: float) -> http.client.HTTPConnection:
        connection = self._open.get(number)
        if connection is None or connection.sock is None:
            connection = self._open[number] = self._connect(number, timeout_s)
        connection.sock.settimeout(timeout_s)
        return connection

    def _connect(self, number: int, timeout_s: float) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.names[number], timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except OSError as e:
            connection.close()
            raise Refused(f"{type(e).__name__}: {e}") from None
        connection.sock.settimeout(timeout_s)
        return connection

    def _drop(self, number: int) -> None:
        connection = self._open.pop(number, None)
        if connection is not None:
            with suppress(OSError):
                connection.close()
