"""What a plan computes, its gradients and its interface are the same after every pass, on generated plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planc.cost import cost
from planc.ir import Graph, Node, Role, Value, type_of
from planc.ir.builder import GraphBuilder, map_operand
from planc.ir.constants import digest
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.ops import Trait, lookup
from planc.passes import OPTIONAL, PASSES, CommonSubexpressions, DeadCode, PassResult, run_pipeline
from planc.verifier import verify
from runtime.interpreter import interpret
from tests.strategies import CONSTANTS, bindings_for, graphs, inputs_for


def whole(program: Program) -> PassResult:
    done = run_pipeline(program)
    return PassResult(done.program, done.modified)


STEPS: dict[str, Callable[[Program], PassResult]] = {
    **{step.name: step.apply for step in (*PASSES, *OPTIONAL)},
    "pipeline": whole,
}
EXACT = ("simplify", "hoist", "fuse", "group", "fuse_elementwise")
"""Passes that change no bit."""


def run(program: Program, values: list[torch.Tensor]) -> list[torch.Tensor]:
    return interpret(program.graph, values, program.constants)


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_pass_changes_nothing_that_can_be_seen(name: str, data: st.DataObject) -> None:
    graph = data.draw(graphs())
    bindings = data.draw(bindings_for(graph))
    before = Program(graph, CONSTANTS)
    done = STEPS[name](before)
    after = done.program.graph
    verify(after)
    assert interface(after) == interface(graph)
    assert done.modified or done.program is before
    assert {c.digest for g in after.walk() for c in g.constants} <= done.program.constants.keys()
    values = inputs_for(graph, bindings)
    expected = run(before, values)
    # Reductions may add up in another order where a view or copy is gone, so the last bits are free.
    bits = {"rtol": 0.0, "atol": 0.0} if name in EXACT else {}
    torch.testing.assert_close(run(done.program, values), expected, equal_nan=True, **bits)


def interface(graph: Graph) -> object:
    outputs = [(port.value.type, port.name, port.role, port.path) for port in graph.outputs]
    return graph.name, graph.dims, graph.inputs, outputs, graph.takes, graph.gives


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_the_pipeline_keeps_gradients(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    # A plan that updates parameters takes its own gradients: nobody takes them through it.
    assume(not any(port.role is Role.PARAMETER for port in graph.updates()))
    assume(not any(lookup(node.op).has(Trait.OPTIMIZER) for sub in graph.walk() for node in sub.nodes))
    values = inputs_for(graph, data.draw(bindings_for(graph)))
    before = Program(graph, CONSTANTS)
    expected = gradients(before, values)
    got = gradients(run_pipeline(before).program, values)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-3, atol=1e-4)


def gradients(program: Program, values: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [v.clone().requires_grad_() if v.is_floating_point() else v for v in values]
    outputs = [t for t in run(program, leaves) if t.requires_grad]
    wanted = [v for v in leaves if v.requires_grad]
    if not outputs or not wanted:
        return []
    total = torch.stack([t.double().sum() for t in outputs]).sum()
    return list(torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_results_have_the_inferred_types_and_costs_count_their_bytes(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    bindings = data.draw(bindings_for(graph))
    values = inputs_for(graph, bindings)
    outputs = interpret(graph, values, CONSTANTS)
    wanted = [(port.value.type.dtype, port.value.type.at(bindings)) for port in graph.outputs]
    assert [(t.dtype, t.shape) for t in map(type_of, outputs) if t] == wanted
    got = cost(graph, bindings)
    assert got.argument_bytes + got.state_bytes == sum(t.nbytes for t in values)
    assert got.result_bytes + got.update_bytes == sum(t.nbytes for t in outputs)
    assert got.peak_bytes >= got.argument_bytes + got.state_bytes + got.constant_bytes
    assert got.flops == sum(row.flops for row in got.rows if row.level == 0) >= 0
    assert len(got.rows) >= len(graph.nodes)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_repetition_is_undone(data: st.DataObject) -> None:
    """Every node written twice, its users reading either one: merging leaves no more than before."""
    graph = data.draw(graphs())
    twice = repeated(graph, data.draw(st.randoms(use_true_random=False)))
    assert len(twice.nodes) == 2 * len(graph.nodes)
    before = Program(twice, CONSTANTS)
    once = DeadCode().apply(CommonSubexpressions().apply(before).program).program
    assert once.graph.count_nodes() <= graph.count_nodes()
    values = inputs_for(graph, data.draw(bindings_for(graph)))
    torch.testing.assert_close(run(once, values), run(before, values), equal_nan=True)


def repeated(graph: Graph, random: Random) -> Graph:
    rewriter = Rewriter(graph)
    pairs: list[tuple[Node, tuple[Value, ...], tuple[Value, ...]]] = []
    for node in graph.nodes:
        for old, first, second in pairs:
            rewriter.replace(old, random.choice((first, second)))
        pairs.append((node, rewriter.copy(node), rewriter.copy(node)))
    return rewriter.finish()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_folding_computes_what_the_interpreter_does(data: st.DataObject) -> None:
    """Arguments become constants, so that much can be folded."""
    graph = data.draw(graphs())
    assume(not graph.dims)
    values = inputs_for(graph, {})
    fixed = [port for port in graph.arguments() if data.draw(st.booleans())]
    before = with_constants(graph, {port.name: values[port.value.index] for port in fixed})
    left = [value for port, value in zip(graph.inputs, values, strict=True) if port not in fixed]
    after = run_pipeline(before).program
    torch.testing.assert_close(run(after, left), run(before, left), equal_nan=True)


def with_constants(graph: Graph, data: dict[str, torch.Tensor]) -> Program:
    """The program in which the named inputs are constants."""
    builder = GraphBuilder(graph.name)
    new: dict[int, Value] = {}
    for port in graph.inputs:
        if port.name not in data:
            new[port.value.index] = builder.input(port.name, port.value.type, port.role, port.path)
    constants = [(c.value, c.digest) for c in graph.constants]
    constants += [(p.value, digest(data[p.name])) for p in graph.inputs if p.name in data]
    for value, name in constants:
        new[value.index] = builder.constant(value.type, name)
    builder.subplans = list(graph.subplans)
    for node in graph.nodes:
        operands = tuple(map_operand(operand, lambda value: new[value.index]) for operand in node.operands)
        results = tuple(Value(builder.next_index + i, v.type) for i, v in enumerate(node.results))
        builder.add(replace(node, operands=operands, results=results))
        new.update(zip((v.index for v in node.results), results, strict=True))
    for port in graph.outputs:
        builder.output(new[port.value.index], port.name, port.role, port.path)
    return Program(builder.build(), CONSTANTS | {digest(value): value for value in data.values()})
