"""The syntax tree of the language: what was written and where, before names and types mean anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_DEPTH = 100
"""How deep expressions, trees and plans may nest; elaboration recurses this far and no further."""


class Place(NamedTuple):
    """A place in the text; columns count from 1 and ``end_column`` is exclusive, on the same line."""

    line: int
    column: int
    end_column: int

    def to(self, other: Place) -> Place:
        """From the start of this place to the end of another, or of the line's part of it."""
        return Place(self.line, self.column, other.end_column) if self.line == other.line else self


class Problem(Exception):
    """Something is wrong at a place; `planc.text.parser` makes a SourceError of it."""

    def __init__(self, message: str, place: Place, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.hint = hint


class SyntaxProblem(Problem):
    """The text is not in the language, as against one that is and means nothing."""


@dataclass(frozen=True, slots=True)
class Ident:
    """A name; ``quoted`` where it was written in backticks, which makes any text a name and no keyword."""

    at: Place
    text: str
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, true, false, none or a string."""

    at: Place
    value: int | float | bool | str | None
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Name:
    """A name, of whatever kind."""

    at: Place
    text: str
    depth: int = 0


@dataclass(frozen=True, slots=True)
class ListOf:
    """``[a, b]``."""

    at: Place
    items: tuple[Expr, ...]
    depth: int


@dataclass(frozen=True, slots=True)
class Call:
    """``callee(arguments, name=argument)``."""

    at: Place
    callee: Ident
    arguments: tuple[Expr, ...]
    keywords: tuple[tuple[Ident, Expr], ...]
    depth: int


@dataclass(frozen=True, slots=True)
class Negative:
    """``-operand``, where the operand is no plain number."""

    at: Place
    operand: Expr
    depth: int


@dataclass(frozen=True, slots=True)
class Chain:
    """Operators of one precedence, from the left: ``first op a op b``. Flat: long sums are not deep."""

    at: Place
    first: Expr
    rest: tuple[tuple[str, Expr], ...]
    depth: int


Expr = Literal | Name | ListOf | Call | Negative | Chain


@dataclass(frozen=True, slots=True)
class TreeOf:
    """A container in ``takes`` and ``gives``: a tuple, list or dict (``keys``) of trees."""

    at: Place
    kind: str
    keys: tuple[str, ...]
    items: tuple[TreeExpr, ...]
    depth: int


TreeExpr = Literal | Name | TreeOf


@dataclass(frozen=True, slots=True)
class TypeExpr:
    """``f32[b, 784]``."""

    at: Place
    dtype: Ident
    dims: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """An input, or a result of the plan: ``[role] name: type "path"``. Results may leave out all but one."""

    at: Place
    role: Ident | None
    name: Ident | None
    type: TypeExpr | None
    path: str | None


@dataclass(frozen=True, slots=True)
class Range:
    """``b in 1..1024``, or ``b`` alone."""

    name: Ident
    lo: int | None = None
    hi: int | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """``n == m*2``, of dims."""

    at: Place
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class ConstDef:
    """``const name: type = data``; the data is nested lists of numbers, or a digest (a string)."""

    name: Ident
    type: TypeExpr
    data: Expr | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """``name`` or ``name: type`` left of an ``=``."""

    name: Ident
    type: TypeExpr | None


@dataclass(frozen=True, slots=True)
class Assign:
    """``a, b = value``; without targets, a call that has no results."""

    at: Place
    targets: tuple[Target, ...]
    value: Expr


@dataclass(frozen=True, slots=True)
class Collect:
    """``collect name`` or ``collect name = value``, in a loop: a row of a result for every trip."""

    at: Place
    target: Target
    value: Expr | None


@dataclass(frozen=True, slots=True)
class Loop:
    """``for targets in source { statements }``."""

    at: Place
    targets: tuple[Target, ...]
    source: Call
    statements: tuple[Statement, ...]
    depth: int


Statement = Assign | Collect | Loop


@dataclass(frozen=True, slots=True)
class Return:
    """``return a, b``."""

    at: Place
    values: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """``takes tree`` or ``gives tree``."""

    at: Place
    tree: TreeExpr


@dataclass(frozen=True, slots=True)
class PlanDef:
    """One plan. ``results`` is None where the header has no ``->``."""

    name: Ident
    inputs: tuple[Port, ...]
    results: tuple[Port, ...] | None
    ranges: tuple[Range, ...]
    relations: tuple[Relation, ...]
    plans: tuple[PlanDef, ...]
    consts: tuple[ConstDef, ...]
    statements: tuple[Statement, ...]
    takes: Arrangement | None
    gives: Arrangement | None
    returned: Return | None
    depth: int = field(default=0)


def deeper(children: Iterable[Expr | TreeExpr | PlanDef | Loop], at: Place) -> int:
    """The depth of a construct over ``children``.

    Raises:
        SyntaxProblem: it would be more than `MAX_DEPTH`.
    """
    depth = 1 + max((child.depth for child in children), default=0)
    if depth > MAX_DEPTH:
        raise SyntaxProblem(
            f"nested more than {MAX_DEPTH} deep", at, "give parts of the expression names of their own"
        )
    return depth


def names_in(expr: Expr) -> Iterator[str]:
    """The names in an expression, in the order of the text, without those of calls and keywords."""
    if isinstance(expr, Name):
        yield expr.text
    elif isinstance(expr, Negative):
        yield from names_in(expr.operand)
    elif isinstance(expr, Chain):
        yield from names_in(expr.first)
        for _, operand in expr.rest:
            yield from names_in(operand)
    elif isinstance(expr, ListOf):
        for item in expr.items:
            yield from names_in(item)
    elif isinstance(expr, Call):
        for item in (*expr.arguments, *(value for _, value in expr.keywords)):
            yield from names_in(item)


def names_read(statements: Iterable[Statement]) -> Iterator[str]:
    """Every name that statements read, as values or dims, with repeats."""
    for statement in statements:
        if isinstance(statement, Loop):
            yield from _type_names(statement.targets)
            yield from names_in(statement.source)
            yield from names_read(statement.statements)
        elif isinstance(statement, Assign):
            yield from _type_names(statement.targets)
            yield from names_in(statement.value)
        else:
            yield from _type_names((statement.target,))
            yield from (statement.target.name.text,) if statement.value is None else names_in(statement.value)


def names_assigned(statements: Iterable[Statement]) -> Iterator[str]:
    """Every name that statements give a value, in loops among them too, with repeats."""
    for statement in statements:
        if isinstance(statement, Loop):
            yield from names_assigned(statement.statements)
            inner = (item for item in statement.statements if isinstance(item, Collect))
            yield from (item.target.name.text for item in inner)
        elif isinstance(statement, Assign):
            for target in statement.targets:
                if target.name.text != "_" or target.name.quoted:
                    yield target.name.text


def _type_names(targets: Iterable[Target]) -> Iterator[str]:
    for target in targets:
        for dim in target.type.dims if target.type is not None else ():
            yield from names_in(dim)
