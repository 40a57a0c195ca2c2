"""The pipeline: an ordered list of passes, run until none changes anything, each result verified.

Adding a pass is one file and one line in `PASSES`, or in `OPTIONAL` where it runs only when asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planc.errors import PlanError
from planc.ir.program import Program
from planc.passes.base import Pass
from planc.passes.batch_norm import FoldBatchNorm
from planc.passes.canonicalise import Canonicalise
from planc.passes.cse import CommonSubexpressions
from planc.passes.dce import DeadCode
from planc.passes.elementwise import FuseElementwise
from planc.passes.fold import FoldConstants
from planc.passes.fusions import Fuse, Group
from planc.passes.hoist import Hoist
from planc.passes.simplify import Simplify
from planc.verifier import verify

PASSES: tuple[Pass, ...] = (
    Canonicalise(),  # first: what is written in one way can be recognised
    FoldConstants(),
    Simplify(),
    CommonSubexpressions(),
    Hoist(),
    Fuse(),  # after what may still change the patterns
    DeadCode(),  # last: the others leave unused nodes behind
)

OPTIONAL: tuple[Pass, ...] = (
    Group(),
    FuseElementwise(),
    FoldBatchNorm(),
)
"""Passes that run only where they are asked for by name.

`group` and `fuse_elementwise` make a plan shorter, and no faster; `fold_batchnorm` makes it faster, and what
it computes nearly equal, not equal.
"""

MAX_ROUNDS = 8
"""Rounds through the list. Passes only shrink a plan, so a few suffice; the bound holds if one does not."""


def named(names: Sequence[str]) -> tuple[Pass, ...]:
    """The passes of these names, in this order.

    Raises:
        PlanError: there is no pass of a name.
    """
    known = {step.name: step for step in (*PASSES, *OPTIONAL)}
    for name in names:
        if name not in known:
            raise PlanError(f"there is no pass {name!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in names)


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did in one round; ``nodes`` count subplans too, ``seconds`` are wall clock."""

    name: str
    round: int
    nodes_before: int
    nodes_after: int
    seconds: float
    modified: bool
    notes: tuple[str, ...]
    missed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """The program after all passes, and a record for each pass that ran, in order."""

    program: Program
    records: tuple[PassRecord, ...]

    @property
    def modified(self) -> bool:
        return any(record.modified for record in self.records)

    def by_pass(self) -> tuple[PassRecord, ...]:
        """One record a pass, its rounds taken together: nodes removed add up, as do seconds."""
        out: dict[str, PassRecord] = {}
        for record in self.records:
            old = out.get(record.name)
            out[record.name] = record if old is None else _joined(old, record)
        return tuple(out.values())


Watch = Callable[[PassRecord, Program], None]
"""Told what each pass did, and given the program that it left."""


def run_pipeline(
    program: Program,
    passes: Sequence[Pass] = PASSES,
    max_rounds: int = MAX_ROUNDS,
    watch: Watch | None = None,
) -> PipelineResult:
    """Run the passes in order, again and again until a round changes nothing.

    Raises:
        PlanError: the program is not valid to begin with; or a pass failed or made an invalid program, and
            the message names that pass and those that ran before it.
    """
    verify(program.graph)
    records: list[PassRecord] = []
    for number in range(1, max_rounds + 1):
        start = len(records)
        for step in passes:
            program, record = _step(step, number, program, records)
            records.append(record)
            if watch is not None:
                watch(record, program)
        if not any(record.modified for record in records[start:]):
            break
    return PipelineResult(program, tuple(records))


def _step(
    step: Pass, number: int, program: Program, before: Sequence[PassRecord]
) -> tuple[Program, PassRecord]:
    began = time.perf_counter()
    try:
        done = step.apply(program)
        if done.modified:
            verify(done.program.graph)
    except Exception as error:  # a pass of a user may raise anything
        ran = ", ".join(record.name for record in before) or "none"
        what = str(error) if isinstance(error, PlanError) else f"{type(error).__name__}: {error}"
        raise PlanError(f"pass {step.name!r} failed (passes before it: {ran}): {what}") from error
    seconds = time.perf_counter() - began
    sizes = program.graph.count_nodes(), done.program.graph.count_nodes()
    return done.program, PassRecord(
        step.name, number, *sizes, seconds, done.modified, done.notes, done.missed
    )


def _joined(a: PassRecord, b: PassRecord) -> PassRecord:
    removed = (a.nodes_before - a.nodes_after) + (b.nodes_before - b.nodes_after)
    return PassRecord(
        a.name,
        b.round,
        a.nodes_before,
        a.nodes_before - removed,
        a.seconds + b.seconds,
        a.modified or b.modified,
        (*a.notes, *b.notes),
        b.missed,  # what a later round still misses; an earlier one may have been early
    )
