"""The closed set of forms that a plan's bytes are made of: typed msgpack arrays, tagged where several fit.

Layout only. Adding, removing or reordering a field here is a new version of the format. A plan is written in
the oldest version that has a form for all of it, so that a new version changes no plan's bytes and no id.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from planc.ir import DType, Role

MAGIC = "planc.plan"
PLAIN, RELATED = 1, 2
"""Versions of the format: the second has relations between dims, which the first has no form for."""
VERSIONS = (PLAIN, RELATED)


class Document(msgspec.Struct, array_like=True):
    """What every version has in front; the body is read once the version is known."""

    magic: str
    version: int
    body: msgspec.Raw


class _Form(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A fixed array, without tag where its place says what it is. Surplus entries are refused."""


class Division(_Form, tag=0):
    """``numerator // denominator``."""

    numerator: WireDim
    denominator: WireDim


class Term(_Form):
    """A product, as in `planc.ir.dims`."""

    factors: tuple[str | Division, ...]
    coefficient: int


class Expression(_Form, tag=1):
    """A dim that is not an int."""

    terms: tuple[Term, ...]


class ElementType(_Form, tag=2):
    """A dtype where other values could stand."""

    dtype: DType


class Items(_Form, tag=3):
    """An attribute that is a list."""

    items: tuple[int | float | bool | Expression, ...]


class Ref(_Form, tag=4):
    """An operand that is a value."""

    index: int


class Refs(_Form, tag=5):
    """An operand that is a list of values, some of which may be missing."""

    indexes: tuple[int | None, ...]


class LeafForm(_Form, tag=6):
    """A tensor in a structure."""


class FixedForm(_Form, tag=7):
    """A Python value in a structure."""

    value: int | float | bool | str | None


class SequenceForm(_Form, tag=8):
    """A tuple or list in a structure."""

    kind: Literal["tuple", "list"]
    items: tuple[WireTree, ...]


class MappingForm(_Form, tag=9):
    """A dict in a structure."""

    keys: tuple[str, ...]
    items: tuple[WireTree, ...]


WireDim = int | Expression
WireAttribute = int | float | bool | str | None | Expression | ElementType | Items
WireOperand = int | float | bool | None | Expression | Ref | Refs
WireTree = LeafForm | FixedForm | SequenceForm | MappingForm


class Type(_Form):
    """A tensor type."""

    dtype: DType
    shape: tuple[WireDim, ...]


class Range(_Form):
    """A named dim."""

    name: str
    lo: int
    hi: int


class RelatedRange(Range):
    """A named dim that others define; without ``equals`` it is written as a `Range`."""

    equals: WireDim | None = None


class InputForm(_Form):
    """One input."""

    name: str
    role: Role
    path: str
    type: Type


class OutputForm(_Form):
    """One output; ``index`` is its value."""

    name: str
    role: Role
    path: str
    index: int


class ConstantForm(_Form):
    """One constant."""

    type: Type
    digest: str


class AttributeForm(_Form):
    """One attribute that differs from its default."""

    name: str
    value: WireAttribute


class NodeForm(_Form):
    """Results are types only: values are numbered by position."""

    op: str
    operands: tuple[WireOperand, ...]
    attrs: tuple[AttributeForm, ...]
    results: tuple[Type, ...]


class Body(_Form):
    """One plan."""

    name: str
    dims: tuple[RelatedRange, ...]
    inputs: tuple[InputForm, ...]
    constants: tuple[ConstantForm, ...]
    nodes: tuple[NodeForm, ...]
    outputs: tuple[OutputForm, ...]
    subplans: tuple[Body, ...]
    takes: WireTree | None
    gives: WireTree | None
