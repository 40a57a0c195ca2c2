"""torch's symbolic integers (sympy expressions) as dims of the IR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from planc.errors import CaptureError
from planc.ir import Dim
from planc.ir.dims import floordiv


def to_dim(size: Any, names: Mapping[str, Dim]) -> Dim:
    """An int or SymInt as a dim; ``names`` says what each of torch's symbols is.

    Raises:
        CaptureError: the expression has no counterpart (a maximum, a rational), or an unknown symbol.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    if isinstance(size, torch.SymInt):
        return _convert(size.node.expr, names)
    raise CaptureError(f"a size must be an integer, got {size!r}")


def _convert(expr: Any, names: Mapping[str, Dim]) -> Dim:
    kind = type(expr).__name__
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol:
        if expr.name not in names:
            raise CaptureError(
                f"the size {expr.name} depends on data, so a plan cannot know it before it runs"
            )
        return names[expr.name]
    if kind == "Mul" and any(arg.is_Rational and not arg.is_Integer for arg in expr.args):
        numerator, denominator = expr.as_numer_denom()  # CleanDiv prints as a rational product
        return floordiv(_convert(numerator, names), int(denominator))
    args = [_convert(arg, names) for arg in expr.args]
    if kind == "Add":
        total: Dim = 0
        for arg in args:
            total = total + arg
        return total
    if kind == "Mul":
        product: Dim = 1
        for arg in args:
            product = product * arg
        return product
    if kind == "Pow" and isinstance(args[1], int) and args[1] >= 0:
        power: Dim = 1
        for _ in range(args[1]):
            power = power * args[0]
        return power
    if kind in ("FloorDiv", "CleanDiv", "IntTrueDiv"):
        return floordiv(args[0], args[1])
    if kind in ("Mod", "PythonMod"):
        return args[0] - floordiv(args[0], args[1]) * args[1]
    raise CaptureError(f"the size {expr} has no counterpart among dims (sums, products and floor divisions)")
