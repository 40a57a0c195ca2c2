"""Slices and squeezes of dims that vary: captured where they mean one thing at all sizes, or refused.

Python cuts a slice off at the ends of a dim, so its length need not be one formula of the sizes. No kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from planc.capture.importer import Entry, Importer
from planc.errors import TypeCheckError
from planc.ir import MAX_DIM, Dim, DimVar, Value
from planc.ir.dims import evaluate, floordiv, names, show
from planc.ir.facts import Bounds, knowing
from planc.ops.rules import axis
from planc.ops.views import slice_length

_TRIED = 130
"""So many of the least sizes are tried: a formula fails where a dim is shorter than a bound."""
_USUAL = 64
_SEARCHED = 1024
_TO_THE_END = 2**63 - 1


def slice_(importer: Importer, n: torch.fx.Node, args: Mapping[str, Any]) -> Entry:
    """A slice whose length is one formula in all of its dims' ranges."""
    value: Value = importer.entry(args["self"])
    attrs = _checked(importer, args, value)
    return importer.emit("aten.slice", value, **attrs)


def slice_scatter(importer: Importer, n: torch.fx.Node, args: Mapping[str, Any]) -> Entry:
    """Writes into such a slice."""
    value: Value = importer.entry(args["self"])
    attrs = _checked(importer, args, value)
    return importer.emit("aten.slice_scatter", value, importer.entry(args["src"]), **attrs)


def squeeze(importer: Importer, n: torch.fx.Node, args: Mapping[str, Any]) -> Entry:
    """Without those of the named dims that are 1; that one row is no special case is seen to elsewhere."""
    value: Value = importer.entry(args["self"])
    dims = args["dim"] if isinstance(args["dim"], (tuple, list)) else (args["dim"],)
    ones = tuple(d for d in dims if value.type.shape and value.type.shape[axis(d, value.type.rank)] == 1)
    return importer.emit("aten.squeeze", value, dim=ones) if ones else value


def _checked(importer: Importer, args: Mapping[str, Any], value: Value) -> dict[str, Any]:
    """The attributes of a slice.

    Raises:
        TypeCheckError: its length is another formula at some sizes; says at which it is one.
    """
    start, end = (importer.entry(args.get(name)) for name in ("start", "end"))
    at, step = args.get("dim", 0), args.get("step", 1)
    attrs = {"dim": at, "start": start, "end": end, "step": step}
    size = value.type.shape[axis(at, value.type.rank)]
    wanted, variables = _Slice(size, start, end, step), importer.builder.dims
    if isinstance(size, int) or wanted.length(variables) is not None:
        return attrs
    for i, var in enumerate(variables):
        for least in range(var.lo + 1, min(var.hi, var.lo + _SEARCHED)) if var.name in wanted.names() else ():
            narrow = replace(var, lo=least)
            length = wanted.length([*variables[:i], narrow, *variables[i + 1 :]])
            if length is not None:
                raise TypeCheckError(wanted.advice(length, narrow))
    return attrs  # which type inference refuses


@dataclass(frozen=True)
class _Slice:
    """Every ``step``-th position from ``start`` to ``end`` of a dim."""

    size: Dim
    start: Dim | None
    end: Dim | None
    step: int

    def names(self) -> set[str]:
        return {name for dim in (self.size, self.start, self.end) if dim is not None for name in names(dim)}

    def length(self, variables: Sequence[DimVar]) -> Dim | None:
        """How many positions that is, where one formula says so for all sizes that are tried."""
        with knowing(variables) as facts:
            start, end = (None if dim is None else facts.dim(dim) for dim in (self.start, self.end))
            plain = _Slice(facts.dim(self.size), start, end, self.step)
            try:
                reach = slice_length(plain.size, plain.start, plain.end)
            except TypeCheckError:
                return None
            length = floordiv(reach + (self.step - 1), self.step)
            for sizes in _trials({name: facts.ranges[name] for name in sorted(plain.names())}):
                have = plain.count(sizes)
                if have is not None and have != evaluate(length, sizes):
                    return None
            return length

    def count(self, sizes: Mapping[str, int]) -> int | None:
        """The length at these sizes; None where the dim itself would be less than nothing."""
        size, start, end = (
            None if d is None else evaluate(d, sizes) for d in (self.size, self.start, self.end)
        )
        return None if size is None or size < 0 else len(range(size)[start : end : self.step])

    def advice(self, length: Dim, var: DimVar) -> str:
        most = "hi" if var.hi == MAX_DIM else var.hi
        end = self.size if self.end is None or self.end == _TO_THE_END else self.end
        return (
            f"a slice from {show(self.start or 0)} up to {show(end)} of a dim of size {show(self.size)} is "
            f"{show(length)} long only where {var.name} is at least {var.lo}. Give the dim such a range, "
            f"ranges={{{var.name!r}: ({var.lo}, {most})}}, or fix it, dynamic=False"
        )


def _trials(ranges: Mapping[str, Bounds]) -> Iterator[dict[str, int]]:
    """Sizes in the ranges of dims: of each the least ones and the largest, the others at two sizes."""
    for usual in (1, _USUAL):
        others = {name: min(max(lo, usual), hi) for name, (lo, hi) in ranges.items()}
        for name, (lo, hi) in ranges.items():
            for size in {*range(lo, min(hi, lo + _TRIED) + 1), hi}:
                yield {**others, name: size}
