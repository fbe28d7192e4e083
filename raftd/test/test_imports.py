"""
Who may import whom: the walls of the house.

The table below is the architecture.  A module that is not in it fails the
test, so that a new one is placed before it is used; an import that is not in
it fails as well, and then it is the import that is wrong, as a rule.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

import raftd

ROOT = Path(raftd.__file__).parent


class Rule(NamedTuple):
    """
    What a module, or everything in a package, may import: of raftd, and of others.

    A name stands for itself and what is inside it.  The standard library is
    free, but for `core`; so is, within a package, the package.
    """

    inside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


#: What the core is made of besides itself: nothing that acts.
CORE_LIBRARY = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "typing",
}

#: The values of Raft, in which interfaces are written.
VALUES = ("core.messages", "core.membership", "core.snapshot")
#: What every part knows.
CONTRACT = (*VALUES, "errors", "interfaces")
#: What is said to the store and by it; not the store.
VOCABULARY = ("kv.interfaces", "kv.operations", "kv.results", "kv.refusals")
#: The driver and its parts.
NODE = (
    "node",
    "applier",
    "changes",
    "disk",
    "events",
    "handle",
    "moving",
    "observing",
    "peering",
    "questions",
    "requests",
    "routing",
    "snapshotting",
    "status",
)
DRIVER = Rule((*CONTRACT, *NODE, "core"), ("twisted", "zope", "msgspec"))

#: What runs beside the store: with a clock, and with a node.
BESIDE_THE_STORE = (
    "kv.checker",
    "kv.compactor",
    "kv.database",
    "kv.lease_keeper",
    "kv.lease_questions",
    "kv.scans",
    "kv.sweeper",
    "kv.tenure",
    "kv.watches",
)
CLOCK = (
    "twisted.internet.defer",
    "twisted.internet.interfaces",
    "twisted.logger",
    "twisted.python.failure",
)

TABLE = {
    # What the library offers, none of it imported before it is asked for.
    "": Rule(
        (
            "_version",
            *CONTRACT,
            "clock",
            "collector",
            "events",
            "handle",
            "net.port",
            "replica",
            "session_client",
            "statemachine",
        )
    ),
    "_version": Rule((), ("incremental",)),
    # The ground floor.
    "errors": Rule(),
    "names": Rule(("errors",)),
    "clock": Rule((), ("twisted",)),
    "collector": Rule((), ("twisted.internet.interfaces",)),
    "interfaces": Rule((*VALUES, "errors"), ("msgspec", "twisted.internet.defer", "zope")),
    "core": Rule(("errors",), ("msgspec",)),
    # Below the node: each knows the contract, none knows another.
    "storage": Rule(CONTRACT, ("msgspec", "twisted", "zope")),
    "kv.watches": Rule(
        ("errors", "kv.interfaces", "kv.operations", "kv.refusals", "kv.results"),
        ("twisted.logger", "zope"),
    ),
    "kv": Rule((*CONTRACT, "slices"), ("msgspec", "zope")),
    # What runs beside the store on a node.
    **dict.fromkeys(
        BESIDE_THE_STORE,
        Rule((*CONTRACT, "idempotency", "events", "kv"), (*CLOCK, "msgspec", "zope")),
    ),
    # What a state machine may be made with.
    "slices": Rule(),
    "statemachine": Rule((*CONTRACT, "slices"), ("msgspec", "twisted.logger", "zope")),
    "restoring": Rule(("interfaces", "slices"), ("msgspec", "zope")),
    "sessions": Rule((*CONTRACT, "restoring", "slices"), ("msgspec", "zope")),
    "idempotency": Rule((*CONTRACT, "restoring", "slices"), ("msgspec", "zope")),
    "session_client": Rule((*CONTRACT, "sessions"), ("twisted",)),
    # The node.
    **dict.fromkeys(NODE, DRIVER),
    # Faces: each knows the contract, none knows another, or a concrete store.
    "net": Rule((*CONTRACT, "bursts", "names"), ("httptools", "msgspec", "twisted", "zope")),
    "web": Rule(
        (*CONTRACT, *VOCABULARY, "idempotency", "names", "_version", ""),
        ("msgspec", "twisted", "zope"),
    ),
    "console": Rule(("errors", "interfaces", "names"), ("msgspec", "twisted")),
    "listening": Rule(("bursts", "errors", "names"), ("twisted",)),
    "bursts": Rule((), ("twisted", "zope")),
    "probing": Rule(("errors", "names"), ("msgspec", "treq", "twisted", "zope")),
    "client": Rule(("clock", "errors"), ("msgspec", "treq", "twisted", "zope")),
    "ctl": Rule(("_version", "client", "clock", "errors", "names"), ("msgspec", "twisted")),
    # The process: what is written, and where.
    "outlet": Rule(),
    "logs": Rule((), ("twisted", "zope")),
    # The wiring, from the inside out.  The library does not know the key-value
    # server, which is one of its users.
    "joining": Rule((*CONTRACT, *NODE, "net.join"), ("twisted",)),
    "replica": Rule(
        (
            *CONTRACT,
            *NODE,
            "bursts",
            "clock",
            "core",
            "joining",
            "listening",
            "names",
            "net",
            "session_client",
            "sessions",
            "steps",
            "storage",
        ),
        ("msgspec", "twisted"),
    ),
    "steps": Rule((), ("twisted",)),
    "memory_network": Rule((*CONTRACT, *NODE), ("twisted", "zope")),
    "memory_streams": Rule(
        ("core.messages", "memory_network"), ("twisted.internet", "twisted.python", "zope")
    ),
    "testing_store": Rule(
        (
            "",
            *CONTRACT,
            "client",
            "idempotency",
            "memory_network",
            "memory_streams",
            "net.http1",
            "node",
            "replica",
            "store_service",
            "testing",
            "web.routes",
        ),
        ("msgspec", "twisted.internet", "twisted.web", "zope"),
    ),
    "testing": Rule(
        (
            *CONTRACT,
            *NODE,
            "core",
            "joining",
            "memory_network",
            "replica",
            "session_client",
            "sessions",
            "storage.memory",
        ),
        ("twisted.internet", "twisted.python"),
    ),
    "rescue": Rule((*CONTRACT, "core", "storage"), ("msgspec", "twisted", "zope")),
    "server": Rule(
        (
            "",
            *CONTRACT,
            "kv",
            "listening",
            "names",
            "net",
            "node",
            "probing",
            "replica",
            "steps",
            "store_service",
            "web",
        ),
        ("msgspec", "twisted", "zope"),
    ),
    "store_service": Rule(
        (*CONTRACT, "idempotency", "kv", "node"),
        ("msgspec", "twisted.internet.interfaces"),
    ),
    "tap": Rule(
        (
            "",
            "clock",
            "collector",
            "console",
            "core.settings",
            "errors",
            "interfaces",
            "logs",
            "names",
            "outlet",
            "replica",
            "store_service",
            "rescue",
            "server",
        ),
        ("msgspec", "twisted"),
    ),
}


@cache
def modules() -> tuple[tuple[str, ast.Module], ...]:
    """Every module of raftd but its tests: its name without `raftd.`, and its tree."""
    return tuple(_parsed())


def _parsed() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] != "test":
            name = ".".join(part for part in parts if part != "__init__")
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Every name that a module imports, in full; `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "raftd imports by full names"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def placed(module: str) -> str | None:
    """The place of a module in the table: itself, or the package it is in."""
    if module in TABLE:
        return module
    package = module.partition(".")[0]
    return package if package in TABLE else None


def inside(imported: str) -> str:
    """The module of raftd that is meant by an imported name, without `raftd.`."""
    name = imported.removeprefix("raftd").removeprefix(".")
    while name and not (ROOT / f"{name.replace('.', '/')}.py").exists():
        if (ROOT / name.replace(".", "/")).is_dir():
            break
        name = name.rpartition(".")[0]
    return name


def refusal(place: str, imported: str) -> str | None:
    """Why a module at `place` may not import this; None if it may."""
    rule = TABLE[place]
    if within(imported, "raftd"):
        name = inside(imported)
        if not name and imported != "raftd.__version__":
            return "what the library offers has a place of its own"
        allowed = rule.inside if not place else (*rule.inside, place)
        if any(name == a or (a and within(name, a)) for a in allowed):
            return None
        return f"raftd.{name} is not for it"
    top = imported.partition(".")[0]
    if top in sys.stdlib_module_names:
        if place == "core" and top not in CORE_LIBRARY:
            return f"the core does without {top}"
        return None
    if any(within(imported, package) for package in rule.outside):
        return None
    return f"{imported} is not for it"


class ImportTests(SynchronousTestCase):
    def test_every_module_has_its_place(self) -> None:
        homeless = [name for name, _ in modules() if placed(name) is None]
        self.assertEqual(homeless, [], "place them in the table of test_imports.py")

    def test_nothing_imports_what_is_not_for_it(self) -> None:
        wrong = [
            f"raftd.{name} imports {imported}: {why}"
            for name, tree in modules()
            if (place := placed(name)) is not None
            for imported in imports(tree)
            if (why := refusal(place, imported)) is not None
        ]
        self.assertEqual(wrong, [])

    def test_only_tap_sees_the_global_reactor(self) -> None:
        seen = [
            name
            for name, tree in modules()
            if any(within(imported, "twisted.internet.reactor") for imported in imports(tree))
        ]
        self.assertEqual(seen, ["tap"])

    def test_the_rules_bite(self) -> None:
        """Each wall, with somebody running against it."""
        for place, imported in (
            ("core", "time"),
            ("core", "random.Random"),
            ("core", "twisted.internet.defer.Deferred"),
            ("core", "raftd.interfaces.INode"),
            ("errors", "raftd.core.messages"),
            ("interfaces", "raftd.core.raft.Raft"),
            ("storage", "raftd.kv.store.Store"),
            ("kv", "raftd.storage.wal.Wal"),
            ("kv", "twisted.internet.defer.Deferred"),
            ("node", "raftd.storage.wal.Wal"),
            ("node", "raftd.net.amp"),
            ("net", "raftd.node.Node"),
            ("net", "raftd.web.routes.Routes"),
            ("web", "raftd.net.http1.HTTPFactory"),
            ("web", "raftd.kv.store.Store"),
            ("console", "raftd.server.Server"),
            ("client", "raftd.interfaces.INode"),
            ("client", "raftd.kv.results.KeyValue"),
            ("client", "raftd.web.records"),
            ("replica", "raftd.kv.store.Store"),
            ("replica", "raftd.web.routes.Routes"),
            ("replica", "raftd.server.Server"),
            ("handle", "raftd.replica.Replica"),
            ("handle", "raftd.Replica"),
            ("snapshotting", "raftd.storage.snapshots.SnapshotStore"),
            ("server", "raftd.tap.Options"),
            ("server", "raftd.console.Console"),
            ("server", "raftd.storage.wal.Wal"),
            ("server", "raftd.Replica"),
            ("testing", "raftd.kv.store.Store"),
            ("testing", "twisted.trial.unittest.TestCase"),
            ("", "raftd.server.Server"),
            ("", "raftd.storage.wal.Wal"),
        ):
            self.assertIsNotNone(refusal(place, imported), f"{place} may import {imported}")
        for place, imported in (
            ("core", "raftd.core.messages.Entry"),
            ("core", "collections.deque"),
            ("net", "raftd.core.messages"),
            ("web", "raftd.__version__"),
            ("tap", "raftd.__version__"),
        ):
            self.assertIsNone(refusal(place, imported), f"{place} may not import {imported}")
