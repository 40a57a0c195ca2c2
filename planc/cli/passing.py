"""Which passes `planc compile` runs, what it shows of them as they run, and why something was not done."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

import typer

import planc
from planc.errors import PlanError
from planc.ir.program import Program
from planc.passes import OPTIONAL, PASSES, Pass, PassRecord, named
from planc.text import show
from planc.text.suggest import count_of

NAMES = ", ".join(step.name for step in PASSES)
ALSO = ", ".join(step.name for step in OPTIONAL)


def optimised(
    plan: planc.Plan, passes: str | None, print_after: str | None, tell: Callable[[str], None]
) -> planc.Plan:
    """The plan after the passes.

    Args:
        plan: any plan. One that the passes have seen already keeps its records where nothing is asked for.
        passes: names with commas between them; the usual passes where None, none at all where empty.
        print_after: the pass after whose every run the plan is told of.
        tell: takes the text of the plan there.

    Raises:
        typer.BadParameter: there is no such pass, or it does not run.
    """
    if passes is None and print_after is None:
        return plan if plan.records else plan.optimized()
    steps = (
        PASSES if passes is None else _chosen([name.strip() for name in passes.split(",") if name.strip()])
    )
    if print_after is not None and print_after not in {step.name for step in steps}:
        names = ", ".join(step.name for step in steps) or "none"
        raise typer.BadParameter(
            f"the pass {print_after!r} does not run; there are {names}", param_hint="--print-after"
        )

    def watch(record: PassRecord, program: Program) -> None:
        if record.name == print_after:
            did = "; ".join(record.notes) or "changed nothing"
            nodes = count_of(record.nodes_after, "node")
            tell(f"# after {record.name}, round {record.round}: {did}; {nodes}")
            tell(show(program.graph, program.constants))

    return planc.Plan(plan.program, plan.state).optimized(steps, watch)


def _chosen(names: Sequence[str]) -> tuple[Pass, ...]:
    try:
        return named(names)
    except PlanError as error:
        raise typer.BadParameter(str(error), param_hint="--passes") from None


def reasons(records: Sequence[PassRecord]) -> Iterator[str]:
    """What the passes nearly did, and why they did not, in lines of at most 80 columns."""
    yield ""
    yield "not done"
    last = {record.name: record for record in records}  # a later round may have done what an earlier did not
    missed = [(name, reason) for name, record in last.items() for reason in record.missed]
    for name, reason in missed:
        yield from textwrap.wrap(f"{name}: {reason}", 78, initial_indent="  ", subsequent_indent="    ")
    if not missed:
        yield "  nothing that was near"


__all__ = ["ALSO", "NAMES", "optimised", "reasons"]
