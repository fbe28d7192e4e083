"""Whatever is in a file: it is read, or refused with a sentence that names the file."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from raftd.core.membership import decode_configuration, encode_configuration
from raftd.core.messages import (
    Command,
    HardState,
    decode_command,
    decode_entries,
    encode_entries,
)
from raftd.errors import BadAnswer, DirectoryDamaged, Fatal, ProtocolViolation, RaftdError
from raftd.idempotency import Idempotency
from raftd.interfaces import IStateMachine, Stage
from raftd.kv import backup
from raftd.kv.operations import GrantLease, Operation, Put, encode_operation
from raftd.kv.store import Store
from raftd.sessions import Sessions
from raftd.storage import snapshot_format
from raftd.storage.directory import Identity, decode_identity, encode_identity
from raftd.storage.snapshot_format import SnapshotDecoder
from raftd.test.cores import THREE
from raftd.test.fuzz import INTEGERS, SIZES, VALUES, changed, damages, fuzz, packed, pieces
from raftd.test.kvrig import drained
from raftd.test.logrig import PATH, create_rig, entries, new_disk, recovered
from raftd.test.simdisk import SimulatedDisk
from raftd.test.snapshotrig import DIRECTORY, StoreRig, file_of, fresh_disk, path_of

Damage = Callable[[bytes], bytes]

#: What somebody may write where something else should be.
RAW = st.binary(max_size=60)


def a_log() -> SimulatedDisk:
    """Three segments, with terms, votes, a truncation and entries of several sectors."""
    disk = new_disk()
    rig = create_rig(disk, HardState(1, 0), entries(1, 1)).start()
    rig.run()
    for hard_state, new in (
        (HardState(2, 7), entries(2, 6, size=300)),
        (None, entries(5, 9, term=2, size=200)),
        (HardState(3, 7), entries(10, 12, term=3, size=700)),
    ):
        rig.write(hard_state, new)
        rig.run()
    return disk


class LogFuzz(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = a_log()
        self.state = recovered(self.disk.killed())
        self.paths = sorted(self.disk.contents())

    @fuzz(150, st.lists(st.tuples(st.integers(0, 9), damages()), min_size=1, max_size=3))
    def test_segments(self, changes: list[tuple[int, Damage]]) -> None:
        """Recovered as some beginning of what was written, or refused by name."""
        disk = self.disk.killed()
        for which, damage in changes:
            inode = disk.inode(self.paths[which % len(self.paths)])
            inode.cache[:] = damage(bytes(inode.cache))
        self.open(disk)

    @fuzz(60, st.integers(0, 9), st.binary(max_size=1500), st.integers(0, 8))
    def test_anything_in_the_place_of_a_segment(
        self, which: int, data: bytes, sectors: int
    ) -> None:
        disk = self.disk.killed()
        inode = disk.inode(self.paths[which % len(self.paths)])
        inode.cache[sectors * 512 :] = data
        self.open(disk)

    @fuzz(60, st.text("0123456789.segmntp-x\xe9", min_size=1, max_size=30), RAW)
    def test_a_file_that_is_not_its_own(self, name: str, data: bytes) -> None:
        disk = self.disk.killed()
        if not disk.exists(f"{PATH}/{name}"):
            disk.close(disk.create(f"{PATH}/{name}"))
            disk.inode(f"{PATH}/{name}").write(data, 0)
        self.open(disk)

    def open(self, disk: SimulatedDisk) -> None:
        before = disk.contents()
        try:
            hard_state, log = recovered(disk)
        except DirectoryDamaged as e:
            self.assertIn(PATH, str(e))
            self.assertEqual((disk.contents(), disk.open_count), (before, 0))
        else:
            # Only the end of it may be taken for torn.
            self.assertLessEqual(hard_state.term, self.state[0].term)
            written = [*self.state[1], *entries(5, 6, size=300)]
            self.assertTrue(all(entry in written for entry in log))


class SnapshotFileFuzz(SynchronousTestCase):
    def setUp(self) -> None:
        self.state = {b"key %d" % i: b"value" * i for i in range(30)}
        self.file = file_of(7, self.state)

    @fuzz(150, damages(), damages(), SIZES)
    def test_damaged(self, one: Damage, other: Damage, sizes: list[int]) -> None:
        """Given piece by piece, as a leader sends it: not kept, and bounded in memory."""
        data = other(one(self.file))
        decoder = SnapshotDecoder()
        bound = snapshot_format.MAX_BLOCK_BYTES + snapshot_format.MAX_METADATA_BYTES
        try:
            for piece in pieces(data, sizes):
                decoder.feed(piece)
                self.assertLess(len(decoder._buffer), bound + len(piece))
            decoder.finish()
        except RaftdError:
            self.assertNotEqual(data, self.file)
        else:
            self.assertEqual(data, self.file)
        disk = fresh_disk()
        disk.make_directory(DIRECTORY)
        disk.close(disk.create(path_of(7)))
        disk.inode(path_of(7)).write(data, 0)
        rig = StoreRig(disk)
        try:
            rig.recover()
        except Fatal as e:
            self.assertIn(DIRECTORY, str(e))
        else:
            self.assertEqual(rig.machine.state, self.state if data == self.file else {})

    @fuzz(100, st.data())
    def test_metadata_that_makes_no_sense(self, data: st.DataObject) -> None:
        """With a checksum that is right."""
        magic, version, length = snapshot_format._HEAD.unpack_from(self.file)
        encoded = self.file[snapshot_format._HEAD.size :][:length]
        other = packed(changed(msgspec.msgpack.decode(encoded), data.draw))
        head = snapshot_format._HEAD.pack(magic, version, len(other)) + other
        decoder = SnapshotDecoder()
        try:
            decoder.feed(head + struct.pack("<I", zlib.crc32(head)))
        except RaftdError:
            self.assertIsNone(decoder.metadata)


# -- states --------------------------------------------------------------------


def run(machine: IStateMachine, index: int, command: Command) -> bytes:
    result = machine.apply(index, 1000 + index, command)
    return result if isinstance(result, bytes) else drained(result)[0]


def whole_machine() -> Sessions:
    return Sessions(Idempotency(Store()))


def a_state() -> tuple[bytes, list[bytes]]:
    """A state with sessions, idempotency keys, leases and keys; and its frames."""
    machine = whole_machine()
    operations: list[Operation] = [
        GrantLease(5, 60_000),
        Put(b"a", b"1", 5),
        Put(b"b", b"2"),
        Put(b"a", b"3", 5),
    ]
    run(machine, 1, Command(b"", client_id=0))
    for index, operation in enumerate(operations, 2):
        encoded = encode_operation(operation)
        run(machine, index, Command(encoded, idempotency_key=b"%032d" % index))
    return b"".join(machine.snapshot()), frames(b"".join(machine.snapshot()))


def frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def framed(contents: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(content)) + content for content in contents)


class StateFuzz(SynchronousTestCase):
    """What a snapshot says was written by a state machine; who says so may be wrong."""

    def restored(self, data: bytes, sizes: list[int]) -> Sessions | None:
        machine = whole_machine()
        before = machine.digest()
        restore = machine.restore()
        try:
            for piece in pieces(data, sizes):
                restore.write(piece)
            restore.finish()
        except ValueError:
            self.assertEqual(machine.digest(), before)
            return None
        # Whatever was taken can be used.
        run(machine, 100, Command(encode_operation(Put(b"z", b"9"))))
        self.assertEqual(
            framed(frames(b"".join(machine.snapshot()))), b"".join(machine.snapshot())
        )
        return machine

    @fuzz(150, damages(), damages(), SIZES)
    def test_damaged(self, one: Damage, other: Damage, sizes: list[int]) -> None:
        self.restored(other(one(a_state()[0])), sizes)

    @fuzz(300, st.data(), SIZES)
    def test_values_that_make_no_sense(self, data: st.DataObject, sizes: list[int]) -> None:
        contents = a_state()[1]
        which = data.draw(st.integers(0, len(contents) - 1))
        if contents[which]:
            value = msgspec.msgpack.decode(contents[which])
            contents[which] = packed(changed(value, data.draw))
        else:
            contents[which] = packed(data.draw(VALUES))
        self.restored(framed(contents), sizes)

    def test_it_can_pass(self) -> None:
        data, contents = a_state()
        self.assertEqual(framed(contents), data)
        self.assertGreater(len(contents), 8)
        self.assertIsNotNone(self.restored(data, [7]))


class BackupFuzz(SynchronousTestCase):
    def backup(self, state: Iterator[bytes]) -> bytes:
        return b"".join(backup.Backup(state))

    def take(self, data: bytes) -> bytes | None:
        store = Store()
        before = store.digest()
        try:
            backup.restore_backup(io.BytesIO(data), "old.backup", store.restore())
        except BadAnswer as e:
            self.assertTrue(str(e).startswith("old.backup is "), str(e))
            self.assertTrue(str(e).endswith("."), str(e))
            self.assertEqual(store.digest(), before)
            return None
        return store.digest()

    @fuzz(100, damages(), damages())
    def test_damaged(self, one: Damage, other: Damage) -> None:
        store = Store()
        for number in range(5):
            run(store, number + 1, Command(encode_operation(Put(b"k%d" % number, b"v"))))
        data = self.backup(store.snapshot())
        self.assertEqual(self.take(data), store.digest())
        bad = other(one(data))
        if bad != data:
            self.assertIsNone(self.take(bad))

    @fuzz(150, st.data())
    def test_values_that_make_no_sense(self, data: st.DataObject) -> None:
        """Under a checksum that is right."""
        store = Store()
        for operation in (GrantLease(5, 60_000), Put(b"a", b"1", 5), Put(b"b", b"2")):
            run(store, 1, Command(encode_operation(operation)))
        contents = frames(b"".join(store.snapshot()))
        which = data.draw(st.integers(0, len(contents) - 1))
        if contents[which]:
            value = msgspec.msgpack.decode(contents[which])
            contents[which] = packed(changed(value, data.draw))
        self.take(self.backup(iter([framed(contents)])))

    @fuzz(60, RAW)
    def test_anything(self, data: bytes) -> None:
        self.assertIsNone(self.take(data))
        self.assertIsNone(self.take(backup.MAGIC + data))
        whole = backup.MAGIC + data
        self.assertIsNone(self.take(whole + hashlib.sha256(whole).digest()))


# -- identity.json and single values ---------------------------------------------

IDENTITY = Identity(Stage.MEMBER, "localhost:4001", 7, 9, ("localhost:4002",), True)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(), st.text(max_size=18)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)),
    max_leaves=5,
)


class IdentityFuzz(SynchronousTestCase):
    path = "/data/identity.json"

    def read(self, data: bytes) -> Identity | None:
        try:
            return decode_identity(data, self.path)
        except DirectoryDamaged as e:
            self.assertIn(self.path, str(e))
            return None

    def with_fields(self, changes: dict[str, Any]) -> bytes:
        """The file with other fields, or without those that are None, and a right checksum."""
        fields = {**json.loads(encode_identity(IDENTITY)), **changes}
        fields = {n: v for n, v in fields.items() if v is not None and n != "checksum"}
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        fields["checksum"] = f"{zlib.crc32(canonical.encode()):08x}"
        return json.dumps(fields).encode()

    @fuzz(150, damages())
    def test_damaged(self, damage: Damage) -> None:
        data = encode_identity(IDENTITY)
        self.assertIn(self.read(damage(data)), (IDENTITY, None))

    @fuzz(60, st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
    def test_anything(self, data: bytes) -> None:
        self.assertIsNone(self.read(data))

    @fuzz(
        300,
        st.sampled_from([*json.loads(encode_identity(IDENTITY)), "restoring", "other"]),
        JSON | st.text("0123456789abcdef-_ +x", max_size=20),
        st.booleans(),
    )
    def test_values_that_make_no_sense(self, name: str, value: Any, drop: bool) -> None:
        """With a checksum that is right."""
        identity = self.read(self.with_fields({name: None if drop else value}))
        if identity is not None:
            self.assertGreater(identity.member_id, 0)
            self.assertLess(max(identity.member_id, identity.cluster_id), 2**64)
            self.assertGreaterEqual(identity.cluster_id, 0)
            self.assertEqual(self.read(encode_identity(identity)), identity)

    def test_an_id_that_is_none(self) -> None:
        """Found by the above: with a checksum that is right, a negative id passed."""
        for name in ("member_id", "cluster_id"):
            for value in ("-1", "1" + "0" * 16, "-" + "f" * 16):
                self.assertIsNone(self.read(self.with_fields({name: value})))
        self.assertIsNotNone(self.read(self.with_fields({"member_id": "f" * 16})))


class ValueFuzz(SynchronousTestCase):
    """Values of the log and of the wire: as they were, or a `ProtocolViolation`."""

    @fuzz(150, RAW | VALUES.map(packed))
    def test_anything(self, data: bytes) -> None:
        for decode in (decode_entries, decode_command, decode_configuration):
            try:
                decode(data)
            except ProtocolViolation as e:
                self.assertTrue(str(e))

    @fuzz(150, st.data())
    def test_changed(self, data: st.DataObject) -> None:
        for encoded, decode in (
            (encode_entries(entries(1, 3)), decode_entries),
            (encode_configuration(THREE), decode_configuration),
        ):
            value = changed(msgspec.msgpack.decode(encoded), data.draw)
            try:
                decode(packed(value))
            except ProtocolViolation as e:
                self.assertTrue(str(e))
