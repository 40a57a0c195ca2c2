"""Whether code treats one row differently: torch takes dims that vary for 2 or more while it traces.

The code runs once more, at size 1, and its calls of torch are compared with those that were traced. Calls are
compared, not operations: what these do with one row is torch's own affair.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from planc.capture.dynamic import DynamicDims, stretched
from planc.capture.export import alone, quiet
from planc.capture.location import location_at, noting_locations, pointing
from planc.errors import CaptureError
from planc.ir import Location

_TORCH = os.path.dirname(torch.__file__) + os.sep
_MODULES = os.path.dirname(torch.nn.__file__) + os.sep
_FRONT = {
    _TORCH + name
    for name in (
        "functional.py",
        "_tensor.py",
        "overrides.py",
        os.path.join("fx", "experimental", "proxy_tensor.py"),
    )
}


@dataclass(frozen=True)
class Call:
    """One call of torch by the user's code: which, where, its plain numbers, the rank of its result."""

    name: str
    where: Location | None
    numbers: tuple[Any, ...]
    rank: int | None

    def differs(self, other: Call) -> bool:
        """Whether two calls at the same place are not the same; a size that is symbolic may be any number."""
        if (self.name, self.where, self.rank) != (other.name, other.where, other.rank):
            return True
        pairs = zip_longest(self.numbers, other.numbers)
        return any(a != b for a, b in pairs if a is not None and b is not None)


class Calls:
    """The calls of one run of the code, in order."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def note(self, frame: FrameType, func: Any, args: Any, result: Any) -> None:
        if _is_internal(frame):
            return
        rank = result.dim() if isinstance(result, torch.Tensor) else None
        name = getattr(func, "__name__", str(func))
        self._calls.append(Call(name, location_at(frame), tuple(_numbers(args)), rank))

    def first_difference(self, other: Calls) -> Call | None:
        """The first call that is not in both runs alike."""
        for mine, theirs in zip_longest(self._calls, other._calls):
            if mine is None or theirs is None or mine.differs(theirs):
                return mine or theirs
        return None


class OneRow:
    """Runs of the code with varying dims that may be 1 at that size: all of them, or else one by one."""

    def __init__(
        self, function: Callable[..., Any], examples: Sequence[torch.Tensor], dims: DynamicDims
    ) -> None:
        self._runs: list[tuple[list[str], Calls]] = []
        names = [name for name in dims.all_names() if dims.range_of(name)[0] == 1]
        together = _run_at_one(function, examples, dims, names) if names else None
        if together is not None:
            self._runs.append((names, together))
        elif len(names) > 1:  # a sequence of one word may be too short for code that one sentence alone suits
            alone_at_one = [(name, _run_at_one(function, examples, dims, [name])) for name in names]
            self._runs += [([name], calls) for name, calls in alone_at_one if calls is not None]

    def check(self, traced: Calls) -> None:
        """Refuse code whose calls of torch were others with one row.

        Raises:
            CaptureError: they were; shows the user's line.
        """
        for names, calls in self._runs:
            call = traced.first_difference(calls)
            if call is None:
                continue
            named = " or ".join(names)
            ranges = ", ".join(f"{name!r}: (2, hi)" for name in names)
            raise CaptureError(
                pointing(
                    f"the code depends on the size of dim {named}: where it is 1 it does something else. "
                    f"Give the dim a range without 1, ranges={{{ranges}}}, or make one row no special case",
                    call.where,
                )
            )


def _run_at_one(
    function: Callable[..., Any], examples: Sequence[torch.Tensor], dims: DynamicDims, names: Sequence[str]
) -> Calls | None:
    """The calls of torch with these dims at 1; None where the code cannot run so, or the dims cannot be."""
    free = {name: 1 if name in names else size for name, size in dims.trace_sizes(()).items()}
    if not dims.allow(free):
        return None
    sizes = dims.sizes_at(free)
    inputs = [stretched(x, named, sizes) for x, named in zip(examples, dims.names, strict=True)]
    calls = Calls()
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with (
            alone,
            quiet(),
            noting_locations(calls.note),
            torch.backends.mkldnn.flags(enabled=False),
        ):
            make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        return calls
    except Exception:  # code that cannot run so has no other meaning there; tracing says what is wrong
        return None
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _is_internal(frame: FrameType) -> bool:
    """Whether torch made the present call on its own account, elsewhere than in what users build from."""
    inner = inspect.currentframe()
    while inner is not None and inner is not frame:
        name = inner.f_code.co_filename
        if name.startswith(_TORCH) and not name.startswith(_MODULES) and name not in _FRONT:
            return True
        inner = inner.f_back
    return False


def _numbers(args: Any) -> Iterator[Any]:
    """Plain numbers and strings among arguments, and None in place of everything else."""
    for arg in args:
        if isinstance(arg, (tuple, list)):
            yield from _numbers(arg)
        else:
            yield arg if isinstance(arg, (bool, int, float, str)) else None
