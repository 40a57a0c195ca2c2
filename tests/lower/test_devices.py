"""What differs on an accelerator, as far as a CPU tells: data is checked first, streams share no memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from planc.errors import ExecutionError
from planc.ir import Graph
from planc.ir.program import Program
from planc.lower import Executable, bind_tensors
from planc.lower.executable import Code, Instance
from planc.ops import bounds
from planc.ops.bounds import check_bounds, has_bounds
from runtime.interpreter import interpret
from tests.ops.cases import Case
from tests.ops.table import TABLE
from tests.sketch import I64, Sketch, f32, tensor

CPU = torch.device("cpu")
X = torch.randn(3, 4)


@pytest.mark.parametrize("case", [c for c in TABLE if has_bounds(c.op)], ids=str)
def test_good_data_passes(case: Case) -> None:
    operands, attrs = case.arguments(4)
    check_bounds(case.op, operands, attrs)


def test_every_check_is_tried() -> None:
    assert {c.op for c in TABLE if has_bounds(c.op)} == set(bounds._RULES)  # pyright: ignore[reportPrivateUsage]
    assert {op for op, *_ in BAD} == set(bounds._RULES)  # pyright: ignore[reportPrivateUsage]


def i(*values: int) -> torch.Tensor:
    return torch.tensor(values)


BAD: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("aten.index_select", [X, i(0, 4)], {"dim": 1}),
    ("aten.index_select", [X, i(-1)], {"dim": 1}),
    ("aten.gather", [X, i(3).view(1, 1)], {"dim": 0}),
    ("aten.scatter", [X, i(3).view(1, 1), X[:1, :1]], {"dim": 0}),
    ("aten.scatter_add", [X, i(-1).view(1, 1), X[:1, :1]], {"dim": -2}),
    ("aten.index_add", [X, i(4), X[:, :1]], {"dim": 1}),
    ("aten.index", [X, [None, i(4)]], {}),
    ("aten.index", [X, [i(-4), i(0)]], {}),
    ("aten.index", [X, [torch.tensor([True, False, True]), i(0, 4)]], {}),
    ("aten.index_put", [X, [i(3)], X[:1]], {}),
    ("aten.embedding", [X, i(0, 3)], {}),
    ("aten.embedding_dense_backward", [X, i(0, 1, 5)], {"num_weights": 5, "padding_idx": -1}),
    ("aten.nll_loss_forward", [X, i(0, 4, 1), None], {}),
    ("aten.nll_loss_forward", [X, i(0, -100, 1), None], {"ignore_index": 2}),
    ("aten.nll_loss_forward", [X[0], torch.tensor(4), None], {}),
    ("aten.nll_loss_backward", [torch.ones(()), X, i(0, -1, 1), None, torch.ones(())], {}),
    ("aten.nll_loss2d_forward", [X.view(3, 4, 1, 1), i(0, 4, 1).view(3, 1, 1), None], {}),
    ("fused.cross_entropy", [X, i(0, 4, 1), None], {}),
    ("aten.max_unpool2d", [torch.ones(1, 2, 2), i(0, 3, 16, 1).view(1, 2, 2)], {"output_size": [4, 4]}),
    ("aten.binary_cross_entropy", [torch.tensor([0.5, 1.5]), torch.ones(2)], {}),
    ("aten.binary_cross_entropy", [torch.tensor([0.5, float("nan")]), torch.ones(2)], {}),
]


@pytest.mark.parametrize(("op", "operands", "attrs"), BAD)
def test_bad_data_does_not(op: str, operands: list[Any], attrs: dict[str, Any]) -> None:
    with pytest.raises((IndexError, ValueError), match="must be in"):
        check_bounds(op, operands, attrs)


def picking() -> Graph:
    s = Sketch("picking")
    x, rows = s.input("x", f32(3, 4)), s.input("rows", tensor(I64, 2))
    picked = s.op("aten.index_select", s.op("aten.exp", x), rows, dim=0)
    loss, _ = s.many("aten.nll_loss_forward", s.op("aten.log_softmax", picked, dim=1), rows, None)
    return s.give(loss, s.op("aten.neg", picked))


def fast(graph: Graph, values: list[torch.Tensor]) -> list[torch.Tensor]:
    run = Executable(Program(graph), bind_tensors(graph, values), CPU)
    good = [values[0], torch.zeros_like(values[1])]
    for _ in range(2):
        run(good)
    return run(values)


def first(graph: Graph, values: list[torch.Tensor]) -> list[torch.Tensor]:
    return Executable(Program(graph), bind_tensors(graph, values), CPU)(values)


@pytest.mark.parametrize("run", [fast, first, interpret])
def test_every_path_checks_before_a_kernel_that_trusts(
    run: Callable[..., list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands for a device whose kernels trust their data; its own message is another."""
    graph = picking()
    want = interpret(graph, [X, i(2, 1)])
    for module in ("planc.ops.apply", "planc.lower.record", "planc.lower.emit"):
        monkeypatch.setattr(f"{module}.unchecked", lambda _: True)
    assert all(torch.equal(a, b) for a, b in zip(run(graph, [X, i(2, 1)]), want, strict=True))
    with pytest.raises(ExecutionError, match=r"indices must be in 0\.\.2, got 3"):
        run(graph, [X, i(0, 3)])


def test_streams_share_no_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stream has queued may not have run yet when another one's run begins."""
    s = Sketch("chain")
    graph = s.give(s.op("aten.sum", s.op("aten.exp", s.input("x", f32(8)))))
    run = Executable(Program(graph), {}, CPU)
    made: list[Instance] = []

    class Noted(Instance):
        __slots__ = ()

        def __init__(self, code: Code) -> None:
            super().__init__(code)
            made.append(self)

    monkeypatch.setattr("planc.lower.executable.Instance", Noted)
    run([torch.ones(8)])
    for stream in (1, 2, 1, 1, 2, 3, 1):
        monkeypatch.setattr("planc.lower.executable.stream_of", lambda _, stream=stream: stream)
        assert torch.equal(run([torch.ones(8)])[0], torch.ones(8).exp().sum())
    assert len(made) == 3
    assert run.nbytes >= 3 * 32
