"""Who may talk to whom."""

from __future__ import annotations

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from raftd.errors import (
    IncompatibleVersion,
    NotReady,
    ProtocolViolation,
    RaftdError,
    RemovedFromCluster,
    WrongCluster,
    WrongMember,
)
from raftd.net.commands import HelloRequest, HelloResponse
from raftd.net.handshake import LocalIdentity, answer_hello, check_answer
from raftd.test.amprig import HELLO, JOINER_HELLO
from raftd.test.peernet import ALICE, BOB, CLUSTER


class HandshakeTests(SynchronousTestCase):
    """Who may talk to whom."""

    def setUp(self) -> None:
        self.bob = LocalIdentity(BOB, CLUSTER)

    def hello(self, **changes: object) -> HelloRequest:
        return msgspec.structs.replace(HELLO, **changes)

    def refused(self, kind: type[RaftdError], **changes: object) -> str:
        with self.assertRaises(kind) as caught:
            answer_hello(self.bob, self.hello(**changes))
        return str(caught.exception)

    def test_a_member(self) -> None:
        answer = answer_hello(self.bob, HELLO)
        self.assertEqual(answer, HelloResponse(1, CLUSTER, BOB.id, BOB.name))
        check_answer(LocalIdentity(ALICE, CLUSTER), BOB, answer)

    def test_versions(self) -> None:
        for first, last in ((0, 1), (1, 1), (1, 9)):
            hello = self.hello(version_min=first, version_max=last)
            self.assertEqual(answer_hello(self.bob, hello).version, 1)
        for first, last in ((2, 5), (0, 0)):
            sentence = self.refused(IncompatibleVersion, version_min=first, version_max=last)
            self.assertIn("upgrade", sentence)

    def test_the_version_is_judged_before_what_later_versions_may_change(self) -> None:
        self.refused(IncompatibleVersion, version_min=2, version_max=2, channel="new")

    def test_another_cluster(self) -> None:
        sentence = self.refused(WrongCluster, cluster_id=0xBAD)
        self.assertIn(f"{CLUSTER:016x}", sentence)
        self.assertIn("0000000000000bad", sentence)

    def test_38_a_wiped_node_under_its_old_name(self) -> None:
        """Bob's directory was lost; somebody new answers where Alice looks for Bob."""
        sentence = self.refused(WrongMember, to_member_id=0xB0B)
        self.assertIn("bob:4002 was lost or replaced", sentence)

    def test_a_copied_directory(self) -> None:
        self.assertIn("copy", self.refused(WrongMember, member_id=BOB.id))

    def test_38_a_removed_member(self) -> None:
        """Its old identity is worth nothing any more, under whatever name."""
        self.bob.removed = frozenset({ALICE.id, 0x123})
        for name in (ALICE.name, "new:1"):
            sentence = self.refused(RemovedFromCluster, name=name)
            self.assertIn(f"{name} was removed from this cluster", sentence)
            self.assertIn("empty its data directory and join anew", sentence)
        # Nor may it join with that identity.
        self.refused(RemovedFromCluster, cluster_id=0, to_member_id=0, channel="bulk")
        # The directory emptied, it is somebody else.
        self.assertEqual(answer_hello(self.bob, self.hello(member_id=0xA2)).member_id, BOB.id)

    def test_only_who_is_meant_says_that_somebody_was_removed(self) -> None:
        """Whoever hears it stops for good: nobody says it to a stranger."""
        self.bob.removed = frozenset({ALICE.id})
        self.refused(WrongCluster, cluster_id=0xBAD)
        self.refused(WrongMember, to_member_id=0xB0B)
        self.bob.cluster_id = 0
        self.refused(NotReady)

    def test_not_ready(self) -> None:
        for identity in (LocalIdentity(), LocalIdentity(BOB, 0)):
            self.assertFalse(identity.is_ready)
            with self.assertRaisesRegex(NotReady, "bob:4002 does not belong to a cluster"):
                answer_hello(identity, HELLO)

    def test_a_joiner(self) -> None:
        self.assertEqual(answer_hello(self.bob, JOINER_HELLO).cluster_id, CLUSTER)
        again = msgspec.structs.replace(JOINER_HELLO, cluster_id=CLUSTER)
        self.assertEqual(answer_hello(self.bob, again).member_id, BOB.id)
        self.refused(WrongCluster, channel="bulk", cluster_id=0xBAD, to_member_id=0)

    def test_what_no_correct_node_says(self) -> None:
        for changes in (
            {"member_id": 0},
            {"cluster_id": 0},
            {"channel": "other"},
            {"to_member_id": 0},
            {"name": ""},
            {"name": "x" * 300},
            {"name": "evil\nname:1"},
            {"to_name": "\x1b[2J"},
        ):
            self.refused(ProtocolViolation, **changes)

    def test_the_caller_checks_who_answers(self) -> None:
        alice = LocalIdentity(ALICE, CLUSTER)
        good = HelloResponse(1, CLUSTER, BOB.id, BOB.name)
        for kind, changes in (
            (ProtocolViolation, {"version": 2}),
            (WrongCluster, {"cluster_id": 0xBAD}),
            (WrongMember, {"member_id": 0xB0B}),
        ):
            with self.assertRaises(kind):
                check_answer(alice, BOB, msgspec.structs.replace(good, **changes))
