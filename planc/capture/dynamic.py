"""Which dims of the example inputs vary, their names and ranges, and the sizes to trace with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from planc.capture.relating import parse_dim
from planc.errors import CaptureError
from planc.ir import MAX_DIM, Dim, DimVar, sym
from planc.ir.dims import evaluate, substitute
from planc.ir.dims import names as names_in

Dynamic = Mapping[str, Mapping[int, str]] | bool | None
"""``{"x": {0: "b"}}`` names dims by input path, ``{"x": {0: "b*2"}}`` relates one to others; True or None:
the leading dims, as one ``b`` where they are equal; False: none."""

_SIZES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)


@dataclass(frozen=True)
class DynamicDims:
    """What each flat input's varying dims are called, by input position, and each name's range.

    A dim is called by a name or by an expression of names, as the user wrote it.
    """

    names: tuple[dict[int, str], ...]
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    equals: Mapping[str, Dim] = field(default_factory=dict[str, Dim])
    """What names stand for that are related to others."""

    def range_of(self, name: str) -> tuple[int, int]:
        return self.ranges.get(name, (1, MAX_DIM))

    def called(self) -> list[str]:
        """What dims are called, in order of first use."""
        return list(dict.fromkeys(name for names in self.names for _, name in sorted(names.items())))

    def written(self, called: str) -> Dim:
        """The dim that is called so."""
        return sym(called) if called.isidentifier() else parse_dim(called)

    def meaning(self, called: str) -> Dim:
        """The dim that is called so, in names that no others define."""
        return substitute(self.written(called), self.equals)

    def all_names(self) -> list[str]:
        """Every name that no others define, in order of first use."""
        meanings = [self.meaning(called) for called in self.called()]
        return list(dict.fromkeys(name for meaning in meanings for name in names_in(meaning)))

    def variables(self) -> list[DimVar]:
        """The plan's dims: every name, with its range and what it equals."""
        used = [name for called in self.called() for name in names_in(self.written(called))]
        return [
            DimVar(name, *self.range_of(name), self.equals.get(name))
            for name in dict.fromkeys([*used, *self.all_names()])
        ]

    def sizes_at(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The size of everything that is called something, from those of names that no others define."""
        return {called: evaluate(self.meaning(called), sizes) for called in self.called()}

    def allow(self, sizes: Mapping[str, int], least: int = 1) -> bool:
        """Whether all sizes of dims are in their ranges and at least so large."""
        return all(
            max(self.range_of(called)[0], least) <= size <= self.range_of(called)[1]
            for called, size in self.sizes_at(sizes).items()
        )

    def trace_sizes(self, taken: Iterable[int]) -> dict[str, int]:
        """A size for each name that no others define: distinct primes that no other dim has.

        Nothing is then equal by accident.

        Raises:
            CaptureError: no size is left within a name's range.
        """
        used = set(taken)
        sizes: dict[str, int] = {}
        for name in self.all_names():
            lo, hi = self.range_of(name)
            # Never 1: torch takes a dim of one row for a fixed one.
            tried = (*_SIZES, *range(max(lo, 2), lo + 512))
            free = (s for s in tried if lo <= s <= hi and s not in used)
            size = next((s for s in free if self._fits({**sizes, name: s}, used)), None)
            if size is None:
                raise CaptureError(
                    f"no size to trace dim {name} with: other dims have all sizes of its range {lo}..{hi}"
                )
            sizes[name] = size
            used.update(self._known(sizes).values())
        return sizes

    def _fits(self, sizes: Mapping[str, int], used: set[int]) -> bool:
        """Whether dims that depend on the last of these names have sizes of their own too."""
        last = list(sizes)[-1]
        for called, size in self._known(sizes).items():
            lo, hi = self.range_of(called)
            if last in names_in(self.meaning(called)) and (not max(lo, 2) <= size <= hi or size in used):
                return False
        return True

    def _known(self, sizes: Mapping[str, int]) -> dict[str, int]:
        meanings = {called: self.meaning(called) for called in self.called()}
        return {
            called: evaluate(dim, sizes)
            for called, dim in meanings.items()
            if all(name in sizes for name in names_in(dim))
        }


def resolve(
    dynamic: Dynamic,
    paths: Sequence[str],
    examples: Sequence[torch.Tensor],
    ranges: Mapping[str, tuple[int, int]] | None,
    equals: Mapping[str, Dim] | None = None,
) -> DynamicDims:
    """What the user said of varying dims, by input position; ``equals`` are relations that were found.

    Raises:
        CaptureError: an unknown input path or dim, one name on dims of different sizes, or a bad range.
    """
    for name, (lo, hi) in (ranges or {}).items():
        if not 1 <= lo <= hi <= MAX_DIM:
            raise CaptureError(f"the range {lo}..{hi} of dim {name} must lie within 1..{MAX_DIM}")
    out = _named(dynamic, paths, examples)
    dims = DynamicDims(tuple(out), ranges or {}, dict(equals or {}))
    used = {var.name for var in dims.variables()}
    unknown = sorted(set(ranges or ()) - used)
    if unknown:
        raise CaptureError(f"ranges names the dim {unknown[0]!r}, but the dims that vary are {sorted(used)}")
    return dims


def _named(dynamic: Dynamic, paths: Sequence[str], examples: Sequence[torch.Tensor]) -> list[dict[int, str]]:
    if dynamic is False:
        return [{} for _ in paths]
    if dynamic is None or dynamic is True:
        return _leading(examples)
    unknown = [path for path in dynamic if path not in paths]
    if unknown:
        raise CaptureError(f"dynamic names the input {unknown[0]!r}, but the inputs are {list(paths)}")
    out: list[dict[int, str]] = []
    sizes: dict[str, tuple[int, str]] = {}
    for path, example in zip(paths, examples, strict=True):
        named: dict[int, str] = {}
        for dim, name in dynamic.get(path, {}).items():
            if not -example.dim() <= dim < example.dim():
                raise CaptureError(
                    f"dynamic names dim {dim} of input {path!r}, which has {example.dim()} dims"
                )
            if not name.isidentifier() and isinstance(parse_dim(name), int):
                raise CaptureError(f"dynamic calls dim {dim} of input {path!r} {name}, which does not vary")
            dim %= example.dim()
            named[dim] = name
            size, first = sizes.setdefault(name, (example.shape[dim], path))
            if size != example.shape[dim]:
                raise CaptureError(
                    f"dim {name} is {size} in example {first!r} but {example.shape[dim]} in example {path!r}"
                )
        out.append(named)
    _check_written(sizes)
    return out


def _check_written(sizes: Mapping[str, tuple[int, str]]) -> None:
    """Refuse examples whose sizes are not related as the dims are written."""
    known = {name: size for name, (size, _) in sizes.items() if name.isidentifier()}
    for called, (size, path) in sizes.items():
        dim = sym(called) if called.isidentifier() else parse_dim(called)
        if all(name in known for name in names_in(dim)) and evaluate(dim, known) != size:
            raise CaptureError(
                f"dim {called} is {size} in example {path!r}, where the others make it {evaluate(dim, known)}"
            )


def named_sizes(
    dynamic: Mapping[str, Mapping[int, str]], paths: Sequence[str], examples: Sequence[torch.Tensor]
) -> dict[str, int]:
    """The size in the examples of every dim that has a name of its own."""
    of_path = dict(zip(paths, examples, strict=True))
    return {
        name: of_path[path].shape[i]
        for path, named in dynamic.items()
        for i, name in named.items()
        if name.isidentifier()
    }


def stretched(example: torch.Tensor, names: Mapping[int, str], sizes: Mapping[str, int]) -> torch.Tensor:
    """An example of the same dtype and rank with its varying dims at the sizes to trace with."""
    shape = [sizes[names[i]] if i in names else d for i, d in enumerate(example.shape)]
    return example.detach() if shape == list(example.shape) else example.new_zeros(shape)


def _leading(examples: Sequence[torch.Tensor]) -> list[dict[int, str]]:
    """The leading dims: one name ``b`` for those equal to the first one's, others fixed."""
    first: Any = next((x.shape[0] for x in examples if x.dim()), None)
    return [{0: "b"} if x.dim() and x.shape[0] == first else {} for x in examples]
