"""What is known of a plan's dims besides their names: their ranges, and which are defined by others.

Type inference asks here (`known`) instead of taking one more argument in every op. Nothing is proved that
takes more than interval arithmetic, and nothing here knows about tensors' data.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import reduce

from planc.ir.dims import Atom, Dim, DimExpr, names, show, sym
from planc.ir.dims import substitute as substituted
from planc.ir.graph import MAX_DIM, Attribute, DimVar, Graph, Operand
from planc.ir.types import TensorType

Bounds = tuple[int, int]
"""The least and the largest value, both of which may be beyond what is ever reached."""


@dataclass(frozen=True)
class Facts:
    """Ranges of dims by name, and the dims that are defined by others.

    In a plan where ``m == n``, a value of type ``f32[m]`` is one of type ``f32[n]``: the types of all values
    but inputs are written with dims that nothing defines, so that equality stays comparison.
    """

    ranges: Mapping[str, Bounds] = field(default_factory=dict[str, Bounds])
    definitions: Mapping[str, Dim] = field(default_factory=dict[str, Dim])

    @classmethod
    def of(cls, dims: Iterable[DimVar]) -> Facts:
        """What a plan's dims say."""
        dims = list(dims)
        ranges = {var.name: (var.lo, var.hi) for var in dims}
        definitions = {var.name: var.equals for var in dims if var.equals is not None}
        for name, equals in definitions.items():
            _narrow(ranges, equals, ranges[name])
        return cls(ranges, definitions)

    def dim(self, dim: Dim) -> Dim:
        """``dim`` without the dims that others define."""
        return substituted(dim, self.definitions) if self.definitions else dim

    def type(self, type: TensorType) -> TensorType:
        """``type`` without the dims that others define."""
        return type.substitute(self.definitions) if self.definitions else type

    def operand(self, operand: Operand) -> Operand:
        """An operand that is a dim, without the dims that others define; any other as it is."""
        return self.dim(operand) if isinstance(operand, DimExpr) else operand

    def attribute(self, value: Attribute) -> Attribute:
        """An attribute without the dims that others define."""
        if isinstance(value, tuple):
            return tuple(self.dim(item) if isinstance(item, DimExpr) else item for item in value)
        return self.dim(value) if isinstance(value, DimExpr) else value

    def can_hold(self, var: DimVar) -> bool:
        """Whether some size in a dim's range may be what it equals, as far as is easy to see."""
        if var.equals is None:
            return True
        if any(lo > hi for name in names(var.equals) for lo, hi in [self.ranges.get(name, (0, 0))]):
            return False  # narrowed to nothing
        bounds = self.bounds(var.equals)
        return bounds is None or max(bounds[0], var.lo) <= min(bounds[1], var.hi)

    def bounds(self, dim: Dim) -> Bounds | None:
        """Between which numbers ``dim`` lies whatever its names are, as far as is easy to see, or None."""
        return _bounds(self.dim(dim), self.ranges)


_KNOWN: ContextVar[Facts] = ContextVar("known", default=Facts())  # noqa: B039 -- nothing ever changes one


def known() -> Facts:
    """What is known of the dims of the plan that is being made or checked."""
    return _KNOWN.get()


@contextmanager
def knowing(dims: Iterable[DimVar]) -> Generator[Facts]:
    """While active, types are inferred with what these dims of a plan say."""
    facts = Facts.of(dims)
    token = _KNOWN.set(facts)
    try:
        yield facts
    finally:
        _KNOWN.reset(token)


def conditions(dims: Iterable[DimVar]) -> list[str]:
    """What a plan demands of its dims, as people read it: ``n in 1..64``, ``n == m*2``; no usual range."""
    dims = list(dims)
    ranges = [f"{var.name} in {var.lo}..{var.hi}" for var in dims if (var.lo, var.hi) != (1, MAX_DIM)]
    return [*ranges, *(f"{var.name} == {show(var.equals)}" for var in dims if var.equals is not None)]


def relations(graph: Graph) -> tuple[tuple[Dim, Dim], ...]:
    """The equalities that a plan demands of its dims: each dim that others define, and what it equals."""
    return tuple((sym(var.name), var.equals) for var in graph.dims if var.equals is not None)


def _narrow(ranges: dict[str, Bounds], dim: Dim, within: Bounds) -> None:
    """Narrow the range of the one name of ``dim``, a line in it, to where ``dim`` lies ``within`` bounds."""
    line = [(monomial, coefficient) for monomial, coefficient in _terms(dim) if monomial]
    if len(line) != 1 or len(line[0][0]) != 1 or not isinstance(name := line[0][0][0], str):
        return
    slope, start = line[0][1], sum(coefficient for monomial, coefficient in _terms(dim) if not monomial)
    ends = [end - start for end in (within if slope > 0 else within[::-1])]
    lo, hi = -(-ends[0] // slope), ends[1] // slope
    if name in ranges:
        ranges[name] = max(lo, ranges[name][0]), min(hi, ranges[name][1])


def _terms(dim: Dim) -> tuple[tuple[tuple[Atom, ...], int], ...]:
    return dim.terms if isinstance(dim, DimExpr) else ()


def _bounds(dim: Dim, ranges: Mapping[str, Bounds]) -> Bounds | None:
    if isinstance(dim, int):
        return dim, dim
    lo = hi = 0
    for monomial, coefficient in dim.terms:
        factors = [_atom_bounds(atom, ranges) for atom in monomial]
        if any(factor is None for factor in factors):
            return None
        found = reduce(_product, (factor for factor in factors if factor is not None), (1, 1))
        least, most = sorted((found[0] * coefficient, found[1] * coefficient))
        lo, hi = lo + least, hi + most
    return lo, hi


def _atom_bounds(atom: Atom, ranges: Mapping[str, Bounds]) -> Bounds | None:
    if isinstance(atom, str):
        return ranges.get(atom)
    over, under = _bounds(atom.numerator, ranges), _bounds(atom.denominator, ranges)
    if over is None or under is None or under[0] <= 0 <= under[1]:
        return None
    corners = [a // b for a in over for b in under]
    return min(corners), max(corners)


def _product(a: Bounds, b: Bounds) -> Bounds:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


__all__ = ["Bounds", "Facts", "conditions", "knowing", "known", "relations"]
