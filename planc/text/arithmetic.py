"""Arithmetic on what is known when a plan is elaborated: numbers and dims. Knows no tensors and no names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planc.errors import TypeCheckError
from planc.ir import DimExpr, Scalar
from planc.text.syntax import Place, Problem

Number = Scalar | DimExpr

MAX_TERMS = 64
"""Terms of a dim, factors of a term: far above what networks need, so that no text is slow."""
MAX_PRODUCT = 4096
"""Terms that the product of a shape's dims may have."""
_MAX_EXPONENT = 1024

_DIM_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}
_NUMBER_OPS: dict[str, Callable[[Any, Any], Any]] = {
    **_DIM_OPS,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
}


def combine(op: str, left: Number, right: Number, at: Place) -> Number:
    """``left op right``, worked out now.

    Raises:
        Problem: the operator does not work on these, or the result is too large.
    """
    if isinstance(left, bool) or isinstance(right, bool):
        raise Problem(f"'{op}' on true or false", at)
    if isinstance(left, DimExpr) or isinstance(right, DimExpr):
        if op not in _DIM_OPS or isinstance(left, float) or isinstance(right, float):
            raise Problem(
                f"'{op}' of {left} and {right}", at, "dims allow + - * // % with other dims and integers"
            )
    elif op not in _NUMBER_OPS:
        raise Problem(f"'{op}' compares two numbers, {left} and {right}", at, "one of them must be a tensor")
    elif op == "**" and abs(right) > _MAX_EXPONENT:
        raise Problem(f"the exponent {right} is too large", at)
    try:
        return bounded(_NUMBER_OPS[op](left, right), at)
    except (ArithmeticError, TypeCheckError) as error:
        raise Problem(f"'{op}' of {left} and {right}: {error}", at) from None


def negate(value: Number, at: Place) -> Number:
    """``-value``."""
    if isinstance(value, bool):
        raise Problem("'-' on true or false", at)
    return -value


def bounded(value: object, at: Place) -> Number:
    """``value``, if it is a number or dim of a reasonable size.

    Raises:
        Problem: it is not.
    """
    if isinstance(value, DimExpr):
        longest = max(len(monomial) for monomial, _ in value.terms)
        largest = max(abs(coefficient) for _, coefficient in value.terms)
        if len(value.terms) > MAX_TERMS or longest > MAX_TERMS or largest >= 2**64:
            raise Problem("the dim has too many terms, factors or digits", at)
        return value
    if isinstance(value, int) and abs(value) >= 2**64:
        raise Problem("the number has more than 64 bits", at)
    if not isinstance(value, (int, float)):
        raise Problem("the result is not a real number", at)
    return value


def check_product(dims: tuple[object, ...], at: Place) -> None:
    """Check that the product of ``dims`` stays small enough to work with.

    Raises:
        Problem: it would not.
    """
    terms = 1
    for dim in dims:
        terms *= len(dim.terms) if isinstance(dim, DimExpr) else 1
        if terms > MAX_PRODUCT:
            raise Problem(f"the product of these dims has more than {MAX_PRODUCT} terms", at)
