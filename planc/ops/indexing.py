"""Gathers and scatters: reading and replacing elements by position, and the gradients of doing so."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planc.errors import TypeCheckError
from planc.ir import DType, Shape, TensorType
from planc.ops.rules import (
    axis,
    broadcast,
    want_elements,
    want_equal,
    want_floating,
    want_index,
    want_rank,
    want_same_dtype,
    want_shape,
)
from planc.ops.schema import Bool, DimAttr, Dims, Int, Number, OptDim, OptTensors, ScalarAttr, Tensor
from planc.ops.table import free, op
from planc.ops.views import selected, sliced, with_dim

aten = torch.ops.aten


@op("aten.index_select", lambda self, index, dim: self.index_select(dim, index), flops=free)
def index_select(self: Tensor, index: Tensor, *, dim: Int) -> TensorType:
    want_index("index", index)
    want_rank("index", index, 0, 1)
    at = axis(dim, self.rank)
    if not self.shape:
        want_equal("the number of indices into a scalar tensor and 1", index.numel, 1)
        return self
    want_elements("the operand", self)
    return TensorType(self.dtype, with_dim(self.shape, at, index.numel))


@op("aten.gather", lambda self, index, dim, sparse_grad=False: self.gather(dim, index), flops=free)
def gather(self: Tensor, index: Tensor, *, dim: Int, sparse_grad: Bool = False) -> TensorType:
    _want_along(self, index, dim)
    return TensorType(self.dtype, index.shape)


def _want_along(self: TensorType, index: TensorType, dim: int, src: TensorType | None = None) -> None:
    """Check an index into ``dim`` of ``self``: its other dims are no larger, and ``src`` is no smaller."""
    if index.dtype is not DType.I64:
        raise TypeCheckError(f"index must be i64, got {index}")
    at = axis(dim, self.rank)
    for what, t in {"index": index, "src": src}.items():
        if t is not None and t.rank != self.rank:
            raise TypeCheckError(f"{what} must have the rank of {self}, got {t}")
    for i, size in enumerate(index.shape):
        bounds = [self.shape[i]] if i != at else []
        bounds += [] if src is None else [src.shape[i]]
        if any(isinstance(size, int) and isinstance(bound, int) and size > bound for bound in bounds):
            raise TypeCheckError(
                f"index {index} is larger than what it indexes, {self if src is None else src}"
            )


def _index(self: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    return aten.index.Tensor(self, list(indices))


@op("aten.index", _index, targets=("aten.index.Tensor", "aten._unsafe_index.Tensor"), flops=free)
def index(self: Tensor, indices: OptTensors) -> TensorType:
    """Advanced indexing by integer tensors; a missing one keeps its dim."""
    return TensorType(self.dtype, indexed_shape(self, indices))


def indexed_shape(self: TensorType, indices: tuple[TensorType | None, ...]) -> Shape:
    """The shape of ``self[indices]``, by NumPy's rules.

    Raises:
        TypeCheckError: too many indices, or an index that is not of integers.
    """
    if len(indices) > self.rank:
        raise TypeCheckError(f"{len(indices)} indices are too many for {self}")
    used = [i for i, x in enumerate(indices) if x is not None]
    for i in used:
        x = indices[i]
        assert x is not None
        want_index(f"index {i} (a mask has no fixed number of elements)", x)
    if not used:
        raise TypeCheckError("at least one index is needed")
    common = broadcast(*(x.shape for x in indices if x is not None))
    kept = [d for i, d in enumerate(self.shape) if i not in used]
    adjacent = bool(used) and used == list(range(used[0], used[-1] + 1))
    at = used[0] if adjacent else 0
    return (*kept[:at], *common, *kept[at:])


def _index_put(
    self: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor, accumulate: bool = False
) -> torch.Tensor:
    return aten.index_put.default(self, list(indices), values, accumulate)


@op(
    "aten.index_put",
    _index_put,
    flops=free,
    targets=("aten.index_put.default", "aten._unsafe_index_put.default"),
)
def index_put(self: Tensor, indices: OptTensors, values: Tensor, *, accumulate: Bool = False) -> TensorType:
    want_same_dtype("self and values", self, values)
    shape = indexed_shape(self, indices)
    if broadcast(shape, values.shape) != shape:
        raise TypeCheckError(f"values must broadcast to {TensorType(self.dtype, shape)}, got {values}")
    return self


@op(
    "aten.scatter",
    lambda self, index, src, dim: self.scatter(dim, index, src),
    flops=free,
    targets=("aten.scatter.src",),
)
def scatter(self: Tensor, index: Tensor, src: Number, *, dim: Int) -> TensorType:
    """Write ``src`` (or one number) where ``index`` says along ``dim``."""
    _want_along(self, index, dim, src if isinstance(src, TensorType) else None)
    if isinstance(src, TensorType):
        want_same_dtype("self and src", self, src)
    return self


@op("aten.scatter_add", lambda self, index, src, dim: self.scatter_add(dim, index, src))
def scatter_add(self: Tensor, index: Tensor, src: Tensor, *, dim: Int) -> TensorType:
    _want_along(self, index, dim, src)
    want_same_dtype("self and src", self, src)
    return self


def _index_add(
    self: torch.Tensor, index: torch.Tensor, source: torch.Tensor, dim: int, alpha: float = 1
) -> torch.Tensor:
    return self.index_add(dim, index, source, alpha=alpha)


@op("aten.index_add", _index_add)
def index_add(self: Tensor, index: Tensor, source: Tensor, *, dim: Int, alpha: ScalarAttr = 1) -> TensorType:
    """``self`` with ``alpha * source`` added at the positions ``index`` along ``dim``."""
    want_index("index", index)
    want_rank("index", index, 0, 1)
    want_same_dtype("self and source", self, source)
    at = axis(dim, self.rank)
    if self.shape:
        want_shape("source", source, with_dim(self.shape, at, index.numel))
    return self


@op("aten.slice_backward", aten.slice_backward.default, flops=free)
def slice_backward(
    grad_output: Tensor, *, input_sizes: Dims, dim: Int, start: DimAttr, end: DimAttr, step: Int
) -> TensorType:
    """Zeros of ``input_sizes`` with the gradient in the slice."""
    out = TensorType(grad_output.dtype, input_sizes)
    want_shape("grad_output", grad_output, sliced(out, dim, start, end, step))
    return out


@op("aten.select_backward", aten.select_backward.default, flops=free)
def select_backward(grad_output: Tensor, *, input_sizes: Dims, dim: Int, index: DimAttr) -> TensorType:
    """Zeros of ``input_sizes`` with the gradient in the selected position."""
    out = TensorType(grad_output.dtype, input_sizes)
    want_shape("grad_output", grad_output, selected(out, dim, index))
    return out


@op("aten.slice_scatter", aten.slice_scatter.default, flops=free)
def slice_scatter(
    self: Tensor, src: Tensor, *, dim: Int = 0, start: OptDim = None, end: OptDim = None, step: Int = 1
) -> TensorType:
    """``self`` with a slice replaced by ``src``."""
    want_shape("src", src, sliced(self, dim, start, end, step))
    want_same_dtype("self and src", self, src)
    return self


@op("aten.select_scatter", aten.select_scatter.default, flops=free)
def select_scatter(self: Tensor, src: Tensor, *, dim: Int, index: DimAttr) -> TensorType:
    """``self`` with one position along ``dim`` replaced by ``src``."""
    want_shape("src", src, selected(self, dim, index))
    want_same_dtype("self and src", self, src)
    return self


@op("aten.embedding", aten.embedding.default, flops=free)
def embedding(
    weight: Tensor,
    indices: Tensor,
    *,
    padding_idx: DimAttr = -1,
    scale_grad_by_freq: Bool = False,
    sparse: Bool = False,
) -> TensorType:
    want_rank("weight", weight, 2)
    want_elements("weight", weight)
    want_index("indices", indices)
    return TensorType(weight.dtype, (*indices.shape, weight.shape[1]))


@op("aten.embedding_dense_backward", aten.embedding_dense_backward.default)
def embedding_dense_backward(
    grad_output: Tensor,
    indices: Tensor,
    *,
    num_weights: DimAttr,
    padding_idx: DimAttr,
    scale_grad_by_freq: Bool,
) -> TensorType:
    want_rank("grad_output", grad_output, *range(1, 65))
    want_floating("grad_output", grad_output)
    want_shape("indices", indices, grad_output.shape[:-1])
    want_index("indices", indices)
    return TensorType(grad_output.dtype, (num_weights, grad_output.shape[-1]))
