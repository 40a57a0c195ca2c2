"""Losses and their gradients. ``reduction`` is ATen's number: 0 none, 1 mean, 2 sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import DType, Shape, TensorType
from planc.ops.guards import check_classes
from planc.ops.rules import broadcast, want_floating, want_rank, want_shape
from planc.ops.schema import Float, Int, OptTensor, Tensor
from planc.ops.table import op

aten = torch.ops.aten


def _reduced(shape: Shape, reduction: int) -> Shape:
    if reduction not in (0, 1, 2):
        raise TypeCheckError(f"reduction must be 0 (none), 1 (mean) or 2 (sum), got {reduction}")
    return () if reduction else shape


def _target(target: TensorType, shape: Shape) -> None:
    if target.dtype not in (DType.I64, DType.U8):
        raise TypeCheckError(f"target must hold class numbers as i64, got {target}")
    want_shape("target", target, shape)


def _class_shape(self: TensorType, target: TensorType, weight: TensorType | None) -> Shape:
    want_rank("the input", self, 1, 2)
    want_floating("input and weight", self, weight)
    shape = self.shape[:1] if self.rank == 2 else ()
    _target(target, shape)
    if weight is not None:
        want_shape("weight", weight, self.shape[-1:])
    return shape


def _with_defaults(overload: Callable[..., Any]) -> Callable[..., Any]:
    """ATen's own schema has no defaults for what our schema may leave out."""

    def run(
        self: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None,
        reduction: int = 1,
        ignore_index: int = -100,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return overload(self, target, weight, reduction, ignore_index)

    return run


@op("aten.nll_loss_forward", _with_defaults(aten.nll_loss_forward.default))
def nll_loss_forward(
    self: Tensor, target: Tensor, weight: OptTensor = None, *, reduction: Int = 1, ignore_index: Int = -100
) -> tuple[TensorType, TensorType]:
    """The negative log-likelihood of class numbers, and the total weight that its mean divided by."""
    shape = _class_shape(self, target, weight)
    return TensorType(self.dtype, _reduced(shape, reduction)), TensorType(self.dtype, ())


def _nll_loss_backward(
    grad_output: torch.Tensor,
    self: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    total_weight: torch.Tensor,
    reduction: int = 1,
    ignore_index: int = -100,
) -> torch.Tensor:
    return aten.nll_loss_backward.default(
        grad_output, self, target, weight, reduction, ignore_index, total_weight
    )


@op("aten.nll_loss_backward", _nll_loss_backward)
def nll_loss_backward(
    grad_output: Tensor,
    self: Tensor,
    target: Tensor,
    weight: OptTensor,
    total_weight: Tensor,
    *,
    reduction: Int = 1,
    ignore_index: Int = -100,
) -> TensorType:
    shape = _class_shape(self, target, weight)
    want_shape("grad_output", grad_output, _reduced(shape, reduction))
    want_shape("total_weight", total_weight, ())
    want_floating("gradient, input and total weight", grad_output, self, total_weight)
    return self


def _class_map_shape(self: TensorType, target: TensorType, weight: TensorType | None) -> Shape:
    want_rank("the input", self, 4)
    want_floating("input and weight", self, weight)
    shape = (self.shape[0], *self.shape[2:])
    _target(target, shape)
    if weight is not None:
        want_shape("weight", weight, self.shape[1:2])
    return shape


@op("aten.nll_loss2d_forward", _with_defaults(aten.nll_loss2d_forward.default))
def nll_loss2d_forward(
    self: Tensor, target: Tensor, weight: OptTensor = None, *, reduction: Int = 1, ignore_index: Int = -100
) -> tuple[TensorType, TensorType]:
    """As nll_loss_forward, for a class a pixel."""
    shape = _class_map_shape(self, target, weight)
    return TensorType(self.dtype, _reduced(shape, reduction)), TensorType(self.dtype, ())


def _nll_loss2d_backward(
    grad_output: torch.Tensor,
    self: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    total_weight: torch.Tensor,
    reduction: int = 1,
    ignore_index: int = -100,
) -> torch.Tensor:
    check_classes(target, self.shape[1], ignore_index)
    return aten.nll_loss2d_backward.default(
        grad_output, self, target, weight, reduction, ignore_index, total_weight
    )


@op("aten.nll_loss2d_backward", _nll_loss2d_backward)
def nll_loss2d_backward(
    grad_output: Tensor,
    self: Tensor,
    target: Tensor,
    weight: OptTensor,
    total_weight: Tensor,
    *,
    reduction: Int = 1,
    ignore_index: Int = -100,
) -> TensorType:
    shape = _class_map_shape(self, target, weight)
    want_shape("grad_output", grad_output, _reduced(shape, reduction))
    want_shape("total_weight", total_weight, ())
    want_floating("gradient, input and total weight", grad_output, self, total_weight)
    return self


def _pointwise(self: TensorType, target: TensorType, reduction: int) -> TensorType:
    want_floating("input and target", self, target)
    want_shape("target", target, self.shape)  # F.*_loss expands it before; broadcasting here is a slip
    return TensorType(self.dtype, _reduced(self.shape, reduction))


def _pointwise_gradient(
    grad_output: TensorType, self: TensorType, target: TensorType, reduction: int
) -> TensorType:
    want_floating("gradient, input and target", grad_output, self, target)
    want_shape("target", target, self.shape)
    want_shape("grad_output", grad_output, _reduced(self.shape, reduction))
    return self


@op("aten.mse_loss", aten.mse_loss.default)
def mse_loss(self: Tensor, target: Tensor, *, reduction: Int = 1) -> TensorType:
    return _pointwise(self, target, reduction)


@op("aten.mse_loss_backward", aten.mse_loss_backward.default)
def mse_loss_backward(grad_output: Tensor, self: Tensor, target: Tensor, *, reduction: Int) -> TensorType:
    return _pointwise_gradient(grad_output, self, target, reduction)


@op("aten.smooth_l1_loss", aten.smooth_l1_loss.default)
def smooth_l1_loss(self: Tensor, target: Tensor, *, reduction: Int = 1, beta: Float = 1.0) -> TensorType:
    if not beta >= 0:
        raise TypeCheckError(f"beta must be at least 0, got {beta}")
    return _pointwise(self, target, reduction)


@op("aten.smooth_l1_loss_backward", aten.smooth_l1_loss_backward.default)
def smooth_l1_loss_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, *, reduction: Int, beta: Float
) -> TensorType:
    if not beta >= 0:
        raise TypeCheckError(f"beta must be at least 0, got {beta}")
    return _pointwise_gradient(grad_output, self, target, reduction)


@op("aten.huber_loss", aten.huber_loss.default)
def huber_loss(self: Tensor, target: Tensor, *, reduction: Int = 1, delta: Float = 1.0) -> TensorType:
    if not delta > 0:
        raise TypeCheckError(f"delta must be more than 0, got {delta}")
    return _pointwise(self, target, reduction)


@op("aten.huber_loss_backward", aten.huber_loss_backward.default)
def huber_loss_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, *, reduction: Int, delta: Float
) -> TensorType:
    if not delta > 0:
        raise TypeCheckError(f"delta must be more than 0, got {delta}")
    return _pointwise_gradient(grad_output, self, target, reduction)


@op("aten.soft_margin_loss", aten.soft_margin_loss.default)
def soft_margin_loss(self: Tensor, target: Tensor, *, reduction: Int = 1) -> TensorType:
    return _pointwise(self, target, reduction)


@op("aten.soft_margin_loss_backward", aten.soft_margin_loss_backward.default)
def soft_margin_loss_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, *, reduction: Int
) -> TensorType:
    return _pointwise_gradient(grad_output, self, target, reduction)


@op("aten.binary_cross_entropy_with_logits", aten.binary_cross_entropy_with_logits.default)
def binary_cross_entropy_with_logits(
    self: Tensor,
    target: Tensor,
    weight: OptTensor = None,
    pos_weight: OptTensor = None,
    *,
    reduction: Int = 1,
) -> TensorType:
    _weighted(self, weight)
    _weighted(self, pos_weight)
    return _pointwise(self, target, reduction)


def _weighted(self: TensorType, weight: TensorType | None) -> None:
    want_floating("input and weight", self, weight)
    if weight is not None and broadcast(self.shape, weight.shape) != self.shape:
        raise TypeCheckError(f"weight must broadcast to {self}, got {weight}")


@op("aten.binary_cross_entropy", aten.binary_cross_entropy.default)
def binary_cross_entropy(
    self: Tensor, target: Tensor, weight: OptTensor = None, *, reduction: Int = 1
) -> TensorType:
    _weighted(self, weight)
    return _pointwise(self, target, reduction)


@op("aten.binary_cross_entropy_backward", aten.binary_cross_entropy_backward.default)
def binary_cross_entropy_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, weight: OptTensor = None, *, reduction: Int = 1
) -> TensorType:
    _weighted(self, weight)
    return _pointwise_gradient(grad_output, self, target, reduction)
