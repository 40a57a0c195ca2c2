"""Run one op on concrete tensors: dims evaluated, dtypes in torch's terms. Knows no graphs and no subplans.

Constant folding and the reference interpreter share it, so that both mean the same by a node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from planc.ir import Attribute, DimExpr, DType, Node, Operand, TensorType, Value
from planc.ir.dims import evaluate
from planc.ops.bounds import check_bounds, has_bounds, unchecked
from planc.ops.schema import Trait
from planc.ops.table import lookup


def apply(
    node: Node,
    read: Callable[[Value], torch.Tensor],
    bindings: Mapping[str, int],
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, ...]:
    """The results of a node's callable.

    Args:
        node: a node of any op but the structured ones.
        read: the tensor that a value stands for.
        bindings: the size of every dim name that the node uses.
        device: where a factory makes its tensor; torch's default where not given.

    Raises:
        TypeCheckError: there is no such op.
        Exception: whatever the callable raises.
    """
    definition = lookup(node.op)
    operands = [_operand(operand, read, bindings) for operand in node.operands]
    attrs = {name: concrete(value, bindings) for name, value in node.attrs}
    if definition.has(Trait.FACTORY):
        attrs["device"] = device
    if has_bounds(node.op) and any(isinstance(x, torch.Tensor) and unchecked(x.device) for x in operands):
        check_bounds(node.op, operands, attrs)
    results = definition.run(*operands, **attrs)
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def concrete(value: Attribute, bindings: Mapping[str, int]) -> Any:
    """An attribute or a number as callables take it: an int for a dim, a torch dtype, a list for a tuple."""
    if isinstance(value, DimExpr):
        return evaluate(value, bindings)
    if isinstance(value, DType):
        return value.torch
    if isinstance(value, tuple):
        return [concrete(item, bindings) for item in value]
    return value


def operand_type(operand: Operand) -> Any:
    """An operand as inference and cost functions take it: types for values, anything else as it is."""
    if isinstance(operand, Value):
        return operand.type
    if isinstance(operand, tuple):
        return tuple(None if item is None else item.type for item in operand)
    return operand


def result_types(node: Node) -> tuple[TensorType, ...]:
    """The types of a node's results."""
    return tuple(value.type for value in node.results)


def _operand(operand: Operand, read: Callable[[Value], torch.Tensor], bindings: Mapping[str, int]) -> Any:
    if isinstance(operand, Value):
        return read(operand)
    if isinstance(operand, tuple):
        return [None if item is None else read(item) for item in operand]
    return concrete(operand, bindings)
