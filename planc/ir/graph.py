"""The IR: a Graph of Nodes over Values, immutable and purely functional.

Values are numbered by position (inputs, then constants, then the results of nodes in order), so equal
programs are equal objects and have equal bytes. Nothing here runs, infers or prints; `planc.Plan` is what
users hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from planc.ir.dims import Dim, DimExpr
from planc.ir.structure import Tree
from planc.ir.types import DType, TensorType

MAX_DIM = 2**31 - 1
"""The default upper bound of a named dim."""


class Role(Enum):
    """What an input or output is to the user. Everything but ARGUMENT is state."""

    __hash__ = object.__hash__  # Enum has its own, in Python

    ARGUMENT = "arg"
    PARAMETER = "param"
    BUFFER = "buffer"
    OPTIMIZER = "optim"
    KEY = "key"

    @property
    def is_state(self) -> bool:
        return self is not Role.ARGUMENT


@dataclass(frozen=True, slots=True)
class Value:
    """One SSA value: its number in its graph and its type."""

    index: int
    type: TensorType


Scalar = int | float | bool
Operand = Value | Scalar | DimExpr | None | tuple["Value | None", ...]
"""A value, a number where the op takes one instead, nothing where it is optional, or a list of values."""
Attribute = int | float | bool | str | DimExpr | DType | None | tuple["int | float | bool | DimExpr", ...]


@dataclass(frozen=True, slots=True)
class Location:
    """Where in the user's source a node came from. Never part of a plan's bytes or id."""

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    ``attrs`` holds only attributes that differ from the op's default, in the order of its schema.
    """

    op: str
    operands: tuple[Operand, ...]
    attrs: tuple[tuple[str, Attribute], ...]
    results: tuple[Value, ...]
    loc: Location | None = field(default=None, compare=False)

    def values(self) -> Iterator[Value]:
        """The values it reads, in order, with repeats."""
        for operand in self.operands:
            if isinstance(operand, Value):
                yield operand
            elif isinstance(operand, tuple):
                yield from (item for item in operand if item is not None)

    def attr(self, name: str, default: Attribute = None) -> Attribute:
        """The stored attribute ``name``, or ``default``."""
        return next((value for key, value in self.attrs if key == name), default)


@dataclass(frozen=True, slots=True)
class DimVar:
    """A named dim, its inclusive range and, where others define it, what it equals.

    ``equals`` uses dims that nothing defines. Only the types of inputs name a dim that others define: all
    else in a plan is written with what it equals (`planc.ir.facts`), so that equal sizes are equal dims.
    """

    name: str
    lo: int = 1
    hi: int = MAX_DIM
    equals: Dim | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """One input. ``name`` is an identifier, unique in the graph; ``path`` is the user's ("fc1.weight")."""

    value: Value
    name: str
    role: Role
    path: str


@dataclass(frozen=True, slots=True)
class Output:
    """One output. An output of a state role updates the input of the same role and path."""

    value: Value
    name: str
    role: Role
    path: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that belongs to the plan, named by the SHA-256 of its type and bytes (hex)."""

    value: Value
    digest: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A typed, bounded graph of tensor operations."""

    name: str
    dims: tuple[DimVar, ...]
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    constants: tuple[Constant, ...] = ()
    subplans: tuple[Graph, ...] = ()
    takes: Tree | None = None
    gives: Tree | None = None

    def arguments(self) -> tuple[Input, ...]:
        """The inputs that a caller passes, in order."""
        return tuple(port for port in self.inputs if not port.role.is_state)

    def state(self) -> tuple[Input, ...]:
        """The inputs that are state, in order."""
        return tuple(port for port in self.inputs if port.role.is_state)

    def results(self) -> tuple[Output, ...]:
        """The outputs that a caller gets, in order."""
        return tuple(port for port in self.outputs if not port.role.is_state)

    def updates(self) -> tuple[Output, ...]:
        """The outputs that replace state, in order."""
        return tuple(port for port in self.outputs if port.role.is_state)

    def dim(self, name: str) -> DimVar | None:
        return next((var for var in self.dims if var.name == name), None)

    def walk(self) -> Iterator[Graph]:
        """This graph and all those below it, outermost first."""
        yield self
        for sub in self.subplans:
            yield from sub.walk()

    def count_nodes(self) -> int:
        """Nodes in this graph and all below."""
        return sum(len(graph.nodes) for graph in self.walk())


def is_dim(value: object) -> bool:
    """Whether ``value`` can be a dim (an int that is not a bool, or an expression)."""
    return isinstance(value, DimExpr) or (isinstance(value, int) and not isinstance(value, bool))


__all__ = [
    "MAX_DIM",
    "Attribute",
    "Constant",
    "Dim",
    "DimVar",
    "Graph",
    "Input",
    "Location",
    "Node",
    "Operand",
    "Output",
    "Role",
    "Scalar",
    "Value",
    "is_dim",
]
