"""
A counter that several processes agree on.  Each has a terminal of its own:

    python counter.py localhost:4101                    # a new cluster
    python counter.py localhost:4102 localhost:4101     # another member, through the first

Type a number to add it; an empty line only asks for the total.  Started again
with the same arguments, each goes on where it was.
"""

import os
import sys

from twisted.internet import stdio, task
from twisted.internet.defer import Deferred
from twisted.protocols.basic import LineReceiver

from raftd import RaftdError, Replica, SimpleStateMachine, use_monotonic


class Counter(SimpleStateMachine):
    value = 0

    def apply_command(self, operation):
        # Whatever the bytes are, it must not fail: all nodes would stop.
        self.value += int.from_bytes(operation[:8], "big", signed=True)
        return b"%d" % self.value

    def get_state(self):
        return b"%d" % self.value

    def set_state(self, state):
        self.value = int(state)


class Prompt(LineReceiver):
    delimiter = b"\n"

    def __init__(self, replica, counter):
        self.replica, self.counter, self.closed = replica, counter, Deferred()

    def lineReceived(self, line):
        Deferred.fromCoroutine(self.answer(line.strip()))

    async def answer(self, line):
        try:
            if line:
                number = int(line).to_bytes(8, "big", signed=True)
                total = await self.replica.propose(number)
            else:
                await self.replica.read()
                total = b"%d" % self.counter.value
            self.sendLine(total)
        except (RaftdError, ValueError, OverflowError) as e:
            self.sendLine(str(e).encode())

    def connectionLost(self, reason):
        self.closed.callback(None)


async def main(reactor, name, *join):
    use_monotonic(reactor)
    directory = f"counter-{name.replace(':', '-')}"
    os.makedirs(directory, exist_ok=True)
    counter = Counter()
    replica = Replica(reactor, directory, counter, on_fatal=lambda reason: reactor.stop())
    reactor.addSystemEventTrigger("before", "shutdown", replica.stop)
    try:
        await replica.start(name, join)
    except RaftdError as e:
        raise SystemExit(str(e)) from None
    prompt = Prompt(replica, counter)
    stdio.StandardIO(prompt)
    await prompt.closed


if __name__ == "__main__":
    task.react(main, sys.argv[1:])
