"""Functions as plans: structure of inputs and outputs, fixed values, varying dims, and what misfits say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import planc
from planc.errors import CaptureError, InputError
from tests.capture.training import close

TWO = {"x": {0: "n"}, "y": {0: "m"}}

# -- structure -----------------------------------


def nested(pair: Any, named: Any, last: Any) -> Any:
    total = pair[0] + named["k"]
    return {"sum": total, "list": [pair[1] * 2, (last, named["deep"][0])], "none": None, "fixed": 3}


def nested_inputs(rows: int) -> tuple[Any, ...]:
    def x() -> torch.Tensor:
        return torch.randn(rows, 3)

    return (x(), x()), {"k": x(), "deep": [x()]}, torch.randn(2)


@pytest.fixture(scope="module")
def nested_plan() -> planc.Plan:
    return planc.trace(nested, *nested_inputs(5))


def test_nested_inputs_and_outputs_keep_their_structure(nested_plan: planc.Plan) -> None:
    for rows in (1, 2, 9):
        inputs = nested_inputs(rows)
        close_structure(nested_plan(*inputs), nested(*inputs))


def close_structure(got: Any, want: Any) -> None:
    assert got.pop("none") is None is want.pop("none")
    assert got.pop("fixed") == want.pop("fixed") == 3
    close(got, want)


def test_the_order_of_dict_keys_does_not_matter(nested_plan: planc.Plan) -> None:
    pair, named, last = nested_inputs(4)
    turned = {"deep": named["deep"], "k": named["k"]}
    close_structure(nested_plan(pair, turned, last), nested(pair, named, last))


def test_passed_through_inputs_come_out_as_fresh_memory(nested_plan: planc.Plan) -> None:
    pair, named, last = nested_inputs(4)
    out = nested_plan(pair, named, last)["list"][1][0]
    assert torch.equal(out, last)
    out.add_(1)
    assert not torch.equal(out, last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, n, x: (p, n), r"takes 3 arguments \(pair: a tuple of f32\[b, 3\], .*got 2"),
        (lambda p, n, x: (p, n, x, x), "takes 3 arguments .*got 4"),
        (lambda p, n, x: (list(p), n, x), "input pair must be a tuple of 2, got a list of 2"),
        (lambda p, n, x: (p[:1], n, x), "input pair must have 2 entries, got 1"),
        (lambda p, n, x: (x, n, x), "input pair must be a tuple of 2, got a Tensor"),
        (
            lambda p, n, x: (p, {"k": n["k"]}, x),
            r"input named must have the keys \['k', 'deep'\], got \['k'\]",
        ),
        (lambda p, n, x: (p, {**n, "more": x}, x), "input named must have the keys"),
        (
            lambda p, n, x: (p, {**n, "deep": x}, x),
            r"input named\['deep'\] must be a list of 1, got a Tensor",
        ),
        (
            lambda p, n, x: (p, {**n, "k": None}, x),
            r"input 'named.k' must be a tensor, f32\[b, 3\], got a NoneType",
        ),
        (
            lambda p, n, x: ((p[0], p[1].double()), n, x),
            r"'pair_1' \(pair.1\) wants f32\[b, 3\], got f64\[4, 3\]",
        ),
        (lambda p, n, x: (p, n, x[:1]), r"'last' wants f32\[2\], got f32\[1\]: dimension 0 is 1, not 2"),
        (
            lambda p, n, x: ((p[0], p[1][:2]), n, x),
            r"dimension 0 is 2, not b = 4 \(b = 4 from input 'pair_0'",
        ),
        (lambda p, n, x: ((p[0][0], p[1]), n, x), "the rank is 1, not 2"),
    ],
)
def test_misfits_name_path_expected_and_actual(nested_plan: planc.Plan, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nested_plan(*change(*nested_inputs(4)))


def test_plain_functions() -> None:
    """Several outputs in order, ops of several outputs, unused inputs and temporaries, loops that unroll."""

    def f(x: torch.Tensor, unused: torch.Tensor, y: torch.Tensor) -> Any:
        _temporary = x * 100
        values, indices = x.sort(dim=1)
        for i in range(3):
            y = y * 2 + i
        return indices, y, values, x

    plan = planc.trace(f, torch.randn(5, 3), torch.randn(5), torch.randn(4, 5))
    assert [p.path for p in plan.inputs] == ["x", "unused", "y"]
    assert len(plan.outputs) == 4
    assert all(node.op != "aten.mul" or node.operands[1] != 100 for node in plan.nodes)
    args = torch.randn(2, 3), torch.randn(2), torch.randn(4, 5)
    close(plan(*args), f(*args))


def test_python_numbers_are_fixed_and_tensors_are_not() -> None:
    def f(x: torch.Tensor, k: int, how: str, scale: torch.Tensor) -> torch.Tensor:
        return x * k * scale if how == "times" else x

    plan = planc.trace(f, torch.ones(5), 3, "times", torch.tensor(2.0))
    assert plan(torch.ones(2), 3, "times", torch.tensor(4.0)).tolist() == [12.0, 12.0]
    assert plan(torch.ones(2), 3, "times", 0.5).tolist() == [1.5, 1.5]  # a number for a tensor of no dims
    for k, how in ((4, "times"), (3.0, "times"), (True, "times"), (3, "plus")):
        with pytest.raises(InputError, match=r"fixed to .* when .* captured, got .*; capture again"):
            plan(torch.ones(2), k, how, 1.0)
    with pytest.raises(InputError, match=r"takes 4 arguments \(x: f32\[b\], \[1\] fixed to 3"):
        plan(torch.ones(2), torch.tensor(2.0))


def test_a_number_must_fit_the_dtype() -> None:
    plan = planc.trace(lambda n: n + 1, torch.tensor(1))
    assert plan(41).item() == 42
    with pytest.raises(InputError, match=r"wants i64\[\], got the number 0.5"):
        plan(0.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "x: a object cannot be part"),
        ({1: torch.ones(1)}, "dict needs string keys, got 1"),
        (torch.ones(2).to(torch.complex64), "no tensors of dtype torch.complex64"),
    ],
)
def test_inputs_that_no_plan_takes(value: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message.replace("x: ", "")):
        planc.trace(lambda x: x, value)


# -- dims -----------------------------------


def test_several_dims_vary_on_their_own() -> None:
    def f(words: torch.Tensor, mask: torch.Tensor) -> Any:
        flat = words.reshape(-1, words.shape[-1])
        return (words * mask[..., None]).mean(1), flat, words.shape[1]

    dims = {"words": {0: "b", 1: "s"}, "mask": {0: "b", 1: "s"}}
    plan = planc.trace(f, torch.randn(4, 5, 3), torch.rand(4, 5), dynamic=dims, ranges={"s": (2, 40)})
    assert "f32[b*s, 3]" in plan.text
    for b, s in ((1, 2), (3, 40), (6, 6)):
        args = torch.randn(b, s, 3), torch.rand(b, s)
        mean, flat, length = plan(*args)
        close((mean, flat), f(*args)[:2], 1e-6)
        assert length.item() == s
    with pytest.raises(InputError, match=r"dim s is 41 \(from input 'words'\), outside its range 2\.\.40"):
        plan(torch.randn(1, 41, 3), torch.rand(1, 41))
    with pytest.raises(InputError, match="dimension 1 is 4, not s = 5"):
        plan(torch.randn(2, 5, 3), torch.rand(2, 4))


def test_products_and_floor_divisions_of_dims() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        pairs = x.view(x.shape[0] * 2, 3)
        return pairs[: pairs.shape[0] // 3] * (x.shape[0] % 2)

    plan = planc.trace(f, torch.randn(5, 6))
    assert str(plan.outputs[0].value.type) == "f32[((b*2)//3), 3]"
    for b in (2, 3, 8):
        x = torch.randn(b, 6)
        close(plan(x), f(x))


def test_leading_dims_vary_by_default_and_not_with_false() -> None:
    plan = planc.trace(lambda x, y: (x * 2, y * 2), torch.ones(5, 2), torch.ones(4))
    assert [str(p.value.type) for p in plan.inputs] == ["f32[b, 2]", "f32[4]"]
    fixed = planc.trace(lambda x: x * 2, torch.ones(5, 2), dynamic=False)
    with pytest.raises(InputError, match=r"wants f32\[5, 2\], got f32\[3, 2\]"):
        fixed(torch.ones(3, 2))


def test_code_that_runs_at_the_example_size_alone_is_fixed_to_it_by_default() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(5)

    assert planc.trace(f, torch.ones(5)).dims == ()
    with pytest.raises(CaptureError, match="PyTorch could not trace this"):
        planc.trace(f, torch.ones(5), dynamic={"x": {0: "n"}})


@pytest.mark.parametrize(
    ("dynamic", "ranges", "message"),
    [
        ({"z": {0: "b"}}, None, r"names the input 'z', but the inputs are \['x', 'y'\]"),
        ({"x": {2: "b"}}, None, "names dim 2 of input 'x', which has 2 dims"),
        ({"x": {0: "a b"}}, None, "'a b' is not an identifier"),
        ({"x": {0: "b/2"}}, None, "'b/2' is not an identifier, nor an expression"),
        ({"x": {0: "2*3"}}, None, r"calls dim 0 of input 'x' 2\*3, which does not vary"),
        (
            {"x": {0: "b"}, "y": {0: "b*2"}},
            None,
            r"b\*2 is 5 in example 'y', where the others make it 10",
        ),
        ({"x": {0: "b", 1: "b"}}, None, "dim b is 5 in example 'x' but 3 in example 'x'"),
        (None, {"b": (3, 2)}, r"the range 3\.\.2 of dim b must lie within"),
        ({"x": {0: "b"}, "y": {0: "b"}}, {"b": (7, 7), "n": (1, 2)}, "ranges names the dim 'n'"),
        ({"x": {0: "b"}, "y": {0: "n"}}, {"b": (7, 7), "n": (7, 7)}, "no size to trace dim n with"),
    ],
)
def test_wrong_dims_say_so(dynamic: Any, ranges: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        planc.trace(lambda x, y: (x, y), torch.ones(5, 3), torch.ones(5), dynamic=dynamic, ranges=ranges)


def test_dims_that_cannot_be_related_are_named_in_the_error() -> None:
    with pytest.raises(CaptureError, match=r"size of tensor a \(n\) must match the size of tensor b \(m\)"):
        planc.trace(lambda x, y: x + y, torch.ones(5), torch.ones(7), dynamic=TWO)


# -- random numbers -----------------------------------


def test_random_numbers_come_from_the_key() -> None:
    def f(x: torch.Tensor) -> Any:
        return x + torch.randn_like(x), torch.rand(3), torch.randperm(5), torch.nn.functional.dropout(x, 0.5)

    plan = planc.trace(f, torch.ones(6))
    assert [p.path for p in plan.graph.state()] == ["rng"]
    start = plan.with_state({"rng": planc.key(1)})
    again = plan.with_state({"rng": planc.key(1)})
    first, second = start(torch.ones(6)), start(torch.ones(6))
    close(again(torch.ones(6)), first)
    assert not any(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))
    assert sorted(first[2].tolist()) == [0, 1, 2, 3, 4]
    assert set(first[3].tolist()) <= {0.0, 2.0}
