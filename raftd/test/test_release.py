"""
The rest of Raft on real processes: snapshots, members that come and go, a
leader that sleeps, and one that is stopped; always with writers at work.
"""

from __future__ import annotations

import signal
import socket
import time
from typing import Any

import msgspec

from raftd.test.processes import (
    PATIENCE_S,
    ClusterProcessCase,
    Load,
    NodeProcess,
    free_ports,
    wait_until,
)

#: Long, so that a machine with much else to do holds no election for nothing.
PATIENT = ("--election-timeout-ms", "3000")
ELECTION_S = 3.0
#: What a few heartbeats may take on such a machine.
SOON_S = 1.0
#: More than the entries that stay in the log behind a snapshot.
TAIL = 10_000
#: Requests sent on one connection before the first is answered.
PIPELINED = 250


def fill(node: NodeProcess, count: int) -> None:
    """That many writes of one key, as fast as one client can."""
    body = b"x" * 20
    request = (
        b"PUT /db/filling HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    ) + body
    with socket.create_connection(("localhost", node.port), PATIENCE_S) as connection:
        answers = connection.makefile("rb")
        while count > 0:
            batch = min(count, PIPELINED)
            connection.sendall(request * batch)
            for _ in range(batch):
                status, body = read_answer(answers)
                assert status in (200, 201), (status, body)
            count -= batch


def read_answer(answers: Any) -> tuple[int, bytes]:
    """One HTTP answer with a Content-Length: its status, and the body."""
    status = int(answers.readline().split()[1])
    length = 0
    while (line := answers.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, answers.read(length)


class ReleaseCase(ClusterProcessCase):
    def change(self, node: NodeProcess, method: str, path: str, body: Any = None) -> Any:
        """A change that is to succeed: what is answered."""
        data = None if body is None else msgspec.json.encode(body)
        status, answer = node.request(method, path, data)
        self.assertEqual(status, 200, answer)
        return msgspec.json.decode(answer)

    def roles(self, node: NodeProcess) -> dict[str, str]:
        """The members as `node` knows them: name to role."""
        return {m["name"]: m["role"] for m in node.status().get("members", ())}

    def load(self, nodes: list[NodeProcess], writers: int = 8, prefix: str = "w") -> Load:
        load = Load(nodes, writers, prefix)
        self.addCleanup(load.stop)
        load.await_more(50)
        return load


class SnapshotTests(ReleaseCase):
    def test_who_was_down_while_the_log_was_compacted_comes_back(self) -> None:
        """By snapshot, while writers write: without an election, and no write fails."""
        options = (*PATIENT, "--snapshot-threshold-bytes", "100000")
        nodes = self.start_cluster(3, *options)
        leader = self.leader_of(nodes)
        away, other = (node for node in nodes if node is not leader)
        before = self.load(nodes, prefix="before")
        before.stop()
        away.signal(signal.SIGKILL)
        last = leader.status()["last_index"]
        fill(leader, TAIL)

        def is_compacted() -> bool:
            # The state holds every revision, so that snapshots come ever more rarely.
            fill(leader, 1_000)
            return bool(leader.status()["first_index"] > last + 100)

        wait_until(is_compacted, "compaction")
        load = self.load([leader, other], writers=64)
        term = leader.status()["term"]
        away.start(*options)

        def applied() -> int:
            index: int = away.status().get("applied_index", 0)
            return index

        wait_until(lambda: applied() > last + TAIL, "the node that was away")
        load.await_more(200)
        load.nodes = nodes
        load.await_more(200)
        load.stop()
        self.assertGreater(away.status()["first_index"], last, "it came by the log")
        self.assertEqual(load.answers.keys(), {201})
        for node in nodes:
            self.assertEqual(node.status()["term"], term, "there was an election")
        self.assert_all_there(nodes, [*before.acknowledged, *load.acknowledged])


class MemberTests(ReleaseCase):
    def test_members_come_move_and_go_under_load(self) -> None:
        nodes = self.start_cluster(3, *PATIENT)
        load = self.load(nodes[:2])
        one, two, three = nodes

        # Added: a voter, and a learner that is given its vote.
        four = self.add_node(two, *PATIENT)
        five = self.add_node(four, *PATIENT, "--learner")
        self.assertEqual(self.roles(five)[five.name], "learner")
        self.change(three, "PATCH", f"/members/{five.name}", {"role": "voter"})
        self.assertEqual(set(self.roles(one).values()), {"voter"})
        wait_until(lambda: self.roles(five).get(five.name) == "voter", "its vote")

        # Moved to another address: told, stopped, and started there.
        former = four.name
        (port,) = free_ports(1)
        self.change(one, "PATCH", f"/members/{former}", {"name": f"localhost:{port}"})
        four.await_output(f"localhost:{port}")
        self.assertEqual(four.stop(), 0)
        four.move(port)
        four.start(*PATIENT)
        wait_until(lambda: four.status().get("leader"), "its leader")
        self.assertNotIn(former, self.roles(four))
        load.nodes = [one, two, four]
        load.await_more()

        # Demoted, and removed; the process says so, and ends.
        self.change(two, "PATCH", f"/members/{five.name}", {"role": "learner"})
        self.assertEqual(self.roles(one)[five.name], "learner")
        for node in (five, three):
            answer = self.change(one, "DELETE", f"/members/{node.name}")
            self.assertNotIn(node.name, [m["name"] for m in answer["members"]])
            self.assertEqual(node.await_end(), 1)
            self.assertTrue("was removed from th" in node.output(), node.name)
        load.await_more()
        load.stop()
        self.assertEqual(load.answers.keys(), {201})
        remaining = [one, two, four]
        for node in remaining:
            self.assertEqual(set(self.roles(node)), {n.name for n in remaining})
        self.assert_all_there(remaining, load.acknowledged)

    def test_leader_that_is_removed_under_load(self) -> None:
        """The rest goes on at once, and it may not come back."""
        nodes = self.start_cluster(3, *PATIENT)
        leader = self.leader_of(nodes)
        others = [node for node in nodes if node is not leader]
        load = self.load(others)
        began = time.monotonic()
        self.change(others[0], "DELETE", f"/members/{leader.name}")
        self.assertEqual(leader.await_end(), 1)
        self.leader_of(others)
        load.await_more()
        load.stop()
        self.assertEqual(load.answers.keys(), {201})
        self.assertLess(load.longest_gap_s(began), SOON_S)
        leader.start()
        self.assertEqual(leader.await_end(), 1)
        self.assertTrue("was removed from th" in leader.output(), leader.name)
        self.assert_all_there(others, load.acknowledged)


class SleepTests(ReleaseCase):
    def _sleeps(self, *options: str) -> None:
        nodes = self.start_cluster(3, *options)
        leader = self.leader_of(nodes)
        others = [node for node in nodes if node is not leader]
        for round_ in range(2):
            self.assertIn(others[0].request("PUT", "/db/k", b"old")[0], (200, 201))
            self.assertEqual(leader.request("GET", "/db/k"), (200, b"old"))
            leader.signal(signal.SIGSTOP)
            # These wait in the kernel, and are read before anything else is.
            waiting = [
                socket.create_connection(("localhost", leader.port), PATIENCE_S)
                for _ in range(20)
            ]
            for connection in waiting:
                self.addCleanup(connection.close)
                connection.sendall(b"GET /db/k HTTP/1.1\r\nHost: localhost\r\n\r\n")
            new = self.leader_of(others)
            self.assertIsNot(new, leader)
            for i in range(20):
                self.assertEqual(others[i % 2].request("PUT", "/db/k", b"new%d" % i)[0], 200)
            leader.signal(signal.SIGCONT)
            answers = [read_answer(connection.makefile("rb")) for connection in waiting]
            answers += [leader.request("GET", "/db/k") for _ in range(50)]
            read = {body for status, body in answers if status == 200}
            self.assertEqual(read, {b"new19"}, "a stale read")
            self.assertLessEqual({status for status, _ in answers}, {200, 503})
            self.assertIn(self.leader_of(nodes), nodes)
            if round_ == 0:
                self.change(new, "POST", "/leader", {"to": leader.name})
                self.assertIs(self.leader_of(nodes), leader)

    def test_24_leader_that_sleeps_is_replaced_and_awake_reads_nothing_stale(self) -> None:
        self._sleeps()

    def test_28_nor_with_lease_reads(self) -> None:
        self._sleeps("--lease-reads")


class StopTests(ReleaseCase):
    def test_leader_that_is_stopped_hands_over(self) -> None:
        """Within a heartbeat or two, and no write fails."""
        nodes = self.start_cluster(3, *PATIENT)
        leader = self.leader_of(nodes)
        others = [node for node in nodes if node is not leader]
        load = self.load(others)
        term = leader.status()["term"]
        began = time.monotonic()
        self.assertEqual(leader.stop(), 0)
        load.await_more()
        load.stop()
        self.assertLess(load.longest_gap_s(began), SOON_S)
        self.assertLess(SOON_S, ELECTION_S / 2)
        self.assertEqual(load.answers.keys(), {201})
        self.leader_of(others)
        self.assertEqual(others[0].status()["term"], term + 1)
        self.assert_all_there(others, load.acknowledged)
        leader.start()
        self.leader_of(nodes)
        self.assert_all_there([leader], load.acknowledged)
