"""What a defect is."""

from __future__ import annotations

import ast
from typing import Final, NamedTuple

#: The number of a defect that no pitfall tells of: `also` names the tests for it.
NO_PITFALL: Final = 0


class Defect(NamedTuple):
    """
    One side of one pitfall, or of a rule, as a change of a module's source.

    `old` occurs exactly once in the module; where it does not any more, the
    code has changed and the defect has to be written anew.  Short pieces last
    longest.
    """

    #: Which pitfall, and so which tests must catch it: `test_NN_...`; or `NO_PITFALL`.
    number: int
    #: Unique among all defects.
    name: str
    #: What is wrong with the code when it is in, a sentence.
    breaks: str
    #: The module's path within `raftd`.
    module: str
    old: str
    new: str
    #: So many seeds of the core's random faults must find it as well; 0: need not.
    seeds: int = 0
    #: Names of tests without its number that may catch it, too.
    also: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.number:02} {self.name}"


class DoesNotApply(Exception):
    """The source has changed: the text of a defect is not in it exactly once."""


def put_in(defect: Defect, source: str) -> str:
    """The source of the defect's module with the defect; `DoesNotApply`."""
    count = source.count(defect.old)
    if count != 1:
        raise DoesNotApply(
            f"{defect.label}: its text is in raftd/{defect.module} {count} times, not once"
        )
    return source.replace(defect.old, defect.new)


def lines_of(defect: Defect, source: str) -> tuple[int, int]:
    """
    The first and the last line of what `defect` writes into `source`, and of the
    statements that it writes into: an error may name the line where one begins.
    """
    before = source[: source.index(defect.old)]
    text = defect.new.rstrip("\n")
    first = before.count("\n") + 1 + (len(text) - len(text.lstrip("\n")))
    last = max(first, before.count("\n") + 1 + text.count("\n"))
    touched = [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(ast.parse(put_in(defect, source)))
        if isinstance(node, ast.stmt) and not hasattr(node, "body")
        if node.lineno <= last and (node.end_lineno or node.lineno) >= first
    ]
    return min([first, *(n for n, _ in touched)]), max([last, *(n for _, n in touched)])
