"""The suites of the harness by name: what each measures, and the code that does it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import (
    compiled,
    compiling,
    durable,
    frames,
    memory,
    messages,
    micro,
    network,
    peak,
    rounds,
    scaling,
    steps,
)
from benchmarks.harness import Result, seconds

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Suite:
    """A part of the page.

    Attributes:
        title: its heading.
        about: what its figures are.
        rows: gives a table, where it counts.
        results: gives comparisons, where it times.
    """

    title: str
    about: str
    rows: Callable[[bool], Rows] | None = None
    results: Callable[[bool], Iterator[Result]] | None = None


def _steps(quick: bool) -> Iterator[Result]:
    yield from steps.run(quick)
    yield from compiled.run(quick)


def _durable(quick: bool) -> Rows:
    with tempfile.TemporaryDirectory() as folder:
        found = durable.costs(Path(folder), 50 if quick else 200)
    for what, value in found.items():
        yield {"work": what, "median": seconds(value)}


def suites(peers: bool = False) -> dict[str, Suite]:
    """All of them, in the page's order; ``peers`` has other tools run the rounds too."""
    return {
        "messages": Suite(
            "Messages and bytes",
            "What doing a job once sends, everything being in place. Deterministic, and held by tests, as is "
            "that `plan.cost` predicts it: messages, and the bytes of the tensors in them and in their "
            "replies. What another tool sent was measured there and is quoted.",
            rows=messages.run,
        ),
        "break-even": Suite(
            "When a plan has paid for its installation",
            "Messages / bytes, both ways. The model is resident in both contenders, and sending it there is "
            "counted in both.",
            rows=messages.break_even,
        ),
        "steps": Suite(
            "Steps",
            "One training step by a plan beside the same step in local eager PyTorch.",
            results=_steps,
        ),
        "network": Suite(
            "Steps elsewhere",
            "The same with the worker in a process of its own.",
            results=network.run,
        ),
        "rounds": Suite(
            "Rounds",
            "Federated averaging with the same data, model and batches.",
            results=partial(rounds.run, peers=peers),
        ),
        "scaling": Suite(
            "Scaling",
            "How a round grows: against the cohort, the clients that are not in it, the model and the "
            "workers, in one process of its own for each place where workers are. The model is the MLP "
            "784-64-10 where nothing else is said, a client has 8 rows in batches of 4; times are medians. "
            "Data made on demand is made and sent anew for most of a cohort (of 1,000 clients, for half). "
            "`docs/planning.md` makes a formula of it.",
            rows=scaling.run,
        ),
        "compiling": Suite(
            "Compile time",
            "What happens once before a training step runs; medians. The first run goes node by node, the "
            "second compiles. The worker decodes, verifies and runs; the rest is the caller's.",
            rows=compiling.run,
        ),
        "peak": Suite(
            "Peak memory of a step",
            "A step once nothing new is kept any more: the most bytes of tensors, what an executable keeps "
            "between steps included.",
            rows=micro.peak,
        ),
        "start": Suite(
            "Peak memory of the first steps",
            "From nothing: model, optimizer and batch are made, and some steps done. Before an executable "
            "has planned its memory it frees less.",
            rows=peak.run,
        ),
        "memory": Suite(
            "Memory over time",
            "What a worker and its process hold while a client works on: the curves have to be flat.",
            rows=memory.run,
        ),
        "micro": Suite(
            "Nodes", "What a node of a plan costs beside the bare call of torch.", results=micro.run
        ),
        "frames": Suite(
            "Frames", "What a message costs, and how fast tensors go into one.", results=frames.run
        ),
        "durable": Suite(
            "Durable stores", "What it costs to have every reply on disk before it is given.", rows=_durable
        ),
    }
