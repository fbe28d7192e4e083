"""The benches: what they send, and what they make of what they measured."""

from __future__ import annotations

import base64
import os
import sys
from functools import cache
from importlib import import_module
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

import raftd

#: Beside the package in a checkout; an installed raftd has no benches.
BENCH = os.path.join(os.path.dirname(os.path.dirname(raftd.__file__)), "bench")


NAMES = ("processes", "systems", "load", "tables", "occasions", "compare")


@cache
def modules() -> dict[str, Any]:
    """The modules of the benches, which import each other as programs do."""
    sys.path.insert(0, BENCH)
    try:
        return {name: import_module(name) for name in NAMES}
    finally:
        sys.path.remove(BENCH)
        for name in NAMES:  # too common to be left behind
            sys.modules.pop(name, None)


class BenchTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        if not os.path.isdir(BENCH):
            raise SkipTest("There are no benches beside this installation.")
        self.systems = modules()["systems"]
        self.load = modules()["load"]
        self.tables = modules()["tables"]
        self.compare = modules()["compare"]

    def sample(self, rate: float = 1000.0, **more: Any) -> Any:
        return self.load.Sample(rate, more.pop("p50_ms", 1.0), more.pop("p99_ms", 2.0), **more)

    def cluster(self, name: str) -> Any:
        """One that was never started: only for what it would send."""
        return object.__new__(self.compare.SYSTEMS[name])


class RequestTests(BenchTestCase):
    def script(self, name: str, **load: Any) -> str:
        script: str = self.load.script(self.cluster(name), self.load.Load(64, **load), 7)
        return script

    def test_a_key_is_its_parts_in_base64_too(self) -> None:
        """The scripts of wrk put keys together from three encoded triples."""
        for n in (0, 7, 123_456_789):
            text = self.systems.key(n)
            parts = [text[:6], text[6:9], text[9:12], text[12:15]]
            encoded = "".join(map(self.systems.base64_of, parts))
            self.assertEqual(base64.b64decode(encoded).decode(), text)

    def test_raftd_put(self) -> None:
        before, after = self.cluster("raftd").put_request(4)
        self.assertEqual(
            before + b"KEY" + after,
            b"PUT /db/KEY HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nvvvv",
        )

    def test_etcd_lengths(self) -> None:
        """What Content-Length says is what follows, whatever the key."""
        cluster = self.cluster("etcd-3.5")
        key = cluster.encoded(self.systems.key(42)).encode()
        for before, after in (
            cluster.put_request(256),
            cluster.get_request(False),
            cluster.get_request(True),
            cluster.list_request(100),
            (cluster.watch_request(), b""),
        ):
            whole = before + key + after if after else before
            head, _, body = whole.partition(b"\r\n\r\n")
            self.assertIn(b"Content-Length: %d" % len(body), head)

    def test_local_reads(self) -> None:
        _, after = self.cluster("raftd").get_request(True)
        self.assertTrue(after.startswith(b"?consistency=local "))
        _, after = self.cluster("etcd-3.4").get_request(True)
        self.assertIn(b'"serializable":true', after)

    def test_lua_strings_hold_any_bytes(self) -> None:
        self.assertEqual(self.load.lua_string(b'a"\r\n\\'), '"\\097\\034\\013\\010\\092"')

    def test_script(self) -> None:
        script = self.script("raftd", writes_percent=10, keys=5000)
        self.assertIn("random(0, 5000 - 1)", script)
        self.assertIn("random(100) <= 10", script)
        self.assertIn("math.randomseed(7)", script)
        self.assertIn(self.load.lua_string(b"PUT /db/"), script)
        self.assertIn(self.load.lua_string(b"bench/"), script)
        self.assertIn(self.load.lua_string(b"YmVuY2gv"), self.script("etcd-3.5"))


RESULT = (
    'RESULT {"requests":2000,"duration_us":500000,"failed":%d,'
    '"p50_us":1500.000000,"p99_us":9000.000000,"longest_us":20000.000000}\n'
)


class ParseTests(BenchTestCase):
    def test_a_run(self) -> None:
        sample = self.load.parse("Running 1s test\n  Requests/sec: 1\n" + RESULT % 0)
        self.assertEqual(sample.rate, 4000.0)
        self.assertEqual((sample.p50_ms, sample.p99_ms, sample.longest_ms), (1.5, 9.0, 20.0))

    def test_failed_requests_are_no_figures(self) -> None:
        error = self.assertRaises(self.load.Failed, self.load.parse, RESULT % 3)
        self.assertIn("3 of 2000", str(error))

    def test_no_result(self) -> None:
        for output in ("", "unable to connect to 127.0.0.1:1", RESULT % 0 + RESULT % 0):
            self.assertRaises(self.load.Failed, self.load.parse, output)

    def test_no_request(self) -> None:
        output = (RESULT % 0).replace('"requests":2000', '"requests":0')
        self.assertRaises(self.load.Failed, self.load.parse, output)


class TableTests(BenchTestCase):
    def goal(self, figure: str, bound: str, goal: float, **other: str) -> Any:
        return self.tables.Goal("what", "writes-64", figure, bound, goal, **other)

    def results(self, **rates: list[float]) -> Any:
        names = {"etcd34": "etcd 3.4", "etcd35": "etcd 3.5"}
        return {
            ("writes-64", names.get(name, name)): [
                self.sample(rate, p99_ms=1e6 / rate) for rate in given
            ]
            for name, given in rates.items()
        }

    def test_medians_against_the_faster_etcd(self) -> None:
        results = self.results(raftd=[9000.0, 30000.0, 12000.0], etcd34=[4000], etcd35=[6000])
        goal = self.goal("rate", "at least", 2.0, other_system="etcd")
        self.assertEqual(self.tables.reached(results, goal), (2.0, True))
        goal = self.goal("rate", "at least", 2.1, other_system="etcd")
        self.assertEqual(self.tables.reached(results, goal), (2.0, False))

    def test_latency_against_the_shorter_one(self) -> None:
        results = self.results(raftd=[10000], etcd34=[4000], etcd35=[5000])
        goal = self.goal("p99_ms", "at most", 0.6, other_system="etcd")
        self.assertEqual(self.tables.reached(results, goal), (0.5, True))

    def test_one_etcd_will_do(self) -> None:
        results = self.results(raftd=[9000], etcd35=[3000])
        goal = self.goal("rate", "at least", 3.0, other_system="etcd")
        self.assertEqual(self.tables.reached(results, goal), (3.0, True))

    def test_what_was_not_measured_is_not_told(self) -> None:
        goal = self.goal("rate", "at least", 3.0, other_system="etcd")
        self.assertIsNone(self.tables.reached(self.results(raftd=[9000]), goal))
        self.assertIsNone(self.tables.reached(self.results(etcd34=[9000]), goal))
        self.assertNotIn("what", self.tables.goals_table({}, [goal]).splitlines()[2:])

    def test_figures_without_a_ratio(self) -> None:
        goal = self.tables.Goal("s", "failover", "failover_s", "at most", 1.0)
        results = {("failover", "raftd"): [self.sample(0, more={"failover_s": 1.2})]}
        self.assertEqual(self.tables.reached(results, goal), (1.2, False))
        self.assertIn("| NO ", self.tables.goals_table(results, [goal]))

    def test_tables_are_markdown(self) -> None:
        text = self.tables.table(["a", "long"], [["1", "2"], ["333", ""]])
        self.assertEqual(
            text.splitlines(),
            ["| a   | long |", "| --- | ---- |", "| 1   | 2    |", "| 333 |      |"],
        )

    def test_loads_and_more(self) -> None:
        results = self.results(raftd=[1000, 3000, 2000])
        results["growth", "raftd"] = [self.sample(0, more={"against_few_keys": 0.95})]
        loads = self.tables.loads_table(results).splitlines()
        self.assertEqual(len(loads), 3)
        self.assertIn("2,000 (1,000 to 3,000)", loads[2])
        more = self.tables.more_table(results).splitlines()
        self.assertEqual(len(more), 3)
        self.assertIn("0.95", more[2])

    def test_goals_are_of_lines_that_there_are(self) -> None:
        known = {*self.compare.LINES, *self.compare.OCCASIONS}
        for goal in self.compare.GOALS:
            self.assertIn(goal.line, known)
            self.assertIn(goal.other_line or goal.line, known)
