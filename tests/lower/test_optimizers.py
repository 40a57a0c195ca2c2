"""Updates of optimizers by `planc.lower.optimizers`: the bits of the op table's callables, in both forms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from planc.ir import DType, TensorType
from planc.lower.calls import Call, Calls
from planc.lower.optimizers import has_update, update_of
from tests.sketch import Sketch, f32, tensor

SHAPES = ((3, 5), (7,), (), (0, 4))
DTYPES = (DType.F32, DType.F64, DType.F16, DType.BF16)
Groups = list[list[torch.Tensor]]


def call_of(op: str, groups: str, dtype: DType, **attrs: Any) -> Call:
    """An update of parameters of `SHAPES`: groups of an "x" are like them, "n" counts steps, "-" is empty."""
    s = Sketch("update")
    kinds: dict[str, list[TensorType]] = {
        "x": [tensor(dtype, *shape) for shape in SHAPES],
        "n": [f32() for _ in SHAPES],
        "-": [],
    }
    columns = [
        tuple(s.input(f"v{i}_{k}", type) for k, type in enumerate(kinds[kind]))
        for i, kind in enumerate(groups)
    ]
    graph = s.give(*s.many(op, *columns, 0.1, **attrs))
    (call,) = Calls().of(graph, {})
    return call


def values(groups: str, dtype: DType, steps: list[float], noncontiguous: bool) -> Groups:
    torch.manual_seed(1)
    out: Groups = []
    for kind in groups:
        if kind == "-":
            out.append([])
        elif kind == "n":
            out.append([torch.tensor(step) for step in steps])
        else:
            made = [(torch.rand(shape, dtype=torch.float64) + 0.01).to(dtype.torch) for shape in SHAPES]
            if noncontiguous:
                made[0] = made[0].t().contiguous().t()
            out.append(made)
    return out


ADAM = [
    {"amsgrad": amsgrad, "maximize": maximize, "decoupled": decoupled, **decay}
    for amsgrad, maximize, decoupled, decay in itertools.product(
        (False, True), (False, True), (False, True), ({}, {"weight_decay": 0.013, "eps": 1e-3, "beta2": 0.97})
    )
]
SGD: list[dict[str, Any]] = [
    {},
    {"maximize": True},
    {"weight_decay": 0.01},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "maximize": True},
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["opt.adam", "opt.sgd"])
def test_updates_are_those_of_the_op_table(op: str, dtype: DType) -> None:
    for attrs in ADAM if op == "opt.adam" else SGD:
        if op == "opt.adam":
            groups = "xxxxxn" if attrs["amsgrad"] else "xxxx-n"
        else:
            groups = "xxx-" if attrs.get("momentum") else "xx--"
        call = call_of(op, groups, dtype, **attrs)
        assert has_update(call, torch.device("cpu"))
        quick = [update_of(call, in_place) for in_place in (False, True)]
        # The same count for all, different ones, and twice: what a call keeps must not be another's.
        for steps, odd in itertools.product(([4.0] * 4, [0.0, 3.0, 3.0, 70_000.0], [4.0] * 4), (False, True)):
            given = values(groups, dtype, steps, odd)
            expected = call.run(*given, 0.1, **attrs)
            for update, in_place in zip(quick, (False, True), strict=True):
                ours = values(groups, dtype, steps, odd)
                got = list(update(*ours, 0.1))
                assert [t.dtype for t in got] == [t.dtype for t in expected]
                assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True)), (attrs, in_place)
                if in_place:
                    kept = [*ours[0], *(t for group in ours[2:] for t in group)]
                    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(got, kept, strict=True))
                else:
                    before = values(groups, dtype, steps, odd)
                    assert all(
                        same_bits(a, b)
                        for x, y in zip(ours, before, strict=True)
                        for a, b in zip(x, y, strict=True)
                    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b)
