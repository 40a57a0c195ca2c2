"""The verifier: one broken plan a rule, and the words that say where, what was expected, and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from typing import Any

import pytest

from planc.errors import LimitError, VerifyError
from planc.ir import (
    DimExpr,
    DimVar,
    DType,
    Graph,
    Node,
    Output,
    Role,
    TensorType,
    Value,
    sym,
)
from planc.ir.builder import GraphBuilder
from planc.ir.dims import MAX_PRODUCT_TERMS, FloorDiv
from planc.ir.graph import Location
from planc.ir.structure import Fixed, Leaf, Mapping, Sequence
from planc.limits import Limits
from planc.verifier import GRAPH_RULES, NODE_RULES, verify
from tests.codec.samples import add, large, scaled, small

F32 = DType.F32
b = sym("b")
Change = Callable[[Graph], Graph]
MODULE = import_module("planc.verifier")  # the attribute of this name of `planc` is the function


def test_the_samples_are_valid() -> None:
    for graph in (small(), scaled(), large(10)):
        verify(graph)


def at(items: tuple[Any, ...], index: int, **changes: Any) -> tuple[Any, ...]:
    """``items`` with fields of one of them changed."""
    index %= len(items)
    return (*items[:index], replace(items[index], **changes), *items[index + 1 :])


def nodes(index: int, **changes: Any) -> Change:
    return lambda graph: replace(graph, nodes=at(graph.nodes, index, **changes))


def inputs(index: int, **changes: Any) -> Change:
    return lambda graph: replace(graph, inputs=at(graph.inputs, index, **changes))


def outputs(index: int, **changes: Any) -> Change:
    return lambda graph: replace(graph, outputs=at(graph.outputs, index, **changes))


def constant(**changes: Any) -> Change:
    return lambda graph: replace(graph, constants=at(graph.constants, 0, **changes))


def whole(**changes: Any) -> Change:
    return lambda graph: replace(graph, **changes)


def dims(*dims: DimVar) -> Change:
    return whole(dims=dims)


def typed(index: int, dtype: DType, *shape: Any) -> Value:
    return Value(index, TensorType(dtype, shape))


def output(value: Value, role: Role, path: str) -> Change:
    return lambda graph: replace(graph, outputs=(*graph.outputs, Output(value, "extra", role, path)))


def subplan(change: Change) -> Change:
    return lambda graph: replace(graph, subplans=(change(graph.subplans[0]),))


def attrs(**values: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(values.items())


UNSORTED = DimExpr((((), 1), (("b",), 1)))

# rule: (where, what), what was expected, what came. Each part must be in the message.
BROKEN: dict[str, tuple[Change, str, str, str]] = {
    "numbering of inputs": (inputs(0, value=typed(1, F32, b, 4)), "plan 'step'", "expected 0", "got 1"),
    "numbering of results": (
        nodes(1, results=(typed(9, F32, b, 3),)),
        "plan 'step'",
        "expected 5",
        "got 9",
    ),
    "dim defined by one that is not there": (
        dims(DimVar("b", 1, 64, sym("c") * 2)),
        "plan 'step'",
        "dim b == c*2",
        "got c",
    ),
    "dim defined by one that is defined": (
        dims(DimVar("b", 1, 64), DimVar("c", equals=b), DimVar("d", equals=sym("c") + 1)),
        "dim d == c + 1",
        "dims that nothing defines",
        "got c",
    ),
    "dim defined by itself": (
        dims(DimVar("b", 1, 64, b * 2)),
        "dim b == b*2",
        "dims that nothing defines",
        "got b",
    ),
    "dim that cannot be what defines it": (
        dims(DimVar("b", 1, 64), DimVar("c", 70, 80, b)),
        "dim c == b",
        "sizes in their ranges",
        "got none in c in 70..80, b in 1..64",
    ),
    "attribute with a dim that others define": (
        lambda graph: nodes(4, attrs=attrs(size=(sym("c"),)))(
            replace(graph, dims=(*graph.dims, DimVar("c", equals=b * 3)))
        ),
        "node 4",
        "expected b*3, which c equals",
        "got c",
    ),
    "name of the plan": (whole(name="a b"), "plan 'a b'", "an identifier", "got 'a b'"),
    "name of an input": (inputs(0, name="1x"), "plan 'step'", "an identifier", "got '1x'"),
    "name that looks like another": (inputs(0, name="х"), "plan 'step'", "ASCII letters", "got 'х'"),
    "name of an output": (outputs(0, name=""), "plan 'step'", "an identifier", "got ''"),
    "name of a dim": (dims(DimVar("%b")), "plan 'step'", "an identifier", "got '%b'"),
    "two inputs of a name": (
        inputs(1, name="x"),
        "plan 'step'",
        "each input name once",
        "'x' at positions 0 and 1",
    ),
    "two outputs of a name": (outputs(1, name="flat"), "plan 'step'", "each output name once", "'flat'"),
    "two inputs of a path": (
        inputs(2, role=Role.ARGUMENT, path="x"),
        "plan 'step'",
        "each input path of role arg once",
        "'x' at positions 0 and 1",
    ),
    "two kinds of state of a path": (
        inputs(2, path="fc.weight"),
        "plan 'step'",
        "each input path of state once",
        "'fc.weight'",
    ),
    "two updates of one state": (
        output(typed(1, F32, 4, 3), Role.PARAMETER, "fc.weight"),
        "plan 'step'",
        "each output path of role param once",
        "'fc.weight'",
    ),
    "two dims of a name": (dims(DimVar("b"), DimVar("b")), "plan 'step'", "each dim once", "'b'"),
    "range upside down": (dims(DimVar("b", 5, 4)), "dim b", "0 <= lo <= hi", "got 5..4"),
    "negative range": (dims(DimVar("b", -1, 4)), "dim b", "0 <= lo <= hi", "got -1..4"),
    "dim that is not declared": (dims(), "value 0 of type f32[b, 4]", "declared dims (none)", "got b"),
    "dim of another plan": (
        subplan(whole(dims=(DimVar("b"),))),
        "plan 'step' > plan 'scaled': value 0 of type f32[m, 3]",
        "declared dims (b)",
        "got m",
    ),
    "negative dim": (
        inputs(0, value=typed(0, F32, b, -4)),
        "value 0 of type f32[b, -4]",
        "0 or more",
        "got -4",
    ),
    "bool as a dim": (inputs(0, value=typed(0, F32, b, True)), "value 0", "0 or more", "got True"),
    "dim not in canonical form": (
        inputs(0, value=typed(0, F32, UNSORTED, 4)),
        "value 0",
        "canonical form b + 1",
        "got (((), 1)",
    ),
    "dim divided by zero": (
        inputs(0, value=typed(0, F32, DimExpr((((FloorDiv(b, 0),), 1),)), 4)),
        "value 0",
        "divided by zero",
        "",
    ),
    "dim that nothing determines": (
        dims(DimVar("b"), DimVar("c")),
        "dim c",
        "inputs that determine it",
        "got (x: f32[b, 4]",
    ),
    "dim within a division": (
        inputs(0, value=typed(0, F32, b // 2, 4)),
        "dim b",
        "inputs that determine it",
        "got (x: f32[(b//2), 4]",
    ),
    "dim that is squared": (inputs(0, value=typed(0, F32, b * b, 4)), "dim b", "determine it", "f32[b*b, 4]"),
    "digest": (constant(digest="ABC"), "constant 3", "64 hex digits", "got 'ABC'"),
    "constant of named dims": (
        constant(value=typed(3, F32, b)),
        "constant 3",
        "without named dims",
        "got f32[b]",
    ),
    "random key input": (
        inputs(2, value=typed(2, DType.I32)),
        "random key 'rng'",
        "expected i64[]",
        "got i32[]",
    ),
    "output that does not exist": (
        outputs(0, value=typed(10, F32, b)),
        "output 'flat': v10",
        "(there are 10)",
        "v10",
    ),
    "output of another type": (
        outputs(0, value=typed(9, F32, b)),
        "output 'flat': v9",
        "expected its type f32[b*3]",
        "got f32[b]",
    ),
    "update of no state": (
        outputs(1, path="fc.bias"),
        "output 'w' updates the param 'fc.bias'",
        "expected an input of this role and path",
        "got inputs param 'fc.weight', key 'rng'",
    ),
    "update in another role": (
        outputs(1, role=Role.BUFFER),
        "updates the buffer 'fc.weight'",
        "expected",
        "param",
    ),
    "update of another type": (
        outputs(1, value=typed(9, F32, b * 3)),
        "output 'w' updates the param 'fc.weight'",
        "expected its type f32[4, 3]",
        "got f32[b*3]",
    ),
    "structure of arguments": (
        whole(takes=Sequence("tuple", (Leaf(), Leaf()))),
        "structure of the arguments",
        "expected 1 tensors",
        "got 2",
    ),
    "structure of results": (
        whole(gives=Fixed(None)),
        "structure of the results",
        "expected 1 tensors",
        "got 0",
    ),
    "kind of a structure": (
        whole(takes=Sequence("set", (Leaf(),))),
        "structure of the arguments",
        "a tuple or a list",
        "got 'set'",
    ),
    "keys of a structure": (
        whole(takes=Mapping(("a", "b"), (Leaf(),))),
        "structure of the arguments",
        "each of 2 keys",
        "got 1",
    ),
    "a key twice": (
        whole(gives=Sequence("list", (Mapping(("a", "a"), (Leaf(), Fixed(1))),))),
        "structure of the results",
        "each key once",
        "'a' at positions 0 and 1",
    ),
    "nan in a structure": (
        whole(takes=Fixed(float("nan"))),
        "structure of the arguments",
        "equals itself",
        "got nan",
    ),
    "unknown op": (
        nodes(0, op="aten.empty"),
        "node 0 (v4 = aten.empty)",
        "of the op table",
        "got 'aten.empty'",
    ),
    "operand before its definition": (
        nodes(0, operands=(typed(5, F32, b, 3), typed(1, F32, 4, 3))),
        "node 0 (v4 = aten.mm): operand v5",
        "(there are 4)",
        "got v5",
    ),
    "operand of another type": (
        nodes(1, operands=(typed(4, F32, b, 7), typed(3, F32, 3))),
        "node 1 (v5 = aten.add): operand v4",
        "expected its type f32[b, 3]",
        "got f32[b, 7]",
    ),
    "operand in a list": (
        nodes(3, operands=((typed(-1, F32, b, 3),),)),
        "node 3 (v8 = call): operand v-1",
        "(there are 8)",
        "got v-1",
    ),
    "nan as an operand": (
        lambda g: nodes(1, operands=(g.nodes[1].operands[0], float("nan")))(g),
        "node 1 (v5 = aten.add): operand 1",
        "equals itself",
        "got nan",
    ),
    "nan as an attribute": (
        nodes(2, attrs=attrs(p=float("nan"))),
        "node 2 (v6 = random.dropout): attribute 'p'",
        "equals itself",
        "got nan",
    ),
    "undeclared dim as an attribute": (
        nodes(4, attrs=attrs(size=(sym("z") * 3,))),
        "node 4 (v9 = aten.view): attribute 'size'",
        "declared dims (b)",
        "got z",
    ),
    "unknown attribute": (
        nodes(0, attrs=attrs(speed=1)),
        "node 0 (v4 = aten.mm)",
        "aten.mm(self: Tensor, mat2: Tensor)",
        "no attribute 'speed'",
    ),
    "missing attribute": (
        nodes(2, attrs=()),
        "node 2",
        "needs the attribute 'p'",
        "random.dropout(key: Tensor",
    ),
    "kind of an attribute": (nodes(2, attrs=attrs(p="half")), "node 2", "wants Float", "got 'half'"),
    "default that is stored": (
        nodes(1, attrs=attrs(alpha=1)),
        "node 1 (v5 = aten.add)",
        "in order []",
        "got ['alpha']",
    ),
    "attribute that is stored twice": (
        nodes(1, attrs=(("alpha", 2), ("alpha", 2))),
        "node 1",
        "in order ['alpha']",
        "got ['alpha', 'alpha']",
    ),
    "attribute not in its one form": (nodes(2, attrs=attrs(p=0)), "attribute 'p'", "expected 0.0", "got 0"),
    "list attribute as a list": (
        nodes(4, attrs=attrs(size=[b * 3])),
        "node 4",
        "expected (",
        "got [",
    ),
    "key of a random op": (
        lambda g: nodes(2, operands=(g.inputs[0].value, g.nodes[2].operands[1]))(g),
        "node 2 (v6 = random.dropout): operand 'key'",
        "expected a random key of type i64[]",
        "got f32[b, 4]",
    ),
    "results of another type": (
        lambda g: nodes(4, results=(typed(9, F32, b),))(replace(g, outputs=(), gives=None)),
        "node 4 (v9 = aten.view)",
        "expected results of type (f32[b*3])",
        "got (f32[b])",
    ),
    "count of results": (
        lambda g: nodes(4, results=())(replace(g, outputs=(), gives=None)),
        "node 4 (aten.view)",
        "expected results of type (",
        "got ()",
    ),
    "count of operands": (
        lambda g: nodes(0, operands=g.nodes[0].operands[:1])(g),
        "node 0 (v4 = aten.mm)",
        "takes 2 operands",
        "got 1",
    ),
    "kind of an operand": (
        lambda g: nodes(0, operands=(g.nodes[0].operands[0], 2.0))(g),
        "node 0 (v4 = aten.mm)",
        "wants Tensor",
        "got 2.0",
    ),
    "operands that do not fit": (
        lambda g: nodes(0, operands=(g.inputs[1].value, g.inputs[1].value))(g),
        "node 0 (v4 = aten.mm)",
        "must be equal",
        "got 3 and 4",
    ),
    "index of a subplan": (
        nodes(3, attrs=attrs(plan=1)),
        "node 3 (v8 = call)",
        "there is no subplan 1",
        "the plan has 1",
    ),
    "node of a subplan": (
        subplan(nodes(0, op="aten.nothing")),
        "plan 'step' > plan 'scaled', node 0 (v1 = aten.nothing)",
        "of the op table",
        "got 'aten.nothing'",
    ),
    "node that knows its source": (
        lambda g: nodes(0, loc=Location("model.py", 12, "x @ w"), op="aten.nothing")(g),
        "node 0 (v4 = aten.nothing) from model.py:12",
        "of the op table",
        "got 'aten.nothing'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plan_is_told_with_place_expected_and_actual(name: str) -> None:
    change, *parts = BROKEN[name]
    with pytest.raises(VerifyError) as caught:
        verify(change(small()))
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.where.startswith("plan ")


def test_every_rule_has_a_broken_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one rule, some plan of the table above passes or fails with other words."""
    for table in ("GRAPH_RULES", "NODE_RULES"):
        rules = {"GRAPH_RULES": GRAPH_RULES, "NODE_RULES": NODE_RULES}[table]
        for rule in rules:
            with monkeypatch.context() as patch:
                patch.setattr(MODULE, table, tuple(r for r in rules if r is not rule))
                assert any(not _is_told(name) for name in BROKEN), (
                    f"no plan of the table breaks {rule.__name__}"
                )


def _is_told(name: str) -> bool:
    change, *parts = BROKEN[name]
    try:
        verify(change(small()))
    except Exception as error:
        return all(part in str(error) for part in parts)
    return False


def test_dims_may_be_determined_one_after_another() -> None:
    builder = GraphBuilder("chain", [DimVar("a"), DimVar("c"), DimVar("d")])
    builder.input("x", TensorType(F32, (sym("a") * sym("c") + sym("d"), sym("a") // 2)))
    builder.input("y", TensorType(F32, (sym("a") * 2 + sym("c"),)))
    builder.input("z", TensorType(F32, (sym("c") - 1,)))
    verify(builder.build())


def test_a_shared_subplan_is_verified_once() -> None:
    shared = replace(scaled(), name="1")
    for graph in (replace(small(), subplans=(scaled(), shared)), replace(small(), subplans=(shared,))):
        with pytest.raises(VerifyError, match="plan 'step' > plan '1': expected an identifier"):
            verify(graph)


# Limits.


def _rich() -> Graph:
    """A plan that has some of everything that is limited."""
    builder = GraphBuilder("rich", [DimVar("b"), DimVar("c")])
    x = builder.input("x", TensorType(F32, (b, sym("c"))), path="some.path")
    builder.subplans.append(scaled())
    size = ((b * b + 3) // 4, b * sym("c") + 1, 2, 2)
    add(builder, "aten.full", size=size, fill_value=1, dtype=F32)
    add(builder, "aten.cat", (x, x), dim=0)
    add(builder, "aten.gelu", x, approximate="tanh")
    add(builder, "aten.max_dim", x, dim=0)
    builder.output(x, "y")
    inner = Sequence("list", (Leaf(), Fixed("text")))
    return builder.build(Sequence("tuple", (inner,)), None)


LIMITED = {
    "plans": (1, "plans in all", 2),
    "depth": (1, "levels of subplans", 2),
    "nodes": (4, "nodes in all", 5),
    "ports": (0, "inputs", 1),
    "operands": (1, "operands", 2),
    "results": (1, "results", 2),
    "rank": (3, "dims of one tensor", 4),
    "dims": (1, "named dims", 2),
    "dim_terms": (1, "terms in a dim", 2),
    "dim_degree": (1, "factors in a term", 2),
    "dim_depth": (0, "levels of floor division", 1),
    "dim_atoms": (3, "names, numbers and divisions in a dim", 4),
    "shape_terms": (1, "terms in the product of its dims", 2),
    "list_length": (3, "entries of attribute 'size'", 4),
    "name_length": (3, "characters of the name 'rich'", 4),
    "text_length": (8, "characters of the path 'some.path'", 9),
    "tree_depth": (2, "levels of containers", 3),
    "tree_size": (3, "entries of a structure", 4),
}


@pytest.mark.parametrize("name", LIMITED)
def test_each_limit(name: str) -> None:
    limit, what, actual = LIMITED[name]
    verify(_rich())
    with pytest.raises(LimitError) as caught:
        verify(_rich(), replace(Limits(), **{name: limit}))
    message = str(caught.value)
    assert re.search(rf"at most {limit} {re.escape(what)}.* are allowed, got {actual}$", message)
    assert caught.value.where in message
    assert caught.value.where.startswith("plan ")


def test_every_limit_is_tested() -> None:
    assert {field.name for field in fields(Limits)} == {
        *LIMITED,
        "total_bytes",
    }  # that one: test_plan_bytes.py


@pytest.mark.parametrize(
    "change",
    [
        nodes(1, operands=(typed(4, F32, b, 3), 2**63)),
        nodes(1, attrs=attrs(alpha=-(2**63) - 1)),
        inputs(0, value=typed(0, F32, b, 2**64)),
        inputs(0, value=typed(0, F32, b * 2**64, 4)),
        dims(DimVar("b", 1, 2**64)),
        whole(takes=Fixed(10**5000)),
    ],
)
def test_integers_beyond_64_bits(change: Change) -> None:
    with pytest.raises(LimitError, match="must fit a signed 64-bit integer, got one of"):
        verify(change(small()))


def test_nesting_without_end_is_no_recursion_error() -> None:
    graph = scaled()
    for _ in range(5000):
        graph = replace(scaled(), subplans=(graph,))
    with pytest.raises(LimitError, match="levels of subplans"):
        verify(graph)
    tree = Sequence("tuple", (Leaf(),))
    for _ in range(5000):
        tree = Sequence("tuple", (tree,))
    with pytest.raises(LimitError, match="levels of containers"):
        verify(replace(small(), takes=tree))


def test_products_of_dims_are_bounded() -> None:
    total = sum((sym(f"d{i}") for i in range(70)), start=0 * b)
    with pytest.raises(LimitError, match=f"more than {MAX_PRODUCT_TERMS} terms"):
        total * total


def test_inference_that_fails_unforeseen_is_a_verify_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("dims")

    monkeypatch.setattr(MODULE, "infer", broken)
    with pytest.raises(VerifyError, match=r"node 0 .*could not be inferred \(ZeroDivisionError: dims\)"):
        verify(small())


def test_nodes_are_where_the_text_shows_them() -> None:
    graph = small()
    assert isinstance(graph.nodes[2], Node)
    with pytest.raises(VerifyError, match=r"^plan 'step', node 2 \(v6 = random\.dropout\): "):
        verify(nodes(2, attrs=())(graph))
