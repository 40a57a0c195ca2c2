"""One line of the op test table: an op with sample operands and attributes. `tests.ops.table` has the lines.

An operand is stated by its type and the range of its elements; ``B`` is a named dim, which tests give sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from planc.ir import DimExpr, DType, Operand, TensorType, Value, sym
from planc.ir.dims import Dim, substitute
from planc.ops import OpDef, full_attrs, lookup, node, normalise
from planc.ops.apply import concrete

B = sym("b")
SIZES = (4, 6)
"""The sizes of ``b`` that every line is run at; even, for lines that halve it."""


@dataclass(frozen=True)
class Sample:
    """A tensor operand: its type, and the range that its elements are drawn from."""

    type: TensorType
    low: float = -2.0
    high: float = 2.0

    def make(self, b: int, generator: torch.Generator) -> torch.Tensor:
        shape = self.type.at({"b": b})
        dtype = self.type.dtype.torch
        if self.type.dtype.is_floating:
            wide = torch.rand(shape, generator=generator, dtype=torch.float64)
            return (wide * (self.high - self.low) + self.low).to(dtype)
        top = 2 if self.type.dtype is DType.BOOL else max(int(self.high), 1)
        return torch.randint(0, top, shape, generator=generator).to(dtype)


def f(*shape: Dim, low: float = -2.0, high: float = 2.0) -> Sample:
    return Sample(TensorType(DType.F32, shape), low, high)


def d(*shape: Dim) -> Sample:
    return Sample(TensorType(DType.F64, shape))


def i(*shape: Dim, high: int = 3) -> Sample:
    return Sample(TensorType(DType.I64, shape), 0, high)


def m(*shape: Dim) -> Sample:
    return Sample(TensorType(DType.BOOL, shape))


def key() -> Sample:
    return i(high=2**62)


Arg = Any
"""A Sample, a tuple of Samples (some None), a number, or None."""


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    op: str
    operands: tuple[Arg, ...]
    attrs: Mapping[str, Any]

    @property
    def definition(self) -> OpDef:
        return lookup(self.op)

    def __str__(self) -> str:
        shown = [_show(operand) for operand in self.operands]
        return f"{self.op}({', '.join([*shown, *(f'{k}={_show(v)}' for k, v in self.attrs.items())])})"

    def infer(self, b: Dim) -> tuple[TensorType, ...]:
        """The result types at this size of ``b``, by the table."""
        number = 0

        def value(operand: Arg) -> Operand:
            nonlocal number
            if isinstance(operand, Sample):
                number += 1
                return Value(number - 1, operand.type.substitute({"b": b}))
            if isinstance(operand, tuple):
                return tuple(value(item) for item in operand)  # pyright: ignore[reportReturnType]
            return _at(operand, b)

        operands = tuple(value(operand) for operand in self.operands)
        attrs = {name: _at(attr, b) for name, attr in self.attrs.items()}
        made = node(self.op, operands, attrs, number)
        return tuple(result.type for result in made.results)

    def arguments(self, b: int, seed: int = 0) -> tuple[list[Any], dict[str, Any]]:
        """Concrete operands, and the attributes as the op's callable takes them."""
        generator = torch.Generator().manual_seed(seed)

        def make(operand: Arg) -> Any:
            if isinstance(operand, Sample):
                return operand.make(b, generator)
            if isinstance(operand, tuple):
                return [make(item) for item in operand]
            return concrete(operand, {"b": b})

        stored = normalise(self.definition, self.attrs)
        return [make(operand) for operand in self.operands], {k: concrete(v, {"b": b}) for k, v in stored}

    def run(self, operands: list[Any], attrs: Mapping[str, Any]) -> list[torch.Tensor]:
        results = self.definition.run(*operands, **attrs)
        return list(results) if isinstance(results, (tuple, list)) else [results]

    def torch_calls(self, operands: list[Any], b: int) -> dict[str, dict[str, Any]]:
        """The overloads of torch that this line fits, each with its arguments by name."""
        full = full_attrs(self.definition, normalise(self.definition, self.attrs))
        named = dict(zip((p.name for p in self.definition.operands), operands, strict=True))
        named |= {name: concrete(value, {"b": b}) for name, value in full.items()}
        stated = {p.name for p in self.definition.operands if named[p.name] is not None} | set(self.attrs)
        calls: dict[str, dict[str, Any]] = {}
        for target in self.definition.targets:
            schema = overload_of(target)._schema.arguments
            known = {a.name: str(a.type) for a in schema}
            fits = all(name in known and _fits(known[name], named[name]) for name in stated)
            needed = {a.name for a in schema if not a.has_default_value()}
            if fits and needed <= set(named):
                calls[target] = {name: named[name] for name in known if name in stated | needed}
        return calls


def overload_of(target: str) -> Any:
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _fits(kind: str, value: Any) -> bool:
    is_tensor = kind in ("Tensor", "Optional[Tensor]")
    return is_tensor == isinstance(value, torch.Tensor) or (value is None and kind.startswith("Optional"))


def _at(value: Any, b: Dim) -> Any:
    if isinstance(value, DimExpr):
        return substitute(value, {"b": b})
    return tuple(_at(item, b) for item in value) if isinstance(value, tuple) else value


def _show(value: Any) -> str:
    if isinstance(value, Sample):
        return str(value.type)
    return f"[{', '.join(_show(item) for item in value)}]" if isinstance(value, tuple) else str(value)


def case(op: str, *operands: Arg, **attrs: Any) -> Case:
    return Case(op, operands, attrs)


def tensors(operands: list[Any]) -> list[torch.Tensor]:
    """The tensors among concrete operands, those in lists too."""
    out: list[torch.Tensor] = []
    for operand in operands:
        items = operand if isinstance(operand, list) else [operand]
        out += [item for item in items if isinstance(item, torch.Tensor)]
    return out


__all__ = ["SIZES", "B", "Case", "Sample", "case", "d", "f", "i", "key", "m", "overload_of", "tensors"]
