"""
A job queue that survives any one machine, over HTTP:

    python jobs.py localhost:4201                   # a new cluster
    python jobs.py localhost:4202 localhost:4201    # another member, through the first

    curl -d 'resize 17.png' localhost:4201/jobs     # {"id": 7}
    curl -X POST localhost:4202/take                # {"id": 7, "lease": 8, "data": ...}
    curl -X DELETE 'localhost:4201/jobs/7?lease=8'  # {}, or 409: the lease was over

A job is taken for `LEASE_MS`.  Whoever has not said by then that it is done has
lost it: it is given to the next who asks, with another lease.  Each request is
carried out exactly once, though its answer be lost inside the cluster: it is
sent in a session.  Between the client and this server HTTP is what it is.
"""

import json
import os
import sys

import msgspec
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from raftd import (
    OutcomeUnknown,
    PortFactory,
    RaftdError,
    Replica,
    SessionClosed,
    SessionExpired,
    SimpleStateMachine,
    use_monotonic,
)

LEASE_MS = 30_000
#: Bounds of the state: it stays small enough for a `SimpleStateMachine`.
MAX_JOBS = 1_000
MAX_DATA_BYTES = 512
#: Of HTTP, for results that are refusals.
STATUSES = {"refused": 400, "none": 404, "lost": 409}


class Put(msgspec.Struct, tag="put"):
    data: bytes


class Take(msgspec.Struct, tag="take"):
    lease_ms: int


class Done(msgspec.Struct, tag="done"):
    id: int
    lease: int


class Job(msgspec.Struct):
    """`lease` is 0 until the job is taken; it is free again from `free_at_ms` on."""

    id: int
    data: bytes
    lease: int = 0
    free_at_ms: int = 0


encode = msgspec.msgpack.encode
decode_operation = msgspec.msgpack.Decoder(Put | Take | Done).decode
decode_jobs = msgspec.msgpack.Decoder(list[Job]).decode


class Queue(SimpleStateMachine):
    """The jobs that are not done, in the order in which they came."""

    def __init__(self):
        self.jobs = {}

    def apply(self, index, time_ms, command):
        # The index makes ids.  The time is the log's, and so the same for all:
        # no node looks at a clock of its own.
        self.index, self.time_ms = index, time_ms
        return self.apply_command(command.operation)

    def apply_command(self, operation):
        try:
            return encode(self.carry_out(decode_operation(operation)))
        except msgspec.MsgspecError:
            return encode({"refused": "This is no operation."})  # in every node's words

    def carry_out(self, operation):
        match operation:
            case Put(data) if len(data) > MAX_DATA_BYTES or len(self.jobs) >= MAX_JOBS:
                return {"refused": "The job is too large, or there are too many."}
            case Put(data):
                self.jobs[self.index] = Job(self.index, data)
                return {"id": self.index}
            case Take(lease_ms):
                for job in self.jobs.values():
                    if job.free_at_ms <= self.time_ms:
                        job.lease, job.free_at_ms = self.index, self.time_ms + lease_ms
                        return {"id": job.id, "lease": job.lease, "data": job.data}
                return {"none": "There is no job to take."}
            case Done(id, lease):
                if id not in self.jobs or self.jobs[id].lease != lease:
                    return {"lost": "The job is done, or somebody else has it by now."}
                del self.jobs[id]
                return {}

    def get_state(self):
        return encode(list(self.jobs.values()))

    def set_state(self, state):
        try:
            self.jobs = {job.id: job for job in decode_jobs(state)}
        except msgspec.MsgspecError as e:
            raise ValueError(str(e)) from None


class Jobs(Resource):
    """The face: `replica` is a `Replica`, or in tests a node of a `Cluster`."""

    isLeaf = True

    def __init__(self, replica):
        super().__init__()
        self.replica, self.session = replica, None

    def render(self, request):
        Deferred.fromCoroutine(self.answer(request))
        return NOT_DONE_YET

    async def answer(self, request):
        gone = []
        request.notifyFinish().addErrback(gone.append)
        try:
            status, body = 200, await self.ask(encode(self.operation(request)))
            for refusal in STATUSES.keys() & body.keys():
                status = STATUSES[refusal]
        except (LookupError, ValueError, OverflowError):
            status, body = 400, {"refused": "POST /jobs, POST /take, DELETE /jobs/ID?lease=L"}
        except RaftdError as e:
            status, body = (504 if isinstance(e, OutcomeUnknown) else 503), {e.code: str(e)}
        if not gone:
            request.setResponseCode(status)
            request.setHeader("content-type", "application/json")
            request.write(json.dumps(body, default=text).encode() + b"\n")
            request.finish()

    def operation(self, request):
        """What is to be replicated for this request; `ValueError` if it is none."""
        match request.method, request.path.split(b"/")[1:]:
            case b"POST", [b"jobs"]:
                return Put(request.content.read(MAX_DATA_BYTES + 1))
            case b"POST", [b"take"]:
                return Take(LEASE_MS)
            case b"DELETE", [b"jobs", id]:
                return Done(int(id), int(request.args[b"lease"][0]))
        raise ValueError("No such request.")

    async def ask(self, operation):
        session = self.session = self.session or await self.replica.open_session()
        try:
            return msgspec.msgpack.decode(await session.propose(operation))
        except (SessionClosed, SessionExpired):
            self.session = None  # the next request opens another one
            raise


def text(data):
    """How bytes are shown in JSON."""
    return data.decode("utf-8", "replace")


async def main(reactor, name, *join):
    use_monotonic(reactor)
    directory = f"jobs-{name.replace(':', '-')}"
    os.makedirs(directory, exist_ok=True)
    replica = Replica(reactor, directory, Queue(), on_fatal=lambda reason: reactor.stop())
    # One port for the other members and for HTTP, told apart by the first byte.
    factory = PortFactory(replica.peer_factory, Site(Jobs(replica)), reactor)
    host, _, port = name.rpartition(":")
    listening = reactor.listenTCP(int(port), factory, interface=host)

    async def stop():
        await listening.stopListening()
        await replica.stop()
        await factory.close_all()

    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(stop()))
    try:
        await replica.start(name, join, listen=False)
    except RaftdError as e:
        raise SystemExit(str(e)) from None
    print(f"{name} serves.", flush=True)
    await Deferred()  # until the process is told to stop


if __name__ == "__main__":
    task.react(main, sys.argv[1:])
