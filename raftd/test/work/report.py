"""Measured work beside its limits, and limits from measured work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from raftd.test.work import limits
from raftd.test.work.limits import LIMITS, MARGINS
from raftd.test.work.scenarios import MEANINGS, Scenario, Work

#: Digits of a limit.
DIGITS = 4


def excesses(scenario: Scenario, work: Work) -> dict[str, str]:
    """What is above its limit: the count, and a sentence about it."""
    limit = LIMITS[scenario.name]._asdict()
    return {
        count: (
            f"{scenario.name}: {figure(value)} {MEANINGS[count]} ({count}) for each request; "
            f"the limit is {figure(limit[count])}. If that is worth it, change the limit in "
            "raftd/test/work/limits.py."
        )
        for count, value in work._asdict().items()
        if value > limit[count]
    }


def table(measured: Mapping[str, Work]) -> str:
    """A line for each count: measured, the limit, and the one as a share of the other."""
    lines = []
    for name, work in measured.items():
        lines += ["", name, f"{'':48}{'measured':>10}{'limit':>10}"]
        for count, value in work._asdict().items():
            limit = getattr(LIMITS.get(name), count, math.nan)
            share = f"{value / limit:6.0%}" if limit else ""
            words = f"  {MEANINGS[count]}"
            above = "  ABOVE" if value > limit else ""
            lines.append(f"{words:48}{figure(value):>10}{figure(limit):>10} {share}{above}")
    return "\n".join(lines[1:])


def figure(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def limit_of(count: str, value: float) -> float:
    """The limit that goes with a measured value."""
    share, extra = MARGINS[count]
    limit = value * (1 + share) + extra
    if not limit:
        return 0
    unit = 10.0 ** (math.floor(math.log10(limit)) + 1 - DIGITS)
    return float(f"{math.ceil(limit / unit - 1e-6) * unit:.{DIGITS}g}")


def source(measured: Mapping[str, Work]) -> str:
    """The table of `limits.py`."""
    lines = ["LIMITS = {"]
    for name, work in measured.items():
        lines.append(f'    "{name}": Work(')
        for count, value in work._asdict().items():
            lines.append(f"        {count}={limit_of(count, value):g},")
        lines.append("    ),")
    return "\n".join([*lines, "}", ""])


def set_limits(measured: Mapping[str, Work]) -> str:
    """Write new limits into `limits.py`; its path."""
    path = Path(limits.__file__)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("LIMITS = {")] + source(measured), encoding="utf-8")
    return str(path)
