"""A shorthand for building graphs in tests: ops by name with inference, nothing that the library lacks."""

from __future__ import annotations

from typing import Any

import torch

from planc.ir import Attribute, DType, Graph, Operand, TensorType, Value, type_of
from planc.ir.builder import GraphBuilder
from planc.ir.constants import digest
from planc.ir.dims import Dim
from planc.ops import node

F32, F64, I64, BOOL = DType.F32, DType.F64, DType.I64, DType.BOOL


def tensor(dtype: DType, *shape: Dim) -> TensorType:
    return TensorType(dtype, shape)


def f32(*shape: Dim) -> TensorType:
    return TensorType(F32, shape)


class Sketch(GraphBuilder):
    """A GraphBuilder that infers, and that keeps the data of its constants."""

    def __init__(self, name: str = "main", *args: Any) -> None:
        super().__init__(name, *args)
        self.data: dict[str, torch.Tensor] = {}

    def const(self, value: torch.Tensor) -> Value:
        type, name = type_of(value), digest(value)
        assert type is not None
        self.data[name] = value
        return self.constant(type, name)

    def many(self, op: str, *operands: Operand, **attrs: Attribute) -> tuple[Value, ...]:
        return self.add(node(op, operands, attrs, self.next_index, subplans=tuple(self.subplans)))

    def op(self, op: str, *operands: Operand, **attrs: Attribute) -> Value:
        (result,) = self.many(op, *operands, **attrs)
        return result

    def give(self, *values: Value) -> Graph:
        """Output the values as r0, r1, ... and build."""
        for i, value in enumerate(values):
            self.output(value, f"r{i}")
        return self.build()
