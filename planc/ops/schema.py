"""What an op is: its parameters, type inference, callable, cost and traits, all in one OpDef.

The schema of an op is the signature of its inference function; the names below are the annotations that it
may use. Positional parameters annotated with a tensor kind are operands, all others are attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from planc.errors import TypeCheckError
from planc.ir import Attribute, Dim, DimExpr, DType, Graph, Operand, Scalar, TensorType, Value
from planc.ir.graph import is_dim

# Annotations for inference functions. Operands first:
Tensor = TensorType
OptTensor = TensorType | None
Tensors = tuple[TensorType, ...]
OptTensors = tuple[TensorType | None, ...]
Number = TensorType | Scalar | DimExpr
"""A tensor, or a number in its place."""
OptNumber = TensorType | Scalar | DimExpr | None
# and attributes:
Int = int
OptInt = int | None
Float = float
OptFloat = float | None
Bool = bool
Str = str
OptStr = str | None
DimAttr = Dim
OptDim = Dim | None
Ints = tuple[int, ...]
OptInts = tuple[int, ...] | None
Bools = tuple[bool, ...]
Dims = tuple[Dim, ...]
ScalarAttr = Scalar | DimExpr
OptScalar = Scalar | DimExpr | None
DTypeAttr = DType
OptDType = DType | None
Subplan = Graph
"""Stored as the index of the subplan; inference gets the Graph."""


class Kind(Enum):
    """The kinds of parameter; values are the annotation names above."""

    __hash__ = object.__hash__  # Enum has its own, in Python

    TENSOR = "Tensor"
    OPT_TENSOR = "OptTensor"
    TENSORS = "Tensors"
    OPT_TENSORS = "OptTensors"
    NUMBER = "Number"
    OPT_NUMBER = "OptNumber"
    INT = "Int"
    OPT_INT = "OptInt"
    FLOAT = "Float"
    OPT_FLOAT = "OptFloat"
    BOOL = "Bool"
    STR = "Str"
    OPT_STR = "OptStr"
    DIM = "DimAttr"
    OPT_DIM = "OptDim"
    INTS = "Ints"
    OPT_INTS = "OptInts"
    BOOLS = "Bools"
    DIMS = "Dims"
    SCALAR = "ScalarAttr"
    OPT_SCALAR = "OptScalar"
    DTYPE = "DTypeAttr"
    OPT_DTYPE = "OptDType"
    SUBPLAN = "Subplan"

    @property
    def is_operand(self) -> bool:
        return self in _OPERAND_KINDS

    @property
    def is_optional(self) -> bool:
        return self.value.startswith("Opt") and self is not Kind.OPT_TENSORS


_OPERAND_KINDS = {Kind.TENSOR, Kind.OPT_TENSOR, Kind.TENSORS, Kind.OPT_TENSORS, Kind.NUMBER, Kind.OPT_NUMBER}
_LIST_KINDS = {Kind.INTS, Kind.OPT_INTS, Kind.BOOLS, Kind.DIMS}


class Trait(Enum):
    """What passes and the executor may assume of an op."""

    __hash__ = object.__hash__  # Enum has its own, in Python

    ELEMENTWISE = "elementwise"
    """Each result element depends on the operand elements at its own (broadcast) position only."""
    COMMUTATIVE = "commutative"
    """The first two operands may be exchanged."""
    VIEW = "view"
    """The result may share the first operand's memory; it moves no data and costs no FLOPs."""
    RANDOM = "random"
    """Draws from its key operand: a pure function of its operands, but never folded into a constant."""
    FACTORY = "factory"
    """Makes a tensor out of nothing: its callable takes ``device``."""
    OPTIMIZER = "optimizer"
    STRUCTURED = "structured"
    """Runs a subplan; the executor handles it, not a callable."""


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of an op."""

    name: str
    kind: Kind
    default: Attribute | _Required = REQUIRED
    keyword_only: bool = False

    @property
    def required(self) -> bool:
        return isinstance(self.default, _Required)


Infer = Callable[..., "TensorType | tuple[TensorType, ...]"]
Flops = Callable[[tuple[Any, ...], Mapping[str, Any], tuple[TensorType, ...]], Dim]


@dataclass(frozen=True)
class OpDef:
    """One operation of the table."""

    name: str
    params: tuple[Param, ...]
    infer: Infer
    run: Callable[..., Any]
    """Called as ``run(*operands, **attrs)``: tensors (numbers, None, lists), non-default attributes."""
    flops: Flops
    traits: frozenset[Trait]
    targets: tuple[str, ...]
    """The ATen overloads that import as this op (``aten.add.Tensor``): their parameters have its names."""
    doc: str = ""

    @cached_property
    def operands(self) -> tuple[Param, ...]:
        return tuple(p for p in self.params if p.kind.is_operand)

    @cached_property
    def attrs(self) -> tuple[Param, ...]:
        return tuple(p for p in self.params if not p.kind.is_operand)

    def has(self, trait: Trait) -> bool:
        return trait in self.traits

    def signature(self) -> str:
        """The schema as people read it: ``aten.t(self: Tensor)``."""
        parts: list[str] = []
        for p in self.params:
            parts.append(f"{p.name}: {p.kind.value}" + ("" if p.required else f" = {p.default}"))
        return f"{self.name}({', '.join(parts)})"


def params_of(infer: Infer) -> tuple[Param, ...]:
    """The parameters that an inference function declares, by its annotations."""
    out: list[Param] = []
    for p in inspect.signature(infer).parameters.values():
        default = REQUIRED if p.default is inspect.Parameter.empty else p.default
        out.append(Param(p.name, Kind(p.annotation), default, p.kind is p.KEYWORD_ONLY))
    return tuple(out)


def same(a: Attribute, b: Attribute) -> bool:
    """Whether two attributes are the same value *and* type (in Python ``1 == 1.0 == True``)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return repr(a) == repr(b)  # repr tells 0.0 from -0.0


def normalise(op: OpDef, attrs: Mapping[str, Attribute]) -> tuple[tuple[str, Attribute], ...]:
    """Attributes as a Node stores them: coerced to their kinds, in schema order, defaults left out.

    Raises:
        TypeCheckError: an unknown or missing attribute, or a value of the wrong kind.
    """
    known = {p.name: p for p in op.attrs}
    for name in attrs:
        if name not in known:
            raise TypeCheckError(f"{op.name} has no attribute {name!r}; it is {op.signature()}")
    out: list[tuple[str, Attribute]] = []
    for name, p in known.items():
        if name not in attrs:
            if p.required:
                raise TypeCheckError(f"{op.name} needs the attribute {name!r}; it is {op.signature()}")
            continue
        value = coerce(op, p, attrs[name])
        if p.required or not same(value, _default(op, p)):
            out.append((name, value))
    return tuple(out)


def full_attrs(op: OpDef, attrs: tuple[tuple[str, Attribute], ...]) -> dict[str, Attribute]:
    """All attributes of a node, defaults filled in."""
    out = {p.name: _default(op, p) for p in op.attrs if not p.required}
    out.update(attrs)
    return out


def _default(op: OpDef, p: Param) -> Attribute:
    assert not isinstance(p.default, _Required)
    return coerce(op, p, p.default)


def coerce(op: OpDef, p: Param, value: object) -> Attribute:
    """``value`` in the one form that its kind has, so that equal attributes have equal bytes.

    Raises:
        TypeCheckError: the value is not of the parameter's kind.
    """
    if value is None and p.kind.is_optional:
        return None
    if p.kind in _LIST_KINDS:
        if isinstance(value, (list, tuple)) and all(_is_item(p.kind, item) for item in value):
            return tuple(value)
    elif p.kind in (Kind.FLOAT, Kind.OPT_FLOAT):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif _CHECKS[p.kind](value):
        return value  # pyright: ignore[reportReturnType] -- the check above proved the kind
    raise TypeCheckError(f"{op.name}: attribute {p.name!r} wants {p.kind.value}, got {value!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_scalar(value: object) -> bool:
    return isinstance(value, (int, float, bool, DimExpr))


def _is_item(kind: Kind, item: object) -> bool:
    if kind is Kind.BOOLS:
        return isinstance(item, bool)
    return is_dim(item) if kind is Kind.DIMS else _is_int(item)


_CHECKS: dict[Kind, Callable[[object], bool]] = {
    Kind.INT: _is_int,
    Kind.OPT_INT: _is_int,
    Kind.SUBPLAN: _is_int,
    Kind.BOOL: lambda v: isinstance(v, bool),
    Kind.STR: lambda v: isinstance(v, str),
    Kind.OPT_STR: lambda v: isinstance(v, str),
    Kind.DIM: is_dim,
    Kind.OPT_DIM: is_dim,
    Kind.SCALAR: _is_scalar,
    Kind.OPT_SCALAR: _is_scalar,
    Kind.DTYPE: lambda v: isinstance(v, DType),
    Kind.OPT_DTYPE: lambda v: isinstance(v, DType),
}


def check_operand(op: OpDef, p: Param, operand: Operand) -> None:
    """Check that an operand is of its parameter's kind.

    Raises:
        TypeCheckError: it is not.
    """
    ok = {
        Kind.TENSOR: lambda: isinstance(operand, Value),
        Kind.OPT_TENSOR: lambda: operand is None or isinstance(operand, Value),
        Kind.NUMBER: lambda: isinstance(operand, Value) or _is_scalar(operand),
        Kind.OPT_NUMBER: lambda: operand is None or isinstance(operand, Value) or _is_scalar(operand),
        Kind.TENSORS: lambda: isinstance(operand, tuple) and all(isinstance(v, Value) for v in operand),
        Kind.OPT_TENSORS: lambda: (
            isinstance(operand, tuple) and all(v is None or isinstance(v, Value) for v in operand)
        ),
    }[p.kind]()
    if not ok:
        raise TypeCheckError(f"{op.name}: operand {p.name!r} wants {p.kind.value}, got {operand!r}")
