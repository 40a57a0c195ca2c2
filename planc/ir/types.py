"""Types of values: an element type and a shape of dims. Knows torch's dtypes and nothing else of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch

from planc.ir.dims import Dim, DimExpr, Shape, evaluate, names, product, show, substitute


class DType(Enum):
    """Element types, named as the language writes them."""

    __hash__ = object.__hash__  # Enum has its own, in Python

    BOOL = "bool"
    U8 = "u8"
    I8 = "i8"
    I16 = "i16"
    I32 = "i32"
    I64 = "i64"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"

    @property
    def torch(self) -> torch.dtype:
        return _TO_TORCH[self]

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return self.torch.itemsize

    @property
    def is_floating(self) -> bool:
        return self.torch.is_floating_point

    @property
    def category(self) -> int:
        """0 bool, 1 integer, 2 floating: the order of torch's type promotion."""
        return 0 if self is DType.BOOL else 2 if self.is_floating else 1

    def __str__(self) -> str:
        return self.value


_TO_TORCH = {
    DType.BOOL: torch.bool,
    DType.U8: torch.uint8,
    DType.I8: torch.int8,
    DType.I16: torch.int16,
    DType.I32: torch.int32,
    DType.I64: torch.int64,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F32: torch.float32,
    DType.F64: torch.float64,
}
_FROM_TORCH = {value: key for key, value in _TO_TORCH.items()}


def from_torch(dtype: torch.dtype) -> DType | None:
    """The DType of a torch dtype, or None where plans have none (complex and quantised types)."""
    return _FROM_TORCH.get(dtype)


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's element type and shape.

    >>> str(TensorType(DType.F32, (sym("b"), 784)))
    'f32[b, 784]'
    """

    dtype: DType
    shape: Shape

    @property
    def numel(self) -> Dim:
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        return product(self.shape) * self.dtype.itemsize

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return not any(isinstance(dim, DimExpr) for dim in self.shape)

    def at(self, bindings: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape under ``bindings``."""
        return tuple(evaluate(dim, bindings) for dim in self.shape)

    def substitute(self, bindings: Mapping[str, Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(substitute(dim, bindings) for dim in self.shape))

    def dim_names(self) -> set[str]:
        return {name for dim in self.shape for name in names(dim)}

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(show(dim) for dim in self.shape)}]"


def type_of(tensor: torch.Tensor) -> TensorType | None:
    """The type of a concrete tensor, or None where its dtype is not one of ours."""
    dtype = from_torch(tensor.dtype)
    return None if dtype is None else TensorType(dtype, tuple(tensor.shape))
