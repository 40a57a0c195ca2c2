"""Wrong operands and attributes: inference refuses them, and data cannot harm a kernel."""

from __future__ import annotations

import random
import re
import warnings
from typing import Any

import pytest
import torch

from planc.errors import LimitError, TypeCheckError
from planc.ir import DType
from planc.ir.types import type_of
from planc.ops.attention import attend, attend_backward
from tests.ops.cases import SIZES, B, Case, case, d, f, i, m
from tests.ops.mutation import mutant
from tests.ops.table import TABLE

_CONV = {"stride": (1,), "padding": (0,), "dilation": (1,)}
WRONG: list[tuple[Case, str]] = [
    (case("aten.add", f(3), f(4)), "do not broadcast: 3 against 4"),
    (case("aten.add", f(B), f(4)), "do not broadcast"),
    (case("aten.add", i(B), i(B), alpha=0.5), "alpha must be of the result's kind"),
    (case("aten.sub", m(B), m(B)), "bools cannot be subtracted"),
    (case("aten.div", f(B), 2, rounding_mode="ceil"), "rounding_mode must be one of"),
    (case("aten.where", f(B), f(B), f(B)), "condition must be of bools"),
    (case("aten.bitwise_and", f(B), 1), "bits of floating-point numbers"),
    (case("aten.clamp", f(B), None, None), "at least one bound"),
    (case("aten.neg", m(B)), "must be of numbers"),
    (case("aten.silu", i(B)), "must be floating-point"),
    (case("aten.gelu", f(B), approximate="erf"), "'none', 'tanh'"),
    (case("aten.glu", f(B, 3)), "no two equal halves"),
    (case("aten.silu_backward", f(B, 1), f(B, 4)), "grad_output must have shape [b, 4]"),
    (case("aten.view", f(B, 4), size=(B, 5)), "b*4 elements do not fit size [b, 5]"),
    (case("aten.view", f(B, 4), size=(-1, -1)), "more than one -1"),
    (case("aten.permute", f(B, 4), dims=(0, 0)), "no permutation"),
    (case("aten.expand", f(3), size=(4,)), "3 is not 1"),
    (case("aten.transpose", f(B, 4), dim0=0, dim1=2), "dim 2 is out of range for rank 2"),
    (case("aten.slice", f(B), end=5), "length that depends on which is larger"),
    (case("aten.slice", f(B), start=B - 2, end=0), "length that depends on which is larger"),
    (case("aten.select", f(3), dim=0, index=3), "index 3 is out of range"),
    (case("aten.cat", ()), "nothing to join"),
    (case("aten.cat", (f(B, 3), f(B, 4))), "must agree in every dim but 0"),
    (case("aten.split", f(B), split_size=2), "the number of pieces varies"),
    (case("aten.repeat", f(3), repeats=(-1,)), "a negative size"),
    (case("aten.index", f(B), (m(B),)), "a mask has no fixed number of elements"),
    (case("aten.gather", f(B, 4), i(B), dim=0), "index must have the rank"),
    (case("aten.index_put", f(B, 4), (i(2),), f(3, 4)), "do not broadcast"),
    (case("aten.embedding", f(5, 3), f(B)), "indices must be i64 or i32"),
    (case("aten.mean", i(B)), "wants floating-point"),
    (case("aten.sum", f(B), dim=(0, 0)), "named twice"),
    (case("aten.topk", f(3), k=4), "k must be in 0..3"),
    (case("aten.max", f(0)), "must have elements"),
    (case("aten.softmax", i(B), dim=0), "wants floating-point"),
    (case("aten.mm", f(B, 4), f(5, B)), "must be equal, got 4 and 5"),
    (case("aten.mm", f(B, 4), d(4, B)), "one dtype"),
    (case("aten.addmm", f(2, B, 3), f(B, 4), f(4, 3)), "must be equal"),
    (case("aten.convolution", f(B, 3, 5, 5), f(6, 4, 3, 3), None, **_CONV), "channels"),
    (case("aten.convolution", f(B, 3, 2, 2), f(6, 3, 3, 3), None, **_CONV), "larger than the padded input"),
    (case("aten.convolution", f(B, 3, 5, 5), f(6, 3, 3, 3), f(5), **_CONV), "bias must have shape [6]"),
    (case("aten.max_pool2d_with_indices", f(B, 3, 4, 4), kernel_size=(2,), padding=(2,)), "more than half"),
    (
        case("aten.avg_pool2d", f(B, 3, 4, B), kernel_size=(1,), stride=(2,), ceil_mode=True),
        "for some sizes only",
    ),
    (case("aten.reflection_pad1d", f(B, 2, 3), padding=(3, 0)), "too small to be reflected by 3"),
    (case("aten.pixel_shuffle", f(B, 3, 2, 2), upscale_factor=2), "no multiple of 4"),
    (
        case("aten.batch_norm", f(B, 3), f(4), None, f(3), f(3), training=True, momentum=0.1, eps=0.1),
        "weight must",
    ),
    (
        case("aten.batch_norm_no_stats", f(B, 3), None, None, training=False, momentum=0.1, eps=0.1),
        "only training",
    ),
    (
        case("aten.native_layer_norm", f(B, 3), None, None, normalized_shape=(4,), eps=0.1),
        "is not the end of",
    ),
    (
        case("aten.native_group_norm", f(B, 3), None, None, N=B, C=3, HxW=1, group=2, eps=0.1),
        "do not make 2 groups",
    ),
    (case("aten.attention", f(B, 2, 3, 4), f(B, 2, 5, 3), f(B, 2, 5, 4), None), "key must have shape"),
    (case("aten.attention", f(B, 2, 3, 4), f(B, 2, 5, 4), f(B, 2, 5, 4), None, dropout_p=0.1), "takes a key"),
    (case("aten.nll_loss_forward", f(B, 4), f(B), None), "class numbers"),
    (case("aten.mse_loss", f(B, 1), f(B)), "target must have shape [b, 1]"),
    (case("aten.mse_loss", f(B), f(B), reduction=3), "reduction must be 0 (none), 1 (mean) or 2 (sum)"),
    (case("aten.arange", end=3, dtype=DType.I64, start=4), "beyond end"),
    (case("random.dropout", f(), f(B), p=0.5), "a random key is i64[]"),
    (case("random.dropout", i(), f(B), p=1.5), "p must be in 0..1"),
    (case("opt.sgd", (f(3),), (f(4),), (), (), 0.1), "grads must match params"),
    (case("opt.sgd", (f(3),), (f(3),), (f(3),), (), 0.1), "momenta must be empty unless momentum is not 0"),
    (case("opt.adam", (f(3),), (f(3),), (f(3),), (f(3),), (), (), 0.1), "steps must be 1 tensors of f32[]"),
    (case("opt.rmsprop", (f(3),), (f(3),), (f(3),), (), (), 0.1, centered=True), "grad_avgs must match"),
    (case("opt.sgd", (f(3),), (f(3),), (), (), f(3)), "lr must be a number"),
]


@pytest.mark.parametrize(
    ("wrong", "message"), WRONG, ids=lambda item: str(item) if isinstance(item, Case) else ""
)
def test_wrong_lines_are_refused(wrong: Case, message: str) -> None:
    with pytest.raises(TypeCheckError, match=re.escape(message)) as caught:
        wrong.infer(B)
    assert str(caught.value).startswith(wrong.op)


@pytest.mark.parametrize("line", TABLE, ids=str)
def test_changed_lines_are_refused_or_inferred_rightly(line: Case) -> None:
    """What inference accepts either runs and returns just that, or torch refuses its values."""
    for number in range(6):
        changed = mutant(line, random.Random(f"{line} {number}"))
        try:
            types = changed.infer(SIZES[0])
            symbolic = changed.infer(B)
        except (TypeCheckError, LimitError):
            continue
        assert all(size >= 0 for t in types for size in t.shape if isinstance(size, int))
        if any(t.numel > 10_000 for t in types if isinstance(t.numel, int)):
            continue
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                results = changed.run(*changed.arguments(SIZES[0]))
            except (RuntimeError, IndexError, ValueError, ZeroDivisionError):
                continue
        assert [type_of(r) for r in results] == list(types), str(changed)
        at = [t.substitute({"b": SIZES[0]}) for t in symbolic]
        # A slice from a fixed start takes the dim to be as long as that.
        assert at == list(types) or changed.op in ("aten.slice", "aten.slice_backward"), str(changed)


UNCHECKED_BY_TORCH = (
    "aten.max_pool2d_with_indices_backward",
    "aten.max_pool3d_with_indices_backward",
    "aten.adaptive_max_pool2d_backward",
    "aten.adaptive_max_pool3d_backward",
    "aten.nll_loss2d_backward",
)


@pytest.mark.parametrize("value", [10**12, 5000, -1, -(10**12)])
@pytest.mark.parametrize("line", [c for c in TABLE if c.op in UNCHECKED_BY_TORCH], ids=str)
def test_indices_out_of_range_write_nowhere(line: Case, value: int) -> None:
    operands, attrs = line.arguments(SIZES[0])
    for operand in operands:
        if isinstance(operand, torch.Tensor) and operand.dtype == torch.int64:
            operand.view(-1)[-1] = value
    with pytest.raises(IndexError):
        line.run(operands, attrs)


@pytest.mark.parametrize("n", [2, 3])
def test_the_gradient_of_pooling_nothing_is_refused(n: int) -> None:
    empty: Any = torch.zeros(2, 3, *[4] * (n - 1), 0)
    changed = case(f"aten.adaptive_avg_pool{n}d_backward", f(B, 3, *[2] * n), f(B, 3, *[4] * n))
    with pytest.raises(ValueError, match="no elements"):
        changed.run([torch.zeros(2, 3, *[2] * n), empty], {})


@pytest.mark.parametrize("mask", [None, torch.linspace(-2, 2, 25).view(5, 5)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_formula_is_the_kernels(mask: torch.Tensor | None, causal: bool) -> None:
    """Accelerators run the formula: it must mean what the fused kernel of CPUs does."""
    if causal and mask is not None:
        return  # torch takes one of the two
    source = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(2, 3, 5, 4, generator=source) for _ in range(4))
    attention = case("aten.attention", f(1, 1, 1, 1), f(1, 1, 1, 1), f(1, 1, 1, 1), None)
    backward = case("aten.attention_backward", *(f(1, 1, 1, 1),) * 7)
    attrs = {"is_causal": causal, "scale": 0.4}
    out, sums = attention.run([q, k, v, mask], attrs)
    mine, my_sums = attend(q, k, v, mask, causal, 0.4)
    torch.testing.assert_close(mine, out)
    torch.testing.assert_close(my_sums, sums)
    want = backward.run([grad, q, k, v, out, sums, mask], attrs)
    got = attend_backward(grad, q, k, v, mine, my_sums, mask, causal, 0.4)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
