"""Every line of the op test table: inference, values, gradients, cost and traits against torch itself."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest
import torch

from planc.ir.dims import evaluate
from planc.ir.types import type_of
from planc.ops import Kind, OpDef, Trait, all_ops, full_attrs, normalise
from tests.ops.cases import SIZES, B, Case, Sample, overload_of, tensors
from tests.ops.table import TABLE

BY_NAME = {op.name: op for op in all_ops()}
BY_RULE = {"aten.scatter(f32[b, 4], i64[b, 2], 1.5, dim=1)"}
"""Lines that no overload fits as it is: a rule of `planc.capture.rules` imports it."""
NUMERIC = [c for c in TABLE if c.definition.targets and str(c) not in BY_RULE]
every = pytest.mark.parametrize("case", TABLE, ids=str)


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Equal bit for bit, NaN to NaN."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    return torch.equal(got, want) or bool(((got == want) | (got.isnan() & want.isnan())).all())


def test_every_op_has_a_line() -> None:
    structured = {op.name for op in all_ops() if op.has(Trait.STRUCTURED)}  # tested where they are run
    assert {c.op for c in TABLE} == set(BY_NAME) - structured


@every
def test_inference_says_what_the_callable_returns(case: Case) -> None:
    symbolic = case.infer(B)
    for b in SIZES:
        results = case.run(*case.arguments(b))
        got = [type_of(r) for r in results]
        assert list(case.infer(b)) == got
        assert [t.substitute({"b": b}) for t in symbolic] == got


@every
def test_cost_is_a_count(case: Case) -> None:
    types = tuple(_types(operand) for operand in case.operands)
    attrs = full_attrs(case.definition, normalise(case.definition, case.attrs))
    flops = case.definition.flops(types, attrs, case.infer(B))
    for b in SIZES:
        count = evaluate(flops, {"b": b})
        assert isinstance(count, int)
        assert count >= 0


def _types(operand: Any) -> Any:
    if isinstance(operand, tuple):
        return tuple(_types(item) for item in operand)
    return operand.type if isinstance(operand, Sample) else operand


def test_every_overload_has_a_line_that_it_fits() -> None:
    fitting = {
        target for case in NUMERIC for target in case.torch_calls(case.arguments(SIZES[0])[0], SIZES[0])
    }
    assert fitting == {target for op in all_ops() for target in op.targets}


@pytest.mark.parametrize("case", NUMERIC, ids=str)
def test_values_and_gradients_are_those_of_torchs_own_overload(case: Case) -> None:
    b = SIZES[0]
    calls = case.torch_calls(case.arguments(b)[0], b)
    assert calls, "no overload of the op fits this line"
    for target in calls:
        ours, theirs = case.arguments(b), case.arguments(b)[0]
        fixed: set[str] = set()
        got, want = None, None
        while want is None:
            leaves, their_leaves = _leaves(case, ours[0], fixed), _leaves(case, theirs, fixed)
            try:
                got, want = case.run(*ours), overload_of(target)(**case.torch_calls(theirs, b)[target])
            except RuntimeError as error:  # torch names an operand that it has no gradient by
                named = re.search(r"not differentiable with respect to argument '(\w+)'", str(error))
                if named is None:
                    raise
                fixed.add(named.group(1))
        assert got is not None
        want = [w for w in (want if isinstance(want, (tuple, list)) else [want]) if w is not None]
        assert [same(g, w) for g, w in zip(got, want, strict=True)] == [True] * len(want)
        if case.op == "aten.detach":
            assert not got[0].requires_grad
            continue
        for mine, other in zip(_gradients(got, leaves), _gradients(want, their_leaves), strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or same(mine, other)  # pyright: ignore[reportArgumentType] -- both are given


def _leaves(case: Case, operands: list[Any], fixed: set[str]) -> list[torch.Tensor]:
    """The operands to take gradients by: floating-point ones whose names are not ``fixed``."""
    out: list[torch.Tensor] = []
    for p, operand in zip(case.definition.operands, operands, strict=True):
        for x in tensors([operand]):
            if x.is_floating_point():
                x.requires_grad_(p.name not in fixed)
                out += [x] if p.name not in fixed else []
    return out


def _gradients(results: list[torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor | None]:
    reached = [r for r in results if r.requires_grad]
    if not reached or not leaves:
        return []
    weights = [torch.linspace(-1, 2, r.numel(), dtype=r.dtype).view(r.shape) for r in reached]
    try:
        return list(torch.autograd.grad(reached, leaves, weights, allow_unused=True, retain_graph=True))
    except RuntimeError as error:  # torch does not derive every gradient's gradient
        if "derivative" not in str(error) and "not implemented" not in str(error):
            raise
        return []


@every
def test_only_views_share_memory(case: Case) -> None:
    """The executor hands results to callers and writes into them: a shared one would change another value."""
    operands, attrs = case.arguments(SIZES[0])
    before = [x.clone() for x in tensors(operands)]
    results = case.run(operands, attrs)
    assert all(same(x, y) for x, y in zip(tensors(operands), before, strict=True)), "an operand was changed"
    if case.definition.has(Trait.VIEW):
        return
    places = [t.untyped_storage().data_ptr() for t in (*results, *tensors(operands)) if t.numel()]
    pairs = combinations(range(len(places)), 2)
    shared = [(x, y) for x, y in pairs if x < len(results) and places[x] == places[y]]
    assert not shared


@pytest.mark.parametrize("op", [op for op in all_ops() if op.has(Trait.VIEW)], ids=lambda op: op.name)
def test_views_share_memory(op: OpDef) -> None:
    for case in TABLE:
        if case.op == op.name:
            operands, attrs = case.arguments(SIZES[0])
            base = tensors(operands)[0].untyped_storage().data_ptr()
            assert all(r.untyped_storage().data_ptr() == base for r in case.run(operands, attrs) if r.numel())


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in TABLE
        if c.definition.has(Trait.COMMUTATIVE) and not c.attrs and isinstance(c.operands[1], Sample)
    ],
    ids=str,
)
def test_commutative_ops_commute(case: Case) -> None:
    (x, y), attrs = case.arguments(SIZES[0])
    (ours,), (swapped,) = case.run([x, y], attrs), case.run([y, x], attrs)
    assert same(ours, swapped)


@pytest.mark.parametrize("case", [c for c in TABLE if c.definition.has(Trait.RANDOM)], ids=str)
def test_random_draws_follow_their_key(case: Case) -> None:
    operands, attrs = case.arguments(SIZES[0])
    torch.manual_seed(0)
    first = case.run(operands, attrs)
    torch.manual_seed(1)
    torch.rand(3)
    assert all(same(x, y) for x, y in zip(first, case.run(operands, attrs), strict=True))
    other = case.run([operands[0] + 1, *operands[1:]], attrs)
    assert not all(same(x, y) for x, y in zip(first, other, strict=True))


@pytest.mark.parametrize("case", [c for c in TABLE if c.definition.has(Trait.ELEMENTWISE)], ids=str)
def test_elementwise_results_have_the_broadcast_shape(case: Case) -> None:
    shapes = [operand.type.at({"b": 4}) for operand in case.operands if isinstance(operand, Sample)]
    assert all(t.at({"b": 4}) == torch.broadcast_shapes(*shapes) for t in case.infer(B))


def test_list_operands_are_covered() -> None:
    listed = {
        op.name for op in all_ops() if any(p.kind in (Kind.TENSORS, Kind.OPT_TENSORS) for p in op.operands)
    }
    covered = {c.op for c in TABLE if any(isinstance(operand, tuple) for operand in c.operands)}
    assert {name for name in listed if not BY_NAME[name].has(Trait.STRUCTURED)} <= covered
