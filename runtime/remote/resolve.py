"""From one torch function call to the op-table nodes that it is: by name where it is one op, else by capture.

Knows types only, no workers. Captures are remembered by function, operand types and numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

import torch

from planc.capture.call import CapturedCall, capture_call
from planc.capture.tree import flatten
from planc.errors import TypeCheckError
from planc.ir import Attribute, Operand, TensorType, Value, from_torch
from planc.ops import Kind, OpDef, all_ops, node

_REMEMBERED = 4096

# Functions that are one op of the table whose capture would be the identity, or is worth skipping.
_NAMED = {"detach": "aten.detach", "clone": "aten.clone"}
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
    "__eq__": "eq",
    "__ne__": "ne",
    "__lt__": "lt",
    "__le__": "le",
    "__gt__": "gt",
    "__ge__": "ge",
}


class Operands:
    """The tensor operands of a call taken out of its arguments: their types, and the arguments without them."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_tensor: Callable[[Any], bool]) -> None:
        self.tensors: list[Any] = []
        self._is_tensor = is_tensor
        self.args = self._strip(args)
        self.kwargs = {name: self._strip(value) for name, value in kwargs.items()}

    def _strip(self, value: Any) -> Any:
        if self._is_tensor(value):
            self.tensors.append(value)
            return _Place(len(self.tensors) - 1)
        if isinstance(value, (tuple, list)):
            return type(value)(self._strip(item) for item in value)
        return value

    def fill(self, tensors: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments with these tensors in their places."""

        def put(value: Any) -> Any:
            if isinstance(value, _Place):
                return tensors[value.index]
            if isinstance(value, (tuple, list)):
                return type(value)(put(item) for item in value)
            return value

        return put(self.args), {name: put(value) for name, value in self.kwargs.items()}

    def key(self) -> Any:
        """The arguments without tensors, hashable; numbers keep their types (1, 1.0 and True differ)."""
        return _key(self.args), tuple((name, _key(value)) for name, value in sorted(self.kwargs.items()))


class _Place:
    """Where a tensor operand stood."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __repr__(self) -> str:
        return f"<operand {self.index}>"


_cache: OrderedDict[Any, CapturedCall] = OrderedDict()
_lock = Lock()


def resolve(function: Callable[..., Any], operands: Operands, types: Sequence[TensorType]) -> CapturedCall:
    """The nodes that a call comes down to.

    Raises:
        CaptureError: it branches on data, or torch refuses its operands.
        UnsupportedOpError: it needs an operation outside the op table.
    """
    key = (function, tuple(types), operands.key())
    with _lock:
        found = _cache.get(key)
        if found is not None:
            _cache.move_to_end(key)
            return found
    made = _direct(function, operands, types) or _captured(function, operands, types)
    with _lock:
        _cache[key] = made
        if len(_cache) > _REMEMBERED:
            _cache.popitem(last=False)
    return made


def _captured(function: Callable[..., Any], operands: Operands, types: Sequence[TensorType]) -> CapturedCall:
    def call(*tensors: torch.Tensor) -> Any:
        args, kwargs = operands.fill(tensors)
        return function(*args, **kwargs)

    return capture_call(call, types)


def _direct(
    function: Callable[..., Any], operands: Operands, types: Sequence[TensorType]
) -> CapturedCall | None:
    """The call as one op, where a function of its name takes these arguments in the op table; or None."""
    raw = getattr(function, "__name__", "")
    name = _OPERATORS.get(raw, raw)
    inputs = tuple(Value(i, t) for i, t in enumerate(types))
    if name in _NAMED and len(inputs) == 1 and len(operands.args) == 1 and not operands.kwargs:
        return _one_node(_NAMED[name], (inputs[0],), {}, inputs)
    args, kwargs = operands.fill(inputs)
    for definition, schema in _OVERLOADS.get(name, ()):
        fitted = _fit(definition, schema, tuple(args), kwargs)
        if fitted is None:
            continue
        try:
            return _one_node(definition.name, *fitted, inputs)
        except TypeCheckError:
            return None  # torch says it better, or knows a form that the op does not
    return None


def _one_node(
    op: str, operands: tuple[Operand, ...], attrs: Mapping[str, Attribute], inputs: tuple[Value, ...]
) -> CapturedCall:
    made = node(op, operands, attrs, len(inputs))
    tree, _ = flatten(tuple(torch.empty(0) for _ in made.results))
    if len(made.results) == 1:
        tree, _ = flatten(torch.empty(0))
    return CapturedCall(inputs, (made,), tree, made.results, (), (), False)


def _fit(
    definition: OpDef, schema: Sequence[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Operand, ...], dict[str, Attribute]] | None:
    """The arguments as operands and attributes of an op, if they are all it takes."""
    positional = [a.name for a in schema if not a.kwarg_only]
    if len(args) > len(positional):
        return None
    given = dict(zip(positional, args, strict=False))
    for name, value in kwargs.items():
        given["self" if name == "input" else name] = value
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
                operands.append(p.default)  # pyright: ignore[reportArgumentType] -- an operand's default is one
            continue
        value = given[p.name]
        if p.kind.is_operand:
            operands.append(tuple(value) if isinstance(value, list) else value)
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
    if isinstance(value, Value) or (isinstance(value, (tuple, list)) and any(isinstance(v, Value) for v in value)):
        return _UNFIT
    if kind in (Kind.INTS, Kind.OPT_INTS, Kind.DIMS) and isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    return tuple(value) if isinstance(value, (list, torch.Size)) else value


def _overloads() -> dict[str, list[tuple[OpDef, Sequence[Any]]]]:
    """By function name, the ops that a call of that name may be, with the schema of the ATen overload.

    Only ops of the overload's own name: an overload that imports under another name may mean more than the op.
    """
    out: dict[str, list[tuple[OpDef, Sequence[Any]]]] = {}
    for definition in all_ops():
        for target in definition.targets:
            _, name, overload = target.split(".")
            if definition.name == f"aten.{name}":
                packet = getattr(torch.ops.aten, name)  # a name of our own table
                schema = getattr(packet, overload)._schema.arguments
                out.setdefault(name, []).append((definition, schema))
    return out


_OVERLOADS = _overloads()


def _key(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *(_key(item) for item in value))
    if isinstance(value, _Place):
        return ("operand", value.index)
    if isinstance(value, slice):
        return ("slice", _key(value.start), _key(value.stop), _key(value.step))
    return (type(value).__name__, repr(value))


__all__ = ["Operands", "resolve"]
