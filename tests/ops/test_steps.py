"""The programs of `fused.elementwise`: text, what is refused, types, and what a run computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import planc
from planc.codec import decode, encode
from planc.errors import TypeCheckError, VerifyError
from planc.ir import DType, TensorType, sym
from planc.ops import Trait, all_ops, lookup
from planc.ops.steps import (
    MAX_STEPS,
    Ref,
    Step,
    Steps,
    parse_steps,
    run_steps,
    step_types,
    stepwise,
    writable,
)
from planc.verifier import verify

X = TensorType(DType.F32, (sym("b"), 4))
ROW = TensorType(DType.F32, (4,))


def test_a_program_is_data() -> None:
    text = "mul(x0, x1); add(s0, -2.5, alpha=2); to(s1, dtype=f64); div(s2, x0, rounding_mode=floor)"
    program = parse_steps(text)
    assert program.steps[1] == Step("aten.add", (Ref(0, made=True), -2.5), (("alpha", 2),))
    assert program.steps[2].attrs == (("dtype", DType.F64),)
    assert str(program) == text
    types = step_types(program, [X, ROW])
    assert [str(t) for t in types] == ["f32[b, 4]", "f32[b, 4]", "f64[b, 4]", "f64[b, 4]"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a step is written op"),
        ("relu", "a step is written op"),
        ("relu(x0);relu(s0)", "a step is written op"),
        ("relu(x0); ", "a step is written op"),
        ("relu(relu(x0))", "a step is written op"),
        ("relu(x0)\n", "a step is written op"),
        ("nope(x0)", "aten.nope is no elementwise op"),
        ("mm(x0, x1)", "aten.mm is no elementwise op"),
        ("detach(x0)", "aten.detach is no elementwise op"),
        ("__import__(x0)", "a step is written op"),
        ("relu(os)", "a step reads x0, x1"),
        ("relu(x00)", "a step reads x0, x1"),
        ("relu(x²)", "a step reads x0, x1"),
        ("relu(x99999)", "a step reads x0, x1"),
        ("add(x0, nan)", "a step reads x0, x1"),
        ("add(x0, 9223372036854775808)", "a step reads x0, x1"),
        ("add(x0,x1)", "a step reads x0, x1"),
        ("add(x0, 1.50)", "must be written as 'add(x0, 1.5)'"),
        ("add(x0, x1, alpha=1)", "must be written as 'add(x0, x1)'"),
        ("add(x0, x1, beta=2)", "aten.add has no attribute 'beta'"),
        ("add(alpha=2, x0, x1)", "must be written as 'add(x0, x1, alpha=2)'"),
        ("to(x0, dtype=f31)", "'f31' is no dtype"),
        ("gelu(x0, approximate='tanh')", "is no word"),
        ("relu(x0); " * MAX_STEPS + "relu(x0)", "there may be 64 steps, got 65"),
        ("a" * 20_000, "may take 16384 characters"),
    ],
)
def test_text_that_is_no_program(text: str, message: str) -> None:
    with pytest.raises(TypeCheckError) as caught:
        parse_steps(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relu(x2)", "step 0 reads x2, which is not there"),
        ("add(s0, x0)", "step 0 reads s0, which is not there yet"),
        ("relu(x0)", "no step reads x1"),
        ("mul(x0, x1); relu(x0); exp(s1)", "no step reads s0"),
        ("relu(x1); mul(s0, x0)", "step 0 makes f32[4], not of the shape of the result, f32[b, 4]"),
        ("mul(x0, x1); bitwise_not(s0)", "step 1: aten.bitwise_not: bits of floating-point"),
        ("relu(x0, x1)", "step 0: aten.relu takes 1 operands, got 2"),
        ("where(x0, x1, 0)", "step 0: aten.where: condition must be of bools"),
    ],
)
def test_programs_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(TypeCheckError) as caught:
        step_types(parse_steps(text), [X, ROW])
    assert message in str(caught.value)


def test_steps_are_elementwise_and_draw_nothing() -> None:
    steps = [op for op in all_ops() if stepwise(op.name) is not None]
    assert len(steps) > 80
    assert all(op.has(Trait.ELEMENTWISE) and not op.has(Trait.RANDOM) for op in steps)
    assert stepwise("fused.elementwise") is None


def test_programs_that_are_equal_in_python_are_told_apart() -> None:
    x = torch.tensor([1, 2])
    for text, dtype in (("mul(x0, 1)", torch.int64), ("mul(x0, 1.0)", torch.float32)):
        assert run_steps(text, [x]).dtype is dtype


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_printing_and_parsing_are_inverse(data: st.DataObject) -> None:
    number = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans())
    steps: list[Step] = []
    for at in range(data.draw(st.integers(1, 5))):
        refs = [Ref(i) for i in range(3)] + [Ref(i, made=True) for i in range(at)]
        x, y = data.draw(st.sampled_from(refs)), data.draw(st.one_of(number, st.sampled_from(refs)))
        alpha = data.draw(number)
        attrs = () if repr(alpha) == "1" else (("alpha", alpha),)
        steps.append(Step("aten.add", (x, y), attrs))
    program = Steps(tuple(steps))
    assert all(writable(value) for step in steps for _, value in step.attrs)
    assert repr(parse_steps(str(program))) == repr(program)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="adxs01 (),;=.-elupr", max_size=40))
def test_any_text_is_a_program_or_an_error(text: str) -> None:
    try:
        program = parse_steps(text)
    except TypeCheckError:
        return
    assert str(program) == text


def test_what_steps_compute_and_their_gradients_are_those_of_the_ops() -> None:
    x, y = torch.randn(5, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    got = run_steps("mul(x0, x1); sigmoid(s0); mul(s0, s1)", [x, y])
    k = x * y
    want = k * torch.sigmoid(k)
    assert torch.equal(got, want)
    for a, b in zip(
        torch.autograd.grad(got.sum(), (x, y)), torch.autograd.grad(want.sum(), (x, y)), strict=True
    ):
        assert torch.equal(a, b)


def test_it_counts_flops_of_every_step_and_moves_inputs_and_result_alone() -> None:
    attrs = {"steps": "mul(x0, x1); clone(s0); relu(s1)"}
    assert lookup("fused.elementwise").flops(((X, ROW),), attrs, (X,)) == X.numel * 2


def test_a_plan_of_steps_is_printed_encoded_and_checked() -> None:
    call = 'fused.elementwise([x], steps="add(x0, 0.5); relu(s0)")'
    plan = planc.parse(f"plan p(x: f32[b, 4]) -> f32[b, 4] {{ return {call} }}")
    assert planc.parse(plan.text).id == plan.id
    assert decode(encode(plan.graph)) == plan.graph
    (node,) = plan.graph.nodes
    for steps in ("add(x0, 0.5); relu(s1)", "add(x0, 0.50); relu(s0)", "mm(x0, x0)"):
        broken = replace(plan.graph, nodes=(replace(node, attrs=(("steps", steps),)),))
        with pytest.raises(VerifyError):
            verify(broken)
    with pytest.raises(VerifyError):
        decode(encode(broken))
