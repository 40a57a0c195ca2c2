"""The pipeline: order, fixpoint, records, and which pass is blamed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from planc.errors import PlanError, VerifyError
from planc.ir.program import Program
from planc.passes import (
    PASSES,
    CommonSubexpressions,
    DeadCode,
    FoldConstants,
    PassResult,
    named,
    run_pipeline,
)
from planc.text import parse
from tests.sketch import Sketch, f32


def program() -> Program:
    """Two equal sums of which one is unused once they are merged, over a constant that folds."""
    s = Sketch("main")
    x, c = s.input("x", f32(2)), s.const(torch.tensor([1.0, 2.0]))
    a, b = s.op("aten.add", x, c), s.op("aten.add", c, x)
    d = s.op("aten.neg", c)
    return Program(s.give(s.op("aten.mul", s.op("aten.mul", a, b), d)), s.data)


@dataclass(frozen=True)
class Raises:
    name: str = "raises"

    def apply(self, program: Program) -> PassResult:
        raise ValueError("no such thing")


@dataclass(frozen=True)
class Breaks:
    """Claims to have improved a plan whose outputs it forgot."""

    name: str = "breaks"

    def apply(self, program: Program) -> PassResult:
        nodes = program.graph.nodes[:-1]
        return PassResult(Program(replace(program.graph, nodes=nodes), program.constants), True)


@dataclass(frozen=True)
class Restless:
    name: str = "restless"

    def apply(self, program: Program) -> PassResult:
        return PassResult(program, True, ("again",))


def test_the_pipeline_runs_to_a_fixpoint_and_records_every_pass() -> None:
    done = run_pipeline(program())
    names = [step.name for step in PASSES]
    assert [record.name for record in done.records] == names * 2
    assert [record.round for record in done.records] == [1] * len(names) + [2] * len(names)
    assert {record.name: (record.nodes_before, record.nodes_after) for record in done.by_pass()} == {
        "canonicalise": (5, 5),
        "fold": (5, 4),
        "simplify": (4, 4),
        "cse": (4, 3),
        "hoist": (3, 3),
        "fuse": (3, 3),
        "dce": (3, 3),
    }
    assert [record.modified for record in done.records[len(names) :]] == [False] * len(names)
    assert done.modified
    assert not run_pipeline(done.program).modified
    assert run_pipeline(done.program).program is done.program
    assert all(record.seconds >= 0 for record in done.records)


def test_the_data_kept_is_that_of_the_constants_left() -> None:
    before = program()
    done = run_pipeline(before).program
    digests = {constant.digest for constant in done.graph.constants}
    assert done.constants.keys() == digests
    assert len(digests) == 2
    folded = next(done.constants[digest] for digest in digests - before.constants.keys())
    assert folded.tolist() == [-1.0, -2.0]


def test_a_failing_pass_is_named_with_those_before_it() -> None:
    with pytest.raises(PlanError) as caught:
        run_pipeline(program(), (CommonSubexpressions(), DeadCode(), Raises()))
    assert str(caught.value) == "pass 'raises' failed (passes before it: cse, dce): ValueError: no such thing"
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_pass_that_breaks_a_plan_is_named_with_the_rule() -> None:
    with pytest.raises(
        PlanError, match=r"pass 'breaks' failed \(passes before it: none\): plan 'main'"
    ) as caught:
        run_pipeline(program(), (Breaks(),))
    assert isinstance(caught.value.__cause__, VerifyError)


def test_a_plan_that_is_broken_to_begin_with_is_nobody_s_fault() -> None:
    broken = Breaks().apply(program()).program
    with pytest.raises(VerifyError):
        run_pipeline(broken)


def test_a_watcher_is_told_after_each_pass() -> None:
    seen: list[tuple[str, int]] = []
    done = run_pipeline(
        program(), watch=lambda record, left: seen.append((record.name, left.graph.count_nodes()))
    )
    assert seen == [(record.name, record.nodes_after) for record in done.records]


def test_passes_are_found_by_name_in_the_order_asked_for() -> None:
    assert [step.name for step in named(["dce", "group", "cse"])] == ["dce", "group", "cse"]
    with pytest.raises(PlanError, match="there is no pass 'inline'; there are canonicalise, fold, "):
        named(["inline"])


def test_what_a_later_round_still_misses_is_what_counts() -> None:
    """In the first round an unused node reads the transpose too."""
    text = """\
plan main(x: f32[b, 4], w: f32[3, 4]) -> f32[b, 3] {
  k = t(w)
  unused = exp(k)
  return x @ k
}
"""
    main = parse(text).main
    done = run_pipeline(Program(main))
    assert [record.missed != () for record in done.records if record.name == "fuse"] == [True, False, False]
    assert next(record for record in done.by_pass() if record.name == "fuse").missed == ()


def test_rounds_are_bounded() -> None:
    done = run_pipeline(program(), (Restless(),), max_rounds=3)
    assert [record.round for record in done.records] == [1, 2, 3]
    assert done.by_pass()[0].notes == ("again",) * 3


def test_constants_without_data_are_unknown_and_stay() -> None:
    before = Program(program().graph)
    assert not FoldConstants().apply(before).modified


def test_folding_keeps_to_its_budget() -> None:
    s = Sketch()
    x, c = s.input("x", f32(4)), s.const(torch.arange(4.0))
    graph = s.give(*(s.op("aten.add", x, s.op("aten.mul", c, k)) for k in (2, 3, 4)))
    before = Program(graph, s.data)
    assert len(FoldConstants().apply(before).program.graph.constants) == 4
    assert len(FoldConstants(max_total_bytes=32).apply(before).program.graph.constants) == 3
    assert not FoldConstants(max_bytes=15).apply(before).modified
