"""Code that no plan can mean: each error shows the user's own line and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import planc
from planc.errors import CaptureError, UnsupportedOpError
from tests.capture.training import close

Code = Callable[[torch.Tensor], Any]


def branch(x: torch.Tensor) -> Any:
    return x if x.sum() > 0 else -x  # HERE


def loop_while(x: torch.Tensor) -> Any:
    while x.max() < 10:  # HERE
        x = x * 2
    return x


def item(x: torch.Tensor) -> Any:
    return x * x.sum().item()  # HERE


def to_int(x: torch.Tensor) -> Any:
    return x[: int(x[0, 0])]  # HERE


def to_float(x: torch.Tensor) -> Any:
    return x * float(x.sum())  # HERE


def to_list(x: torch.Tensor) -> Any:
    return x * x[0].tolist()[0]  # HERE


def numpy(x: torch.Tensor) -> Any:
    return torch.from_numpy(x.numpy() + 1)  # HERE


def asarray(x: torch.Tensor) -> Any:
    return torch.from_numpy(np.asarray(x) + 1)  # HERE


def printing(x: torch.Tensor) -> Any:
    print(x)  # HERE
    return x


def formatting(x: torch.Tensor) -> Any:
    print(f"sum: {x.sum()}")  # HERE
    return x


def size_branch(x: torch.Tensor) -> Any:
    if x.shape[0] > 6:  # HERE
        return x * 2
    return x


def size_loop(x: torch.Tensor) -> Any:
    total = x[0]
    for i in range(1, x.shape[0]):  # HERE
        total = total + x[i]
    return total


def rows(x: torch.Tensor) -> Any:
    return sum(row for row in x)  # HERE


def write(x: torch.Tensor) -> Any:
    x += 1  # HERE
    return x


def write_of_view(x: torch.Tensor) -> Any:
    x[0].mul_(2)  # HERE
    return x * 2


def mask(x: torch.Tensor) -> Any:
    return x[x > 0]  # HERE


def nonzero(x: torch.Tensor) -> Any:
    return x.nonzero()  # HERE


def inverse(x: torch.Tensor) -> Any:
    return torch.linalg.inv(x.t() @ x)  # HERE


def one_row(x: torch.Tensor) -> Any:
    if x.shape[0] == 1:
        return x * 2
    return x + 1  # HERE


def one_row_number(x: torch.Tensor) -> Any:
    scale = 2.0 if x.shape[0] == 1 else 3.0
    return x * scale  # HERE


def one_row_squeezed(x: torch.Tensor) -> Any:
    return x.squeeze()  # HERE


def strided(x: torch.Tensor) -> Any:
    return x.as_strided((x.shape[0], 2), (3, 1))  # HERE


def unknown_op(x: torch.Tensor) -> Any:
    return torch.fft.rfft(x)  # HERE


def raises(x: torch.Tensor) -> Any:
    raise ValueError("mine")  # HERE


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (branch, "branches on the value of a tensor.*Use torch.where, or a mask"),
        (loop_while, "branches on the value of a tensor.*Use torch.where"),
        (item, r"\.item\(\) takes a number out of a tensor.*Keep it a tensor"),
        (to_int, r"int\(\) takes a number out of a tensor"),
        (to_float, r"float\(\) takes a number out of a tensor"),
        (to_list, "takes a number out of a tensor"),
        (numpy, r"\.numpy\(\) hands the tensor to NumPy.*use the function of torch"),
        (asarray, "to NumPy"),
        (printing, "prints a tensor.*Return the tensor as one more result, or remove the print"),
        (formatting, "prints a tensor"),
        (size_branch, r"depends on the size of dim b \(b > 6\): with b = 2 .*ranges=\{'b': \(lo, hi\)\}"),
        (size_loop, r"depends on the size of dim b \(b == 7\)"),
        (rows, r"depends on the size of dim b \(b == 7\)"),
        (write, r"writes into its input 'x'.*out-of-place form \(x = x \+ 1, not x \+= 1\), or clone"),
        (write_of_view, "writes into its input 'x'"),
        (mask, "a mask has no fixed number of elements"),
        (nonzero, "the shape of its result depends on data.*use torch.where or a mask"),
        (inverse, "aten.linalg_inv_ex.default is not in the op table"),
        (one_row, r"depends on the size of dim b: where it is 1 .*ranges=\{'b': \(2, hi\)\}"),
        (one_row_number, "depends on the size of dim b: where it is 1"),
        (one_row_squeezed, "depends on the size of dim b: where it is 1"),
        (strided, "as_strided.default reads memory by its layout.*use view, permute, expand"),
        (unknown_op, "is not in the op table, so a plan cannot have it; see docs/ops.md"),
        (raises, "PyTorch could not trace this: ValueError: mine"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_the_error_shows_the_line_and_says_what_to_do(code: Code, message: str) -> None:
    with pytest.raises(CaptureError, match=f"(?s){message}") as caught:
        planc.trace(code, torch.ones(5, 3))
    line = str(caught.value).splitlines()[-1]
    assert __file__ in line
    assert line.endswith("# HERE")


def test_branches_that_no_size_in_range_takes_otherwise_are_fine() -> None:
    for low, high, factor in ((7, 100, 2), (1, 6, 1)):
        plan = planc.trace(size_branch, torch.ones(5, 3), ranges={"b": (low, high)})
        assert torch.equal(plan(torch.ones(high, 3)), torch.full((high, 3), float(factor)))
    with pytest.raises(CaptureError, match="with b = 2 it would"):
        planc.trace(size_branch, torch.ones(5, 3), ranges={"b": (1, 8)})


def test_code_for_one_row_is_fine_where_no_size_is_one() -> None:
    plan = planc.trace(one_row, torch.ones(5, 3), ranges={"b": (2, 9)})
    assert torch.equal(plan(torch.ones(2, 3)), torch.full((2, 3), 2.0))


def test_a_slice_that_the_range_decides() -> None:
    plan = planc.trace(lambda x: x[:5], torch.ones(7, 3), ranges={"b": (5, 100)})
    for rows in (5, 6, 100):
        x = torch.randn(rows, 3)
        assert torch.equal(plan(x), x[:5])
    with pytest.raises(CaptureError, match="a slice from 0 up to 5 of a dim of size b"):
        planc.trace(lambda x: x[:5], torch.ones(7, 3))


def test_code_that_exec_ran_shows_its_function() -> None:
    names: dict[str, Any] = {}
    exec("def branch(x):\n    if x.sum() > 0:\n        return x\n    return -x", names)
    with pytest.raises(CaptureError, match=r"<string>:2: \(in branch\)$"):
        planc.trace(names["branch"], torch.ones(5, 3))


def test_reads_by_strides_that_only_rearrange_are_exact() -> None:
    def f(x: torch.Tensor) -> Any:
        rows = x.shape[0]
        turned = x.transpose(0, 2).clone(memory_format=torch.preserve_format)
        return (
            x.as_strided((rows, 12), (12, 1)),
            x.as_strided((4, rows, 3), (3, 12, 1)),
            x.as_strided((2, rows, 1, 12), (0, 12, 7, 1)),
            turned.as_strided((rows * 12,), (1,)),
        )

    plan = planc.trace(f, torch.randn(5, 4, 3), ranges={"b": (2, 99)})
    assert {n.op for n in plan.nodes} <= {"aten.view", "aten.permute", "aten.expand"}
    for rows in (2, 7):
        x = torch.randn(rows, 4, 3)
        close(plan(x), f(x))


def test_values_of_constants_are_known() -> None:
    def f(x: torch.Tensor) -> Any:
        three, four = [*torch.tensor([3]).tolist(), torch.tensor(4).item()]
        return x * three + four if bool(torch.tensor(1) + 1 > 1) else x

    assert planc.trace(f, torch.ones(2))(torch.ones(2)).tolist() == [7.0, 7.0]


def test_shapes_may_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def f(x: torch.Tensor) -> Any:
        print(x.shape)
        return x + 1

    assert planc.trace(f, torch.ones(2))(torch.ones(3)).tolist() == [2.0] * 3
    assert capsys.readouterr().out


def test_in_place_work_on_own_tensors_is_fine() -> None:
    def f(x: torch.Tensor) -> Any:
        y = x.clone()
        y += 1
        y[:, 0].zero_()
        y[:, 1] = x[:, 0]
        y.relu_()
        return y, x

    x = torch.randn(4, 3)
    plan = planc.trace(f, torch.randn(5, 3))
    assert torch.equal(plan(x)[0], f(x)[0])


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.clamp_(0, 1)  # HERE
        return x * self.weight


def test_a_parameter_written_by_forward_is_named() -> None:
    with pytest.raises(CaptureError, match=r"(?s)writes into its input 'weight'.*HERE"):
        planc.trace(Wrong(), torch.ones(5, 3))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, y: out - y, r"the loss must be a scalar, got a tensor of 2 dims"),
        (lambda out, y: {"total": out.sum()}, r"a dict without the key 'loss', but \['total'\]"),
        (lambda out, y: 3.0, "the loss must be a tensor, got float"),
        (lambda out, y: y.sum(), "depends on no parameter that requires a gradient"),
        (lambda out, y: out.detach().sum(), "depends on no parameter"),
        (lambda out, y: (out.sum(), object()), "a object cannot be part of"),
    ],
)
def test_losses_that_cannot_be_trained(loss: Any, message: str) -> None:
    net = nn.Linear(6, 3)
    with pytest.raises(CaptureError, match=message):
        planc.train_step(
            net, loss, torch.optim.SGD(net.parameters(), lr=0.1), torch.ones(5, 6), torch.ones(5, 3)
        )


def test_optimizers_that_do_not_fit() -> None:
    net, other = nn.Linear(6, 3), nn.Linear(6, 3)
    data = torch.ones(5, 6), torch.ones(5, 3)

    def step(optimizer: torch.optim.Optimizer, **options: Any) -> planc.Plan:
        return planc.train_step(net, nn.functional.mse_loss, optimizer, *data, **options)

    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(CaptureError, match=r"a tensor of shape \(3, 6\) that is no parameter of the module"):
        step(torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(CaptureError, match="2 example inputs cannot hold 3 targets"):
        step(sgd, targets=3)
    with pytest.raises(CaptureError, match=r"must return a gradient for each path.*differs in \['bias'\]"):
        step(sgd, grad_transform=lambda g: {"weight": g["weight"]})
    with pytest.raises(CaptureError, match=r"must keep shapes and dtypes; for 'weight'"):
        step(sgd, grad_transform=lambda g: {k: v.sum() for k, v in g.items()})
    with pytest.raises(CaptureError, match="micro_batch must be at least 1, got 0"):
        step(sgd, micro_batch=0)
    with pytest.raises(CaptureError, match=r"micro_batch: .*no argument with a named leading dim"):
        step(sgd, micro_batch=2, dynamic=False)


def test_unsupported_operations_are_their_own_error() -> None:
    with pytest.raises(UnsupportedOpError):
        planc.trace(unknown_op, torch.ones(5, 3))
