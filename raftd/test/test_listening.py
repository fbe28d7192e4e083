"""Addresses of names, who may reach them, and listening on them."""

from __future__ import annotations

import errno
import socket
from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.logger import (
    ILogObserver,
    LogEvent,
    capturedLogs,
    formatEvent,
    globalLogPublisher,
)
from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import BadAnswer
from raftd.listening import check_exposure, close, is_loopback, listen, resolve


class FakePort:
    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self.stopped = False

    def getHost(self) -> IPv4Address | IPv6Address:
        family = IPv6Address if ":" in self.address else IPv4Address
        return family("TCP", self.address, self.port)

    def stopListening(self) -> None:
        self.stopped = True


class FakeReactor:
    """Has some addresses, and an error for each of the others."""

    def __init__(self, errors: dict[str, int]) -> None:
        self.errors = errors
        self.ports: list[FakePort] = []

    def listenTCP(self, port: int, factory: Factory, backlog: int, interface: str) -> FakePort:
        if interface in self.errors:
            number = self.errors[interface]
            raise CannotListenError(interface, port, OSError(number, "no"))
        self.ports.append(FakePort(interface, port))
        return self.ports[-1]


class ResolveTests(SynchronousTestCase):
    def test_localhost_is_both_families_whatever_the_files_say(self) -> None:
        self.patch(socket, "getaddrinfo", None)
        for name in ("localhost", "LocalHost", "localhost."):
            self.assertEqual(resolve(name), ["127.0.0.1", "::1"])

    def test_each_address_once(self) -> None:
        found: list[Any] = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 0, 0, 0)),
        ]
        self.patch(socket, "getaddrinfo", lambda *_, **__: found)
        self.assertEqual(resolve("db1"), ["10.0.0.1", "fd00::1"])

    def test_addresses_need_no_resolver(self) -> None:
        self.assertEqual(resolve("127.0.0.1"), ["127.0.0.1"])
        self.assertEqual(resolve("::1"), ["::1"])

    def test_unknown(self) -> None:
        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(-2, "Name or service not known")

        self.patch(socket, "getaddrinfo", unknown)
        error = self.assertRaises(BadAnswer, resolve, "db1")
        self.assertEqual(str(error), "The host db1 is not known: Name or service not known.")


class ExposureTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.warnings: list[LogEvent] = []
        globalLogPublisher.addObserver(cast(ILogObserver, self._observe))
        self.addCleanup(globalLogPublisher.removeObserver, cast(ILogObserver, self._observe))

    def _observe(self, event: LogEvent) -> None:
        if event.get("log_namespace") == "raftd.listening":
            self.warnings.append(event)

    def test_loopback(self) -> None:
        for address in ("127.0.0.1", "127.8.8.8", "::1"):
            self.assertTrue(is_loopback(address))
        for address in ("0.0.0.0", "::", "10.0.0.1", "192.0.2.1", "fe80::1"):
            self.assertFalse(is_loopback(address))

    def test_loopback_needs_no_leave(self) -> None:
        check_exposure("localhost:4001", ["127.0.0.1", "::1"], insecure=False)
        check_exposure("127.0.0.1:4001", ["127.0.0.1"], insecure=False)
        check_exposure("[::1]:4001", ["::1"], insecure=False)
        self.assertEqual(self.warnings, [])

    def test_one_address_beyond_is_enough(self) -> None:
        addresses = ["127.0.0.1", "10.0.0.1"]
        error = self.assertRaises(BadAnswer, check_exposure, "db1:4001", addresses, False)
        self.assertIn("10.0.0.1", str(error))
        self.assertIn("--insecure", str(error))
        check_exposure("db1:4001", addresses, insecure=True)
        self.assertEqual(self.warnings, [])

    def test_name_that_leads_nowhere_else(self) -> None:
        """As on Debian, where /etc/hosts gives a machine's own name 127.0.1.1."""
        check_exposure("db1:4001", ["127.0.1.1"], insecure=False)
        self.assertEqual(len(self.warnings), 1)
        self.assertEqual(self.warnings[0]["host"], "db1")


class ListenTests(SynchronousTestCase):
    def test_one_line_says_where(self) -> None:
        for addresses, where in (
            (["127.0.0.1", "::1"], "127.0.0.1:4001 and [::1]:4001"),
            (["10.0.0.1"], "10.0.0.1:4001"),
        ):
            with capturedLogs() as events:
                listen(FakeReactor({}), addresses, 4001, Factory())
            self.assertEqual([formatEvent(e) for e in events], [f"Listening on {where}."])

    def test_family_that_the_machine_lacks_is_skipped(self) -> None:
        for number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            reactor = FakeReactor({"::1": number})
            ports = listen(reactor, ["127.0.0.1", "::1"], 4001, Factory())
            self.assertEqual(ports, reactor.ports)
            self.assertEqual([p.address for p in reactor.ports], ["127.0.0.1"])

    def test_no_address_at_all(self) -> None:
        reactor = FakeReactor({"10.0.0.1": errno.EADDRNOTAVAIL})
        error = self.assertRaises(BadAnswer, listen, reactor, ["10.0.0.1"], 4001, Factory())
        self.assertIn("10.0.0.1", str(error))

    def test_failure_gives_back_what_was_bound(self) -> None:
        for number, part in (
            (errno.EADDRINUSE, "already"),
            (errno.EACCES, "may not listen"),
            (errno.ENOBUFS, "failed"),
        ):
            reactor = FakeReactor({"::1": number})
            error = self.assertRaises(
                BadAnswer, listen, reactor, ["127.0.0.1", "::1"], 4001, Factory()
            )
            self.assertIn(part, str(error))
            self.assertIn("4001", str(error))
            self.assertEqual([p.stopped for p in reactor.ports], [True])

    def test_close(self) -> None:
        reactor = FakeReactor({})
        ports = listen(reactor, ["127.0.0.1", "::1"], 4001, Factory())
        closing: Deferred[Any] = Deferred()
        reactor.ports[0].stopListening = lambda: closing  # type: ignore[assignment]
        closed = close(ports)
        self.assertNoResult(closed)
        closing.callback(None)
        self.successResultOf(closed)
        self.assertTrue(reactor.ports[1].stopped)
