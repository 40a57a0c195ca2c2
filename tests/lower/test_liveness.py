"""Where values die and which outputs must be copied, on graphs small enough to check by eye."""

from __future__ import annotations

from collections.abc import Collection

import torch

from planc.ir import Graph
from planc.lower.calls import Calls
from planc.lower.layout import Layouts, layout_of
from planc.lower.liveness import copied_outputs, last_reads, memory_ends, roots
from tests.sketch import Sketch, f32


def test_values_die_where_they_are_read_last() -> None:
    s = Sketch()
    x = s.input("x", f32(2))  # value 0
    a = s.op("aten.exp", x)  # 1
    b = s.op("aten.add", a, x)  # 2
    s.op("aten.neg", b)  # 3: nothing reads it
    c = s.op("aten.mul", a, b)  # 4
    graph = s.give(c, b)
    assert last_reads(graph, Calls().of(graph, {})) == {1: [0], 2: [3], 3: [1]}


def copied(graph: Graph, layouts: Layouts | None = None, owned: Collection[int] = ()) -> list[bool]:
    kept = {port.value.index for port in graph.inputs} - set(owned)
    return copied_outputs(graph, roots(graph, Calls().of(graph, {}), layouts or {}), kept)


def test_outputs_are_copied_where_they_are_not_memory_of_their_own() -> None:
    s = Sketch()
    x, c = s.input("x", f32(2, 3)), s.input("c", f32(3))
    made = s.op("aten.add", x, c)
    view = s.op("aten.t", made)
    other = s.op("aten.exp", x)
    turned = s.op("aten.t", s.op("aten.t", other))
    graph = s.give(made, made, view, x, turned, s.op("aten.neg", other))
    assert copied(graph) == [False, True, True, True, True, False]


def test_an_input_that_is_ours_is_returned_as_it_is_once() -> None:
    s = Sketch()
    x = s.input("x", f32(2))
    graph = s.give(x, x)
    assert copied(graph) == [True, True]
    assert copied(graph, owned=[0]) == [False, True]


def test_a_view_op_that_made_a_copy_is_no_view() -> None:
    s = Sketch()
    x = s.input("x", f32(2, 3))
    flat = s.op("aten.view", s.op("aten.t", x), size=(6,))
    graph = s.give(flat)
    values = torch.ones(2, 3).t()
    layouts: Layouts = {1: layout_of(values, values), 2: layout_of(values.reshape(6), values)}
    assert copied(graph) == [True]
    assert copied(graph, layouts) == [False]


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    s = Sketch()
    a = s.op("aten.exp", s.input("x", f32(2, 3)))  # 1
    turned = s.op("aten.t", a)  # 2
    b = s.op("aten.exp", a)  # 3
    graph = s.give(s.op("aten.add", turned, s.op("aten.t", b)))  # 4 is a view of 3
    calls = Calls().of(graph, {})
    assert memory_ends(graph, calls, roots(graph, calls, {})) == {0: 0, 1: 4, 3: 4, 5: 5}
