"""Lines of the op test table made wrong, or differently right: one operand or attribute changed at random."""

from __future__ import annotations

import random
from typing import Any

from planc.ir import DType, TensorType
from planc.ops import Kind
from planc.ops.schema import Param
from tests.ops.cases import B, Case, Sample

_INTS = (0, 1, 2, -1, -2, 3, 5, 64, -(2**63), 2**63 - 1)
_SMALL = (0, 1, 2, -1, 3)
_DIMS = (*_INTS, B, B - 4, B // 2, B * B)
_NUMBERS = (0, 1, -1.5, True, float("inf"), float("nan"), 2**63 - 1)
_DTYPES = tuple(DType)


def mutant(case: Case, source: random.Random) -> Case:
    """The line with one thing changed."""
    operands, attrs = list(case.operands), dict(case.attrs)
    params = case.definition.attrs
    if params and (not operands or source.random() < 0.4):
        p = source.choice(params)
        attrs[p.name] = _attribute(p, attrs.get(p.name, p.default), source)
        return Case(case.op, case.operands, attrs)
    if not operands:
        return case
    at = source.randrange(len(operands))
    operands[at] = _operand(operands[at], source)
    return Case(case.op, tuple(operands), attrs)


def _operand(operand: Any, source: random.Random) -> Any:
    if isinstance(operand, tuple):
        items = list(operand)
        if not items or source.random() < 0.2:
            return tuple(items[1:])
        at = source.randrange(len(items))
        items[at] = _operand(items[at], source)
        return tuple(items)
    if not isinstance(operand, Sample):
        return source.choice((*_NUMBERS, None, B, Sample(TensorType(DType.F32, (B,)))))
    shape, dtype = list(operand.type.shape), operand.type.dtype
    change = source.randrange(6)
    if change == 0:
        dtype = source.choice(_DTYPES)
    elif change == 1 and shape:
        shape.pop(source.randrange(len(shape)))
    elif change == 2:
        shape.insert(source.randint(0, len(shape)), source.choice((1, 2, B)))
    elif change == 3:
        return source.choice((None, 2, 0.5, (operand,)))
    elif shape:
        shape[source.randrange(len(shape))] = source.choice((0, 1, 2, 4, B, B + 1, B * 2))
    return Sample(TensorType(dtype, tuple(shape)), operand.low, operand.high)


def _attribute(p: Param, value: Any, source: random.Random) -> Any:
    if source.random() < 0.05:
        return source.choice((None, True, 1.5, "mean", DType.F32, (), (1, B)))
    if p.kind in (Kind.INTS, Kind.OPT_INTS, Kind.DIMS):
        numbers = _SMALL if p.kind is not Kind.DIMS else (*_SMALL, B, B * 2)
        items = list(value) if isinstance(value, tuple) else []
        if items and source.random() < 0.7:
            items[source.randrange(len(items))] = source.choice(numbers)
        else:
            items = [source.choice(numbers) for _ in range(source.randint(0, 3))]
        return tuple(items)
    if p.kind is Kind.BOOLS:
        return tuple(source.random() < 0.5 for _ in range(source.randint(0, 3)))
    return source.choice(
        {
            Kind.INT: _INTS,
            Kind.OPT_INT: (*_INTS, None),
            Kind.DIM: _DIMS,
            Kind.OPT_DIM: (*_DIMS, None),
            Kind.BOOL: (True, False),
            Kind.STR: ("none", "tanh", "mean", ""),
            Kind.OPT_STR: ("floor", "trunc", "ceil", None),
            Kind.DTYPE: _DTYPES,
            Kind.OPT_DTYPE: (*_DTYPES, None),
            Kind.FLOAT: (0.0, 1.0, -1.0, 0.5, float("inf")),
            Kind.OPT_FLOAT: (0.0, 1.0, -1.0, None),
            Kind.SCALAR: _NUMBERS,
            Kind.OPT_SCALAR: (*_NUMBERS, None),
        }[p.kind]
    )
