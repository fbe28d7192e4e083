"""Names: what is a `host:port`, and what is refused with which sentence."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import BadAnswer
from raftd.names import canonical_name, is_address, split_name, split_names


class NameTests(SynchronousTestCase):
    def test_names(self) -> None:
        for name, parts in {
            "localhost:4001": ("localhost", 4001),
            "127.0.0.1:1": ("127.0.0.1", 1),
            "[::1]:65535": ("::1", 65535),
            "db-1.example.org:80": ("db-1.example.org", 80),
            "LocalHost:4001": ("localhost", 4001),
        }.items():
            self.assertEqual(split_name(name), parts)

    def test_a_name_has_one_spelling(self) -> None:
        for name in ("[::1]:4001", "127.0.0.1:4001", "db.example:4001"):
            self.assertEqual(canonical_name(name), name)
        self.assertEqual(canonical_name("DB.Example:4001"), "db.example:4001")
        for name in ("0.0.0.0:4001", "[::]:4001"):
            with self.assertRaises(BadAnswer):
                canonical_name(name)

    def test_what_is_no_name(self) -> None:
        for name in (
            "",
            ":",
            "localhost",
            "localhost:",
            ":4001",
            "localhost:0",
            "localhost:65536",
            "localhost:-1",
            "localhost:+1",
            "localhost:4_0",
            "localhost: 4001",
            "localhost:\u0664\u0660",
            "localhost:http",
            "local host:4001",
            "http://localhost:4001",
            "localhost/db:4001",
            "::1:4001",
            "my_host:4001",
            "http://localhost:4001",
            "localhost:4001/",
            "256.1.1.1:4001",
            "127.0.0.1.:4001",
            "localhost:04001",
            "-host:4001",
            "[::1:4001",
            "[localhost]:4001",
            "[127.0.0.1]:4001",
            "-x:4001",
            "a" * 254 + ":4001",
            "user@host:4001",
        ):
            error = self.assertRaises(BadAnswer, split_name, name)
            self.assertTrue(str(error).endswith("."), error)
            self.assertLess(len(str(error)), 200)

    def test_lists_of_names(self) -> None:
        self.assertEqual(split_names("a:1"), ("a:1",))
        self.assertEqual(split_names(" a:1 ,b:2,,[::1]:3, "), ("a:1", "b:2", "[::1]:3"))
        for names in ("", " , ", "a:1,b", "a:1;b:2", "a:1 b:2"):
            self.assertRaises(BadAnswer, split_names, names)

    def test_addresses(self) -> None:
        self.assertTrue(is_address("0.0.0.0"))
        self.assertTrue(is_address("::"))
        self.assertFalse(is_address("localhost"))
