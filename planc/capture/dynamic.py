"""Which dims of the example inputs vary, their names and ranges, and the sizes to trace with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from planc.errors import CaptureError
from planc.ir import MAX_DIM

Dynamic = Mapping[str, Mapping[int, str]] | bool | None
"""``{"x": {0: "b"}}`` names dims by input path; True or None: the leading dims, as one ``b`` where they are
equal; False: none."""

_SIZES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)


@dataclass(frozen=True)
class DynamicDims:
    """The names of the varying dims of each flat input, by input position, and each name's range."""

    names: tuple[dict[int, str], ...]
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def range_of(self, name: str) -> tuple[int, int]:
        return self.ranges.get(name, (1, MAX_DIM))

    def all_names(self) -> list[str]:
        """Every name, in order of first use."""
        return list(dict.fromkeys(name for names in self.names for _, name in sorted(names.items())))

    def trace_sizes(self, taken: Iterable[int]) -> dict[str, int]:
        """A size for each name: distinct primes that no other dim has, so that nothing is equal by accident.

        Raises:
            CaptureError: no size is left within a name's range.
        """
        used = set(taken)
        sizes: dict[str, int] = {}
        for name in self.all_names():
            lo, hi = self.range_of(name)
            # Never 1: torch takes a dim of one row for a fixed one.
            tried = (*_SIZES, *range(max(lo, 2), lo + 512))
            size = next((s for s in tried if lo <= s <= hi and s not in used), None)
            if size is None:
                raise CaptureError(
                    f"no size to trace dim {name} with: other dims have all sizes of its range {lo}..{hi}"
                )
            used.add(size)
            sizes[name] = size
        return sizes


def resolve(
    dynamic: Dynamic,
    paths: Sequence[str],
    examples: Sequence[torch.Tensor],
    ranges: Mapping[str, tuple[int, int]] | None,
) -> DynamicDims:
    """What the user said of varying dims, by input position.

    Raises:
        CaptureError: an unknown input path or dim, one name on dims of different sizes, or a bad range.
    """
    for name, (lo, hi) in (ranges or {}).items():
        if not 1 <= lo <= hi <= MAX_DIM:
            raise CaptureError(f"the range {lo}..{hi} of dim {name} must lie within 1..{MAX_DIM}")
    out = _named(dynamic, paths, examples)
    used = {name for names in out for name in names.values()}
    unknown = sorted(set(ranges or ()) - used)
    if unknown:
        raise CaptureError(f"ranges names the dim {unknown[0]!r}, but the dims that vary are {sorted(used)}")
    return DynamicDims(tuple(out), ranges or {})


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
            if not name.isidentifier():
                raise CaptureError(f"the dim name {name!r} is not an identifier")
            dim %= example.dim()
            named[dim] = name
            size, first = sizes.setdefault(name, (example.shape[dim], path))
            if size != example.shape[dim]:
                raise CaptureError(
                    f"dim {name} is {size} in example {first!r} but {example.shape[dim]} in example {path!r}"
                )
        out.append(named)
    return out


def stretched(example: torch.Tensor, names: Mapping[int, str], sizes: Mapping[str, int]) -> torch.Tensor:
    """An example of the same dtype and rank with its varying dims at the sizes to trace with."""
    shape = [sizes[names[i]] if i in names else d for i, d in enumerate(example.shape)]
    return example.detach() if shape == list(example.shape) else example.new_zeros(shape)


def _leading(examples: Sequence[torch.Tensor]) -> list[dict[int, str]]:
    """The leading dims: one name ``b`` for those equal to the first one's, others fixed."""
    first: Any = next((x.shape[0] for x in examples if x.dim()), None)
    return [{0: "b"} if x.dim() and x.shape[0] == first else {} for x in examples]
