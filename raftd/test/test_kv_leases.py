"""Leases as they are replicated, line by line."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from raftd.kv import execution
from raftd.kv.leases import Leases
from raftd.kv.operations import (
    DeleteRange,
    ExpireLease,
    GrantLease,
    Put,
    PutWith,
    RevokeLease,
    Transaction,
    encode_operation,
)
from raftd.kv.results import KeyValue, LeaseResult, RevokeResult
from raftd.kv.store import Store
from raftd.test.kvrig import apply, apply_bytes, code_of, make_small, restored


class LeaseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = Store()

    def test_granting_makes_no_revision(self) -> None:
        before = self.store.digest()
        self.assertEqual(apply(self.store, GrantLease(7, 1500)), LeaseResult(7, 1500))
        self.assertEqual((self.store.revision, self.store.lease(7)), (1, LeaseResult(7, 1500)))
        self.assertIsNone(self.store.lease(8))
        self.assertNotEqual(self.store.digest(), before)

    def test_an_id_is_granted_once(self) -> None:
        apply(self.store, GrantLease(7, 1500))
        before = self.store.digest()
        self.assertEqual(code_of(apply(self.store, GrantLease(7, 9000))), "lease_exists")
        self.assertEqual(self.store.digest(), before)
        apply(self.store, RevokeLease(7))
        self.assertEqual(apply(self.store, GrantLease(7, 9000)), LeaseResult(7, 9000))

    def test_there_are_so_many_and_no_more(self) -> None:
        self.patch(execution, "MAX_LEASES", 3)
        for id in (1, 2, 3):
            apply(self.store, GrantLease(id, 1000))
        self.assertEqual(code_of(apply(self.store, GrantLease(4, 1000))), "too_many_leases")
        apply(self.store, RevokeLease(2))
        self.assertEqual(apply(self.store, GrantLease(4, 1000)), LeaseResult(4, 1000))

    def test_all_of_them_in_the_order_of_their_ids(self) -> None:
        for id in (2**63 - 1, 5, 70, 1):
            apply(self.store, GrantLease(id, 1000))
        self.assertEqual([lease.id for lease in self.store.leases()], [1, 5, 70, 2**63 - 1])
        self.assertEqual(self.store.lease_count, 4)

    def test_a_lease_that_is_not_there_is_refused(self) -> None:
        before = self.store.digest()
        for operation in (Put(b"k", b"v", 5), Put(b"k", b"v", -1), PutWith(b"k", b"v", 5)):
            self.assertEqual(code_of(apply(self.store, operation)), "lease_not_found")
        for id in (5, 0, -1):
            self.assertEqual(code_of(apply(self.store, RevokeLease(id))), "lease_not_found")
        self.assertEqual(self.store.digest(), before)

    def test_a_key_goes_from_one_to_another(self) -> None:
        for id in (1, 2):
            apply(self.store, GrantLease(id, 1000))
        for lease, expected in ((1, ([b"k"], [])), (2, ([], [b"k"])), (2, ([], [b"k"]))):
            apply(self.store, Put(b"k", b"", lease))
            keys = self.store.lease_keys(1, 9), self.store.lease_keys(2, 9)
            self.assertEqual(keys, expected)
        apply(self.store, DeleteRange(b"k"))
        self.assertEqual(self.store.lease_keys(2, 9), [])

    def test_its_keys_are_sorted(self) -> None:
        apply(self.store, GrantLease(1, 1000))
        for key in (b"c", b"a", b"d", b"b"):
            apply(self.store, Put(key, b"", 1))
        self.assertEqual(self.store.lease_keys(1, 3), [b"a", b"b", b"c"])
        self.assertEqual(self.store.lease_keys(2, 3), [])

    def test_revoking_deletes_its_keys_sorted_in_one_revision(self) -> None:
        for id in (1, 2):
            apply(self.store, GrantLease(id, 1000))
        for key, lease in ((b"c", 1), (b"a", 1), (b"b", 2), (b"x", 0), (b"d", 1)):
            apply(self.store, Put(key, b"", lease))
        self.assertEqual(apply(self.store, RevokeLease(1)), RevokeResult(7, 3))
        self.assertEqual(list(self.store.changed_keys(7)), [b"a", b"c", b"d"])
        self.assertEqual(
            [self.store.get(key) for key in (b"a", b"b", b"c", b"d", b"x")],
            [None, KeyValue(b"b", b"", 4, 4, 1, 2), None, None, KeyValue(b"x", b"", 5, 5, 1)],
        )
        self.assertEqual(self.store.leases(), [LeaseResult(2, 1000)])

    def test_revoking_one_without_keys_makes_no_revision(self) -> None:
        apply(self.store, GrantLease(1, 1000))
        apply(self.store, Put(b"k", b"", 1))
        apply(self.store, Put(b"k", b""))
        self.assertEqual(apply(self.store, RevokeLease(1)), RevokeResult(3, 0))
        self.assertEqual((self.store.revision, self.store.leases()), (3, []))

    def test_revoking_goes_on_with_a_full_store(self) -> None:
        apply(self.store, GrantLease(1, 1000))
        apply(self.store, Put(b"k", b"", 1))
        self.store.quota_bytes = 1
        self.assertEqual(code_of(apply(self.store, Put(b"k", b""))), "quota_reached")
        self.assertEqual(apply(self.store, RevokeLease(1)), RevokeResult(3, 1))

    def test_53_revoking_is_applied_in_steps_and_seen_as_a_whole(self) -> None:
        make_small(self.patch, 4)
        apply(self.store, GrantLease(1, 1000))
        for n in range(21):
            apply(self.store, Put(b"%02d" % n, b"", 1))
        before = self.store.digest()

        def look() -> None:
            self.assertEqual((self.store.digest(), self.store.revision), (before, 22))
            self.assertEqual(self.store.lease(1), LeaseResult(1, 1000))

        _, steps = apply_bytes(self.store, encode_operation(RevokeLease(1)), look)
        self.assertGreaterEqual(steps, 10)
        self.assertEqual((len(self.store), self.store.revision), (0, 23))

    def test_they_are_told_of(self) -> None:
        told: list[tuple[int, int]] = []
        self.store.on_lease = lambda id, ttl_ms: told.append((id, ttl_ms))
        apply(self.store, GrantLease(1, 1000))
        apply(self.store, GrantLease(1, 2000))
        apply(self.store, RevokeLease(1))
        self.assertEqual(told, [(1, 1000), (1, 0)])

    def test_they_are_in_snapshots_with_their_keys(self) -> None:
        for id in (9, 3):
            apply(self.store, GrantLease(id, 1000 * id))
        for n in range(5):
            apply(self.store, Put(b"%d" % n, b"", 9 if n % 2 else 3))
        snapshot = self.store.snapshot()
        apply(self.store, RevokeLease(9))
        apply(self.store, GrantLease(4, 1000))
        copy = restored(b"".join(snapshot))
        self.assertEqual(copy.leases(), [LeaseResult(3, 3000), LeaseResult(9, 9000)])
        self.assertEqual(copy.lease_keys(9, 10), [b"1", b"3"])
        self.assertEqual(apply(copy, RevokeLease(9)), RevokeResult(7, 2))


class NumberTests(SynchronousTestCase):
    """An expiry ends the grant that it was meant for, and no later one of the same id."""

    def setUp(self) -> None:
        self.store = Store()

    def test_it_ends_the_lease_that_has_expired(self) -> None:
        for id in (7, 8):
            apply(self.store, GrantLease(id, 1500))
        apply(self.store, Put(b"k", b"", 8))
        self.assertEqual([self.store.lease_number(id) for id in (7, 8, 9)], [1, 2, 0])
        self.assertEqual(apply(self.store, ExpireLease(8, 2)), RevokeResult(3, 1))
        self.assertEqual(self.store.leases(), [LeaseResult(7, 1500)])

    def test_a_later_lease_with_the_same_id_lives_on(self) -> None:
        apply(self.store, GrantLease(7, 1500))
        expiry = ExpireLease(7, self.store.lease_number(7))
        apply(self.store, RevokeLease(7))
        self.assertEqual(code_of(apply(self.store, expiry)), "lease_not_found")
        apply(self.store, GrantLease(7, 1500))
        apply(self.store, Put(b"k", b"", 7))
        before = self.store.digest()
        for number in (1, 3):
            refused = apply(self.store, ExpireLease(7, number))
            self.assertEqual(code_of(refused), "lease_not_found")
        self.assertEqual(self.store.digest(), before)
        self.assertEqual(self.store.lease_keys(7, 9), [b"k"])

    def test_a_revocation_that_somebody_asks_for_is_of_any(self) -> None:
        apply(self.store, GrantLease(7, 1500))
        self.assertEqual(apply(self.store, RevokeLease(7)), RevokeResult(1, 0))

    def test_a_grant_in_a_transaction_has_a_number(self) -> None:
        grants = tuple(GrantLease(id, 1500) for id in (9, 3))
        apply(self.store, Transaction((), grants))
        self.assertEqual([self.store.lease_number(id) for id in (9, 3)], [1, 2])

    def test_numbers_are_in_snapshots(self) -> None:
        """Also the next one, though the lease that had the last is gone."""
        for id in (5, 9, 3):
            apply(self.store, GrantLease(id, 1000))
        apply(self.store, RevokeLease(3))
        snapshot = self.store.snapshot()
        digest = self.store.digest()
        apply(self.store, RevokeLease(9))
        copy = restored(b"".join(snapshot))
        self.assertEqual(copy.digest(), digest)
        apply(copy, GrantLease(3, 1000))
        self.assertEqual([copy.lease_number(id) for id in (5, 9, 3)], [1, 2, 4])
        self.assertEqual(apply(copy, ExpireLease(9, 2)), RevokeResult(1, 0))

    def test_the_digest_has_them(self) -> None:
        twin = Store()
        for store in (self.store, twin):
            apply(store, GrantLease(7, 1500))
        apply(twin, RevokeLease(7))
        apply(twin, GrantLease(7, 1500))
        self.assertEqual(twin.leases(), self.store.leases())
        self.assertNotEqual(twin.digest(), self.store.digest())


class KeysOfLeases(SynchronousTestCase):
    @settings(derandomize=True, max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 2), st.sampled_from("abcdef"))))
    def test_against_a_model(self, steps: list[tuple[bool, int, str]]) -> None:
        leases = Leases()
        model: dict[int, set[bytes]] = {1: set(), 2: set()}
        for attach, id, name in steps:
            key = name.encode()
            if attach and key not in model[id]:
                leases.attach(id, key)
                model[id].add(key)
            elif not attach and key in model[id]:
                leases.detach(id, key)
                model[id].remove(key)
            for one, keys in model.items():
                self.assertEqual(leases.keys(one, b"", 3), sorted(keys)[:3])
                self.assertEqual(
                    leases.keys(one, b"c", 9), sorted(k for k in keys if k >= b"c")
                )
                self.assertEqual(one in leases._keys, bool(keys))
