"""The queue on three nodes in memory; run by `python -m twisted.trial test_jobs`."""

from jobs import LEASE_MS, Jobs, Queue
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from raftd import ReplicaOptions
from raftd.testing import Cluster


class JobsTests(SynchronousTestCase):
    def setUp(self):
        options = ReplicaOptions(snapshot_threshold_bytes=2_000, snapshot_tail_entries=5)
        self.cluster = Cluster(3, Queue, seed=1, options=options)
        self.leader = self.cluster.await_leader()
        self.follower, self.other = [n for n in self.cluster.nodes if n != self.leader]
        # The face of a node that goes on living, whoever dies.
        self.client = StubTreq(Jobs(self.cluster[self.follower]))

    def begin(self, method, path, data=b""):
        """A request that is on its way: what it comes to."""

        async def ask():
            response = await self.client.request(method, f"http://queue/{path}", data=data)
            return response.code, await response.json()

        return Deferred.fromCoroutine(ask())

    def ask(self, method, path, data=b""):
        answer = self.begin(method, path, data)

        def answered():
            self.client.flush()
            return answer.called

        self.cluster.advance_until(answered)
        return self.successResultOf(answer)

    def test_a_job_is_put_taken_and_done(self):
        _, put = self.ask("POST", "jobs", b"resize 17.png")
        status, job = self.ask("POST", "take")
        self.assertEqual((status, job["id"], job["data"]), (200, put["id"], "resize 17.png"))
        self.assertEqual(self.ask("POST", "take")[0], 404)
        done = f"jobs/{job['id']}?lease={job['lease']}"
        self.assertEqual(self.ask("DELETE", done), (200, {}))
        self.assertEqual(self.ask("DELETE", done)[0], 409)

    def test_a_lease_ends_by_the_time_in_the_log(self):
        self.ask("POST", "jobs", b"slow")
        _, first = self.ask("POST", "take")
        self.cluster.advance(LEASE_MS / 1000 - 1)
        self.assertEqual(self.ask("POST", "take")[0], 404)
        self.cluster.advance(2)
        _, second = self.ask("POST", "take")
        self.assertEqual(second["id"], first["id"])
        # Who was too slow has lost it, and cannot end another's work.
        self.assertEqual(
            self.ask("DELETE", f"jobs/{first['id']}?lease={first['lease']}")[0], 409
        )

    def test_jobs_are_put_once_though_the_leader_dies_with_the_answers(self):
        self.ask("POST", "jobs", b"the first opens the session")
        puts = [self.begin("POST", "jobs", b"job %d" % i) for i in range(20)]
        self.cluster.advance(0.0025)
        self.cluster.crash(self.leader)

        def answered():
            self.client.flush()
            return all(put.called for put in puts)

        self.cluster.advance_until(answered)
        self.assertEqual({status for status, _ in map(self.successResultOf, puts)}, {200})
        self.cluster.restart(self.leader)
        self.cluster.await_agreement()
        jobs = self.cluster.machines[self.leader].jobs.values()
        self.assertEqual(len({job.data for job in jobs}), 21)
        self.assertEqual(len(jobs), 21)

    def test_the_queue_comes_back_from_snapshots(self):
        self.cluster.crash(self.other)
        for i in range(30):
            self.ask("POST", "jobs", b"job %d" % i)
        self.cluster.restart(self.other)
        self.cluster.await_agreement()  # it compares the states, too
        self.assertGreater(self.cluster[self.other].status().first_index, 1)
        self.assertEqual(len(self.cluster.machines[self.other].jobs), 30)

    def test_nonsense_is_refused_and_stops_nobody(self):
        for method, path, data in (
            ("GET", "jobs", b""),
            ("DELETE", "jobs/2", b""),
            ("DELETE", "jobs/99999999999999999999?lease=1", b""),
            ("POST", "jobs", b"x" * 1000),
        ):
            self.assertEqual(self.ask(method, path, data)[0], 400, (method, path))
        self.cluster.result(self.cluster[self.leader].propose(b"no operation"))
        self.assertEqual(self.cluster.fatal, {})
