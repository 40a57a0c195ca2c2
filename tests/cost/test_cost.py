"""Costs against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch

from planc.cost import Cost, cost
from planc.errors import InputError
from planc.ir import DimVar, Graph, Role, sym
from planc.ir.dims import Dim
from tests.sketch import Sketch, f32

B, N = sym("b"), sym("n")


def layer() -> Graph:
    """relu(x @ t(w)) for x: f32[b, 8], w: f32[4, 8], which is state that the plan replaces."""
    s = Sketch("layer", [DimVar("b", 1, 100)])
    x, w = s.input("x", f32(B, 8)), s.input("w", f32(4, 8), Role.PARAMETER)
    h = s.op("aten.relu", s.op("aten.mm", x, s.op("aten.t", w)))
    s.output(h, "h")
    s.output(s.op("aten.mul", w, 2), "w", Role.PARAMETER)
    return s.build()


def test_a_layer() -> None:
    got = cost(layer(), {"b": 10})
    # mm 2*10*8*4, relu 10*4, mul 4*8; t is a view.
    assert [row.flops for row in got.rows] == [0, 640, 40, 32]
    assert got.flops == 712
    # mm reads 320 + 128 and writes 160, relu 160 + 160, mul 128 + 128.
    assert [row.bytes_moved for row in got.rows] == [0, 608, 320, 256]
    assert got.bytes_moved == 1184
    assert (got.argument_bytes, got.state_bytes, got.result_bytes, got.update_bytes) == (320, 128, 160, 128)
    # Inputs 448. While relu runs: mm's result and relu's (320). While mul runs: relu's and mul's (288).
    assert got.peak_bytes == 448 + 320
    assert (got.nodes, got.constant_bytes) == ((4,), 0)
    assert [(row.level, row.plan, row.index, row.op, row.times) for row in got.rows[1:3]] == [
        (0, "layer", 1, "aten.mm", 1),
        (0, "layer", 2, "aten.relu", 1),
    ]


def chain(*, view: bool) -> Cost:
    s = Sketch("chain")
    x = s.input("x", f32(256))
    a = s.op("aten.neg", x)
    kept = s.op("aten.view", a, size=(16, 16)) if view else s.op("aten.exp", a)
    turned = s.op("aten.t", kept) if view else kept
    b = s.op("aten.neg", s.op("aten.neg", x))
    return cost(s.give(b, kept, turned) if view else s.give(b))


def test_a_view_costs_nothing_and_keeps_its_base_alive() -> None:
    # x, a (held by its two views), and the two results of neg: 4 * 1024.
    assert chain(view=True).peak_bytes == 4096
    # exp is used by nobody, so only two tensors beside x are ever alive.
    assert chain(view=False).peak_bytes == 3072
    assert chain(view=True).rows[1].bytes_moved == 0


def test_a_constant_counts_once_wherever_it_is_used() -> None:
    data = torch.zeros(10)
    body = Sketch("body")
    y = body.input("y", f32(10))
    inner = body.give(body.op("aten.add", y, body.const(data)))
    s = Sketch("main")
    x, c = s.input("x", f32(10)), s.const(data)
    got = cost(s.give(s.op("aten.add", s.op("call", (x,), plan=s.subplan(inner)), c)))
    assert got.constant_bytes == 40
    # x and the constant, the call's result and the sum.
    assert got.peak_bytes == 160
    assert got.nodes == (2, 1)


def scanned(*, lead: Dim = B, **attrs: int) -> Graph:
    """total += sum(rows * rows) over batches; gives back total and the products."""
    body = Sketch("body", [DimVar("b")] if lead is B else [])
    total, rows = body.input("total", f32(2)), body.input("rows", f32(lead, 2))
    squares = body.op("aten.mul", rows, rows)
    loop = body.give(body.op("aten.add", total, body.op("aten.sum", squares, dim=(0,))), squares)
    s = Sketch("main", [DimVar("n")])
    total, rows = s.input("total", f32(2)), s.input("rows", f32(N, 2))
    return s.give(*s.many("scan", (total,), (rows,), (), body=s.subplan(loop), **attrs))


@pytest.mark.parametrize(
    ("n", "trips", "rows"), [(10, 4, 10), (9, 3, 9), (2, 1, 2)], ids=["remainder", "exact", "one short"]
)
def test_a_scan_counts_each_row_once(n: int, trips: int, rows: int) -> None:
    got = cost(scanned(size=3), {"n": n})
    # A trip of k rows: mul 2k, sum 2k, add 2.
    assert got.flops == 4 * rows + 2 * trips
    # mul 3 * 8k (x twice), sum 8k + 8, add 3 * 8.
    assert got.bytes_moved == 32 * rows + 32 * trips
    scan, mul, total, add = got.rows
    assert (scan.flops, scan.bytes_moved, scan.times) == (got.flops, got.bytes_moved, 1)
    assert [(row.level, row.times) for row in (mul, total, add)] == [(1, trips)] * 3
    assert mul.flops == 2 * rows


def test_a_scan_that_drops_the_last_rows_does_not_count_them() -> None:
    assert cost(scanned(size=3, drop_last=True), {"n": 11}).flops == cost(scanned(size=3), {"n": 9}).flops
    assert cost(scanned(lead=3, size=3, drop_last=True), {"n": 11}).flops == 4 * 9 + 2 * 3
    assert cost(scanned(size=3, drop_last=True), {"n": 2}).flops == 0


def test_a_scan_s_peak_is_one_trip_on_top_of_what_it_collects() -> None:
    # Inputs 8 + 80; collected 80; the carry of the trip before 8;
    # a trip: squares 24, their sum 8, the new carry 8.
    assert cost(scanned(size=3), {"n": 10}).peak_bytes == 88 + 80 + 8 + 40
    # One trip carries nothing over from a trip before.
    assert cost(scanned(size=100), {"n": 10}).peak_bytes == 88 + 80 + 80 + 16


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({}, "plan 'layer': give a size for dim b"),
        ({"b": 2, "c": 3}, "plan 'layer' has no dim c; its dims: b"),
        ({"b": 101}, "dim b is 101, outside its range 1..100"),
    ],
)
def test_sizes_are_checked(dims: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        cost(layer(), dims)
    assert message in str(caught.value)
