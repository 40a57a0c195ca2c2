"""Several ops as one, in torch's own functional forms: bit for bit what the ops that they stand for give.

Passes make them (`planc.passes.fusions`); nobody has to write them, though anybody may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from planc.errors import TypeCheckError
from planc.ir import Dim, TensorType
from planc.ops.guards import check_classes
from planc.ops.rules import want_choice, want_equal, want_floating, want_rank, want_shape
from planc.ops.schema import Bools, Int, OptTensor, Str, Tensor, Tensors
from planc.ops.steps import parse_steps, run_steps, step_types, stepwise
from planc.ops.table import op

aten = torch.ops.aten

ACTIVATIONS: Mapping[str, Any] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": aten.silu.default,
    "gelu": aten.gelu.default,
}
"""What may follow a linear layer in one node, by the name of the op ``aten.<name>``."""


def _linear_flops(
    operands: tuple[Any, ...], _attrs: Mapping[str, Any], results: tuple[TensorType, ...]
) -> Dim:
    bias = results[0].numel if operands[2] is not None else 0
    return results[0].numel * operands[0].shape[1] * 2 + bias


def _linear_type(input: TensorType, weight: TensorType, bias: TensorType | None) -> TensorType:
    want_rank("the input", input, 2)
    want_rank("weight", weight, 2)
    want_floating("input, weight and bias", input, weight, bias)
    want_equal(f"columns of {input} and of {weight}", input.shape[1], weight.shape[1])
    if bias is not None:
        want_shape("bias", bias, weight.shape[:1])
    return TensorType(input.dtype, (input.shape[0], weight.shape[0]))


@op("fused.linear", functional.linear, flops=_linear_flops)
def linear(input: Tensor, weight: Tensor, bias: OptTensor = None) -> TensorType:
    """input @ t(weight) + bias: ``aten.addmm`` or ``aten.mm`` of a transposed weight."""
    return _linear_type(input, weight, bias)


def _linear_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor, ...]:
    out: list[torch.Tensor] = []
    if output_mask[0]:
        assert weight is not None
        out.append(torch.mm(grad_output, weight))
    if output_mask[1]:
        out.append(torch.mm(grad_output.t(), input))
    if output_mask[2]:
        out.append(torch.sum(grad_output, dim=[0]))
    return tuple(out)


def _linear_backward_flops(
    operands: tuple[Any, ...], attrs: Mapping[str, Any], _results: tuple[TensorType, ...]
) -> Dim:
    grad, input, _ = operands
    by_input, by_weight, by_bias = attrs["output_mask"]
    return grad.numel * input.shape[1] * 2 * (int(by_input) + int(by_weight)) + grad.numel * int(by_bias)


@op("fused.linear_backward", _linear_backward, flops=_linear_backward_flops)
def linear_backward(
    grad_output: Tensor, input: Tensor, weight: OptTensor, *, output_mask: Bools
) -> tuple[TensorType, ...]:
    """Gradients of ``fused.linear`` by input, weight and bias, of which ``output_mask`` says those wanted."""
    want_rank("grad_output", grad_output, 2)
    want_rank("the input", input, 2)
    want_floating("gradient, input and weight", grad_output, input, weight)
    want_equal(f"rows of {grad_output} and of {input}", grad_output.shape[0], input.shape[0])
    if len(output_mask) != 3 or not any(output_mask):
        raise TypeCheckError(f"output_mask must be three bools, one of them true, got {list(output_mask)}")
    shape = (grad_output.shape[1], input.shape[1])
    if output_mask[0] and weight is None:
        raise TypeCheckError("the gradient by the input needs the weight")
    if weight is not None:
        want_shape("weight", weight, shape)
    made = (input.shape, shape, shape[:1])
    return tuple(
        TensorType(input.dtype, shape) for shape, wanted in zip(made, output_mask, strict=True) if wanted
    )


def _linear_act(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    return ACTIVATIONS[activation](functional.linear(input, weight, bias))


def _linear_act_flops(
    operands: tuple[Any, ...], attrs: Mapping[str, Any], results: tuple[TensorType, ...]
) -> Dim:
    return _linear_flops(operands, attrs, results) + results[0].numel


@op("fused.linear_act", _linear_act, flops=_linear_act_flops)
def linear_act(input: Tensor, weight: Tensor, bias: OptTensor = None, *, activation: Str) -> TensorType:
    """``fused.linear`` and then ``aten.<activation>``: relu, sigmoid, tanh, silu or gelu."""
    want_choice("activation", activation, *ACTIVATIONS)
    return _linear_type(input, weight, bias)


def _class_scores(
    self: TensorType, target: TensorType, weight: TensorType | None, reduction: int
) -> TensorType:
    """The type of the loss, after checks."""
    want_rank("the input", self, 2)
    want_floating("input and weight", self, weight)
    if str(target.dtype) != "i64":
        raise TypeCheckError(f"target must hold class numbers as i64, got {target}")
    want_shape("target", target, self.shape[:1])
    if weight is not None:
        want_shape("weight", weight, self.shape[1:])
    if reduction not in (0, 1, 2):
        raise TypeCheckError(f"reduction must be 0 (none), 1 (mean) or 2 (sum), got {reduction}")
    return TensorType(self.dtype, () if reduction else self.shape[:1])


def _per_score(count: int) -> Any:
    def flops(operands: tuple[Any, ...], _attrs: Any, _results: Any) -> Dim:
        return operands[1 if count == 6 else 0].numel * count

    return flops


def _cross_entropy(
    self: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logs = torch.log_softmax(self, 1)
    return (*aten.nll_loss_forward.default(logs, target, weight, reduction, ignore_index), logs)


@op("fused.cross_entropy", _cross_entropy, flops=_per_score(5))
def cross_entropy(
    self: Tensor, target: Tensor, weight: OptTensor = None, *, reduction: Int = 1, ignore_index: Int = -100
) -> tuple[TensorType, TensorType, TensorType]:
    """``aten.log_softmax`` over the classes and ``aten.nll_loss_forward``.

    Results are the loss, the total weight, and the logarithms.
    """
    loss = _class_scores(self, target, weight, reduction)
    return loss, TensorType(self.dtype, ()), self


def _cross_entropy_backward(
    grad_output: torch.Tensor,
    logs: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    total_weight: torch.Tensor,
    reduction: int = 1,
    ignore_index: int = -100,
) -> torch.Tensor:
    check_classes(target, logs.shape[1], ignore_index)
    grad = aten.nll_loss_backward.default(
        grad_output, logs, target, weight, reduction, ignore_index, total_weight
    )
    return aten._log_softmax_backward_data.default(grad, logs, 1, logs.dtype)


@op("fused.cross_entropy_backward", _cross_entropy_backward, flops=_per_score(6))
def cross_entropy_backward(
    grad_output: Tensor,
    logs: Tensor,
    target: Tensor,
    weight: OptTensor,
    total_weight: Tensor,
    *,
    reduction: Int = 1,
    ignore_index: Int = -100,
) -> TensorType:
    """``aten.nll_loss_backward`` and ``aten.log_softmax_backward``: the gradient by the scores."""
    loss = _class_scores(logs, target, weight, reduction)
    want_shape("grad_output", grad_output, loss.shape)
    want_shape("total_weight", total_weight, ())
    want_floating("gradient, logarithms and total weight", grad_output, logs, total_weight)
    return logs


def _elementwise(inputs: Sequence[torch.Tensor], steps: str) -> torch.Tensor:
    return run_steps(steps, inputs)


def _elementwise_flops(
    operands: tuple[Any, ...], attrs: Mapping[str, Any], _results: tuple[TensorType, ...]
) -> Dim:
    program = parse_steps(attrs["steps"])
    total: Dim = 0
    made = step_types(program, operands[0])
    for step, result in zip(program.steps, made, strict=True):
        definition = stepwise(step.op)
        assert definition is not None
        total = total + definition.flops((), {}, (result,))
    return total


@op("fused.elementwise", _elementwise, flops=_elementwise_flops)
def elementwise(inputs: Tensors, *, steps: Str) -> TensorType:
    """Elementwise ops as one: ``"mul(x0, x1); relu(s0)"``, where x0 is the first input, s0 the first step."""
    return step_types(parse_steps(steps), inputs)[-1]
