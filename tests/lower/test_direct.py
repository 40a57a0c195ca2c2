"""Calls of torch without checks and wrappers: used where they are the same, and only there."""

from __future__ import annotations

import pytest
import torch

import planc
from planc.errors import ExecutionError
from planc.ir.program import Program
from planc.lower import Executable, bind_tensors
from tests.sketch import I64, Sketch, f32, tensor

CPU = torch.device("cpu")
SETTINGS = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}


def pooling(own: bool) -> Program:
    """A gradient of max pooling, by the pooling's own indices or by given ones."""
    s = Sketch("pooling")
    x, given = s.input("x", f32(1, 1, 4, 6)), s.input("i", tensor(I64, 1, 1, 2, 3))
    pooled, found = s.many("aten.max_pool2d_with_indices", x, **SETTINGS)
    indices = found if own else given
    args = pooled, x, indices
    made = s.op("aten.max_pool2d_with_indices_backward", *args, **SETTINGS, ceil_mode=False)
    return Program(s.give(made), s.data)


def compiled(program: Program, values: list[torch.Tensor]) -> Executable:
    run = Executable(program, bind_tensors(program.graph, values), CPU)
    for _ in range(2):
        run(values)
    return run


@pytest.mark.parametrize("own", [True, False])
def test_indices_are_looked_at_unless_the_plan_made_them(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr("planc.ops.pooling.check_positions", lambda *_: looked.append(1))
    values = [torch.arange(24.0).view(1, 1, 4, 6), torch.zeros(1, 1, 2, 3, dtype=torch.int64)]
    run = compiled(pooling(own), values)
    looked.clear()
    (made,) = run(values)
    assert len(looked) == (0 if own else 1)
    want = torch.zeros(24).scatter_(0, torch.tensor([7, 9, 11, 19, 21, 23]), 1.0).view(1, 1, 4, 6)
    assert not own or torch.equal(made != 0, want != 0)


def test_given_indices_that_point_elsewhere_are_refused_by_generated_code() -> None:
    good = [torch.randn(1, 1, 4, 6), torch.zeros(1, 1, 2, 3, dtype=torch.int64)]
    run = compiled(pooling(own=False), good)
    assert run.source
    with pytest.raises(ExecutionError, match=r"indices must be in 0\.\.23, got 10000"):
        run([good[0], torch.full((1, 1, 2, 3), 10000)])


def test_indices_of_a_pooling_with_dilation_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr("planc.ops.pooling.check_positions", lambda *_: looked.append(1))
    s = Sketch("dilated")
    x = s.input("x", f32(1, 1, 5, 5))
    settings = {**SETTINGS, "dilation": (2, 2)}
    pooled, found = s.many("aten.max_pool2d_with_indices", x, **settings)
    args = pooled, x, found
    made = s.op("aten.max_pool2d_with_indices_backward", *args, **settings, ceil_mode=False)
    run = compiled(Program(s.give(made)), [torch.randn(1, 1, 5, 5)])
    looked.clear()
    run([torch.randn(1, 1, 5, 5)])
    assert looked


def test_code_calls_torch_without_frames_of_python_between() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = torch.log_softmax(torch.relu(x * y).reshape(-1, 6), 1)
        return z.sum(0).reshape(2, 3).permute(1, 0)[1:].sum()

    plan = planc.trace(f, torch.ones(4, 3), torch.ones(4, 3))
    values = [torch.randn(4, 3), torch.randn(4, 3)]
    run = compiled(plan.program, values)
    calls: list[str] = []
    names = run._instance().namespace  # pyright: ignore[reportPrivateUsage]
    lines = run.source.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def "))
    for line in lines[start + 1 : -1]:
        name = line.strip().split(" = ")[-1].split("(")[0]
        if name.startswith("g"):
            calls.append(type(names[name]).__name__)
    assert calls
    assert "function" not in calls
    torch.testing.assert_close(run(values)[0], f(*values))
