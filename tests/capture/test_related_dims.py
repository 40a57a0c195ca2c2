"""Dims that captured code wants related: found from the examples, or written so by the user."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import planc
from planc.errors import CaptureError, InputError
from planc.ir.facts import conditions
from tests.capture.training import close

TWO = {"x": {0: "n"}, "y": {0: "m"}}


@pytest.mark.parametrize(
    ("function", "sizes", "relation", "others"),
    [
        (lambda x, y: x + y, (5, 5), "n == m", (4, 4)),
        (lambda x, y: x.view(-1, 2) * y.view(-1, 1), (10, 5), "n == m*2", (8, 4)),
        (lambda x, y: x.repeat(3) * y, (5, 15), "m == n*3", (2, 6)),
        (lambda x, y: x + y, (5, 5), "n == m", (1, 1)),
    ],
)
def test_dims_that_the_code_wants_related_are(
    function: Any, sizes: tuple[int, int], relation: str, others: tuple[int, int]
) -> None:
    plan = planc.trace(function, *map(torch.ones, sizes), dynamic=TWO)
    assert conditions(plan.graph.dims) == [relation]
    assert [str(port.value.type) for port in plan.graph.inputs] == ["f32[n]", "f32[m]"]
    x, y = map(torch.rand, others)
    close(plan(x, y), function(x, y))
    with pytest.raises(InputError, match=f"wants {re.escape(relation)}, (got .* from .*, . = |and no)"):
        plan(torch.ones(7), torch.ones(11))


def test_both_shapes_are_named_at_a_call() -> None:
    plan = planc.trace(lambda x, y: x + y, torch.ones(5), torch.ones(5), dynamic=TWO)
    with pytest.raises(InputError, match=r"n == m, got n = 3 from input 'x': f32\[3\], m = 4 from input 'y'"):
        plan(torch.ones(3), torch.ones(4))


def test_dims_that_are_not_wanted_related_are_not() -> None:
    plan = planc.trace(lambda x, y: (x * 2, y), torch.ones(5), torch.ones(5), dynamic=TWO)
    assert conditions(plan.graph.dims) == []


def test_only_those_of_three_dims_that_must_are_related() -> None:
    plan = planc.trace(
        lambda x, y, z: (x.sum(), y + z),
        *(torch.ones(5) for _ in range(3)),
        dynamic={"x": {0: "n"}, "y": {0: "m"}, "z": {0: "k"}},
    )
    assert conditions(plan.graph.dims) == ["m == k"]


@pytest.mark.parametrize("written", ["n*2", "2*n + n - n"])
def test_a_dim_may_be_written_with_others(written: str) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.repeat(2) * y

    plan = planc.trace(f, torch.ones(5), torch.ones(10), dynamic={"x": {0: "n"}, "y": {0: written}})
    assert [str(port.value.type) for port in plan.graph.inputs] == ["f32[n]", "f32[n*2]"]
    assert [var.name for var in plan.graph.dims] == ["n"]
    x, y = torch.rand(3), torch.rand(6)
    close(plan(x, y), f(x, y))
    with pytest.raises(InputError, match=r"dimension 0 is 7, not n\*2 = 6"):
        plan(x, torch.rand(7))


def test_a_dim_s_form_lets_the_code_divide_it() -> None:
    plan = planc.trace(lambda x: x.view(-1, 2) * 1, torch.ones(10), dynamic={"x": {0: "n*2"}})
    assert str(plan.outputs[0].value.type) == "f32[n, 2]"
    close(plan(torch.arange(4.0)), torch.arange(4.0).view(2, 2))


def test_code_that_branches_on_a_related_size_is_refused() -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y * 2 if y.shape[0] > 100 else y + x.sum()

    with pytest.raises(CaptureError, match="depends on the size of dim n"):
        planc.trace(f, torch.ones(5), torch.ones(10), dynamic={"x": {0: "n"}, "y": {0: "n*2"}})


def test_a_step_s_rows_and_targets_may_have_names_of_their_own() -> None:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plan = planc.train_step(
        net,
        torch.nn.functional.cross_entropy,
        optimizer,
        torch.rand(5, 3),
        torch.zeros(5, dtype=torch.long),
        dynamic={"input": {0: "n"}, "target": {0: "m"}},
    )
    assert conditions(plan.graph.dims) == ["n == m"]


def test_a_failed_capture_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError):
        planc.trace(lambda x, y: x + y, torch.ones(5), torch.ones(7), dynamic=TWO)
    with pytest.raises(CaptureError):
        planc.trace(lambda x: x.mm(x), torch.ones(5, 3))
    assert capfd.readouterr() == ("", "")
