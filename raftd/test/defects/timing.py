"""Defects of time and of the loop: pitfalls 52 and 53."""

from __future__ import annotations

from raftd.test.defects.defect import Defect

RAFT, LEADER, OUTBOX = "core/raft.py", "core/leader.py", "core/outbox.py"

TIMING = (
    Defect(
        52,
        "wall-clock",
        "Timers follow the wall clock.",
        "clock.py",
        "    reactor.seconds = time.monotonic\n",
        "    reactor.seconds = time.time\n",
    ),
    Defect(
        52,
        "command-without-a-monotonic-clock",
        "The command does not put a monotonic clock into its reactor.",
        "clock.py",
        "    if is_monotonic(reactor):\n        return\n",
        "    if isinstance(reactor, ReactorBase) or is_monotonic(reactor):\n        return\n",
    ),
    Defect(
        53,
        "applied-in-one-go",
        "Applying goes on until nothing is left to apply.",
        "applier.py",
        "            if self._clock.seconds() >= until:\n                break\n",
        "",
    ),
    Defect(
        53,
        "application-in-steps-in-one-go",
        "An application in steps keeps the reactor to its end.",
        "applier.py",
        "                if self._clock.seconds() >= until:\n                    return None\n",
        "",
    ),
    Defect(
        53,
        "range-delete-in-one-step",
        "A large range is deleted in one step.",
        "kv/store.py",
        "STEP_KEYS = 4096\n",
        "STEP_KEYS = 1 << 30\n",
    ),
    Defect(
        53,
        "leader-keeps-a-disk-that-hangs",
        "A leader whose disk hangs leads on.",
        RAFT,
        "        if successor != NOBODY and leadership.successor == NOBODY:\n",
        "        if successor != NOBODY and not leadership:\n",
    ),
    Defect(
        53,
        "leader-in-a-hurry",
        "A leader hands over because of a disk that is only slow.",
        RAFT,
        "        bound_s = MAX_DISK_STALL_TIMEOUTS * self.settings.election_timeout_s\n",
        "        bound_s = 0.1 * self.settings.election_timeout_s\n",
    ),
    Defect(
        53,
        "newest-write-tells-of-the-disk",
        "How long the disk takes is told by the newest write, not by the oldest.",
        OUTBOX,
        "return now - self._under_way[0][1] if self._under_way else 0.0",
        "return now - self._under_way[-1][1] if self._under_way else 0.0",
    ),
    Defect(
        53,
        "writes-are-under-way-for-ever",
        "A disk that has long answered passes for one that hangs.",
        OUTBOX,
        "        while self._under_way and self._under_way[0][0] <= number:\n"
        "            self._under_way.popleft()\n",
        "",
    ),
    Defect(
        53,
        "any-voter-is-a-successor",
        "A leader whose disk hangs hands over to who has least of the log.",
        LEADER,
        "        voters = self._incoming & self.progress.keys()\n        return max(",
        "        voters = self._incoming & self.progress.keys()\n"
        "        if voters:\n"
        "            return min(voters, key=lambda m: self.progress[m].match_index)\n"
        "        return max(",
    ),
    Defect(
        53,
        "transfer-without-an-end",
        "A transfer that does not come about keeps writes waiting for ever.",
        LEADER,
        "        if now >= self._transfer_due:\n            self.end_transfer()\n",
        "",
    ),
    Defect(
        53,
        "slices-wait-without-a-bound",
        "A snapshot is drawn faster than the disk takes it, all of it into memory.",
        "snapshotting.py",
        "                while writer.pending_bytes > MAX_PENDING_BYTES and not "
        "self._stopped:\n"
        "                    await self._pause(PAUSE_S)\n",
        "",
    ),
    Defect(
        53,
        "snapshot-is-flushed-at-its-end",
        "A received snapshot is flushed in one piece, and the log waits behind it.",
        "storage/snapshot_files.py",
        "            if self.size - self._flushed_size >= FLUSH_BYTES:\n",
        "            if self._flushed_size < 0:\n",
    ),
    Defect(
        53,
        "clients-keep-peers-out",
        "Connections of clients take the room that is kept for peers.",
        "net/port.py",
        "        self._max_http = max_connections - peer_reserve\n",
        "        self._max_http = max_connections\n",
    ),
    Defect(
        53,
        "log-lines-block",
        "A log line is written where it comes up, however slow the terminal is.",
        "outlet.py",
        "            self._pending.append((write, text))\n            if self._thread",
        "            write(text)\n            if self._thread",
    ),
)
