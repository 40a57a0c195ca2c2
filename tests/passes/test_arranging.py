"""Reshapes and permutations in a row: whatever rules make of them, the elements stay where they were."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planc.ir import Dim, DimVar, Graph, Value, sym
from planc.ir.program import Program
from planc.passes import PASSES, named, run_pipeline
from planc.passes.arranging import split
from planc.verifier import verify
from runtime.interpreter import interpret
from tests.sketch import Sketch, f32

B = sym("b")


def test_how_dims_are_split() -> None:
    assert split((B * 2, 8), (B, 2, 8)) == [[B, 2], [8]]
    assert split((5, 1, 16), (5, 16)) == [[5], [], [16]]
    assert split((5, 16), (5, 1, 16, 1)) == [[5], [1, 16, 1]]
    assert split((1, 1), (1,)) == [[1], []]
    assert split((), (1, 1)) is None
    assert split((), ()) == []
    assert split((0, 3), (0, 3)) == [[0], [3]]
    assert split((4, 6), (2, 12)) is None
    assert split((4, 6), (2, 2, 6)) == [[2, 2], [6]]
    assert split((B,), (2, B)) is None
    assert split((6,), (2, 3, 2)) is None


@st.composite
def chains(draw: st.DrawFn) -> Graph:
    """Up to six reshapes and permutations of one tensor in a row, now and then read in between."""
    s = Sketch("main", [DimVar("b", 1, 9)])
    value = s.input("x", f32(*draw(st.permutations([B, 2, 3, 4])), 1))
    outputs: list[Value] = []
    for _ in range(draw(st.integers(2, 6))):
        shape = list(value.type.shape)
        kind = draw(st.sampled_from(["permute", "permute", "join", "split", "unit", "drop"]))
        if kind == "permute":
            value = s.op("aten.permute", value, dims=tuple(draw(st.permutations(range(len(shape))))))
            continue
        size: list[Dim] = shape
        at = draw(st.integers(0, len(shape) - 1))
        if kind == "join" and at + 1 < len(shape):
            size = [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
        elif kind == "split" and shape[at] % 2 == 0:
            size = [*shape[:at], shape[at] // 2, 2, *shape[at + 1 :]]
        elif kind == "unit":
            size = [*shape[:at], 1, *shape[at:]]
        elif kind == "drop":
            size = [dim for dim in shape if dim != 1]
        value = s.op("aten.view", value, size=tuple(size))
        if draw(st.integers(0, 4)) == 0:
            outputs.append(value)
    return s.give(*outputs, value)


@settings(max_examples=150, deadline=None)
@given(graph=chains())
def test_elements_stay_where_they_are(graph: Graph) -> None:
    program = Program(graph)
    values = [torch.arange(3 * 24.0).reshape(port.value.type.at({"b": 3})) for port in graph.inputs]
    want = interpret(graph, values, {})
    for steps in (named(["canonicalise"]), PASSES):
        done = run_pipeline(program, steps).program.graph
        verify(done)
        for got, expected in zip(interpret(done, values, {}), want, strict=True):
            assert torch.equal(got, expected)
    assert len(done.nodes) <= len(graph.nodes)
