"""Torch calls that are one op of the table, found by name: no capture, which takes a hundred times as long.

Says None where it is not sure; `resolve` captures then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from planc.capture.call import CapturedCall
from planc.errors import TypeCheckError
from planc.ir import Attribute, DType, Node, Operand, TensorType, Value, from_torch
from planc.ir.structure import TUPLE, Leaf
from planc.ir.structure import Sequence as TreeSequence
from planc.ops import Kind, OpDef, all_ops, node
from runtime.remote.arguments import fill
from runtime.remote.indexing import index_nodes

# Functions that are one op of the table whose capture would be the identity.
_COPIES = {"detach": "aten.detach", "clone": "aten.clone"}
_OPERATORS = {
    "__add__": "add",
    "__radd__": "add",
    "__sub__": "sub",
    "__rsub__": "rsub",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__truediv__": "div",
    "__matmul__": "matmul",
    "__pow__": "pow",
    "__neg__": "neg",
    "__abs__": "abs",
    "__mod__": "remainder",
    "__floordiv__": "floor_divide",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "__invert__": "bitwise_not",
    "__eq__": "eq",
    "__ne__": "ne",
    "__lt__": "lt",
    "__le__": "le",
    "__gt__": "gt",
    "__ge__": "ge",
    "__iadd__": "add_",
    "__isub__": "sub_",
    "__imul__": "mul_",
    "__itruediv__": "div_",
}
_ALIASES = {
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "negative": "neg",
    "absolute": "abs",
    "reshape": "view",
}
_PACKED = {"view", "permute", "expand", "repeat", "flip"}
"""Ops whose list of numbers may also be given one by one."""
_CASTS = {
    "double": DType.F64,
    "float": DType.F32,
    "half": DType.F16,
    "bfloat16": DType.BF16,
    "long": DType.I64,
    "int": DType.I32,
    "short": DType.I16,
    "bool": DType.BOOL,
}
_MATMUL: dict[tuple[int, ...], str] = {(2, 2): "mm", (3, 3): "bmm", (2, 1): "mv", (1, 1): "dot"}
_FUNCTIONAL = {"relu", "silu", "mish", "hardswish", "hardsigmoid", "leaky_relu", "softmax", "log_softmax"}
"""The functions of nn.functional that take what the op of their name takes; others differ."""


def direct(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    types: Sequence[TensorType],
) -> CapturedCall | None:
    """The call as one op (as a few, for an index), or None.

    Raises:
        InputError: an index out of range.
    """
    raw = getattr(function, "__name__", "")
    name = _OPERATORS.get(raw, raw)
    if getattr(function, "__module__", "") == "torch.nn.functional" and name not in _FUNCTIONAL:
        return None
    inputs = tuple(Value(i, t) for i, t in enumerate(types))
    filled = iter(inputs)
    args, kwargs = fill(args, filled), fill(dict(kwargs), filled)
    if raw == "__getitem__" and isinstance(args[0], Value):
        found = index_nodes(args[0], args[1], len(inputs))
        return None if found is None or not found[0] else _of_nodes(inputs, found[0], (found[1],))
    if name in _COPIES and len(inputs) == 1 == len(args) and not kwargs:
        return _of_nodes(inputs, [node(_COPIES[name], inputs, {}, 1)])
    if name in _CASTS and len(args) == 1 and not kwargs:
        same = types[0].dtype is _CASTS[name]
        return _of_nodes(
            inputs,
            [] if same else [node("aten.to", inputs, {"dtype": _CASTS[name]}, 1)],
            inputs if same else None,
        )
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.rstrip("_") if in_place else name
    made = (
        None if function is torch.Tensor.where else _find(_ALIASES.get(name, name), args, kwargs, len(inputs))
    )
    if made is None or not in_place:
        return None if made is None else _of_nodes(inputs, [made])
    target, result = args[0], made.results[0]
    if not isinstance(target, Value) or len(made.results) != 1 or result.type != target.type:
        return None
    return CapturedCall(inputs, (made,), Leaf(), (result,), ((target.index, result),), (), False)


def _find(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], first_index: int) -> Node | None:
    """The one node that a function of this name is."""
    if name == "matmul":
        name = _MATMUL.get(tuple(a.type.rank for a in args if isinstance(a, Value)), "")
    if name in _PACKED and len(args) > 1 and all(isinstance(a, int) for a in args[1:]):
        args = (args[0], args[1:])
    for definition, schema in _OVERLOADS.get(name, ()):
        fitted = _fit(definition, schema, tuple(args), kwargs)
        if fitted is None:
            continue
        try:
            return node(definition.name, *fitted, first_index)
        except TypeCheckError:
            return None  # torch says it better, or knows a form that the op does not
    return None


def _of_nodes(
    inputs: tuple[Value, ...], nodes: Sequence[Node], outputs: tuple[Value, ...] | None = None
) -> CapturedCall:
    results = nodes[-1].results if outputs is None else outputs
    tree = Leaf() if len(results) == 1 else TreeSequence(TUPLE, tuple(Leaf() for _ in results))
    return CapturedCall(inputs, tuple(nodes), tree, results, (), (), False)


def _fit(
    definition: OpDef, schema: Sequence[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Operand, ...], dict[str, Attribute]] | None:
    """The arguments as operands and attributes of an op, if they are all it takes."""
    positional = [a.name for a in schema if not a.kwarg_only]
    if len(args) > len(positional):
        return None
    given = dict(zip(positional, args, strict=False))
    for name, value in kwargs.items():
        given["self" if name == "input" and "self" in positional else name] = value
    known = {p.name for p in definition.params}
    if any(name not in known for name in given):
        return None
    operands: list[Operand] = []
    attrs: dict[str, Attribute] = {}
    for p in definition.params:
        if p.name not in given:
            if p.required:
                return None
            if p.kind.is_operand:
                operands.append(cast(Operand, p.default))
            continue
        value = given[p.name]
        if p.kind.is_operand:
            operands.append(tuple(cast(list[Value | None], value)) if isinstance(value, list) else value)
        else:
            converted = _attribute(p.kind, value)
            if converted is _UNFIT:
                return None
            attrs[p.name] = converted
    return tuple(operands), attrs


_UNFIT: Any = object()


def _attribute(kind: Kind, value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return from_torch(value) or _UNFIT
    if isinstance(value, Value) or (
        isinstance(value, (tuple, list)) and any(isinstance(v, Value) for v in value)
    ):
        return _UNFIT
    if (
        kind in (Kind.INTS, Kind.OPT_INTS, Kind.DIMS)
        and isinstance(value, int)
        and not isinstance(value, bool)
    ):
        return (value,)
    return tuple(value) if isinstance(value, (list, torch.Size)) else value


def _overloads() -> dict[str, list[tuple[OpDef, Sequence[Any]]]]:
    """By function name, the ops that a call of that name may be, with the schema of the ATen overload.

    Only ops of the overload's own name: an overload that imports under another name may mean more than the
    op.
    """
    out: dict[str, list[tuple[OpDef, Sequence[Any]]]] = {}
    for definition in all_ops():
        for target in definition.targets:
            _, name, overload = target.split(".")
            if definition.name in (f"aten.{name}", f"aten{name.replace('_', '.', 1)}"):  # _softmax is softmax
                packet = getattr(torch.ops.aten, name)  # a name of our own table
                schema = getattr(packet, overload)._schema.arguments
                out.setdefault(definition.name.removeprefix("aten."), []).append((definition, schema))
    return out


_OVERLOADS = _overloads()
