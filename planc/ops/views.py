"""Ops that rearrange: views, joins, slices, gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, Shape, TensorType
from planc.ir.dims import DimExpr, FloorDiv, floordiv, names, product, show
from planc.ir.facts import known
from planc.ir.graph import MAX_DIM
from planc.ops.rules import axes, axis, promote, show_shape, want_rank
from planc.ops.schema import (
    DimAttr,
    Dims,
    Int,
    Ints,
    OptDim,
    ScalarAttr,
    Tensor,
    Tensors,
    Trait,
)
from planc.ops.table import free, op

aten = torch.ops.aten
_V = Trait.VIEW
_MAX = 2**63 - 1  # how ATen writes "to the end"


def with_dim(shape: Shape, at: int, size: Dim) -> Shape:
    return (*shape[:at], size, *shape[at + 1 :])


def without_dim(shape: Shape, at: int) -> Shape:
    return (*shape[:at], *shape[at + 1 :])


def resolve_view(size: Sequence[Dim], numel: Dim) -> Shape:
    """A view's size with its one ``-1`` replaced.

    Raises:
        TypeCheckError: more than one -1, or the element counts differ.
    """
    known = product(tuple(d for d in size if d != -1))
    if sum(d == -1 for d in size) > 1:
        raise TypeCheckError(f"size {show_shape(size)} has more than one -1")
    out = tuple(floordiv(numel, known) if d == -1 and known != 0 else d for d in size)
    if product(out) != numel:
        raise TypeCheckError(f"{show(numel)} elements do not fit size {show_shape(size)}")
    return out


def _reshape(self: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return self.reshape(size)  # not view: which strides a value has is the executor's affair


@op("aten.view", _reshape, _V, targets=("aten.view.default", "aten._unsafe_view.default"))
def view(self: Tensor, *, size: Dims) -> TensorType:
    """The same elements in another shape; one entry may be -1."""
    return TensorType(self.dtype, resolve_view(size, self.numel))


@op("aten.t", torch.t, _V)
def t(self: Tensor) -> TensorType:
    """The transpose of a matrix; a vector or scalar as it is."""
    want_rank("the operand", self, 0, 1, 2)
    return TensorType(self.dtype, self.shape[::-1])


@op("aten.transpose", torch.transpose, _V, targets=("aten.transpose.int",))
def transpose(self: Tensor, *, dim0: Int, dim1: Int) -> TensorType:
    a, b = axis(dim0, self.rank), axis(dim1, self.rank)
    shape = list(self.shape)
    if shape:
        shape[a], shape[b] = shape[b], shape[a]
    return TensorType(self.dtype, tuple(shape))


@op("aten.permute", lambda self, dims: self.permute(dims), _V)
def permute(self: Tensor, *, dims: Ints) -> TensorType:
    order = [axis(d, self.rank) for d in dims]
    if sorted(order) != list(range(self.rank)):
        raise TypeCheckError(f"dims {list(dims)} are no permutation of the {self.rank} dims of {self}")
    return TensorType(self.dtype, tuple(self.shape[i] for i in order))


@op("aten.expand", lambda self, size: self.expand(size), _V)
def expand(self: Tensor, *, size: Dims) -> TensorType:
    """Dims of size 1 repeated without copying; -1 keeps a dim."""
    if len(size) < self.rank:
        raise TypeCheckError(f"cannot expand {self} to the shorter size {show_shape(size)}")
    new = len(size) - self.rank
    out: list[Dim] = list(size[:new])
    for have, want in zip(self.shape, size[new:], strict=True):
        if want == -1:
            want = have
        if have != want and have != 1:
            raise TypeCheckError(f"cannot expand {self} to {show_shape(size)}: {show(have)} is not 1")
        out.append(want)
    if any(d == -1 for d in out):
        raise TypeCheckError(f"-1 in {show_shape(size)} has no dim of {self} to keep")
    return TensorType(self.dtype, tuple(out))


@op("aten.squeeze", lambda self, dim: self.squeeze(dim), _V, targets=("aten.squeeze.dims",))
def squeeze(self: Tensor, *, dim: Ints) -> TensorType:
    """Without those of the named dims that have size 1."""
    for a in axes(dim, self.rank) if dim and self.shape else ():
        bounds = None if isinstance(self.shape[a], int) else known().bounds(self.shape[a])
        if bounds is not None and bounds[0] <= 1 <= bounds[1]:
            named = " and ".join(dict.fromkeys(names(self.shape[a])))
            raise TypeCheckError(
                f"whether dim {a} of {self} goes depends on whether {show(self.shape[a])} is 1; give {named} "
                "a range that decides it, or keep the dim"
            )
    gone = {a for a in axes(dim, self.rank) if dim and self.shape and self.shape[a] == 1}
    return TensorType(self.dtype, tuple(d for i, d in enumerate(self.shape) if i not in gone))


@op("aten.unsqueeze", torch.unsqueeze, _V)
def unsqueeze(self: Tensor, *, dim: Int) -> TensorType:
    at = axis(dim, self.rank + 1)
    return TensorType(self.dtype, (*self.shape[:at], 1, *self.shape[at:]))


def _slice(
    self: torch.Tensor, dim: int = 0, start: int = 0, end: int | None = None, step: int = 1
) -> torch.Tensor:
    return aten.slice.Tensor(self, dim, start, end, step)


@op("aten.slice", _slice, _V, targets=("aten.slice.Tensor",))
def slice(self: Tensor, *, dim: Int = 0, start: OptDim = 0, end: OptDim = None, step: Int = 1) -> TensorType:
    return TensorType(self.dtype, sliced(self, dim, start, end, step))


def sliced(self: TensorType, dim: int, start: Dim | None, end: Dim | None, step: int) -> Shape:
    """The shape of every ``step``-th position from ``start`` to ``end`` along ``dim``.

    Raises:
        TypeCheckError: the dim or step is out of range, or the length depends on the value of a named dim.
    """
    want_rank("the operand", self, *range(1, 65))
    if not 1 <= step < 2**31:
        raise TypeCheckError(f"step must be in 1..{2**31 - 1}, got {step}")
    at = axis(dim, self.rank)
    length = slice_length(self.shape[at], start, end)
    return with_dim(self.shape, at, floordiv(length + (step - 1), step))


def slice_length(size: Dim, start: Dim | None, end: Dim | None) -> Dim:
    """How many of ``size`` positions lie between ``start`` and ``end``, Python's way.

    Raises:
        TypeCheckError: that depends on the value of a named dim.
    """
    if start is None:
        start = 0
    if end is None or end in (_MAX, size):
        end = size
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(size)[start:end])
    if any(isinstance(p, int) and abs(p) > MAX_DIM for p in (start, end)):
        raise TypeCheckError(f"a slice from {show(start)} up to {show(end)} is beyond every dim")
    start, end = _position(size, start), _position(size, end)
    what = f"a slice from {show(start)} up to {show(end)}"
    least = known().bounds(start)
    if least is not None and least[0] < 0 and not never_negative(start):
        named = " and ".join(dict.fromkeys(names(start)))
        raise TypeCheckError(
            f"{what} of a dim of size {show(size)} begins before the dim where {named} is small; give "
            f"{named} a range that rules it out, or fix the dim"
        )
    if not never_negative(size - end):
        raise _undecided(what, size, end)
    if never_negative(start - end):
        return 0
    if not isinstance(start, int) and not never_negative(end - start):
        raise _undecided(what, size, start, end)
    return end - start


def _position(size: Dim, at: Dim) -> Dim:
    """Where a slice's bound lies in a dim: from the end where it is negative, beyond no end for certain."""
    if isinstance(at, int) and at < 0:
        at = size + at
    if never_negative(-at):
        return 0
    return size if never_negative(at - size) else at


def _undecided(what: str, size: Dim, *others: Dim) -> TypeCheckError:
    """The error for a length that depends on which of two dims is larger."""
    used = dict.fromkeys(name for dim in (size, *others) for name in names(dim))
    return TypeCheckError(
        f"{what} of a dim of size {show(size)} has a length that depends on which is larger; give "
        f"{' and '.join(used)} a range that decides it, slice from the end, or fix the dim"
    )


def never_negative(dim: Dim) -> bool:
    """Whether a dim is at least 0 whatever its names are in their ranges, as far as is easy to see."""
    if isinstance(dim, int):
        return dim >= 0
    bounds = known().bounds(dim)
    if bounds is not None and bounds[0] >= 0:
        return True
    bound: Dim = dim
    for monomial, coefficient in dim.terms:
        atom = monomial[0] if len(monomial) == 1 else None
        if coefficient < 0 and isinstance(atom, FloorDiv) and isinstance(atom.denominator, int):
            # -c * (n // d) is at least -c * n / d; the bound is d times what it was
            d = atom.denominator
            bound = (bound + DimExpr((((atom,), 1),)) * -coefficient) * d + coefficient * atom.numerator
    if isinstance(bound, int):
        return bound >= 0
    bounds = known().bounds(bound)
    return all(c >= 0 for _, c in bound.terms) or (bounds is not None and bounds[0] >= 0)


@op("aten.select", torch.select, _V, targets=("aten.select.int",))
def select(self: Tensor, *, dim: Int, index: DimAttr) -> TensorType:
    return TensorType(self.dtype, selected(self, dim, index))


def selected(self: TensorType, dim: int, index: Dim) -> Shape:
    """The shape of one position along ``dim``.

    Raises:
        TypeCheckError: the dim or index is out of range.
    """
    want_rank("the operand", self, *range(1, 65))
    at = axis(dim, self.rank)
    size = self.shape[at]
    if isinstance(size, int) and isinstance(index, int) and not -size <= index < size:
        raise TypeCheckError(f"index {index} is out of range for dim {dim} of {self}")
    return without_dim(self.shape, at)


@op("aten.diagonal", torch.diagonal, _V)
def diagonal(self: Tensor, *, offset: Int = 0, dim1: Int = 0, dim2: Int = 1) -> TensorType:
    want_rank("the operand", self, *range(2, 65))
    a, b = axis(dim1, self.rank), axis(dim2, self.rank)
    if a == b:
        raise TypeCheckError(f"dims {dim1} and {dim2} are the same")
    rows, columns = self.shape[a], self.shape[b]
    if not (isinstance(rows, int) and isinstance(columns, int)):
        if rows != columns or offset:
            raise TypeCheckError(f"the diagonal of {self} has no fixed length")
        length: Dim = rows
    else:
        length = max(0, min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns))
    rest = tuple(d for i, d in enumerate(self.shape) if i not in (a, b))
    return TensorType(self.dtype, (*rest, length))


# -- joins and splits ----------------------------------------------------------------------------------------


@op("aten.cat", torch.cat, flops=free)
def cat(tensors: Tensors, *, dim: Int = 0) -> TensorType:
    if not tensors:
        raise TypeCheckError("there is nothing to join")
    first = tensors[0]
    want_rank("joined tensors", first, *range(1, 65))
    at = axis(dim, first.rank)
    total: Dim = 0
    for x in tensors:
        if x.rank != first.rank or without_dim(x.shape, at) != without_dim(first.shape, at):
            raise TypeCheckError(f"joined tensors must agree in every dim but {dim}, got {first} and {x}")
        total = total + x.shape[at]
    return TensorType(promote(*tensors), with_dim(first.shape, at, total))


@op("aten.stack", torch.stack, flops=free)
def stack(tensors: Tensors, *, dim: Int = 0) -> TensorType:
    if not tensors:
        raise TypeCheckError("there is nothing to stack")
    first = tensors[0]
    for x in tensors:
        if x.shape != first.shape:
            raise TypeCheckError(f"stacked tensors must have one shape, got {first} and {x}")
    at = axis(dim, first.rank + 1)
    return TensorType(promote(*tensors), (*first.shape[:at], len(tensors), *first.shape[at:]))


_MAX_PIECES = 16384


def _check_pieces(count: int) -> None:
    # A dim may be any 64-bit number, and inference makes one type a piece.
    if count > _MAX_PIECES:
        raise TypeCheckError(f"at most {_MAX_PIECES} pieces of one tensor are allowed, got {count}")


@op(
    "aten.split",
    lambda self, split_size, dim=0: self.split(split_size, dim),
    _V,
    targets=("aten.split.Tensor", "aten.unsafe_split.Tensor"),
)
def split(self: Tensor, *, split_size: Int, dim: Int = 0) -> tuple[TensorType, ...]:
    want_rank("the operand", self, *range(1, 65))
    at = axis(dim, self.rank)
    size = self.shape[at]
    if not isinstance(size, int) or split_size < 1:
        raise TypeCheckError(
            f"splitting {self} at dim {dim} into pieces of {split_size}: the number of pieces varies"
        )
    _check_pieces(-(-size // split_size))
    pieces = [min(split_size, size - i) for i in range(0, size, split_size)] or [0]
    return tuple(TensorType(self.dtype, with_dim(self.shape, at, p)) for p in pieces)


@op(
    "aten.split_with_sizes",
    lambda self, split_sizes, dim=0: self.split(split_sizes, dim),
    _V,
    targets=("aten.split_with_sizes.default", "aten.unsafe_split_with_sizes.default"),
)
def split_with_sizes(self: Tensor, *, split_sizes: Dims, dim: Int = 0) -> tuple[TensorType, ...]:
    want_rank("the operand", self, *range(1, 65))
    at = axis(dim, self.rank)
    total: Dim = 0
    for size in split_sizes:
        total = total + size
    if total != self.shape[at]:
        raise TypeCheckError(f"pieces {show_shape(split_sizes)} do not add up to dim {dim} of {self}")
    return tuple(TensorType(self.dtype, with_dim(self.shape, at, p)) for p in split_sizes)


@op("aten.unbind", lambda self, dim=0: self.unbind(dim), _V, targets=("aten.unbind.int",))
def unbind(self: Tensor, *, dim: Int = 0) -> tuple[TensorType, ...]:
    want_rank("the operand", self, *range(1, 65))
    at = axis(dim, self.rank)
    size = self.shape[at]
    if not isinstance(size, int):
        raise TypeCheckError(f"unbinding dim {dim} of {self}: the number of pieces varies")
    _check_pieces(size)
    return (TensorType(self.dtype, without_dim(self.shape, at)),) * size


# -- copies in another arrangement ---------------------------------------------------------------------------


@op("aten.repeat", lambda self, repeats: self.repeat(repeats), flops=free)
def repeat(self: Tensor, *, repeats: Dims) -> TensorType:
    if len(repeats) < self.rank:
        raise TypeCheckError(f"{len(repeats)} repeats are too few for {self}")
    padded = (1,) * (len(repeats) - self.rank) + self.shape
    return TensorType(self.dtype, tuple(d * r for d, r in zip(padded, repeats, strict=True)))


@op("aten.flip", lambda self, dims: self.flip(dims), flops=free)
def flip(self: Tensor, *, dims: Ints) -> TensorType:
    axes(dims, self.rank)
    return self


@op("aten.roll", lambda self, shifts, dims=(): self.roll(shifts, dims), flops=free)
def roll(self: Tensor, *, shifts: Dims, dims: Ints = ()) -> TensorType:
    if len(shifts) != (len(dims) or 1):
        raise TypeCheckError(f"{len(shifts)} shifts for {len(dims)} dims")
    axes(dims, self.rank)
    return self


@op("aten.tril", torch.tril, flops=free)
def tril(self: Tensor, *, diagonal: Int = 0) -> TensorType:
    want_rank("the operand", self, *range(2, 65))
    return self


@op("aten.triu", torch.triu, flops=free)
def triu(self: Tensor, *, diagonal: Int = 0) -> TensorType:
    want_rank("the operand", self, *range(2, 65))
    return self


@op("aten.constant_pad", aten.constant_pad_nd.default, flops=free, targets=("aten.constant_pad_nd.default",))
def constant_pad(self: Tensor, *, pad: Dims, value: ScalarAttr = 0) -> TensorType:
    """Pairs of (before, after) from the last dim backwards."""
    if len(pad) % 2 or len(pad) > 2 * self.rank:
        raise TypeCheckError(f"pad {show_shape(pad)} does not fit {self}")
    shape = list(self.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] = shape[-1 - i] + pad[2 * i] + pad[2 * i + 1]
    return TensorType(self.dtype, tuple(shape))
