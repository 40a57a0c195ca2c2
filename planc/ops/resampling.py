"""Padding by what is there, sampling at other positions, unfolding into columns, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Dim, DType, Shape, TensorType
from planc.ir.dims import show
from planc.ops.guards import check_coordinates, check_filled
from planc.ops.masks import masked, wanted
from planc.ops.rules import (
    show_shape,
    want_elements,
    want_equal,
    want_floating,
    want_rank,
    want_same_dtype,
    want_shape,
    window,
)
from planc.ops.schema import Bool, Bools, Dims, Int, Ints, OptFloat, Tensor
from planc.ops.table import op

aten = torch.ops.aten


# -- padding -------------------------------------------------------------------------------------------------


def _padded(x: TensorType, padding: Sequence[Dim], n: int, reflects: bool) -> Shape:
    want_rank("the input", x, n + 1, n + 2)
    want_elements("the input", x)
    if x.dtype is DType.BOOL:
        raise TypeCheckError(f"the input must be of numbers, got {x}")
    if len(padding) != 2 * n:
        raise TypeCheckError(f"padding must have {2 * n} entries, got {show_shape(padding)}")
    shape = list(x.shape)
    for i in range(n):
        size = shape[-1 - i]
        for side in padding[2 * i : 2 * i + 2]:
            if reflects and isinstance(size, int) and isinstance(side, int) and side >= size:
                raise TypeCheckError(f"a dim of size {size} is too small to be reflected by {side}")
        padded = size + padding[2 * i] + padding[2 * i + 1]
        shape[-1 - i] = padded
        if isinstance(padded, int) and padded < 1:
            raise TypeCheckError(f"padding {show_shape(padding)} leaves nothing of {x}")
    return tuple(shape)


def _pads(kind: str, n: int) -> None:
    reflects = kind == "reflection"
    name = f"{kind}_pad{n}d"

    @op(f"aten.{name}", getattr(aten, name).default)
    def _(self: Tensor, *, padding: Dims) -> TensorType:
        """Pairs of (before, after) from the last dim backwards."""
        return TensorType(self.dtype, _padded(self, padding, n, reflects))

    @op(f"aten.{name}_backward", getattr(aten, f"{name}_backward").default)
    def _(grad_output: Tensor, self: Tensor, *, padding: Dims) -> TensorType:
        want_shape("grad_output", grad_output, _padded(self, padding, n, reflects))
        want_same_dtype("grad_output and self", grad_output, self)
        return self


for _kind in ("reflection", "replication"):
    for _n in (1, 2, 3):
        _pads(_kind, _n)


# -- columns -------------------------------------------------------------------------------------------------


def _columns(
    size: Sequence[Dim], kernel: Ints, dilation: Ints, padding: Ints, stride: Ints
) -> tuple[int, Dim]:
    """How many elements a window has, and how many windows there are."""
    if len(size) != 2 or any(len(v) != 2 for v in (kernel, dilation, padding, stride)):
        raise TypeCheckError(f"an image and its windows have 2 dims, got {show_shape(size)}")
    numbers = (kernel, stride, padding, dilation)
    count: Dim = 1
    for d, k, s, p, g in zip(size, *numbers, strict=True):
        count = count * window(d, k, s, p, g)
    return kernel[0] * kernel[1], count


@op("aten.im2col", aten.im2col.default)
def im2col(self: Tensor, *, kernel_size: Ints, dilation: Ints, padding: Ints, stride: Ints) -> TensorType:
    """Each window as a column: [batch, channels * window, windows]."""
    want_rank("the input", self, 3, 4)
    want_floating("the input", self)
    want_elements("the input", self)
    elements, count = _columns(self.shape[-2:], kernel_size, dilation, padding, stride)
    return TensorType(self.dtype, (*self.shape[:-3], self.shape[-3] * elements, count))


@op("aten.col2im", aten.col2im.default)
def col2im(
    self: Tensor, *, output_size: Dims, kernel_size: Ints, dilation: Ints, padding: Ints, stride: Ints
) -> TensorType:
    """Columns added up where im2col would have read them."""
    want_rank("the input", self, 2, 3)
    want_floating("the input", self)
    want_elements("the input", self)
    elements, count = _columns(output_size, kernel_size, dilation, padding, stride)
    rows = self.shape[-2]
    want_equal("the number of windows and that of columns", count, self.shape[-1])
    if rows % elements != 0:
        raise TypeCheckError(f"{show(rows)} rows are no multiple of a window's {elements} elements")
    return TensorType(self.dtype, (*self.shape[:-2], rows // elements, *output_size))


# -- sampling ------------------------------------------------------------------------------------------------


def _sampled(input: TensorType, grid: TensorType) -> Shape:
    want_rank("the input", input, 4)
    want_shape("grid", grid, (input.shape[0], *grid.shape[1:3], 2))
    want_floating("input and grid", input, grid)
    want_elements("the input", input)
    return (*input.shape[:2], *grid.shape[1:3])


def _check_modes(interpolation_mode: int, padding_mode: int) -> None:
    if interpolation_mode not in (0, 1, 2) or padding_mode not in (0, 1, 2):
        raise TypeCheckError(
            "interpolation_mode is 0 (bilinear), 1 (nearest) or 2 (bicubic) and padding_mode 0 (zeros), "
            f"1 (border) or 2 (reflection), got {interpolation_mode} and {padding_mode}"
        )


def _grid_sampler_2d(input: torch.Tensor, grid: torch.Tensor, **attrs: int) -> torch.Tensor:
    check_coordinates(grid)  # the backward pass, autograd's too, reads and writes where NaN points to
    return aten.grid_sampler_2d.default(input, grid, **attrs)


def _grid_sampler_2d_backward(
    grad_output: torch.Tensor, input: torch.Tensor, grid: torch.Tensor, **attrs: int
) -> tuple[torch.Tensor, ...]:
    check_coordinates(grid)
    return aten.grid_sampler_2d_backward.default(grad_output, input, grid, **attrs)


@op("aten.grid_sampler_2d", _grid_sampler_2d)
def grid_sampler_2d(
    input: Tensor, grid: Tensor, *, interpolation_mode: Int, padding_mode: Int, align_corners: Bool
) -> TensorType:
    """The input at positions in -1..1 of both its sides: grid is [batch, height, width, 2]."""
    _check_modes(interpolation_mode, padding_mode)
    want_rank("grid", grid, 4)
    return TensorType(input.dtype, _sampled(input, grid))


@op("aten.grid_sampler_2d_backward", masked(_grid_sampler_2d_backward))
def grid_sampler_2d_backward(
    grad_output: Tensor,
    input: Tensor,
    grid: Tensor,
    *,
    interpolation_mode: Int,
    padding_mode: Int,
    align_corners: Bool,
    output_mask: Bools,
) -> tuple[TensorType, ...]:
    """Gradients by input and grid; only those that ``output_mask`` wants are results."""
    _check_modes(interpolation_mode, padding_mode)
    want_rank("grid", grid, 4)
    want_shape("grad_output", grad_output, _sampled(input, grid))
    want_same_dtype("gradient and input", grad_output, input)
    return wanted((input, grid), output_mask)


def _image(size: Shape) -> Shape:
    if len(size) != 2 or any(isinstance(d, int) and d < 1 for d in size):
        raise TypeCheckError(f"an image has 2 sizes of at least 1, got {show_shape(size)}")
    return size


def _resized(kind: str) -> None:
    name = f"_upsample_{kind}2d_aa"

    @op(f"aten.upsample_{kind}2d_aa", getattr(aten, name).default, targets=(f"aten.{name}.default",))
    def _(
        self: Tensor,
        *,
        output_size: Dims,
        align_corners: Bool,
        scales_h: OptFloat = None,
        scales_w: OptFloat = None,
    ) -> TensorType:
        """Resized without aliasing."""
        want_rank("the input", self, 4)
        want_floating("the input", self)
        want_elements("the input", self)
        return TensorType(self.dtype, (*self.shape[:2], *_image(output_size)))

    @op(
        f"aten.upsample_{kind}2d_aa_backward",
        getattr(aten, f"{name}_backward").default,
        targets=(f"aten.{name}_backward.default",),
    )
    def _(
        grad_output: Tensor,
        *,
        output_size: Dims,
        input_size: Dims,
        align_corners: Bool,
        scales_h: OptFloat = None,
        scales_w: OptFloat = None,
    ) -> TensorType:
        if len(input_size) != 4:
            raise TypeCheckError(f"input_size must have 4 entries, got {show_shape(input_size)}")
        _image(input_size[2:])
        want_floating("the gradient", grad_output)
        want_shape("grad_output", grad_output, (*input_size[:2], *_image(output_size)))
        return TensorType(grad_output.dtype, tuple(input_size))


for _kind in ("bilinear", "bicubic"):
    _resized(_kind)


# -- channels and pixels -------------------------------------------------------------------------------------


def _exact(size: Dim, factor: int, what: str) -> Dim:
    if factor < 1 or size % factor != 0:
        raise TypeCheckError(f"{what} of {show(size)} is no multiple of {factor}")
    return size // factor


def _unshared(run: Any) -> Any:
    """Rearranging nothing (a factor of 1) may return the operand itself, but results are fresh."""

    def call(self: torch.Tensor, **attrs: int) -> torch.Tensor:
        check_filled(self)  # for which torch returns the operand as it is
        out = run(self, **attrs)
        return out.clone() if out.data_ptr() == self.data_ptr() else out

    return call


@op("aten.pixel_shuffle", _unshared(torch.pixel_shuffle))
def pixel_shuffle(self: Tensor, *, upscale_factor: Int) -> TensorType:
    """[..., c*r*r, h, w] as [..., c, h*r, w*r]."""
    want_rank("the input", self, *range(3, 65))
    want_elements("the input", self)
    *rest, channels, height, width = self.shape
    factor = upscale_factor
    channels = _exact(channels, factor * abs(factor), "a number of channels")
    return TensorType(self.dtype, (*rest, channels, height * factor, width * factor))


@op("aten.pixel_unshuffle", _unshared(torch.pixel_unshuffle))
def pixel_unshuffle(self: Tensor, *, downscale_factor: Int) -> TensorType:
    """[..., c, h*r, w*r] as [..., c*r*r, h, w]."""
    want_rank("the input", self, *range(3, 65))
    want_elements("the input", self)
    *rest, channels, height, width = self.shape
    factor = downscale_factor
    sizes = (_exact(height, factor, "a height"), _exact(width, factor, "a width"))
    return TensorType(self.dtype, (*rest, channels * factor * factor, *sizes))


@op("aten.channel_shuffle", _unshared(torch.channel_shuffle))
def channel_shuffle(self: Tensor, *, groups: Int) -> TensorType:
    """Channels of ``groups`` groups interleaved."""
    want_rank("the input", self, *range(3, 65))
    want_elements("the input", self)
    _exact(self.shape[1], groups, "a number of channels")
    return self
