"""Dims as users write them, ``n*2``, and what dims that a function wants related may be. No tensors here."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations

from planc.errors import CaptureError, PlancError
from planc.ir import Dim, sym
from planc.ir.dims import floordiv

_OPERATORS: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: floordiv,
}
_LARGEST_RATIO = 16


def parse_dim(text: str) -> Dim:
    """A dim from its text: names and integers with ``+ - * //``.

    Raises:
        CaptureError: it is nothing of the kind.
    """
    try:
        return _dim(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, PlancError):
        raise CaptureError(
            f"the dim name {text!r} is not an identifier, nor an expression of names like 'n*2'"
        ) from None


def candidates(sizes: Mapping[str, int]) -> Iterator[dict[str, Dim]]:
    """Relations that hold between the sizes of dims, one by one: which dims equal which expressions.

    Dims of one size are equal, and others where one is a small multiple of the other. All that are of one
    size together come last.
    """
    for a, b in combinations(sizes, 2):
        if sizes[a] == sizes[b]:
            yield {a: sym(b)}
    for a, b in combinations(sizes, 2):
        for many, one in ((a, b), (b, a)):
            ratio, rest = divmod(sizes[many], max(sizes[one], 1))
            if not rest and 1 < ratio <= _LARGEST_RATIO:
                yield {many: sym(one) * ratio}
    last = {size: name for name, size in sizes.items()}
    equal: dict[str, Dim] = {name: sym(last[size]) for name, size in sizes.items() if last[size] != name}
    if len(equal) > 1:
        yield equal


def _dim(expr: ast.expr) -> Dim:
    if isinstance(expr, ast.Name):
        return sym(expr.id)
    if isinstance(expr, ast.Constant) and type(expr.value) is int:
        return expr.value
    if isinstance(expr, ast.BinOp) and type(expr.op) in _OPERATORS:
        return _OPERATORS[type(expr.op)](_dim(expr.left), _dim(expr.right))
    raise ValueError
