"""``where n == m*2``: which dim an equality defines, and by what. Ranges and shapes are not its affair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import gcd

from planc.ir import Dim, DimExpr, DimVar
from planc.ir.dims import names, show, substitute, sym
from planc.ir.facts import Facts
from planc.text.arithmetic import bounded
from planc.text.dims import Dims, number_of
from planc.text.suggest import nearest
from planc.text.syntax import Expr, Name, Problem, Relation, names_in


def define(declared: Mapping[str, DimVar], relations: Iterable[Relation], scope: Dims) -> list[DimVar]:
    """The dims of a plan with what its relations say of them: each solved for one dim by itself.

    Raises:
        Problem: a relation holds always or never, or cannot be solved for a dim.
    """
    found: dict[str, Dim] = {}
    for relation in relations:
        left, right = (substitute(_side(side, scope), found) for side in (relation.left, relation.right))
        wanted = [side.text for side in (relation.left, relation.right) if isinstance(side, Name)]
        name, value = _solved(left, right, [*wanted, *reversed(list(declared))], relation)
        # What was defined before may have used this dim: all are written with dims that nothing defines.
        found = {other: substitute(dim, {name: value}) for other, dim in found.items()} | {name: value}
        _check_ranges(declared, found, relation)
    return [replace(var, equals=found.get(var.name)) for var in declared.values()]


def _check_ranges(declared: Mapping[str, DimVar], found: Mapping[str, Dim], relation: Relation) -> None:
    dims = [replace(var, equals=found.get(var.name)) for var in declared.values()]
    facts = Facts.of(dims)
    for name, value in found.items():
        bounded(value, relation.at)
        if not facts.can_hold(replace(declared[name], equals=value)):
            used = (declared[dim] for dim in dict.fromkeys([name, *names(value)]))
            ranges = ", ".join(f"{var.name} in {var.lo}..{var.hi}" for var in used)
            raise Problem(
                f"{name} == {show(value)} holds for no sizes with {ranges}",
                relation.at,
                "widen a range, or leave the relation out",
            )


def _side(expr: Expr, scope: Dims) -> Dim:
    unknown = next((name for name in names_in(expr) if name not in scope.names), None)
    if unknown is not None:
        hint = f"a dim that no input's shape names is declared first: where {unknown}, n == {unknown}*2"
        raise Problem(f"there is no dim {unknown!r}", expr.at, nearest(unknown, scope.names, hint))
    value = number_of(scope.constant(expr), expr)
    if isinstance(value, (bool, float)):
        raise Problem(f"a relation is between dims, got {value}", expr.at, "write: where n == m*2")
    return value


def _solved(left: Dim, right: Dim, wanted: Iterable[str], relation: Relation) -> tuple[str, Dim]:
    difference = left - right
    if isinstance(difference, int):
        if difference == 0:
            hint = "it says nothing; leave it out"
            raise Problem("this relation always holds", relation.at, hint)
        raise Problem(f"this relation never holds: it says {show(left)} == {show(right)}", relation.at)
    common = gcd(*(coefficient for _, coefficient in difference.terms))
    difference = difference // common  # exact, and 2*n == 2*m says no more than n == m
    assert isinstance(difference, DimExpr)
    for name in wanted:
        value = _isolated(difference, name)
        if value is not None:
            return name, value
    hint = "a relation says what one dim is: n == m*2, or k, n == k*8 for a multiple of 8"
    raise Problem("this relation cannot be solved for one of its dims", relation.at, hint)


def _isolated(zero: DimExpr, name: str) -> Dim | None:
    """What ``name`` is where ``zero`` is 0, if that takes no division."""
    factor = next((coefficient for monomial, coefficient in zero.terms if monomial == (name,)), 0)
    rest = zero - sym(name) * factor
    return rest * -factor if abs(factor) == 1 and name not in set(names(rest)) else None
