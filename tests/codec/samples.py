"""Hand-made plans for the tests of the codec and the verifier: one with a little of everything, one large."""

from __future__ import annotations

import torch

from planc.ir import Attribute, DimVar, DType, Graph, Operand, Role, TensorType, Value, sym
from planc.ir.builder import GraphBuilder
from planc.ir.constants import digest
from planc.ir.structure import Fixed, Leaf, Mapping, Sequence
from planc.ops import node
from planc.ops.randomness import KEY_TYPE

BIAS = torch.tensor([0.5, -0.0, 3.0])
CONSTANTS = {digest(BIAS): BIAS}
STATE = {"fc.weight": torch.arange(12.0).reshape(4, 3)}


def add(builder: GraphBuilder, op: str, *operands: Operand, **attrs: Attribute) -> tuple[Value, ...]:
    return builder.add(node(op, operands, attrs, builder.next_index, subplans=tuple(builder.subplans)))


def scaled() -> Graph:
    builder = GraphBuilder("scaled", [DimVar("m")])
    h = builder.input("h", TensorType(DType.F32, (sym("m"), 3)))
    (y,) = add(builder, "aten.mul", h, 2.0)
    builder.output(y, "y")
    return builder.build()


def small() -> Graph:
    """Values: v0 x, v1 w, v2 rng, v3 bias, v4 = mm, v5 = add, (v6, v7) = dropout, v8 = call, v9 = view."""
    b = sym("b")
    builder = GraphBuilder("step", [DimVar("b", 1, 64)])
    x = builder.input("x", TensorType(DType.F32, (b, 4)))
    w = builder.input("w", TensorType(DType.F32, (4, 3)), Role.PARAMETER, "fc.weight")
    rng = builder.input("rng", KEY_TYPE, Role.KEY)
    bias = builder.constant(TensorType(DType.F32, (3,)), digest(BIAS))
    builder.subplans.append(scaled())
    (h,) = add(builder, "aten.mm", x, w)
    (h,) = add(builder, "aten.add", h, bias, alpha=2)
    h, _mask = add(builder, "random.dropout", rng, h, p=0.5)
    (h,) = add(builder, "call", (h,), plan=0)
    (flat,) = add(builder, "aten.view", h, size=(b * 3,))
    builder.output(flat, "flat")
    builder.output(w, "w", Role.PARAMETER, "fc.weight")
    takes = Sequence("tuple", (Mapping(("a",), (Leaf(),)), Fixed("mode")))
    return builder.build(takes, Sequence("tuple", (Leaf(),)))


def large(nodes: int = 1000) -> Graph:
    builder = GraphBuilder("large", [DimVar("b")])
    value = builder.input("x", TensorType(DType.F32, (sym("b"), 8)))
    for i in range(nodes // 2):
        (value,) = add(builder, "aten.add", value, 0.5 * i, alpha=i + 2)
        (value,) = add(builder, "aten.softmax", value, dim=i % 2)
    builder.output(value, "y")
    return builder.build()
