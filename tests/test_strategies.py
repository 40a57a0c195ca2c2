"""What generated plans promise to the tests that use them: valid, varied, and they run as their types say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from planc.ir import DimExpr, DType, Graph, Node, Role
from planc.ir.structure import Fixed, Mapping
from planc.verifier import verify
from runtime.interpreter import interpret
from tests.strategies import CONSTANTS, bindings_for, graphs, inputs_for


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_plans_run_and_results_are_of_their_types(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    verify(graph)
    bindings = data.draw(bindings_for(graph))
    results = interpret(graph, inputs_for(graph, bindings), CONSTANTS)
    for port, result in zip(graph.outputs, results, strict=True):
        assert tuple(result.shape) == port.value.type.at(bindings)
        assert result.dtype is port.value.type.dtype.torch


def _node(want: Callable[[Node], bool]) -> Callable[[Graph], bool]:
    return lambda graph: any(want(node) for inner in graph.walk() for node in inner.nodes)


def _attr(want: Callable[[object], bool]) -> Callable[[Graph], bool]:
    return _node(lambda node: any(want(value) for _, value in node.attrs))


def _operand(want: Callable[[object], bool]) -> Callable[[Graph], bool]:
    return _node(lambda node: any(want(value) for value in node.operands))


KINDS: dict[str, Callable[[Graph], bool]] = {
    "call": _node(lambda node: node.op == "call" and bool(node.results)),
    "scan over data": _node(lambda node: node.op == "scan" and bool(node.operands[1])),
    "scan without data": _node(
        lambda node: node.op == "scan" and not node.operands[1] and bool(node.results)
    ),
    "scan that drops the last": _node(lambda node: node.op == "scan" and bool(node.attr("drop_last"))),
    "optimizer": _node(lambda node: node.op.startswith("opt.")),
    "random op": _node(lambda node: node.op == "random.dropout"),
    "several results": _node(lambda node: node.op == "aten.max_dim"),
    "number operand": _operand(lambda value: type(value) is float),
    "bool operand": _operand(lambda value: type(value) is bool),
    "dim operand": _operand(lambda value: isinstance(value, DimExpr)),
    "missing operand": _operand(lambda value: value is None),
    "list operand": _operand(lambda value: isinstance(value, tuple) and len(value) > 1),
    "missing in a list operand": _operand(lambda value: isinstance(value, tuple) and None in value),
    "int attribute": _attr(lambda value: type(value) is int),
    "float attribute": _attr(lambda value: type(value) is float),
    "bool attribute": _attr(lambda value: type(value) is bool),
    "text attribute": _attr(lambda value: isinstance(value, str)),
    "dtype attribute": _attr(lambda value: isinstance(value, DType)),
    "list attribute": _attr(lambda value: isinstance(value, tuple)),
    "dim in a list attribute": _attr(
        lambda value: isinstance(value, tuple) and any(isinstance(item, DimExpr) for item in value)
    ),
    "floor division": lambda graph: any(
        "//" in str(result.type) for n in graph.nodes for result in n.results
    ),
    "constant": lambda graph: bool(graph.constants),
    "state": lambda graph: {port.role for port in graph.inputs} >= {Role.PARAMETER, Role.BUFFER},
    "update": lambda graph: any(
        update.value.index >= len(graph.inputs) and not graph.constants for update in graph.updates()
    ),
    "structure": lambda graph: isinstance(graph.takes, Mapping) and len(graph.takes.items) > 1,
    "fixed value": lambda graph: (
        graph.gives is not None and any(isinstance(item, Fixed) for item in getattr(graph.gives, "items", ()))
    ),
    "no output": lambda graph: not graph.outputs,
}


def test_every_kind_of_plan_is_made() -> None:
    missing = set(KINDS)

    def is_enough(graph: Graph) -> bool:
        missing.difference_update([kind for kind in missing if KINDS[kind](graph)])
        return not missing

    search = settings(
        max_examples=4000, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck)
    )
    with contextlib.suppress(NoSuchExample):
        find(graphs(), is_enough, settings=search)
    assert not missing
