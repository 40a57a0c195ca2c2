"""Sizes of a plan's named dims, from options (``--batch 64``, ``--dim n=1000``) or assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import typer

from planc.ir import Graph
from planc.ir.binding import solved
from planc.ir.facts import Facts

DEFAULT = 64
"""The size that is assumed for a dim, within its range: a usual batch."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A size for every dim of a plan, and which of them were not given but assumed."""

    dims: dict[str, int]
    assumed: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.dims.items())

    @property
    def note(self) -> str:
        """What was assumed, as a sentence; empty where nothing was."""
        if not self.assumed:
            return ""
        named = ", ".join(f"{name}={self.dims[name]}" for name in self.assumed)
        return f"assumed {named}; give sizes with --dim {self.assumed[0]}=N"


def sizes_for(graph: Graph, given: Sequence[str], batch: int | None = None) -> Sizes:
    """The sizes of the dims of ``graph``.

    Args:
        graph: the plan.
        given: entries ``name=size``. A dim that the plan does not have is left to `planc.cost` to refuse.
        batch: the size of the first dim.

    Raises:
        typer.BadParameter: an entry is not of that form, or a dim is given twice.
    """
    dims = _parsed(given)
    if batch is not None:
        if not graph.dims:
            raise typer.BadParameter(f"plan {graph.name!r} has no dim that varies", param_hint="--batch")
        first = graph.dims[0].name
        if first in dims:
            raise typer.BadParameter(f"dim {first} is given by --dim too", param_hint="--batch")
        dims[first] = batch
    ranges = Facts.of(graph.dims).ranges
    related = solved(graph, dims)
    missing = [var.name for var in graph.dims if var.name not in related and var.equals is None]
    assumed = {name: min(max(DEFAULT, ranges[name][0]), ranges[name][1]) for name in missing}
    # In the order of the plan's dims; what it does not have comes last, for `planc.cost` to refuse.
    sizes = solved(graph, {**related, **assumed})
    known = {var.name: sizes[var.name] for var in graph.dims if var.name in sizes}
    return Sizes({**known, **sizes}, tuple(missing))


def _parsed(given: Sequence[str]) -> dict[str, int]:
    dims: dict[str, int] = {}
    for entry in given:
        name, equals, size = entry.partition("=")
        name = name.strip()
        try:
            value = int(size)
        except ValueError:
            equals, value = "", 0
        if not equals or not name:
            raise typer.BadParameter(f"expected NAME=SIZE, got {entry!r}", param_hint="--dim")
        if name in dims:
            raise typer.BadParameter(f"dim {name} is given twice", param_hint="--dim")
        dims[name] = value
    return dims


__all__ = ["DEFAULT", "Sizes", "sizes_for"]
