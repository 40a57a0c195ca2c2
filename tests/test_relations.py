"""Dims that others define: parsed, printed, encoded, checked at a call, kept by passes, shown, compared."""

from __future__ import annotations

import pytest
import torch

import planc
from planc.cli.sizes import sizes_for
from planc.codec import decode, encode, plan_id
from planc.codec.wire import PLAIN, RELATED
from planc.diff import diff
from planc.draw import dot, svg
from planc.errors import DecodeError, InputError, VerifyError
from planc.ir import DimVar, DType, Graph, TensorType, sym
from planc.ir.binding import bind, sizes_of
from planc.ir.builder import GraphBuilder
from planc.ir.facts import Facts, conditions, knowing, relations
from planc.ir.rewrite import unified
from planc.ops import infer, lookup
from planc.verifier import verify
from tests.codec.samples import small

N, M, K = sym("n"), sym("m"), sym("k")
SUM = "plan f(x: f32[n], y: f32[m]) where n == m { return x + y }"
PAIRS = "plan f(x: f32[n], y: f32[m]) where n == m*2 { return view(x, [m, 2]) * view(y, [m, 1]) }"
BLOCKS = "plan f(x: f32[n]) where k, n == k*8 { return view(x, [k, 8]) }"


def f32(*shape: int) -> TensorType:
    return TensorType(DType.F32, shape)


def graph_of(text: str) -> Graph:
    return planc.parse(text).graph


def test_what_a_relation_says_is_part_of_the_plan() -> None:
    graph = graph_of(SUM)
    assert relations(graph) == ((N, M),)
    assert [str(port.value.type) for port in graph.inputs] == ["f32[n]", "f32[m]"]
    assert str(graph.outputs[0].value.type) == "f32[m]"
    assert plan_id(graph) != plan_id(graph_of("plan f(x: f32[n], y: f32[n]) { return x + y }"))


@pytest.mark.parametrize("text", [SUM, PAIRS, BLOCKS])
def test_text_and_bytes_keep_relations(text: str) -> None:
    graph = graph_of(text)
    assert graph_of(planc.parse(text).text) == graph
    assert decode(encode(graph)) == graph


@pytest.mark.parametrize(
    ("text", "sizes", "wanted"),
    [
        (SUM, {"n": 3}, {"n": 3, "m": 3}),
        (SUM, {"m": 3}, {"n": 3, "m": 3}),
        (PAIRS, {"m": 3}, {"n": 6, "m": 3}),
        (PAIRS, {"n": 6}, {"n": 6, "m": 3}),
        (BLOCKS, {"n": 24}, {"n": 24, "k": 3}),
    ],
)
def test_a_size_tells_those_that_are_related(
    text: str, sizes: dict[str, int], wanted: dict[str, int]
) -> None:
    assert sizes_of(graph_of(text), sizes) == wanted
    assert planc.parse(text).cost(**sizes) == planc.parse(text).cost(**wanted)


@pytest.mark.parametrize(
    ("text", "sizes", "message"),
    [
        (SUM, {"n": 3, "m": 4}, "plan 'f' wants n == m, got n = 3, m = 4"),
        (PAIRS, {"n": 7}, "plan 'f': give a size for dim m"),
        (SUM, {}, "plan 'f': give a size for dim n, m"),
    ],
)
def test_sizes_that_are_not_related_so(text: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        sizes_of(graph_of(text), sizes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "types", "message"),
    [
        (SUM, [(3,), (4,)], "wants n == m, got n = 3 from input 'x': f32[3], m = 4 from input 'y': f32[4]"),
        (
            PAIRS,
            [(6,), (4,)],
            "wants n == m*2, got n = 6 from input 'x': f32[6], m = 4 from input 'y': f32[4]",
        ),
        (BLOCKS, [(17,)], "wants n == k*8, and no size of k fits n = 17 from input 'x': f32[17]"),
        (
            "plan f(x: f32[n], y: f32[m]) where n in 2..9, n == m { return x }",
            [(12,), (12,)],
            "dim n is 12 (from input 'x'), outside its range 2..9",
        ),
        (
            "plan f(x: f32[n], y: f32[m]) where k, n == m // k, k == m { return x, y }",
            [(1,), (0,)],
            "outside its range",
        ),
    ],
)
def test_a_call_that_does_not_fit_names_both_shapes(
    text: str, types: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        bind(graph_of(text), [f32(*shape) for shape in types])
    assert message in str(caught.value)


def test_a_plan_with_relations_runs_as_one_without() -> None:
    x, y = torch.arange(6.0), torch.arange(3.0)
    for plan in (planc.parse(PAIRS), planc.optimize(planc.parse(PAIRS))):
        assert torch.equal(plan(x, y), x.view(3, 2) * y.view(3, 1))
        assert relations(plan.graph) == ((N, M * 2),)
    with pytest.raises(InputError, match=r"wants n == m\*2"):
        planc.parse(PAIRS)(x, x)


def test_a_called_plan_s_relations_must_follow() -> None:
    text = f"{BLOCKS} plan g(a: f32[c*8], b: f32[24]) {{ return f(a), f(b) }}"
    assert [str(out.value.type) for out in graph_of(text).outputs] == ["f32[c, 8]", "f32[3, 8]"]
    for shape, told in (("c", "c and"), ("20", "20 and 16")):
        with pytest.raises(planc.errors.ElaborationError, match=f"wants n == k\\*8, got {told}"):
            planc.parse(f"{BLOCKS} plan g(a: f32[{shape}]) {{ return f(a) }}")


def test_versions_of_the_format() -> None:
    # [magic, version, ...]: the magic is a text of ten characters.
    assert encode(small())[12] == PLAIN
    data = encode(graph_of(SUM))
    assert data[12] == RELATED
    with pytest.raises(DecodeError, match="canonical"):
        decode(data[:12] + bytes([PLAIN]) + data[13:])
    plain = encode(small())
    with pytest.raises(DecodeError, match="canonical"):
        decode(plain[:12] + bytes([RELATED]) + plain[13:])


def test_version_2_bytes_never_change() -> None:
    assert plan_id(graph_of(SUM)) == _SUM_ID


_SUM_ID = "833c427604bbceca45ae0a8f661f1d73632c0e9fb55950b737101b8f1ecad67c"


def test_a_plan_without_relations_that_demands_the_same() -> None:
    graph = graph_of(
        "plan f(x: f32[n], y: f32[m], z: f32[k]) where n in 4..9, n == 2*m, k == m { return y + z }"
    )
    plain = unified(graph)
    verify(plain)
    assert plain.dims == (DimVar("m", 2, 4),)
    assert [str(port.value.type) for port in plain.inputs] == ["f32[m*2]", "f32[m]", "f32[m]"]
    assert unified(plain) is plain


def test_ranges_decide_what_a_slice_is() -> None:
    slice_ = lookup("aten.slice")
    x = GraphBuilder("g").input("x", TensorType(DType.F32, (N,)))
    for lo, hi, size in ((5, 100, 5), (1, 5, N), (1, 3, N)):
        with knowing([DimVar("n", lo, hi)]):
            assert infer(slice_, (x,), (("end", 5),))[0].shape == (size,)
    with knowing([DimVar("n", 4, 6)]), pytest.raises(planc.errors.TypeCheckError, match="give n a range"):
        infer(slice_, (x,), (("end", 5),))
    # What is known ends with the plan in question.
    with pytest.raises(planc.errors.TypeCheckError, match="give n a range"):
        infer(slice_, (x,), (("end", 5),))
    plan = planc.parse("plan f(x: f32[n]) where n in 5..100 { return slice(x, end=5) }")
    assert plan(torch.arange(9.0)).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_bounds_of_dims() -> None:
    facts = Facts.of([DimVar("n", 2, 10), DimVar("m", 0, 3), DimVar("k", 7, 21, N * 2 + 1)])
    assert facts.bounds(N * 3 - M + 1) == (1 + 6 - 3 + 3, 31)  # k in 7..21 leaves n in 3..10
    assert facts.bounds(K) == (7, 21)
    assert facts.bounds(N * M) == (0, 30)
    assert facts.bounds(N // 3) == (1, 3)
    assert facts.bounds(N // M) is None  # m may be 0
    assert facts.bounds(sym("unknown")) is None


def test_a_relation_that_no_sizes_fit_is_no_plan() -> None:
    builder = GraphBuilder("f", [DimVar("n", 1, 3), DimVar("m", 4, 9, N)])
    builder.input("x", TensorType(DType.F32, (N,)))
    with pytest.raises(
        VerifyError, match=r"dim m == n: expected sizes in their ranges, got none in m in 4\.\.9"
    ):
        verify(builder.build())


def test_they_are_shown() -> None:
    graph = graph_of(PAIRS)
    assert conditions(graph.dims) == ["n == m*2"]
    assert "where n == m*2" in svg(graph)
    assert 'label="where n == m*2"' in dot(graph)
    (change,) = diff(planc.parse(SUM), planc.parse(SUM.replace("n == m", "n in 1..9, n == m"))).changes
    assert change.before == "n in 1..2147483647, == m"
    assert change.after == "n in 1..9, == m"
    sizes = sizes_for(graph, [])
    assert (sizes.dims, sizes.assumed) == ({"n": 128, "m": 64}, ("m",))
    assert sizes_for(graph, ["n=10"]).dims == {"n": 10, "m": 5}


def test_an_epoch_batches_data_of_related_rows_together() -> None:
    text = """
    plan step(x: f32[b, 3], y: f32[c], param w: f32[3]) -> (loss, param w) where b == c {
      e = x @ w - y
      return mean(e * e), w - (t(x) @ e) / b
    }
    """
    epoch = planc.epoch(planc.parse(text).with_state({"w": torch.zeros(3)}), batch_size=4, shuffle=False)
    assert [str(port.value.type) for port in epoch.graph.arguments()] == ["f32[n, 3]", "f32[n]"]
    assert epoch(torch.ones(10, 3), torch.ones(10)).shape == (3,)


def test_a_gradient_knows_ranges_and_relations() -> None:
    text = """
    plan f(x: f32[n], y: f32[m], z: f32[k]) where n == m, k in 30..90 {
      return grad(sum(x * y) + sum(slice(z, end=30) * 2), [x, y, z])
    }
    """
    x, y, z = (torch.rand(size, requires_grad=True) for size in (4, 4, 40))
    ((x * y).sum() + (z[:30] * 2).sum()).backward()
    for found, tensor in zip(planc.parse(text)(x.detach(), y.detach(), z.detach()), (x, y, z), strict=True):
        assert torch.equal(found, tensor.grad)


def test_a_loop_s_body_sees_the_relations_of_its_plan() -> None:
    text = """
    plan f(x: f32[n, 3], y: f32[m], w: f32[3]) where n == m {
      for xb, yb in batches(x, y, size=4) {
        w = w + t(xb) @ yb / m
      }
      return w
    }
    """
    x, y = torch.rand(6, 3), torch.rand(6)
    for plan in (planc.parse(text), planc.optimize(planc.parse(text))):
        torch.testing.assert_close(plan(x, y, torch.zeros(3)), x.t() @ y / 6)


def test_captured_code_knows_its_ranges() -> None:
    plan = planc.trace(
        lambda x: x[:, :5] * 2, torch.rand(3, 9), dynamic={"x": {1: "n"}}, ranges={"n": (5, 50)}
    )
    assert str(plan.outputs[0].value.type) == "f32[3, 5]"
    assert torch.equal(plan(torch.ones(3, 5)), torch.full((3, 5), 2.0))
