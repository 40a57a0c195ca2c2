"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DType, Shape, TensorType
from planc.ir.dims import product
from planc.ops.rules import broadcast, want_equal, want_rank, want_same_dtype
from planc.ops.schema import Int, Ints, ScalarAttr, Tensor
from planc.ops.table import op

aten = torch.ops.aten


def _product_flops(inner: Dim, result: TensorType) -> Dim:
    return product(result.shape) * inner * 2


def _flops_first(operands: tuple[Any, ...], _attrs: Any, results: tuple[TensorType, ...]) -> Dim:
    return _product_flops(operands[0].shape[-1], results[0])


def _flops_added(operands: tuple[Any, ...], _attrs: Any, results: tuple[TensorType, ...]) -> Dim:
    return _product_flops(operands[1].shape[-1], results[0]) + results[0].numel


def _want_numbers(what: str, *types: TensorType) -> None:
    want_same_dtype(what, *types)
    if types[0].dtype is DType.BOOL:
        raise TypeCheckError(f"{what} must be of numbers, got {types[0]}")


def _matrix(a: TensorType, b: TensorType) -> Shape:
    want_rank("the first matrix", a, 2)
    want_rank("the second matrix", b, 2)
    _want_numbers("matrices", a, b)
    want_equal(f"columns of {a} and rows of {b}", a.shape[1], b.shape[0])
    return a.shape[0], b.shape[1]


def _batched(a: TensorType, b: TensorType) -> Shape:
    want_rank("the first batch of matrices", a, 3)
    want_rank("the second batch of matrices", b, 3)
    _want_numbers("matrices", a, b)
    want_equal(f"batch sizes of {a} and {b}", a.shape[0], b.shape[0])
    want_equal(f"columns of {a} and rows of {b}", a.shape[2], b.shape[1])
    return a.shape[0], a.shape[1], b.shape[2]


def _added(what: TensorType, shape: Shape, a: TensorType) -> TensorType:
    want_same_dtype("the addend and the matrices", what, a)
    want_equal(
        f"the rank of the result and that of {what} broadcast to it",
        len(broadcast(what.shape, shape)),
        len(shape),
    )
    for have, got in zip(shape, broadcast(what.shape, shape), strict=True):
        want_equal(f"sizes of the result and of {what} broadcast to it", have, got)
    return TensorType(a.dtype, shape)


@op("aten.mm", torch.mm, flops=_flops_first)
def mm(self: Tensor, mat2: Tensor) -> TensorType:
    return TensorType(self.dtype, _matrix(self, mat2))


@op("aten.addmm", torch.addmm, flops=_flops_added)
def addmm(
    self: Tensor, mat1: Tensor, mat2: Tensor, *, beta: ScalarAttr = 1, alpha: ScalarAttr = 1
) -> TensorType:
    """beta * self + alpha * (mat1 @ mat2)."""
    return _added(self, _matrix(mat1, mat2), mat1)


@op("aten.bmm", torch.bmm, flops=_flops_first)
def bmm(self: Tensor, mat2: Tensor) -> TensorType:
    return TensorType(self.dtype, _batched(self, mat2))


@op("aten.baddbmm", torch.baddbmm, flops=_flops_added)
def baddbmm(
    self: Tensor, batch1: Tensor, batch2: Tensor, *, beta: ScalarAttr = 1, alpha: ScalarAttr = 1
) -> TensorType:
    """beta * self + alpha * (batch1 @ batch2)."""
    return _added(self, _batched(batch1, batch2), batch1)


@op("aten.mv", torch.mv, flops=_flops_first)
def mv(self: Tensor, vec: Tensor) -> TensorType:
    want_rank("the matrix", self, 2)
    want_rank("the vector", vec, 1)
    _want_numbers("matrix and vector", self, vec)
    want_equal(f"columns of {self} and length of {vec}", self.shape[1], vec.shape[0])
    return TensorType(self.dtype, (self.shape[0],))


@op("aten.addmv", torch.addmv, flops=_flops_added)
def addmv(
    self: Tensor, mat: Tensor, vec: Tensor, *, beta: ScalarAttr = 1, alpha: ScalarAttr = 1
) -> TensorType:
    """beta * self + alpha * (mat @ vec)."""
    want_rank("the matrix", mat, 2)
    want_rank("the vector", vec, 1)
    _want_numbers("matrix and vector", mat, vec)
    want_equal(f"columns of {mat} and length of {vec}", mat.shape[1], vec.shape[0])
    return _added(self, (mat.shape[0],), mat)


def _trilinear_flops(operands: tuple[Any, ...], attrs: Any, _results: Any) -> Dim:
    lists = (attrs["expand1"], attrs["expand2"], attrs["expand3"])
    return product(_stretched(operands, lists)) * 3


def _stretched(types: Sequence[TensorType], expands: Sequence[Sequence[int]]) -> Shape:
    """The common shape of operands with new dims of size 1 at the positions ``expands``."""
    shapes: list[Shape] = []
    for t, new in zip(types, expands, strict=True):
        total = t.rank + len(new)
        if any(not 0 <= d < total for d in new) or len(set(new)) != len(new):
            raise TypeCheckError(f"{list(new)} are no positions of new dims in {t}")
        old = iter(t.shape)
        shapes.append(tuple(1 if d in new else next(old) for d in range(total)))
    if len({len(s) for s in shapes}) != 1:
        raise TypeCheckError("expanded operands must have one rank")
    return broadcast(*shapes)


@op("aten.trilinear", aten._trilinear.default, flops=_trilinear_flops, targets=("aten._trilinear.default",))
def trilinear(
    i1: Tensor,
    i2: Tensor,
    i3: Tensor,
    *,
    expand1: Ints,
    expand2: Ints,
    expand3: Ints,
    sumdim: Ints,
    unroll_dim: Int = 1,
) -> TensorType:
    """The sum over ``sumdim`` of the product of three tensors with dims of size 1 added (nn.Bilinear)."""
    _want_numbers("operands", i1, i2, i3)
    shape = _stretched((i1, i2, i3), (expand1, expand2, expand3))
    if any(not 0 <= d < len(shape) for d in (*sumdim, unroll_dim)):
        raise TypeCheckError(f"sumdim {list(sumdim)} and unroll_dim {unroll_dim} must be dims of the product")
    return TensorType(i1.dtype, tuple(d for i, d in enumerate(shape) if i not in sumdim))


@op("aten.dot", torch.dot, flops=lambda operands, _attrs, _results: operands[0].numel * 2)
def dot(self: Tensor, tensor: Tensor) -> TensorType:
    want_rank("the first vector", self, 1)
    want_rank("the second vector", tensor, 1)
    _want_numbers("vectors", self, tensor)
    want_equal("lengths of the vectors", self.shape[0], tensor.shape[0])
    return TensorType(self.dtype, ())
