"""Clients: threads that ask, retry where that is safe, and write down what they were told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from random import Random

from raftd.test.chaos.rounds import Round
from raftd.test.chaos.systems import System
from raftd.test.chaos.tally import Tally
from raftd.test.chaos.wire import Improper, Refused, Uncertain, Wire
from raftd.test.judge import calls
from raftd.test.judge.calls import Call, Compare, Result, Transaction, is_read

#: Keys of one round.  Few, so that clients meet; not too few to be judged.
REGISTERS = tuple(f"register{n}" for n in range(6))
PAIRS = (("pair0/a", "pair0/b"), ("pair1/a", "pair1/b"))
LISTS = ("list0", "list1")


def keys_of(round_: Round) -> list[str]:
    """Every key that a round may have."""
    names = (*REGISTERS, *LISTS, *(name for pair in PAIRS for name in pair))
    return [*(round_.prefix + name for name in names), round_.last_key]


#: A list gets no longer than this, in characters; then it is deleted.
MAX_LIST = 2_000
#: How often a write of unknown outcome is sent again, under its key, and how
#: often an append begins anew that somebody else was faster than.
MAX_RETRIES = 4

#: Between two operations of a client, in seconds: at most so long.
PAUSE_S = 0.04
#: After one that failed.
PAUSE_AFTER_FAILURE_S = 0.1

#: What clients do, and how often in comparison.
_KINDS = {"get": 4, "put": 4, "swap": 4, "delete": 1, "append": 3, "pair": 3, "range": 2}


class Client:
    """One process of the history, in a thread of its own."""

    def __init__(
        self,
        process: int,
        seed: str,
        system: System,
        names: Sequence[str],
        tally: Tally,
        stopping: threading.Event,
    ) -> None:
        self.process = process
        self._random = Random(f"{seed}/{process}")
        self._run = seed
        self._system = system
        self._wire = Wire(names)
        self._tally = tally
        self._stopping = stopping
        self._node = process % system.count
        self._serial = 0

    def run(self, current: Callable[[], Round]) -> None:
        """Ask until the run is over."""
        try:
            while not self._stopping.is_set():
                round_ = current()
                with round_.guest():
                    is_well = self._step(round_)
                pause_s = self._random.uniform(0, PAUSE_S) if is_well else PAUSE_AFTER_FAILURE_S
                self._stopping.wait(pause_s)
        except Exception as e:
            self._tally.violation(f"client {self.process} broke: {e!r}")
            raise
        finally:
            self._wire.close()

    def put_last(self, round_: Round) -> bool:
        """Put the round's last key; whether that is certain."""
        return self.ask(round_, calls.Put(round_.last_key, self._value())) is not None

    # -- what to do ----------------------------------------------------------------

    def _step(self, round_: Round) -> bool:
        """One thing or two; whether it was answered."""
        random = self._random
        if random.random() < 0.05:
            self._move()
        (kind,) = random.choices(list(_KINDS), list(_KINDS.values()))
        key = round_.prefix + random.choice(REGISTERS)
        if kind == "get":
            return self.ask(round_, calls.Get(key)) is not None
        if kind == "put":
            return self.ask(round_, calls.Put(key, self._value())) is not None
        if kind == "swap":
            return self._swap(round_, key)
        if kind == "delete":
            return self.ask(round_, calls.Delete(key)) is not None
        if kind == "append":
            return self._append(round_, round_.prefix + random.choice(LISTS))
        first, second = (round_.prefix + name for name in random.choice(PAIRS))
        if kind == "range":
            end = first[:-1] + "z"
            return self.ask(round_, calls.Range(first[:-1], end)) is not None
        return self.ask(round_, self._pair(first, second)) is not None

    def _value(self) -> str:
        self._serial += 1
        return f"{self.process}.{self._serial}"

    def _swap(self, round_: Round, key: str) -> bool:
        """Look, and change it only if nobody has changed it since."""
        seen = self.ask(round_, calls.Get(key))
        if seen is None:
            return False
        revision = seen.mod_revision if isinstance(seen.mod_revision, int) else 0
        step: Call = calls.Put(key, self._value())
        if revision and self._random.random() < 0.2:
            step = calls.Delete(key)
        call = Transaction(
            (Compare(key, revision, "mod_revision"),), (step,), (calls.Get(key),)
        )
        return self.ask(round_, call) is not None

    def _pair(self, first: str, second: str) -> Call:
        """Two keys at once: what only one of them shows has been torn."""
        value = self._value()
        compare = Compare(first, 0, "version", self._random.choice(("=", ">")))
        if self._random.random() < 0.3:
            compare = Compare(second, value, "value", "!=")
        return Transaction(
            (compare,),
            (calls.Get(second), calls.Put(first, value), calls.Delete(second)),
            (calls.Put(second, value), calls.Get(first)),
        )

    def _append(self, round_: Round, key: str) -> bool:
        """Read, and put what was there and more, until nobody came in between."""
        element = f"{self._value()};"
        call = calls.Append(key, element)
        round_.invoke(self.process, call)
        error = "others were faster each time"
        try:
            for _ in range(MAX_RETRIES):
                try:
                    seen = self._perform(calls.Get(key))
                except Uncertain as e:
                    raise Refused(str(e)) from None  # nothing was asked for yet
                revision = seen.mod_revision if isinstance(seen.mod_revision, int) else 0
                before = seen.value if isinstance(seen.value, str) else ""
                if len(before) > MAX_LIST:
                    error = "it is long enough"
                    break
                swap = Transaction(
                    (Compare(key, revision, "mod_revision"),),
                    (calls.Put(key, before + element),),
                )
                done = self._sent(swap)
                if done.succeeded is True:
                    self._end(round_, call, Result(revision=done.revision))
                    return True
        except Refused as e:
            error = str(e)
        except Uncertain as e:
            self._unknown(round_, call, str(e))
            return False
        except Improper as e:
            self._improper(round_, call, e)
            return False
        self._fail(round_, call, error)
        return True

    # -- asking --------------------------------------------------------------------

    def ask(self, round_: Round, call: Call) -> Result | None:
        """Carry it out and write it down; None if it was not answered."""
        round_.invoke(self.process, call)
        try:
            result = self._sent(call)
        except Refused as e:
            self._fail(round_, call, str(e))
        except Uncertain as e:
            self._unknown(round_, call, str(e))
        except Improper as e:
            self._improper(round_, call, e)
        else:
            self._end(round_, call, result)
            return result
        return None

    def _sent(self, call: Call) -> Result:
        """
        The answer; a write of unknown outcome is sent again if it may be.

        A refusal of a later try says nothing of an earlier one.
        """
        is_keyed = self._system.can_retry and not is_read(call) and self._random.random() < 0.5
        if not is_keyed:
            return self._perform(call)
        self._serial += 1
        retry = f"{self._run}-{self.process}-{self._serial}"
        uncertain: Uncertain | None = None
        for _ in range(MAX_RETRIES):
            try:
                return self._perform(call, retry)
            except Uncertain as e:
                uncertain = e
            except Refused:
                if uncertain is None:
                    raise
                self._stopping.wait(PAUSE_AFTER_FAILURE_S)
        assert uncertain is not None
        raise uncertain

    def _perform(self, call: Call, retry: str = "") -> Result:
        try:
            return self._system.perform(self._wire, self._node, call, retry)
        except (Refused, Uncertain):
            self._move()
            raise

    def _move(self) -> None:
        """Ask another node from now on."""
        self._node = (self._node + self._random.randrange(1, self._system.count)) % (
            self._system.count
        )

    # -- ends ------------------------------------------------------------------------

    def _end(self, round_: Round, call: Call, result: Result) -> None:
        round_.ok(self.process, result)
        self._tally.end("ok", not is_read(call))

    def _fail(self, round_: Round, call: Call, error: str) -> None:
        round_.fail(self.process, error)
        self._tally.end("fail", not is_read(call))

    def _unknown(self, round_: Round, call: Call, error: str) -> None:
        if is_read(call):
            self._fail(round_, call, error)
            return
        round_.unknown(self.process, error)
        self._tally.end("unknown", True)

    def _improper(self, round_: Round, call: Call, error: Improper) -> None:
        self._tally.violation(f"{call}: {error}")
        self._unknown(round_, call, str(error))
