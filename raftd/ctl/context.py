"""What every command is given."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, BinaryIO

from raftd.client import Client
from raftd.client.admin import Admin
from raftd.ctl.endpoints import Endpoints
from raftd.ctl.output import Output

MakeClient = Callable[[tuple[str, ...], float], Client]


class Context:
    """
    One command: what was typed, where its output goes, and whom it asks.

    `make_client` is given servers and a time limit in seconds.
    """

    def __init__(
        self,
        reactor: Any,
        arguments: argparse.Namespace,
        output: Output,
        stdin: BinaryIO,
        environ: Mapping[str, str],
        endpoints: Endpoints,
        make_client: MakeClient,
    ) -> None:
        self.reactor = reactor
        self.arguments = arguments
        self.output = output
        self.stdin = stdin
        self.environ = environ
        self.endpoints = endpoints
        self._make_client = make_client
        self._clients: list[Client] = []
        self._client: Client | None = None
        #: Called with the number of a signal that came; if there is none, or it
        #: gives False, the command is broken off.
        self.on_signal: Callable[[int], bool] | None = None
        #: What this process is to become when the command is done; None: nothing.
        self.become: list[str] | None = None

    @property
    def client(self) -> Client:
        """The client of the endpoints."""
        if self._client is None:
            self._client = self.client_of(self.endpoints.servers, self.arguments.timeout)
        return self._client

    @property
    def admin(self) -> Admin:
        return Admin(self.client)

    def client_of(self, servers: tuple[str, ...], timeout_s: float) -> Client:
        """A client of other servers; it is closed with the rest."""
        client = self._make_client(servers, timeout_s)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.close()


Command = Callable[[Context], Awaitable[int]]
