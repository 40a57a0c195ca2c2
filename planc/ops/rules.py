"""Shape and dtype rules that many ops share: broadcasting, promotion, dim numbers, reductions, windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DType, Scalar, Shape, TensorType, from_torch
from planc.ir.dims import DimExpr, floordiv, show

Arg = TensorType | Scalar | DimExpr


def broadcast(*shapes: Shape) -> Shape:
    """The common shape of operands, by torch's rules; a named dim is never taken to be 1.

    Raises:
        TypeCheckError: two sizes differ and neither is 1.
    """
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = []
    for position in range(-rank, 0):
        sizes = [s[position] for s in shapes if len(s) >= -position]
        big = [d for d in sizes if d != 1]
        if any(d != big[0] for d in big[1:]):
            text = " and ".join(show_shape(s) for s in shapes)
            raise TypeCheckError(
                f"shapes {text} do not broadcast: {show(big[0])} against "
                f"{show(next(d for d in big if d != big[0]))}"
            )
        out.append(big[0] if big else 1)
    return tuple(out)


def promote(*args: Arg) -> DType:
    """torch's result type: the highest category wins.

    Within it tensors with dims win over 0-dim tensors, and those over numbers.
    """
    dim = zero = number = None
    for arg in args:
        if isinstance(arg, TensorType):
            if arg.shape:
                dim = _promote(dim, arg.dtype)
            else:
                zero = _promote(zero, arg.dtype)
        else:
            number = _promote(number, scalar_dtype(arg))
    result = _combine(dim, _combine(zero, number))
    assert result is not None
    return result


def scalar_dtype(value: Scalar | DimExpr) -> DType:
    """The dtype that a Python number promotes with."""
    if isinstance(value, bool):
        return DType.BOOL
    return DType.F32 if isinstance(value, float) else DType.I64


def to_floating(dtype: DType) -> DType:
    """The result dtype of a function such as ``exp``: integers become float32."""
    return dtype if dtype.is_floating else DType.F32


def shape_of(arg: Arg) -> Shape:
    return arg.shape if isinstance(arg, TensorType) else ()


def show_shape(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(show(d) for d in shape)}]"


def axis(dim: int, rank: int) -> int:
    """``dim`` counted from the front.

    Raises:
        TypeCheckError: it is out of range.
    """
    span = max(rank, 1)  # torch gives scalars the one dim 0 here
    if not -span <= dim < span:
        raise TypeCheckError(f"dim {dim} is out of range for rank {rank}")
    return dim % span


def axes(dims: Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Several dim numbers counted from the front, sorted; None or none at all means every dim.

    Raises:
        TypeCheckError: one is out of range or named twice.
    """
    if not dims:
        return tuple(range(rank))
    out = sorted(axis(d, rank) for d in dims)
    if len(set(out)) != len(out):
        raise TypeCheckError(f"a dim is named twice in {tuple(dims)}")
    return tuple(out)


def reduced(shape: Shape, over: Sequence[int] | None, keepdim: bool) -> Shape:
    """The shape after reducing over the dims ``over`` (all, where None or empty)."""
    gone = axes(over, len(shape))
    if not shape:
        return ()
    return tuple(1 if i in gone else d for i, d in enumerate(shape) if keepdim or i not in gone)


def want_rank(what: str, t: TensorType, *ranks: int) -> None:
    """Raises TypeCheckError unless ``t`` has one of the ranks."""
    if t.rank not in ranks:
        expected = " or ".join(str(r) for r in ranks)
        raise TypeCheckError(f"{what} must have rank {expected}, got {t}")


def want_equal(what: str, a: Dim, b: Dim) -> None:
    """Raises TypeCheckError unless the dims are equal."""
    if a != b:
        raise TypeCheckError(f"{what} must be equal, got {show(a)} and {show(b)}")


def want_shape(what: str, t: TensorType, shape: Shape) -> None:
    """Raises TypeCheckError unless ``t`` has exactly this shape."""
    if t.shape != shape:
        raise TypeCheckError(f"{what} must have shape {show_shape(shape)}, got {t}")


def want_same_dtype(what: str, *types: TensorType | None) -> None:
    """Raises TypeCheckError unless all the given types have one dtype."""
    given = [t for t in types if t is not None]
    if len({t.dtype for t in given}) > 1:
        raise TypeCheckError(f"{what} must have one dtype, got {' and '.join(str(t) for t in given)}")


def want_floating(what: str, *types: TensorType | None) -> None:
    """Raises TypeCheckError unless all the given types are floating-point, and of one dtype."""
    want_same_dtype(what, *types)
    for t in types:
        if t is not None and not t.dtype.is_floating:
            raise TypeCheckError(f"{what} must be floating-point, got {t}")


def want_choice(what: str, value: str | None, *choices: str | None) -> None:
    """Raises TypeCheckError unless ``value`` is one of the choices."""
    if value not in choices:
        shown = ", ".join(repr(c) for c in choices)
        raise TypeCheckError(f"{what} must be one of {shown}, got {value!r}")


def want_elements(what: str, t: TensorType) -> None:
    """Raises TypeCheckError where a dim of ``t`` is 0 for certain."""
    if any(d == 0 for d in t.shape):
        raise TypeCheckError(f"{what} must have elements, got {t}")


def want_index(what: str, t: TensorType) -> None:
    """Raises TypeCheckError unless ``t`` can hold indexes."""
    if t.dtype not in (DType.I64, DType.I32):
        raise TypeCheckError(f"{what} must be i64 or i32, got {t}")


def window(size: Dim, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool = False) -> Dim:
    """Output size of a sliding window (convolution and pooling).

    Raises:
        TypeCheckError: the window is larger than the padded input, or the numbers are out of range.
    """
    if kernel < 1 or stride < 1 or dilation < 1 or padding < 0:
        raise TypeCheckError(
            f"window of kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}"
        )
    span: Dim = size + 2 * padding - dilation * (kernel - 1) - 1
    if isinstance(span, int) and span < 0:
        raise TypeCheckError(
            f"a window of {kernel} is larger than the padded input of {show(size + 2 * padding)}"
        )
    if ceil_mode and not isinstance(size, int) and padding + stride - 2 >= dilation * (kernel - 1):
        raise TypeCheckError(
            f"ceil_mode with stride {stride} and padding {padding} drops the last window of {show(size)} for "
            "some sizes only; fix the dim, or use a larger kernel"
        )
    out = floordiv(span + (stride - 1) if ceil_mode else span, stride) + 1
    if ceil_mode and isinstance(out, int) and isinstance(size, int) and (out - 1) * stride >= size + padding:
        out -= 1  # torch drops a window that would start in the padding on the right
    return out


def pair(values: Sequence[int], n: int, what: str) -> tuple[int, ...]:
    """A list of one or n numbers as n of them.

    Raises:
        TypeCheckError: it has another length.
    """
    if len(values) == 1:
        return tuple(values) * n
    if len(values) != n:
        raise TypeCheckError(f"{what} must have 1 or {n} entries, got {list(values)}")
    return tuple(values)


def _promote(a: DType | None, b: DType | None) -> DType | None:
    if a is None or b is None:
        return b if a is None else a
    return from_torch(torch.promote_types(a.torch, b.torch))


def _combine(higher: DType | None, lower: DType | None) -> DType | None:
    if higher is None or lower is None:
        return _promote(higher, lower)
    return (
        higher if higher.category >= lower.category and higher is not DType.BOOL else _promote(higher, lower)
    )
