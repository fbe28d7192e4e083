"""From samples to medians, ratios and tables: Markdown, as docs/performance.md has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from load import Sample

#: (line, system) -> a sample of each round.
Results = dict[tuple[str, str], list[Sample]]

#: In the place of a system: the better one of both versions, in each figure.
ETCD = "etcd"
ETCDS = ("etcd 3.4", "etcd 3.5")

AT_LEAST = "at least"
AT_MOST = "at most"


@dataclass(frozen=True)
class Goal:
    """
    What the ratio of two medians must reach, or one median alone.

    `figure` names a field of `Sample`, or what is in its `more`; `line` and
    `system` say whose.  The other one's are those of the first if not given;
    without both, there is no ratio.
    """

    text: str
    line: str
    figure: str
    bound: str
    goal: float
    other_line: str = ""
    other_system: str = ""
    system: str = "raftd"


def figure_of(sample: Sample, figure: str) -> float:
    return sample.more[figure] if figure in sample.more else float(getattr(sample, figure))


def middle(results: Results, line: str, system: str, figure: str) -> float | None:
    """The median; None if it was not measured."""
    samples = results.get((line, system))
    return median(figure_of(s, figure) for s in samples) if samples else None


def other_middle(results: Results, goal: Goal) -> float | None:
    line = goal.other_line or goal.line
    system = goal.other_system or goal.system
    if system != ETCD:
        return middle(results, line, system, goal.figure)
    found = [m for s in ETCDS if (m := middle(results, line, s, goal.figure)) is not None]
    if not found:
        return None
    return max(found) if goal.bound == AT_LEAST else min(found)


def reached(results: Results, goal: Goal) -> tuple[float, bool] | None:
    """What was measured, a ratio or a figure, and whether it is enough; None if nothing was."""
    own = middle(results, goal.line, goal.system, goal.figure)
    if own is None:
        return None
    if goal.other_line or goal.other_system:
        other = other_middle(results, goal)
        if not other:
            return None
        own /= other
    return own, own >= goal.goal if goal.bound == AT_LEAST else own <= goal.goal


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """As Markdown, its columns of one width so that it can be read as it is."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def number(value: float) -> str:
    """With as many digits as mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """The median, and how far the rounds are apart."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))} to {number(max(values))})"


def loads_table(results: Results) -> str:
    """Each line and system: rate, latency, and the processor's time."""
    rows = []
    for (line, system), samples in results.items():
        if not samples or not samples[0].rate:
            continue

        def of(figure: str, samples: list[Sample] = samples) -> list[float]:
            return [figure_of(s, figure) for s in samples]

        rows.append(
            [line, system, spread(of("rate"))]
            + [number(median(of(figure))) for figure in ("p50_ms", "p99_ms")]
            + [
                number(taken) if (taken := median(of(figure))) else ""
                for figure in ("asked_us", "others_us", "generator_us")
            ]
        )
    head = ["line", "system", "a second", "p50 ms", "p99 ms"]
    return table([*head, "node asked, us", "others, us", "wrk, us"], rows)


def more_table(results: Results) -> str:
    """What only some lines measure."""
    rows = []
    for (line, system), samples in results.items():
        for figure in samples[0].more if samples else ():
            rows.append([line, system, figure, spread([s.more[figure] for s in samples])])
    return table(["line", "system", "figure", "median"], rows)


def goals_table(results: Results, goals: Iterable[Goal]) -> str:
    rows = []
    for goal in goals:
        found = reached(results, goal)
        if found is not None:
            value, enough = found
            against = goal.other_system or goal.other_line
            rows.append(
                [
                    goal.text,
                    against,
                    f"{goal.bound} {goal.goal:g}",
                    f"{value:.2f}",
                    "yes" if enough else "NO",
                ]
            )
    return table(["what", "against", "goal", "measured", "reached"], rows)
