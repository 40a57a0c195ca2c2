"""The reference interpreter against torch, and what it says when inputs or operations are wrong."""

from __future__ import annotations

import pytest
import torch

from planc.errors import ExecutionError, InputError
from planc.ir import DimVar, Graph, Location, Node, sym
from planc.ir.dims import Dim
from planc.lower.bind import bind, bind_tensors
from planc.ops.randomness import make_key
from runtime.interpreter import interpret
from tests.sketch import F64, I64, Sketch, f32, tensor

B, N = sym("b"), sym("n")


def mlp() -> Graph:
    s = Sketch("mlp", [DimVar("b")])
    x, w, c = s.input("x", f32(B, 5)), s.input("w", f32(3, 5)), s.input("c", f32(3))
    h = s.op("aten.relu", s.op("aten.addmm", c, x, s.op("aten.t", w)))
    return s.give(h, s.op("aten.div", s.op("aten.sum", h, dim=(0,)), B))


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
def test_a_network_equals_torch_at_every_batch_size(batch: int) -> None:
    x, w, c = torch.randn(batch, 5), torch.randn(3, 5), torch.randn(3)
    h = torch.relu(torch.nn.functional.linear(x, w, c))
    got = interpret(mlp(), [x, w, c])
    torch.testing.assert_close(got, [h, h.sum(0) / batch])


def test_gradients_flow_and_equal_those_of_torch() -> None:
    x = torch.randn(7, 5)
    ours = [torch.randn(3, 5, requires_grad=True), torch.randn(3, requires_grad=True)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    interpret(mlp(), [x, *ours])[0].square().sum().backward()
    torch.relu(torch.nn.functional.linear(x, *theirs)).square().sum().backward()
    assert [p.grad for p in ours] != [None, None]
    torch.testing.assert_close([p.grad for p in ours], [p.grad for p in theirs])


def test_lists_numbers_dims_dtypes_and_several_results() -> None:
    s = Sketch("mixed", [DimVar("b")])
    x = s.input("x", f32(B, 4))
    wide = s.op("aten.cat", (x, s.op("aten.mul", x, 2)), dim=1)
    values, indices = s.many("aten.topk", wide, k=2)
    exact = s.op("aten.to", values, dtype=F64)
    ramp = s.op("aten.arange", end=B * 2, dtype=I64)
    data = torch.randn(3, 4)
    got = interpret(s.give(exact, indices, ramp, s.op("aten.pow", 2.0, x)), [data])
    top = torch.cat([data, data * 2], 1).topk(2)
    torch.testing.assert_close(got, [top.values.double(), top.indices, torch.arange(6), 2.0**data])


def test_constants_are_found_by_digest() -> None:
    s = Sketch("shift")
    x, c = s.input("x", f32(2)), s.const(torch.tensor([1.0, 2.0]))
    graph = s.give(s.op("aten.add", x, c))
    assert interpret(graph, [torch.zeros(2)], s.data)[0].tolist() == [1.0, 2.0]
    with pytest.raises(ExecutionError, match=r"'shift': the data of constant [0-9a-f]{64} is not there"):
        interpret(graph, [torch.zeros(2)])


def test_random_ops_replay_from_their_key() -> None:
    s = Sketch()
    key, x = s.input("key", tensor(I64)), s.input("x", f32(1000))
    a, b = s.many("random.split", key, count=2)
    graph = s.give(*(s.many("random.dropout", k, x, p=0.5)[0] for k in (a, a, b)))
    one, again, other = interpret(graph, [make_key(1), torch.ones(1000)])
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one, interpret(graph, [make_key(1), torch.ones(1000)])[0])
    assert not torch.equal(one, interpret(graph, [make_key(2), torch.ones(1000)])[0])


def test_an_optimizer_update_equals_torch() -> None:
    s = Sketch()
    w, g, m = s.input("w", f32(3)), s.input("g", f32(3)), s.input("m", f32(3))
    graph = s.give(*s.many("opt.sgd", (w,), (g,), (m,), (), 0.1, momentum=0.9))
    param = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.SGD([param], lr=0.1, momentum=0.9)
    weight, momentum = param.detach().clone(), torch.zeros(3)
    for _ in range(3):
        param.grad = torch.randn(3)
        weight, momentum = interpret(graph, [weight, param.grad, momentum])
        optimizer.step()
    torch.testing.assert_close(weight, param.detach(), rtol=0, atol=0)


def test_inputs_keep_their_values() -> None:
    before = [torch.randn(4, 5), torch.randn(3, 5), torch.randn(3)]
    values = [t.clone() for t in before]
    interpret(mlp(), values)
    assert all(torch.equal(a, b) for a, b in zip(before, values, strict=True))


# -- structured ops ----------------------------------------------------------------------------------------


def test_a_call_runs_a_plan_at_its_own_dims() -> None:
    body = Sketch("twice", [DimVar("k")])
    y = body.input("y", f32(sym("k")))
    s = Sketch("main", [DimVar("b")])
    x = s.input("x", f32(B, 2))
    index = s.subplan(body.give(body.op("aten.mul", y, sym("k"))))
    flat = s.op("aten.view", x, size=(B * 2,))
    data = torch.randn(3, 2)
    torch.testing.assert_close(
        interpret(s.give(s.op("call", (flat,), plan=index)), [data]), [data.flatten() * 6]
    )


def running(lead: Dim = B) -> Graph:
    """A body that sums its batches into ``total`` and gives each batch back scaled, and its sum."""
    body = Sketch("body", [DimVar("b", 0)] if lead is B else [])
    total, rows, scale = (
        body.input("total", f32(2)),
        body.input("rows", f32(lead, 2)),
        body.input("scale", f32()),
    )
    column = body.op("aten.sum", rows, dim=(0,))
    return body.give(body.op("aten.add", total, column), body.op("aten.mul", rows, scale), column)


def scanned(body: Graph, **attrs: int) -> Graph:
    s = Sketch("main", [DimVar("n", 0)])
    total, rows, scale = s.input("total", f32(2)), s.input("rows", f32(N, 2)), s.input("scale", f32())
    index = s.subplan(body)
    return s.give(*s.many("scan", (total,), (rows,), (scale,), body=index, **attrs))


@pytest.mark.parametrize(("rows", "trips"), [(1, 1), (3, 1), (4, 2), (9, 3), (10, 4), (0, 0)])
def test_a_scan_takes_every_row_once_and_the_last_batch_may_be_shorter(rows: int, trips: int) -> None:
    x, start = torch.randn(rows, 2), torch.tensor([1.0, 2.0])
    total, scaled, sums = interpret(scanned(running(), size=3), [start, x, torch.tensor(2.0)])
    torch.testing.assert_close(total, start + x.sum(0))
    torch.testing.assert_close(scaled, x * 2)
    assert sums.shape == (trips, 2)
    torch.testing.assert_close(
        sums, torch.stack([c.sum(0) for c in x.split(3)]) if rows else torch.empty(0, 2)
    )


@pytest.mark.parametrize("body", [running(), running(3)], ids=["named", "fixed"])
@pytest.mark.parametrize(("rows", "trips"), [(2, 0), (3, 1), (10, 3)])
def test_a_scan_may_drop_the_last_rows(body: Graph, rows: int, trips: int) -> None:
    x = torch.randn(rows, 2)
    graph = scanned(body, size=3, drop_last=True)
    total, scaled, sums = interpret(graph, [torch.zeros(2), x, torch.tensor(2.0)])
    kept = x[: trips * 3]
    torch.testing.assert_close(total, kept.sum(0))
    torch.testing.assert_close(scaled.reshape(-1, 2), kept * 2)
    assert sums.shape == (trips, 2)


def test_a_scan_without_data_counts_its_trips() -> None:
    body = Sketch("body")
    state = body.input("state", f32())
    after = body.op("aten.mul", state, 2)
    loop = body.give(after, after)
    s = Sketch("main")
    x = s.input("x", f32())
    graph = s.give(*s.many("scan", (x,), (), (), body=s.subplan(loop), trips=4))
    last, seen = interpret(graph, [torch.tensor(1.0)])
    assert (last.item(), seen.tolist()) == (16.0, [2.0, 4.0, 8.0, 16.0])


def test_gradients_flow_through_a_scan() -> None:
    x = torch.randn(5, 2, requires_grad=True)
    total, *_ = interpret(scanned(running(), size=2), [torch.zeros(2), x, torch.tensor(1.0)])
    total.square().sum().backward()
    torch.testing.assert_close(x.grad, (2 * x.sum(0)).expand(5, 2).detach())


# -- errors ------------------------------------------------------------------------------------------------


def failing() -> Graph:
    """A plan whose op is valid for its types and fails on values: an index beyond the table."""
    s = Sketch("look", [DimVar("b")])
    table, at = s.input("table", f32(4, 2)), s.input("at", tensor(I64, B))
    made = s.op("aten.embedding", table, at)
    located = Node("aten.embedding", (table, at), (), (made,), Location("net.py", 12, "e(x)"))
    s.nodes[-1] = located
    return s.give(made)


def test_a_failing_op_is_named_with_its_node_and_line() -> None:
    with pytest.raises(ExecutionError) as caught:
        interpret(failing(), [torch.zeros(4, 2), torch.tensor([9])])
    assert str(caught.value).startswith(
        "plan 'look': node 0 (aten.embedding) at net.py:12: IndexError: index out of range"
    )
    assert isinstance(caught.value.__cause__, IndexError)


def test_a_failure_in_a_subplan_names_the_way_to_it() -> None:
    s = Sketch("outer", [DimVar("b")])
    table, at = s.input("table", f32(4, 2)), s.input("at", tensor(I64, B))
    graph = s.give(s.op("call", (table, at), plan=s.subplan(failing())))
    with pytest.raises(
        ExecutionError, match=r"'outer': node 0 \(call\): plan 'look': node 0 \(aten.embedding\)"
    ):
        interpret(graph, [torch.zeros(4, 2), torch.tensor([9])])


# -- bind --------------------------------------------------------------------------------------------------


def ports(*dims: DimVar, **types: tuple[Dim, ...]) -> Graph:
    s = Sketch("p", dims)
    for name, shape in types.items():
        s.input(name, f32(*shape))
    return s.build()


@pytest.mark.parametrize(
    ("graph", "shapes", "sizes"),
    [
        (ports(DimVar("b"), x=(B, 3)), [(7, 3)], {"b": 7}),
        (ports(DimVar("b"), x=(B * 6, 3)), [(12, 3)], {"b": 2}),
        (ports(DimVar("b"), x=(B * 2 + 1,), y=(B,)), [(7,), (3,)], {"b": 3}),
        (ports(DimVar("b"), DimVar("n"), x=(B + N,), y=(N,)), [(7,), (3,)], {"b": 4, "n": 3}),
        (ports(DimVar("b"), x=((B + 1) // 2,), y=(B,)), [(4,), (7,)], {"b": 7}),
        (ports(DimVar("b", 0), x=(B,)), [(0,)], {"b": 0}),
        (ports(x=()), [()], {}),
    ],
)
def test_dims_are_bound_from_shapes(
    graph: Graph, shapes: list[tuple[int, ...]], sizes: dict[str, int]
) -> None:
    assert bind(graph, [f32(*shape) for shape in shapes]) == sizes


@pytest.mark.parametrize(
    ("graph", "shapes", "message"),
    [
        (ports(x=(3,)), [], "plan 'p' takes 1 inputs, got 0"),
        (ports(x=(3,)), [(3, 1)], "input 'x' wants f32[3], got f32[3, 1]: the rank is 2, not 1"),
        (ports(x=(3, 4)), [(3, 5)], "input 'x' wants f32[3, 4], got f32[3, 5]: dimension 1 is 5, not 4"),
        (
            ports(DimVar("b"), x=(B, 3), y=(B,)),
            [(2, 3), (4,)],
            "input 'y' wants f32[b], got f32[4]: dimension 0 is 4, not b = 2 (b = 2 from input 'x')",
        ),
        (
            ports(DimVar("b"), x=(B,), y=(B * 2,)),
            [(2,), (5,)],
            "got f32[5]: dimension 0 is 5, not b*2 = 4 (b = 2 from input 'x')",
        ),
        (ports(DimVar("b"), x=(B * 6,)), [(7,)], "got f32[7]: no size of b fits dimension 0"),
        (ports(DimVar("b", 2, 8), x=(B,)), [(9,)], "dim b is 9 (from input 'x'), outside its range 2..8"),
        (ports(DimVar("b", 2, 8), x=(B,)), [(1,)], "dim b is 1 (from input 'x'), outside its range 2..8"),
        (ports(DimVar("b"), x=(B + 5,)), [(3,)], "dim b is -2 (from input 'x'), outside its range"),
        (ports(DimVar("b"), DimVar("n"), x=(B,)), [(3,)], "no input determines dim n"),
        (
            ports(DimVar("b"), x=(B,), y=(sym("b") // (B - 2),)),
            [(2,), (1,)],
            "dimension 0 is (b//(b - 2)), which divides by zero",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named_with_both_types(
    graph: Graph, shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        bind(graph, [f32(*shape) for shape in shapes])
    assert message in str(caught.value)


def test_dtypes_and_non_tensors_are_refused_by_path() -> None:
    s = Sketch("p")
    s.input("w", f32(2), path="fc.weight")
    graph = s.build()
    with pytest.raises(
        InputError, match=r"'w' \(fc.weight\) wants f32\[2\], got f64\[2\]: the dtype is f64, not"
    ):
        bind_tensors(graph, [torch.zeros(2, dtype=torch.float64)])
    with pytest.raises(
        InputError, match=r"wants f32\[2\], got dtype torch.complex64, which plans do not have"
    ):
        bind_tensors(graph, [torch.zeros(2, dtype=torch.complex64)])
    with pytest.raises(InputError, match=r"wants f32\[2\], got list"):
        bind_tensors(graph, [[1.0, 2.0]])  # type: ignore[list-item]  # callers may be untyped
