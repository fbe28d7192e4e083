"""`raftctl`, command by command, on a cluster in memory."""

from __future__ import annotations

import msgspec
from twisted.internet.defer import CancelledError

from raftd.test.ctlrig import CtlCase


class Keys(CtlCase):
    def test_a_value_comes_back_byte_by_byte(self) -> None:
        for value in (b"", b"hello", b"a\nb\n", bytes(range(256))):
            self.ok("put", "k", "-", stdin=value)
            self.assertEqual(self.ok("get", "k").out, value)
            self.assertEqual(self.ok("get", "k", "-o", "raw", terminal=True).out, value)

    def test_a_terminal_gets_a_line_and_no_commands(self) -> None:
        self.ok("put", "k", "a\x1b[2Jb\u202ec\tz\\")
        self.assertEqual(self.ok("get", "k", terminal=True).text, "a\\x1b[2Jb\\u202ec\tz\\\n")
        self.ok("put", "k", "one line\n")
        self.assertEqual(self.ok("get", "k", terminal=True).text, "one line\n")

    def test_values_from_the_command_line_and_from_files(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"\0from a file\xff")
        self.ok("put", "k", "--file", path)
        self.assertEqual(self.ok("get", "k").out, b"\0from a file\xff")
        self.ok("put", "k", "as typed: \udcff")
        self.assertEqual(self.ok("get", "k").out, b"as typed: \xff")
        self.fails(2, "one value", "put", "k")
        self.fails(2, "one value", "put", "k", "v", "--file", path)
        self.fails(2, "cannot be read", "put", "k", "--file", path + ".not")

    def test_all_there_is_to_a_key(self) -> None:
        self.ok("put", "k", "1")
        self.ok("put", "k", "2")
        self.assertEqual(
            self.ok("get", "k", "-o", "json").json,
            {"key": "k", "value": "2", "create_revision": 2, "mod_revision": 3, "version": 2},
        )
        self.assertEqual(
            self.ok("get", "k", "-o", "table").text,
            "key              k\nvalue            2\ncreate revision  2\n"
            "mod revision     3\nversion          2\n",
        )
        self.ok("put", "\udcff", "\udcfe")
        binary = self.ok("get", "\udcff", "-o", "json").json
        self.assertEqual((binary["key_base64"], binary["value_base64"]), ("/w==", "/g=="))

    def test_the_past_and_what_a_server_has(self) -> None:
        self.ok("put", "k", "1")
        self.ok("put", "k", "2")
        self.assertEqual(self.ok("get", "k", "--revision", "2").out, b"1")
        self.assertEqual(self.ok("get", "k", "--local").out, b"2")
        self.assertEqual(self.ok("get", "k", "--max-staleness-ms", "500").out, b"2")
        self.fails(2, "revision", "get", "k", "--revision", "99")
        self.assertEqual(self.ok("compact", "3").text, "3\n")
        self.fails(1, "compact", "get", "k", "--revision", "2")

    def test_what_is_not_there(self) -> None:
        self.assertEqual(self.fails(1, "no key k\\n", "get", "k\n").out, b"")
        self.fails(1, "no key k", "del", "k")

    def test_conditions(self) -> None:
        self.assertEqual(self.ok("put", "k", "1", "--if-absent").text, "2\n")
        self.fails(1, "k is there, at revision 2;", "put", "k", "2", "--if-absent")
        self.fails(1, "k is there, at revision 2;", "put", "k", "2", "--if-revision", "1")
        self.fails(1, "There is no key x;", "put", "x", "2", "--if-revision", "1")
        self.assertEqual(self.ok("put", "k", "2", "--if-revision", "2").text, "3\n")
        self.fails(1, "k is there, at revision 3;", "del", "k", "--if-revision", "2")
        self.assertEqual(self.ok("del", "k", "--if-revision", "3").text, "4\n")

    def test_what_was_there_before(self) -> None:
        self.assertEqual(self.ok("put", "k", "1", "--prev").text, "2\n")
        self.assertEqual(self.ok("put", "k", "2", "--prev").text, "3\t1\n")
        self.assertEqual(self.ok("put", "k", "3", "--prev", "-o", "raw").out, b"2")
        deleted = self.ok("del", "k", "--prev", "-o", "json").json
        self.assertEqual((deleted["revision"], deleted["previous"]["value"]), (5, "3"))

    def test_a_key_that_goes(self) -> None:
        put = self.ok("put", "k", "v", "--ttl", "10", "-o", "json").json
        self.assertEqual(self.ok("lease", "list").text, f"{put['lease']}\t10\n")
        self.assertEqual(self.ok("get", "k", "-o", "json").json["lease"], put["lease"])
        self.cluster.advance(30)
        self.fails(1, "no key", "get", "k")

    def test_deleting_with_a_prefix(self) -> None:
        for key in ("a/1", "a/2", "b"):
            self.ok("put", key, "v")
        self.assertEqual(self.ok("del", "--prefix", "a/").text, "2\n")
        self.assertEqual(self.ok("del", "--prefix", "a/").text, "0\n")
        self.assertEqual(
            self.ok("del", "--prefix", "", "-o", "json").json, {"deleted": 1, "revision": 6}
        )
        self.fails(2, "KEY", "del")
        self.fails(2, "KEY", "del", "a", "--prefix", "a")
        self.fails(2, "one key", "del", "--prefix", "a", "--prev")


class Lists(CtlCase):
    def setUp(self) -> None:
        super().setUp()
        for key in ("a/1", "a/2", "b"):
            self.ok("put", key, f"value of {key}")

    def test_in_a_pipe(self) -> None:
        self.assertEqual(
            self.ok("list").text, "a/1\tvalue of a/1\na/2\tvalue of a/2\nb\tvalue of b\n"
        )
        self.assertEqual(self.ok("list", "a/", "--keys-only").text, "a/1\na/2\n")
        self.assertEqual(self.ok("list", "--start", "a/2", "--end", "b").text.count("\n"), 1)
        self.assertEqual(self.ok("list", "--keys-only", "--reverse").text, "b\na/2\na/1\n")
        self.assertEqual(
            self.ok("list", "a/", "-o", "raw").text, "value of a/1\nvalue of a/2\n"
        )
        self.assertEqual(self.ok("list", "--count").text, "3\n")
        self.assertEqual(self.ok("list", "zzz").text, "")
        self.ok("put", "c\n", "\t")
        self.assertEqual(self.ok("list", "c").text, "c\\n\t\\t\n")
        self.fails(2, "both", "list", "a", "--start", "b")

    def test_tables(self) -> None:
        self.assertEqual(
            self.ok("list", "a/", "-o", "table").text,
            "KEY  VALUE         REVISION  VERSION\n"
            "a/1  value of a/1         2        1\n"
            "a/2  value of a/2         3        1\n",
        )
        shown = self.ok("list", "b", terminal=True, environ={"NO_COLOR": "1"}).text
        self.assertEqual(
            shown,
            "╭─────┬────────────┬──────────┬─────────╮\n"
            "│ KEY │ VALUE      │ REVISION │ VERSION │\n"
            "├─────┼────────────┼──────────┼─────────┤\n"
            "│ b   │ value of b │        4 │       1 │\n"
            "╰─────┴────────────┴──────────┴─────────╯\n",
        )

    def test_pages(self) -> None:
        listed = self.run_command("list", "--limit", "2", "-o", "json")
        self.assertEqual(listed.said, "")
        self.assertEqual((listed.json["count"], listed.json["more"]), (3, True))
        self.assertEqual([kv["key"] for kv in listed.json["kvs"]], ["a/1", "a/2"])
        self.assertEqual(self.ok("list", "--count", "--revision", "3").text, "2\n")

    def test_nothing_is_left_out_in_silence(self) -> None:
        put = [{"put": {"key": f"k{i:04}", "value": "v"}} for i in range(1100)]
        for begin in range(0, 1100, 100):
            body = msgspec.json.encode({"then": put[begin : begin + 100]})
            self.ok("txn", stdin=body)
        ran = self.run_command("list", "k", "--keys-only")
        self.assertEqual(ran.text.count("\n"), 1000)
        self.assertIn("1,000 of 1,100 keys", ran.said)
        ran = self.ok("list", "k", "--all", "-o", "json")
        keys = [msgspec.json.decode(line)["key"] for line in ran.out.splitlines()]
        self.assertEqual(keys, [f"k{i:04}" for i in range(1100)])
        table = self.ok("list", "k", "--all", "-o", "table").text
        self.assertEqual(table.count("\n"), 1101)
        self.ok("list", "--all", "--keys-only")


class Watches(CtlCase):
    def test_changes_come_once_and_in_order(self) -> None:
        self.ok("put", "k", "1")
        watching = self.begin("watch", "--prefix", "", "--revision", "2", "--count", "4")
        self.cluster.advance(1)
        self.ok("put", "k", "2\n")
        self.ok("del", "k")
        self.ok("put", "other", "3")
        self.assertEqual(self.cluster.result(watching.done), 0)
        self.assertEqual(
            watching.out.text(),
            "2\tput\tk\t1\n3\tput\tk\t2\\n\n4\tdelete\tk\t\n5\tput\tother\t3\n",
        )

    def test_formats(self) -> None:
        self.ok("put", "k", "1")
        self.ok("put", "k", "2")
        self.ok("del", "k")
        first = ("watch", "k", "--revision", "2", "--count", "3")
        lines = self.ok(*first, "--prev", "-o", "json").out.splitlines()
        events = [msgspec.json.decode(line)["events"][0] for line in lines]
        self.assertEqual([event["type"] for event in events], ["put", "put", "delete"])
        self.assertEqual(events[1]["previous"]["value"], "1")
        self.assertEqual(events[2]["mod_revision"], 4)
        self.assertEqual(self.ok(*first, "-o", "raw").text, "1\n2\n")
        self.assertEqual(self.ok(*first, "--prev").text.splitlines()[1], "3\tput\tk\t2\t1")
        shown = self.ok(*first, "--prev", terminal=True, environ={"NO_COLOR": "1"}).text
        self.assertEqual(
            shown.splitlines(),
            ["       2  put     k  1", "       3  put     k  2  (was 1)",
             "       4  delete  k  (was 2)"],
        )  # fmt: skip
        only = ("watch", "k", "--revision", "2", "--count", "1", "--only", "delete")
        self.assertEqual(self.ok(*only).text, "4\tdelete\tk\t\n")

    def test_wrong_and_compacted(self) -> None:
        self.fails(2, "--prefix", "watch")
        self.fails(2, "--prefix", "watch", "k", "--prefix", "k")
        self.ok("put", "k", "1")
        self.ok("put", "k", "2")
        self.ok("compact", "3")
        self.fails(1, "compacted", "watch", "k", "--revision", "2")

    def test_stopped_it_leaves_nothing_behind(self) -> None:
        watching = self.begin("watch", "k")
        self.cluster.advance(1)
        watching.done.cancel()
        self.failureResultOf(watching.done, CancelledError)
        # The server notices when it says that it is alive.
        self.cluster.advance(20)
        status = self.ok("status", "-o", "json").json["members"][0]["status"]
        self.assertEqual(status["watches"], 0)


class Transactions(CtlCase):
    TXN = (
        b'{"compare": [{"key": "a", "value": "1"}],'
        b' "then": [{"put": {"key": "a", "value": "2", "prev": true}},'
        b' {"delete": {"key": "b"}},'
        b' {"get": {"key": "b"}}],'
        b' "else": [{"get": {"prefix": ""}}, {"txn": {"then": [{"get": {"key": "a"}}]}}]}'
    )

    def test_both_ways(self) -> None:
        self.ok("put", "a", "1")
        self.assertEqual(
            self.ok("txn", stdin=self.TXN).text,
            "succeeded\t3\n1\tput\treplaced\n2\tdelete\t0\n3\tget\tcount 0\n",
        )
        ran = self.run_command("txn", stdin=self.TXN)
        self.assertEqual((ran.status, ran.said), (1, ""))
        self.assertEqual(
            ran.text, "failed\t3\n1\tget\ta\t2\n2\ttxn\tsucceeded\n2.1\tget\ta\t2\n"
        )
        raw = self.run_command("txn", "-o", "raw", stdin=self.TXN)
        self.assertEqual((raw.status, raw.out), (1, b"2\n2\n"))

    def test_json_is_what_http_says(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(self.TXN)
        self.ok("put", "a", "1")
        said = self.ok("txn", path, "-o", "json").json
        previous = {
            "key": "a",
            "value": "1",
            "create_revision": 2,
            "mod_revision": 2,
            "version": 1,
        }
        self.assertEqual(
            said,
            {
                "succeeded": True,
                "revision": 3,
                "results": [
                    {"put": {"created": False, "previous": previous}},
                    {"delete": {"deleted": 0}},
                    {"get": {"count": 0, "more": False, "kvs": []}},
                ],
            },
        )

    def test_what_is_none(self) -> None:
        for body, said in (
            (b"{", "JSON"),
            (b"[]", "object"),
            (b'{"if": []}', "'if'"),
            (b'{"then": {}}', "'then'"),
            (b'{"then": [1]}', "'then'"),
            (b'{"then": [{"put": {}}]}', "put"),
        ):
            self.fails(2, said, "txn", stdin=body)


class Leases(CtlCase):
    def test_a_life(self) -> None:
        lease = self.ok("lease", "grant", "20").text.strip()
        self.assertRegex(lease, "^[0-9a-f]{16}$")
        self.ok("put", "k", "v", "--lease", lease)
        shown = self.ok("lease", "show", lease).text
        self.assertRegex(shown, rf"^id\t{lease}\nttl\t20 s\nttl left\t\d+\.\d s\nkey\tk\n$")
        self.assertEqual(
            self.ok("lease", "keepalive", lease, "--once", "-o", "json").json,
            {"id": lease, "ttl": 20.0},
        )
        self.assertEqual(self.ok("lease", "list", "-o", "raw").text, f"{lease}\n")
        self.assertEqual(self.ok("lease", "revoke", lease.upper()).text, "1\n")
        self.fails(1, "no key", "get", "k")
        self.fails(1, "lease", "lease", "revoke", lease)
        self.fails(1, "lease", "lease", "show", lease)
        self.fails(1, "lease", "lease", "keepalive", lease)
        self.fails(2, "16 hexadecimal", "lease", "show", "x")
        self.assertEqual(self.ok("lease", "list", "-o", "json").json, {"leases": []})

    def test_it_is_kept_alive_until_it_ends_all_the_same(self) -> None:
        lease = self.ok("lease", "grant", "10").text.strip()
        keeping = self.begin("lease", "keepalive", lease)
        self.cluster.advance(60)
        self.assertNoResult(keeping.done)
        self.ok("lease", "revoke", lease)
        self.assertEqual(self.cluster.result(keeping.done), 5)
        self.assertIn("raftctl: ", keeping.err.text())

    def test_it_may_be_over_before_anybody_can_say(self) -> None:
        lease = self.ok("lease", "grant", "10").text.strip()
        keeping = self.begin("lease", "keepalive", lease)
        self.cluster.advance(5)
        began = self.cluster.clock.seconds()
        self.cluster.crash(self.leader)
        self.assertEqual(self.cluster.result(keeping.done), 5)
        self.assertLessEqual(self.cluster.clock.seconds() - began, 10)
        self.assertIn("may be over", keeping.err.text())


class Cluster(CtlCase):
    size = 3

    def test_status(self) -> None:
        self.ok("put", "k", "v")
        self.cluster.advance(1)
        said = self.ok("status", "-o", "json").json
        self.assertTrue(said["healthy"])
        self.assertEqual([m["name"] for m in said["members"]], ["n1", "n2", "n3"])
        self.assertEqual({m["status"]["revision"] for m in said["members"]}, {2})
        lines = self.ok("status").text.splitlines()
        self.assertEqual([line.split("\t")[0] for line in lines], ["n1", "n2", "n3"])
        roles = sorted(line.split("\t")[1] for line in lines)
        self.assertEqual(roles, ["follower", "follower", "leader"])
        table = self.ok("status", "-o", "table").text.splitlines()
        self.assertEqual(table[0].split()[:3], ["NAME", "ROLE", "TERM"])
        self.assertNotIn("PROBLEM", table[0])

    def test_status_with_one_that_is_gone(self) -> None:
        gone = next(name for name in self.cluster.members if name != self.leader)
        self.cluster.crash(gone)
        ran = self.run_command("status", "-o", "table")
        self.assertEqual((ran.status, ran.said), (1, ""))
        line = next(line for line in ran.text.splitlines() if line.startswith(gone))
        self.assertEqual(line.split(), [gone, "?", "does", "not", "answer"])
        said = self.run_command("status", "-o", "json").json
        self.assertFalse(said["healthy"])

    def test_leader(self) -> None:
        self.assertEqual(self.ok("leader").text, f"{self.leader}\n")
        self.assertEqual(self.ok("leader", "-o", "json").json, {"leader": self.leader})
        self.ok("leader", "--to", "")
        self.cluster.advance(2)
        self.assertNotEqual(self.ok("leader").text, f"{self.leader}\n")

    def test_nobody_leads(self) -> None:
        for name in [n for n in self.cluster.members if n != self.leader]:
            self.cluster.crash(name)
        self.cluster.advance(5)
        self.fails(1, "No leader", "leader")
        self.fails(3, "", "get", "k", "--timeout", "2")

    def test_unknown_and_unreachable(self) -> None:
        """Nobody hides that a write may have happened."""
        for name in self.cluster.members:
            if name != self.leader:
                self.cluster.crash(name)
        ran = self.run_command("put", "k", "v", "--timeout", "8")
        self.assertEqual(ran.status, 4, ran)
        self.cluster.crash(self.leader)
        ran = self.fails(3, "(asked: n1:4001,", "get", "k", "--timeout", "1")
        self.assertIn("in memory)", ran.said)

    def test_members(self) -> None:
        said = self.ok("member", "list", "-o", "json").json["members"]
        self.assertEqual(
            [(m["name"], m["role"]) for m in said], [(f"n{i}", "voter") for i in (1, 2, 3)]
        )
        self.assertEqual(self.ok("member", "list", "-o", "raw").text, "n1\nn2\nn3\n")
        self.assertEqual(
            self.ok("member", "add", "new.example:4001", "--learner").text,
            "raftd --name new.example:4001 --join n1,n2,n3 --learner\n",
        )
        self.fails(2, "host:port", "member", "add", "nothing")
        self.fails(1, "not a member", "member", "remove", "x:4001")
        self.fails(1, "not a member", "member", "move", "x:4001", "y:4001")
