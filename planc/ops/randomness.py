"""Keyed random ops: each draws from the key that it is given, so the same key gives the same numbers.

A key is an ``i64[]`` tensor. ``random.split`` makes independent keys out of one; no op draws twice from one.
Numbers are drawn on the CPU and then moved, so that a run can be replayed on any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planc.errors import TypeCheckError
from planc.ir import DType, TensorType
from planc.ops.rules import want_floating
from planc.ops.schema import DimAttr, Dims, DTypeAttr, Float, Int, Tensor, Trait
from planc.ops.table import free, op

_R = Trait.RANDOM
KEY_TYPE = TensorType(DType.I64, ())
_MASK = 2**64 - 1


def _mix(state: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Generators, 2014)."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def _derive(key: int, index: int) -> int:
    """The ``index``-th number of the SplitMix64 stream of ``key``, as a signed 64-bit integer."""
    mixed = _mix((_mix(key & _MASK) + (index + 1) * 0x9E3779B97F4A7C15) & _MASK)
    return mixed - 2**64 if mixed >= 2**63 else mixed


def generator(key: torch.Tensor) -> torch.Generator:
    """A CPU generator seeded from a key."""
    return torch.Generator().manual_seed(_derive(int(key), 0) & _MASK)


def make_key(seed: int) -> torch.Tensor:
    """A key from a seed: ``i64[]`` on the CPU."""
    return torch.tensor(_derive(seed, 1), dtype=torch.int64)


def _want_key(key: TensorType) -> None:
    if key != KEY_TYPE:
        raise TypeCheckError(f"a random key is {KEY_TYPE}, got {key}")


def _split(key: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    state = int(key)
    return tuple(torch.tensor(_derive(state, i + 2), dtype=torch.int64) for i in range(count))


@op("random.split", _split, _R, flops=free)
def split(key: Tensor, *, count: Int) -> tuple[TensorType, ...]:
    """``count`` independent keys."""
    _want_key(key)
    if not 1 <= count <= 4096:
        raise TypeCheckError(f"count must be in 1..4096, got {count}")
    return (KEY_TYPE,) * count


def _dropout(key: torch.Tensor, self: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    keep = 1.0 - p
    mask = (
        torch.empty(self.shape, dtype=torch.bool).bernoulli_(keep, generator=generator(key)).to(self.device)
    )
    return self.mul(mask).mul(1.0 / keep if keep else 0.0), mask


@op("random.dropout", _dropout, _R)
def dropout(key: Tensor, self: Tensor, *, p: Float) -> tuple[TensorType, TensorType]:
    """Zero with probability ``p``, scale the rest by 1/(1-p); and the mask of what was kept."""
    _want_key(key)
    if not 0.0 <= p <= 1.0:
        raise TypeCheckError(f"p must be in 0..1, got {p}")
    return self, TensorType(DType.BOOL, self.shape)


def _rand(
    key: torch.Tensor, size: Sequence[int], dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    return torch.rand(tuple(size), dtype=dtype, generator=generator(key)).to(device)


@op("random.rand", _rand, _R, Trait.FACTORY)
def rand(key: Tensor, *, size: Dims, dtype: DTypeAttr) -> TensorType:
    """Uniform on [0, 1)."""
    _want_key(key)
    return _floating(dtype, size)


def _randn(
    key: torch.Tensor, size: Sequence[int], dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    return torch.randn(tuple(size), dtype=dtype, generator=generator(key)).to(device)


@op("random.randn", _randn, _R, Trait.FACTORY)
def randn(key: Tensor, *, size: Dims, dtype: DTypeAttr) -> TensorType:
    """Standard normal."""
    _want_key(key)
    return _floating(dtype, size)


def _randint(
    key: torch.Tensor,
    low: int,
    high: int,
    size: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> torch.Tensor:
    return torch.randint(low, high, tuple(size), dtype=dtype, generator=generator(key)).to(device)


@op("random.randint", _randint, _R, Trait.FACTORY)
def randint(key: Tensor, *, low: DimAttr, high: DimAttr, size: Dims, dtype: DTypeAttr) -> TensorType:
    """Uniform integers in low..high-1."""
    _want_key(key)
    return TensorType(dtype, size)


def _randperm(key: torch.Tensor, n: int, device: torch.device | None = None) -> torch.Tensor:
    return torch.randperm(n, generator=generator(key)).to(device)


@op("random.randperm", _randperm, _R, Trait.FACTORY)
def randperm(key: Tensor, *, n: DimAttr) -> TensorType:
    """A permutation of 0..n-1, as i64."""
    _want_key(key)
    return TensorType(DType.I64, (n,))


def _bernoulli(key: torch.Tensor, self: torch.Tensor) -> torch.Tensor:
    return torch.bernoulli(self.cpu(), generator=generator(key)).to(self.device)


@op("random.bernoulli", _bernoulli, _R)
def bernoulli(key: Tensor, self: Tensor) -> TensorType:
    """1 with the probability that each element of ``self`` states, else 0."""
    _want_key(key)
    want_floating("probabilities", self)
    return self


def _floating(dtype: DType, size: Dims) -> TensorType:
    if not dtype.is_floating:
        raise TypeCheckError(f"random reals are of a floating-point dtype, got {dtype}")
    return TensorType(dtype, size)
