"""Dimensions: an int, or an integer expression of named dims, kept in one canonical form.

An expression is a polynomial with integer coefficients whose atoms are names and floor divisions, so
that two expressions are equal exactly when their canonical forms are. Nothing here knows about tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

from planc.errors import LimitError, TypeCheckError


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """``numerator // denominator``, where no exact division was possible."""

    numerator: Dim
    denominator: Dim


MAX_PRODUCT_TERMS = 4096
"""Products of sums grow exponentially; inference on a stranger's plan must not."""

Atom = str | FloorDiv
Monomial = tuple[Atom, ...]
"""A product of atoms, sorted; a power is an atom repeated; ``()`` is the constant monomial."""


@dataclass(frozen=True, slots=True)
class DimExpr:
    """A polynomial over named dims that is not a plain int.

    Build with the operators ``+ - * // %`` on dims; they return an int where the result is one.

    >>> b = sym("b")
    >>> str((b * 6 + 12) // 6)
    'b + 2'
    """

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _from_terms([*self.terms, *_terms(other)])

    def __radd__(self, other: int) -> Dim:
        return self + other

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: int) -> Dim:
        return -self + other

    def __mul__(self, other: Dim) -> Dim:
        if len(self.terms) * len(_terms(other)) > MAX_PRODUCT_TERMS:
            raise LimitError(f"a product of dims would have more than {MAX_PRODUCT_TERMS} terms")
        products = [
            (tuple(sorted(m + n, key=_atom_key)), c * d) for m, c in self.terms for n, d in _terms(other)
        ]
        return _from_terms(products)

    def __rmul__(self, other: int) -> Dim:
        return self * other

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return self - (self // other) * other

    def __str__(self) -> str:
        return show(self)

    def __repr__(self) -> str:
        return f"Dim({show(self)})"


Dim = int | DimExpr
Shape = tuple[Dim, ...]


def sym(name: str) -> DimExpr:
    """The dim called ``name``."""
    return DimExpr((((name,), 1),))


def floordiv(numerator: Dim, denominator: Dim) -> Dim:
    """``numerator // denominator`` in canonical form.

    Raises:
        TypeCheckError: the denominator is the int 0.
    """
    if denominator == 0:
        raise TypeCheckError("a dim is divided by zero")
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator // denominator
    exact: list[tuple[Monomial, int]] = []
    rest: list[tuple[Monomial, int]] = []
    divisor = _terms(denominator)
    for monomial, coefficient in _terms(numerator):
        quotient = _divide_term(monomial, coefficient, divisor[0]) if len(divisor) == 1 else None
        if quotient is not None:
            exact.append(quotient)
        else:
            rest.append((monomial, coefficient))
    remainder = _from_terms(rest)
    if _terms(remainder) == divisor:
        return _from_terms([*exact, ((), 1)])
    if isinstance(remainder, int) and isinstance(denominator, int):
        return _from_terms([*exact, ((), remainder // denominator)])
    if remainder == 0:
        return _from_terms(exact)
    return _from_terms([*exact, ((FloorDiv(remainder, denominator),), 1)])


def product(dims: Shape) -> Dim:
    """The number of elements of a shape."""
    return reduce(lambda a, b: a * b, dims, 1)


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int:
    """The value of ``dim`` under ``bindings``.

    Raises:
        KeyError: a name is not bound.
    """
    if isinstance(dim, int):
        return dim
    return sum(c * reduce(lambda a, b: a * _atom_value(b, bindings), m, 1) for m, c in dim.terms)


def substitute(dim: Dim, bindings: Mapping[str, Dim]) -> Dim:
    """``dim`` with each bound name replaced by its expression, all at once."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        value: Dim = coefficient
        for atom in monomial:
            if isinstance(atom, str):
                value = value * bindings.get(atom, sym(atom))
            else:
                value = value * floordiv(
                    substitute(atom.numerator, bindings), substitute(atom.denominator, bindings)
                )
        total = total + value
    return total


def names(dim: Dim) -> Iterator[str]:
    """The dim names in an expression, with repeats."""
    if isinstance(dim, int):
        return
    for monomial, _ in dim.terms:
        for atom in monomial:
            if isinstance(atom, str):
                yield atom
            else:
                yield from names(atom.numerator)
                yield from names(atom.denominator)


def depth(dim: Dim) -> int:
    """How deep floor divisions nest: 0 for an int or a polynomial of names."""
    if isinstance(dim, int):
        return 0
    nested = [
        1 + max(depth(a.numerator), depth(a.denominator))
        for m, _ in dim.terms
        for a in m
        if isinstance(a, FloorDiv)
    ]
    return max(nested, default=0)


def solve(dim: Dim, size: int, bindings: Mapping[str, int]) -> tuple[str, int] | None:
    """The one unbound name of a linear ``dim`` and the value that makes it equal ``size``, if any."""
    if isinstance(dim, int):
        return None
    unknown = {name for name in names(dim) if name not in bindings}
    if len(unknown) != 1:
        return None
    name = unknown.pop()
    for monomial, _ in dim.terms:
        holding = [atom for atom in monomial if name in _atom_names(atom)]
        if len(holding) > 1 or any(isinstance(atom, FloorDiv) for atom in holding):
            return None  # not linear in the name: trying points could hit a line by chance
    start = evaluate(dim, {**bindings, name: 0})
    slope = evaluate(dim, {**bindings, name: 1}) - start
    if slope == 0 or (size - start) % slope:
        return None
    return name, (size - start) // slope


def show(dim: Dim) -> str:
    """The text of a dim, as the language writes it."""
    if isinstance(dim, int):
        return str(dim)
    parts: list[str] = []
    for monomial, coefficient in dim.terms:
        factors = [_show_atom(atom) for atom in monomial]
        if abs(coefficient) != 1 or not factors:
            factors.append(str(abs(coefficient)))
        sign = ("- " if coefficient < 0 else "+ ") if parts else ("-" if coefficient < 0 else "")
        parts.append(sign + "*".join(factors))
    return " ".join(parts)


def _show_atom(atom: Atom) -> str:
    if isinstance(atom, str):
        return atom
    return f"({_wrap(atom.numerator)}//{_wrap(atom.denominator)})"


def _atom_names(atom: Atom) -> set[str]:
    return {atom} if isinstance(atom, str) else {*names(atom.numerator), *names(atom.denominator)}


def _wrap(dim: Dim) -> str:
    text = show(dim)
    return text if isinstance(dim, int) or text.isidentifier() else f"({text})"


def _atom_key(atom: Atom) -> tuple[int, str]:
    return (0, atom) if isinstance(atom, str) else (1, _show_atom(atom))


def _term_key(term: tuple[Monomial, int]) -> tuple[int, list[tuple[int, str]]]:
    return (-len(term[0]), [_atom_key(a) for a in term[0]])


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(dim, DimExpr):
        return dim.terms
    return (((), dim),) if dim else ()


def _from_terms(terms: list[tuple[Monomial, int]]) -> Dim:
    collected: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        collected[monomial] = collected.get(monomial, 0) + coefficient
    kept = sorted(((m, c) for m, c in collected.items() if c), key=_term_key)
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return DimExpr(tuple(kept))


def _divide_term(
    monomial: Monomial, coefficient: int, by: tuple[Monomial, int]
) -> tuple[Monomial, int] | None:
    if coefficient % by[1]:
        return None
    left = list(monomial)
    for atom in by[0]:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left), coefficient // by[1]


def _atom_value(atom: Atom, bindings: Mapping[str, int]) -> int:
    if isinstance(atom, str):
        return bindings[atom]
    return evaluate(atom.numerator, bindings) // evaluate(atom.denominator, bindings)
