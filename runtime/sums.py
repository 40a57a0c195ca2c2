"""Weighted sums of models that are exact: the same bits in any order, however they are spread over workers.

A value v of weight w adds the whole number round(w * v * 2**exponent). Whole numbers are added up without
rounding, so only that one rounding of each contribution is left, and it depends on nothing else. Knows
tensors; no messages and no plans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby

import torch

from planc.errors import InputError

State = Mapping[str, torch.Tensor]

MAX_SUM = 2**62
"""The largest magnitude of a sum: no addition of int64 can overflow."""
EXACT_SUM = 2**51
"""Sums up to here are exact in float64 too, which processors add up faster; enough for states of float32."""
MAX_EXPONENT = 512
"""Exponents are from -512 to 512."""
_PIECE = 2**16
"""Elements that are scaled and added at a time on a CPU: as many as its cache has room for."""
_FLOOR = 1.0
"""Tensors of smaller elements are given this much room all the same: a bias starts at 0 and moves."""


@dataclass(frozen=True)
class Grid:
    """The fixed-point grid of one round: everyone who adds up on it gets the same bits.

    Attributes:
        exponents: by path of what is summed: a value v of weight w adds round(w * v * 2**exponent).
        limit: a power of two. An element of magnitude beyond limit * 2**-exponent (or NaN) is no result of
            training: its client has failed.
    """

    exponents: Mapping[str, int]
    limit: float

    @classmethod
    def of(cls, state: State, total_weight: float, headroom: int = 10) -> Grid:
        """The grid for sums of states like this one.

        It depends on nothing but the largest magnitude of each tensor and on the weight, and both are rounded
        to powers of two. An element of a mean of n states is off by at most n * 2**-51 (n * 2**-62 where a
        tensor of the state is float64) times the largest magnitude that is accepted.

        Args:
            state: the model before the round, by path.
            total_weight: of all that may be added up; more must not be.
            headroom: elements up to 2**headroom times the largest of their tensor (and of 1) are accepted.

        Raises:
            InputError: the weight is not positive or is too large, or an element is NaN or infinite.
        """
        if not (total_weight > 0 and math.isfinite(total_weight)):
            raise InputError(
                f"expected a total weight above 0, got {total_weight}: nothing could be averaged"
            )
        wide = any(tensor.dtype is torch.float64 for tensor in state.values())
        most = (MAX_SUM if wide else EXACT_SUM).bit_length() - 1
        # No more than 2**most in all: with a weight below 1 an element could be larger, but not be a float.
        room = min(most - _log2_above(total_weight), most)
        if room < max(headroom, 0):
            raise InputError(
                f"a total weight of {total_weight} is too large for elements up to 2**{headroom}: expected "
                f"at most 2**{most - max(headroom, 0)}"
            )
        exponents: dict[str, int] = {}
        for path, tensor in state.items():
            largest = _largest(tensor)
            if not math.isfinite(largest):
                raise InputError(
                    f"state {path!r} has elements that are NaN or infinite: nothing to go on from"
                )
            exponent = room - _log2_above(max(largest, _FLOOR)) - headroom
            exponents[path] = max(min(exponent, MAX_EXPONENT), -MAX_EXPONENT)
        return cls(exponents, 2.0**room)

    def mean(self, sums: State, weight: float, like: State) -> dict[str, torch.Tensor]:
        """What sums are per weight, by path, with the dtypes of ``like``; whole numbers are rounded.

        Raises:
            InputError: the weight is not positive, or a path is not on the grid.
        """
        if not weight > 0:
            raise InputError(f"expected a weight above 0, got {weight}: nobody contributed")
        out: dict[str, torch.Tensor] = {}
        for path, total in sums.items():
            if path not in self.exponents or path not in like:
                raise InputError(f"there is no {path!r} on the grid; it has {', '.join(self.exponents)}")
            mean = total.to(torch.float64).mul_(2.0 ** -self.exponents[path]).div_(weight)
            dtype = like[path].dtype
            out[path] = mean.to(dtype) if dtype.is_floating_point else mean.round_().to(dtype)
        return out


def add_sums(a: State, b: State) -> dict[str, torch.Tensor]:
    """Both sums together, exactly; one without any paths is nothing.

    Raises:
        InputError: their paths or shapes differ.
    """
    if not a or not b:
        return dict(a or b)
    if {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
        raise InputError(f"sums of different things: {', '.join(a)}; and {', '.join(b)}")
    return {path: total + b[path] for path, total in a.items()}


def fits(weights: Sequence[float], limit: float) -> bool:
    """Whether whatever has these weights, all above 0, can be added up without overflow."""
    try:
        total = math.fsum(weights)
    except OverflowError:
        return False
    return math.isfinite(total) and math.isfinite(limit) and Fraction(total) * Fraction(limit) <= MAX_SUM


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some elements of a group, what they are scaled and rounded in, and their sums.

    ``wide`` and ``whole`` are memory that all pieces share; the former is ``flat`` where that is float64.
    """

    flat: torch.Tensor
    wide: torch.Tensor
    whole: torch.Tensor | None
    sums: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Group:
    """Tensors of one exponent, side by side as they came, and the pieces in which they are added up."""

    flat: torch.Tensor
    pieces: list[_Piece]
    scale: float
    bound: float


class Accumulator:
    """Adds up weighted states of the same shapes on a grid, on the device where they are.

    Args:
        shapes: of the tensors of a state, in order.
        dtypes: theirs.
        exponents: theirs.
        limit: of the grid.
        weight: of all that is going to be added; decides only how it is computed.
        device: where the states are.
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        dtypes: Sequence[torch.dtype],
        exponents: Sequence[int],
        limit: float,
        weight: float,
        device: torch.device,
    ) -> None:
        self._shapes = shapes
        self._order = sorted(range(len(shapes)), key=lambda i: exponents[i])
        size = sum(shape.numel() for shape in shapes)
        narrow = all(dtype in (torch.float32, torch.bfloat16, torch.float16) for dtype in dtypes)
        # To look for the extremes and to copy costs half as much in float32.
        kind = torch.float32 if narrow else torch.float64
        self._flat = torch.empty(size, dtype=kind, device=device)
        in_float = weight * limit <= 2 * EXACT_SUM
        self._sums = torch.zeros(size, dtype=torch.float64 if in_float else torch.int64, device=device)
        self._groups = self._grouped(exponents, limit)

    def add(self, state: Sequence[torch.Tensor], weight: float) -> bool:
        """Add one state; False, and nothing is added, where an element is NaN or beyond the limit."""
        torch.cat([state[i].reshape(-1) for i in self._order], out=self._flat)
        for group in self._groups:
            low, high = torch.aminmax(group.flat)
            if not (low.item() >= -group.bound and high.item() <= group.bound):
                return False
        for group in self._groups:
            # Powers of two scale exactly: the product is rounded once, as that of the weight and the value.
            scale = weight * group.scale
            for piece in group.pieces:
                wide = piece.wide
                if wide is not piece.flat:
                    wide.copy_(piece.flat)
                wide.mul_(scale).round_()
                piece.sums.add_(wide if piece.whole is None else piece.whole.copy_(wide))
        return True

    def sums(self) -> list[torch.Tensor]:
        """int64 sums, in the order of the shapes."""
        whole = self._sums.to(torch.int64)
        parts = whole.split([self._shapes[i].numel() for i in self._order])
        out: dict[int, torch.Tensor] = {
            i: part.view(self._shapes[i]) for i, part in zip(self._order, parts, strict=True)
        }
        return [out[i] for i in range(len(self._shapes))]

    def _grouped(self, exponents: Sequence[int], limit: float) -> list[_Group]:
        out: list[_Group] = []
        start = 0
        step = _PIECE if self._flat.device.type == "cpu" else max(1, len(self._flat))
        most = min(step, len(self._flat))
        wide = torch.empty(most, dtype=torch.float64, device=self._flat.device)
        whole = None if self._sums.is_floating_point() else torch.empty_like(wide, dtype=torch.int64)
        for exponent, tensors in groupby(self._order, key=lambda i: exponents[i]):
            stop = start + sum(self._shapes[i].numel() for i in tensors)
            scale = 2.0**exponent
            if stop > start:  # what has no elements has no extremes
                parts = [slice(first, min(first + step, stop)) for first in range(start, stop, step)]
                pieces = [self._piece(part, wide, whole) for part in parts]
                out.append(_Group(self._flat[start:stop], pieces, scale, limit / scale))
            start = stop
        return out

    def _piece(self, part: slice, wide: torch.Tensor, whole: torch.Tensor | None) -> _Piece:
        flat, count = self._flat[part], part.stop - part.start
        return _Piece(
            flat,
            flat if flat.dtype is torch.float64 else wide[:count],
            None if whole is None else whole[:count],
            self._sums[part],
        )


def accumulator_bytes(elements: int) -> int:
    """The memory of an `Accumulator` for so many elements, at most, with what `Accumulator.sums` makes."""
    return elements * 4 * 8


def _largest(tensor: torch.Tensor) -> float:
    if tensor.dtype is torch.bool or not tensor.numel():
        return 1.0
    low, high = torch.aminmax(tensor.detach())
    return max(abs(float(low.item())), abs(float(high.item())))


def _log2_above(value: float) -> int:
    """The smallest whole n with value <= 2**n."""
    mantissa, exponent = math.frexp(value)
    return exponent - 1 if mantissa == 0.5 else exponent


__all__ = [
    "EXACT_SUM",
    "MAX_EXPONENT",
    "MAX_SUM",
    "Accumulator",
    "Grid",
    "accumulator_bytes",
    "add_sums",
    "fits",
]
