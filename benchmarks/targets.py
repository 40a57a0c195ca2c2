"""What the project must reach, and whether a run of the harness did. Computes; measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness import Report, Result
from benchmarks.rounds import ONE, RAY


@dataclass(frozen=True)
class Target:
    """A line of the table of targets.

    Attributes:
        work: what is done.
        baseline: what it is compared with.
        limit: what the figure may be at most.
        unit: of the figure: ``x`` or ``us``.
        find: the figure in a report; None where it was not measured.
    """

    work: str
    baseline: str
    limit: float
    find: Callable[[Report], float | None]
    unit: str = "x"


def _result(report: Report, suite: str, words: tuple[str, ...]) -> Result | None:
    found = (r for r in report.results if r.suite == suite and all(word in r.work for word in words))
    return next(found, None)


def _ratio(suite: str, *words: str, way: str) -> Callable[[Report], float | None]:
    """The ratio of the way whose name has ``way`` in it to the baseline."""

    def find(report: Report) -> float | None:
        result = _result(report, suite, words)
        figures = result.figures if result is not None else ()
        return next((figure.ratio for figure in figures if way in figure.name), None)

    return find


def _against(peer: str) -> Callable[[Report], float | None]:
    """Our round's time by another tool's, in the same scenario."""

    def find(report: Report) -> float | None:
        result = _result(report, "rounds", ("clients x", "MLP"))
        medians = {figure.name: figure.median for figure in result.figures} if result is not None else {}
        ours = next((m for name, m in medians.items() if name == ONE), None)
        theirs = next((m for name, m in medians.items() if name.startswith(peer)), None)
        return None if ours is None or theirs is None else ours / theirs

    return find


def _overhead(report: Report) -> float | None:
    """Microseconds a node of an executable over the loop by hand, by minimums."""
    result = _result(report, "micro", ("additions",))
    if result is None:
        return None
    count = int(result.work.split()[0])
    times = {figure.name: figure.minimum for figure in result.figures}
    return max(0.0, 1e6 * (times["executable"] - times[result.baseline]) / count)


def _peak(report: Report) -> float | None:
    """The plan's peak by that of eager PyTorch; the table has a row for each."""
    peaks = [int(row["peak KiB"]) for row in report.tables.get("peak", [])]
    return peaks[1] / peaks[0] if len(peaks) == 2 else None


_EAGER = "local eager PyTorch"
_HERE = "in-process worker"
TARGETS = (
    Target(
        "linear 2x1 SGD step, message included", _EAGER, 0.25, _ratio("steps", "linear 2x1, SGD", way=_HERE)
    ),
    Target(
        "the same in one epoch plan, per step", _EAGER, 0.15, _ratio("steps", "linear", "epoch", way=_HERE)
    ),
    Target("MLP 784-64-10 step, SGD, batch 32", _EAGER, 0.75, _ratio("steps", "MLP", "SGD", way=_HERE)),
    Target("MLP 784-64-10 step, Adam, batch 32", _EAGER, 0.6, _ratio("steps", "MLP", "Adam", way=_HERE)),
    Target("CNN step, batch 64", _EAGER, 1.0, _ratio("steps", "CNN", way=_HERE)),
    Target("ResNet-18 step", _EAGER, 1.0, _ratio("steps", "ResNet", way=_HERE)),
    Target("peak memory of a CNN step", _EAGER, 1.0, _peak),
    Target(
        "round of the MLP, in-process",
        "plain loop",
        0.7,
        _ratio("rounds", "clients x", "MLP", way=ONE),
    ),
    Target("the same", "pfl", 0.4, _against("pfl")),
    Target("the same", "Flower", 1 / 30, _against("Flower")),
    Target("the same on Ray, two workers", "two in this process", 1.3, _ratio("rounds", "Ray", way=RAY)),
    Target("many clients, a cohort a round", "plain loop", 0.8, _ratio("rounds", "cohort", way=ONE)),
    Target("overhead a node over the bare call", "loop by hand", 0.3, _overhead, "us"),
    Target(
        "MLP step over a unix socket", _EAGER, 2.0, _ratio("network", "MLP", "SGD", "unix", way="plan at")
    ),
)


def judged(report: Report) -> list[dict[str, str]]:
    """The table of targets for a report."""
    rows: list[dict[str, str]] = []
    for target in TARGETS:
        figure = target.find(report)
        verdict = "not measured" if figure is None else "reached" if figure <= target.limit else "**missed**"
        rows.append(
            {
                "work": target.work,
                "baseline": target.baseline,
                "target": f"<= {target.limit:.3g} {target.unit}".replace(" x", "x"),
                "measured": "" if figure is None else f"{figure:.3f} {target.unit}".replace(" x", "x"),
                "verdict": verdict,
            }
        )
    return rows
