"""Slices and squeezes of dims that vary mean what they do in PyTorch at every size, or are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim

import planc
from planc.errors import CaptureError, ElaborationError, InputError
from tests.capture.training import close, pair

Code = Callable[[torch.Tensor], Any]
SIZES = (1, 2, 3, 7)


@pytest.mark.parametrize(
    "code",
    [
        lambda x: x[1:],
        lambda x: x[-1:],
        lambda x: x[:-1],
        lambda x: x[::2],
        lambda x: x[2::2],  # b - 2 may be -1, which is no trip of two
        lambda x: x[1:] - x[:-1],
        lambda x: x[x.shape[0] // 2 :],
        lambda x: x[:1].squeeze(0),
        lambda x: x[:, None].squeeze(1),
        lambda x: x[3:1],
    ],
)
def test_what_is_one_formula_at_all_sizes(code: Code) -> None:
    plan = planc.trace(code, torch.randn(5, 3))
    for size in SIZES:
        x = torch.randn(size, 3)
        got = plan(x)
        close(got, code(x))
        assert got.shape == plan.outputs[0].value.type.at({"b": size})


@pytest.mark.parametrize(
    ("code", "least", "told"),
    [
        (lambda x: x[2:], 2, "a slice from 2 up to b of a dim of size b is b - 2 long"),
        (lambda x: x[2:].sum(), 2, "is b - 2 long"),
        (lambda x: x[4::2], 3, "is ((b - 3)//2) long"),
        (lambda x: x[:-2], 2, "a slice from 0 up to -2 of a dim of size b is b - 2 long"),
        (lambda x: x[-2:], 2, "a slice from -2 up to b of a dim of size b is 2 long"),
        (lambda x: x[-3:-1], 3, "is 2 long"),
        (lambda x: x[x.shape[0] - 3 :], 3, "a slice from b - 3 up to b of a dim of size b is 3 long"),
        (lambda x: x[:5], 5, "a slice from 0 up to 5 of a dim of size b is 5 long"),
        (lambda x: x.narrow(0, 1, 3), 4, "a slice from 1 up to 4 of a dim of size b is 3 long"),
        (lambda x: x[1:][1:], 2, "a slice from 1 up to b - 1 of a dim of size b - 1 is b - 2 long"),
        (lambda x: torch.cat([x, x])[3:], 2, "a slice from 3 up to b*2 of a dim of size b*2 is b*2 - 3 long"),
    ],
)
def test_the_range_that_a_slice_needs_is_told_and_is_enough(code: Code, least: int, told: str) -> None:
    advice = f"where b is at least {least}. Give the dim such a range, ranges={{'b': ({least}, hi)}}, or fix"
    message = f"(?s){re.escape(told)}.*{re.escape(advice)}.*test_ranges"
    with pytest.raises(CaptureError, match=message):
        planc.trace(code, torch.randn(5, 3))
    plan = planc.trace(code, torch.randn(5, 3), ranges={"b": (least, 9)})
    for size in (least, least + 1, 9):
        x = torch.randn(size, 3)
        got = plan(x)
        close(got, code(x))
        assert got.shape == plan.outputs[0].value.type.at({"b": size})
    with pytest.raises(InputError, match=rf"dim b is {least - 1} .*outside its range {least}\.\.9"):
        plan(torch.randn(least - 1, 3))


def test_a_range_too_narrow_for_the_slice_is_told_with_its_end() -> None:
    with pytest.raises(CaptureError, match=r"at least 4\. .*ranges=\{'b': \(4, 9\)\}"):
        planc.trace(lambda x: x[4:], torch.randn(5, 3), ranges={"b": (2, 9)})


def test_writes_into_slices() -> None:
    def code(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[2:] = 0
        return y

    with pytest.raises(CaptureError, match="b - 2 long only where b is at least 2"):
        planc.trace(code, torch.randn(5, 3))
    plan = planc.trace(code, torch.randn(5, 3), ranges={"b": (2, 9)})
    for size in (2, 3, 7):
        x = torch.randn(size, 3)
        close(plan(x), code(x))


@pytest.mark.parametrize(
    "code",
    [
        lambda x: x.squeeze(0),
        lambda x: x.squeeze(-2) * 2,
        lambda x: x[:, None].squeeze((0, 1)),
    ],
)
def test_squeezes_of_a_dim_that_may_be_one(code: Code) -> None:
    with pytest.raises(CaptureError, match=r"(?s)where it is 1 it does something else.*'b': \(2, hi\)"):
        planc.trace(code, torch.randn(5, 3))
    plan = planc.trace(code, torch.randn(5, 3), ranges={"b": (2, 9)})
    for size in (2, 3, 7):
        x = torch.randn(size, 3)
        close(plan(x), code(x))


def test_pieces_of_a_share_of_a_dim_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"pieces of \(\(b \+ 1\)//2\), .*slice the dim: x\[:n // 2\]"):
        planc.trace(lambda x: x.chunk(2)[-1], torch.randn(5, 3), ranges={"b": (2, 9)})


def test_one_row_is_tried_where_one_of_another_dim_cannot_be() -> None:
    def code(x: torch.Tensor) -> torch.Tensor:
        near = nn.functional.conv1d(x.transpose(1, 2), torch.ones(2, 3, 3))  # needs three words
        return near.sum() + x.squeeze(0).sum(0).sum()

    dims = {"x": {0: "b", 1: "s"}}
    with pytest.raises(CaptureError, match=r"dim b: where it is 1 .*ranges=\{'b': \(2, hi\)\}"):
        planc.trace(code, torch.randn(5, 6, 3), dynamic=dims)
    plan = planc.trace(code, torch.randn(5, 6, 3), dynamic=dims, ranges={"b": (2, 9)})
    x = torch.randn(2, 4, 3)
    close(plan(x), code(x), 1e-5)


def test_training_on_differences_in_time() -> None:
    """Slices of a varying length of sequences, forward and backward."""

    def loss_fn(out: torch.Tensor) -> torch.Tensor:
        return (out[:, 2:] - out[:, :-2]).square().mean() + out[:, -3:].abs().sum()

    both = pair(
        nn.Linear(3, 2),
        loss_fn,
        lambda p: optim.SGD(p, lr=0.1),
        torch.randn(5, 6, 3),
        targets=0,
        dynamic={"input": {0: "b", 1: "s"}},
        ranges={"s": (3, 40)},
    )
    both.train([(torch.randn(b, s, 3),) for b, s in ((1, 3), (2, 4), (3, 9))], 1e-6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "slice(x, start=-2)",
            "a slice from n - 2 up to n .* begins before the dim where n is small; give n",
        ),
        ("squeeze(x, dim=[0])", "whether dim 0 of .* goes depends on whether n is 1; give n a range"),
    ],
)
def test_plans_written_as_text_need_the_same_ranges(line: str, message: str) -> None:
    with pytest.raises(ElaborationError, match=message):
        planc.parse(f"plan f(x: f32[n, 3]) {{ return {line} }}")
    plan = planc.parse(f"plan f(x: f32[n, 3]) where n in 2..9 {{ return {line} }}")
    assert plan(torch.ones(2, 3)).shape == (2, 3)
