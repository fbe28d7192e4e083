"""Defects of what clients are told, and of exactly once: pitfalls 29 to 31."""

from __future__ import annotations

from raftd.test.defects.defect import Defect

SESSIONS, ROUTING, CHANGES = "sessions.py", "routing.py", "changes.py"

CLIENTS = (
    Defect(
        29,
        "retry-is-applied-again",
        "A command whose result is kept is applied anew.",
        SESSIONS,
        "        if kept is not None:\n            return kept\n",
        "",
    ),
    Defect(
        29,
        "acknowledged-is-applied-again",
        "A command that was acknowledged, and whose result is gone, is applied anew.",
        SESSIONS,
        "        if sequence < session.first_unacknowledged:\n            return _STALE\n",
        "",
    ),
    Defect(
        29,
        "expired-session-is-opened-anew",
        "A command of a session that is over is applied as if it had none.",
        SESSIONS,
        "        if session is None:\n            return _EXPIRED\n",
        "        if session is None:\n"
        "            return self._machine.apply(index, time_ms, command)\n",
    ),
    Defect(
        29,
        "result-of-a-long-application-is-not-kept",
        "A command that is applied in steps is not remembered.",
        SESSIONS,
        "        return self._keep(session, sequence, result)\n\n    def _expire",
        "        return _RESULT + result\n\n    def _expire",
    ),
    Defect(
        29,
        "retry-under-another-number",
        "A client numbers a command anew when it sends it again.",
        "session_client.py",
        "        self._node.propose(self._encode(), self._answered)\n",
        "        self.sequence += self._delay_s > RETRY_DELAY_S\n"
        "        self._node.propose(self._encode(), self._answered)\n",
    ),
    Defect(
        30,
        "unknown-passes-for-failed",
        "A write that was proposed and not answered in time is said not to have happened.",
        "requests.py",
        "        if request.state is State.SENT:\n",
        "        if request.state is State.ANSWERED:\n",
    ),
    Defect(
        30,
        "lost-connection-passes-for-failed",
        "A write that was forwarded over a connection that broke is sent again.",
        ROUTING,
        "if isinstance(outcome, NoLeader | Superseded | Stopped):",
        "if isinstance(outcome, NoLeader | Superseded | Stopped | RaftdError):",
    ),
    Defect(
        30,
        "queued-passes-for-unknown",
        "A write that never left its node is said to be unknown.",
        ROUTING,
        "        request.state = State.QUEUED\n",
        "        request.state = State.SENT\n",
    ),
    Defect(
        30,
        "snapshot-passes-for-failed",
        "A write whose index a snapshot has replaced is said not to have happened.",
        ROUTING,
        'self._requests.fail(request, OutcomeUnknown("A snapshot took its place."))',
        "self._queue_again(self._writes, request)",
    ),
    Defect(
        30,
        "any-entry-at-the-index",
        "A write is answered with the result of whatever entry is applied at its index.",
        ROUTING,
        "        if term == entry.term:\n            self._requests.answer(request, result)",
        "        if term <= entry.term:\n            self._requests.answer(request, result)",
    ),
    Defect(
        30,
        "late-write-is-sent-all-the-same",
        "A write whose time is up is still sent, and may happen after it was said not to.",
        ROUTING,
        "if request.state is State.QUEUED and request.deadline > now:",
        "if request.state is not State.SENT:",
    ),
    Defect(
        30,
        "unknown-change-passes-for-failed",
        "A change of membership that was not committed in time is said not to have happened.",
        CHANGES,
        "                    raise _maybe_made() if unknown else reason\n",
        "                    raise reason\n",
    ),
    Defect(
        30,
        "a-later-refusal-hides-the-unknown",
        "A session says that a command did not happen though an attempt may have.",
        "session_client.py",
        "        if not isinstance(reason, DidNotHappen):\n"
        "            self._may_have_happened = True\n",
        "",
    ),
    Defect(
        31,
        "table-is-not-restored",
        "A restored state has no sessions.",
        SESSIONS,
        "        self._table = table\n        self._size = sum",
        "        self._size = sum",
    ),
    Defect(
        31,
        "table-is-newer-than-the-state",
        "A snapshot holds sessions as they are when it is drawn, not when it was begun.",
        SESSIONS,
        "        if session.epoch != self._epoch:\n",
        "        if session.epoch > self._epoch:\n",
    ),
    Defect(
        31,
        "sessions-expire-by-the-clock-of-the-node",
        "A session expires by the time of the node that applies.",
        SESSIONS,
        "        self._now_ms = max(self._now_ms, time_ms)\n        self._expire()\n",
        "        import time\n\n"
        "        self._now_ms = max(self._now_ms, int(time.monotonic() * 1000))\n"
        "        self._expire()\n",
    ),
    Defect(
        31,
        "sessions-never-expire",
        "A session that nobody uses stays for ever.",
        SESSIONS,
        "            if oldest.last_active_ms + SESSION_TTL_MS > self._now_ms:\n",
        "            if oldest.last_active_ms + SESSION_TTL_MS:\n",
    ),
    Defect(
        31,
        "expired-but-not-cleared-away",
        "A session that is over goes on until it is cleared away.",
        SESSIONS,
        "        if session.last_active_ms + SESSION_TTL_MS <= self._now_ms:\n",
        "        if session.last_active_ms < 0:\n",
    ),
    Defect(
        31,
        "leaders-time-goes-back",
        "A new leader begins the cluster's clock anew.",
        "core/leader.py",
        "        self._time_base_ms = log.last_time_ms\n",
        "        self._time_base_ms = 0\n",
    ),
    Defect(
        31,
        "time-of-the-snapshot-is-lost",
        "Behind a snapshot the cluster's clock begins anew.",
        "core/log.py",
        "        self._base_time_ms = snapshot.time_ms\n        self.last_index",
        "        self.last_index",
        also=("test_41_a_log_is_fitted_to_its_snapshot",),
    ),
)
