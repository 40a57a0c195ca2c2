"""What messages are made of: the two kinds of structs, names and sizes with their bounds, and values.

Sizes are bounded here so that a hostile frame cannot make many objects out of few bytes. The messages
themselves are `runtime.messages`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from planc.ir import DType

MAX_ID = 2**63 - 1
MAX_TAGS = 64
Id = Annotated[int, Meta(ge=1, le=MAX_ID)]
"""The id of an object: chosen by the caller, unique at its worker."""
Ids = Annotated[tuple[Id, ...], Meta(max_length=65_536)]
Name = Annotated[str, Meta(max_length=256)]
Names = Annotated[tuple[Name, ...], Meta(max_length=MAX_TAGS)]
Text = Annotated[str, Meta(max_length=4096)]
PlanId = Annotated[str, Meta(max_length=64)]
Size = Annotated[int, Meta(ge=0, le=MAX_ID)]


class Form(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """An untagged form: its place says what it is."""


class Tagged(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, tag_field="t"):
    """A form with its tag in front, where several could stand."""


# Values


class Handle(Tagged, frozen=True, tag=0):
    """An object in the worker's store."""

    id: Id


class Slot(Tagged, frozen=True, tag=1):
    """A tensor of the frame that carries this message."""

    index: Size


class Pointer(Tagged, frozen=True, tag=2):
    """An object at a worker, held as a value of its own."""

    worker: Name
    id: Id


class Items(Tagged, frozen=True, tag=3):
    """An operand that is a list of tensors."""

    items: Annotated[tuple[Handle | Slot | None, ...], Meta(max_length=20_000)]


class ElementType(Tagged, frozen=True, tag=4):
    """An attribute that is a dtype."""

    dtype: DType


class Numbers(Tagged, frozen=True, tag=5):
    """An attribute that is a list."""

    items: Annotated[tuple[int | float | bool, ...], Meta(max_length=4096)]


class Gradient(Tagged, frozen=True, tag=6):
    """The ``.grad`` of an object in the worker's store."""

    id: Id
