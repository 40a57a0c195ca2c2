"""Capture of a whole training step: forward, loss, gradients and the optimizer's update, as one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

from planc.capture.accumulate import accumulated
from planc.capture.clipping import GradTransform, transformed
from planc.capture.functional import present_buffers, with_state
from planc.capture.trace import (
    DEFAULTS,
    Captured,
    Options,
    Results,
    Signature,
    Traced,
    add_module,
    add_updates,
    as_value,
    export_signature,
    finish,
    import_program,
    parameter_names,
    plan_name,
    unique_name,
)
from planc.capture.updates import Optimizing, groups_of
from planc.errors import CaptureError
from planc.ir import Role

LossFunction = Callable[..., Any]


@dataclass(frozen=True)
class StepOptions:
    """What a training step is made of beyond module, loss and optimizer.

    Attributes:
        targets: how many of the examples, the last ones, are the loss function's.
        lr_input: whether learning rates are the last argument instead of being fixed.
        grad_transform: applied to the gradients before the update.
        micro_batch: rows that go through forward and backward at a time; all at once where not given.
    """

    targets: int = 1
    lr_input: bool = False
    grad_transform: GradTransform | None = None
    micro_batch: int | None = None


PLAIN = StepOptions()


@torch.inference_mode(False)  # autograd works in no other
def train_step(
    module: nn.Module,
    loss_fn: LossFunction,
    optimizer: optim.Optimizer,
    examples: Sequence[Any],
    options: Options = DEFAULTS,
    how: StepOptions = PLAIN,
) -> Captured:
    """Capture ``loss = loss_fn(module(*inputs), *targets)``, its gradients, and the optimizer's update.

    Args:
        module: its mode (train or eval) is captured as it is.
        loss_fn: returns the loss (a scalar), or a tuple whose first entry is the loss, or a dict with the key
            ``"loss"``; all of it is the step's result.
        optimizer: over parameters of ``module``; its present state is where the plan starts.
        examples: the module's inputs, then the loss function's targets.

    Raises:
        CaptureError: the code cannot be a plan, the loss is no scalar or reaches no parameter, or the
            optimizer has no op; shows the user's line where there is one.
    """
    groups = groups_of(module, optimizer)
    updated = {path for group in groups for path in group.paths}
    traced, rate_name = _trace(module, loss_fn, examples, updated, options, how)
    signature, results = traced.signature, traced.results
    rates = rate_name if how.lr_input else None
    optimizing = Optimizing.of(optimizer, groups, traced.trained, signature, rates)
    if how.micro_batch is not None:
        return accumulated(traced, optimizing, how.micro_batch, how.grad_transform)
    importer = import_program(traced.name, traced.program, signature, traced.dims, optimizing.ports)
    names: set[str] = set()
    entries = importer.outputs
    split = results.count + len(traced.buffered)
    results.add_outputs(importer, entries[: results.count], names)
    grads = {k: as_value(importer, e) for k, e in zip(traced.trained, entries[split:], strict=True)}
    updates = optimizing.emit(importer.builder, grads)
    buffers = dict(zip(traced.buffered, entries[results.count : split], strict=True))
    add_updates(importer, Role.PARAMETER, updates[Role.PARAMETER], names)
    add_updates(importer, Role.BUFFER, buffers, names)
    add_updates(importer, Role.OPTIMIZER, updates[Role.OPTIMIZER], names)
    return finish(importer, [*signature.ports, *optimizing.ports], signature, results, names)


def _trace(
    module: nn.Module,
    loss_fn: LossFunction,
    examples: Sequence[Any],
    updated: set[str],
    options: Options,
    how: StepOptions,
) -> tuple[Traced, str]:
    """Trace forward, loss and the gradients of ``updated`` parameters; and a free name for learning rates."""
    inputs = len(examples) - how.targets
    if not 0 <= how.targets <= len(examples) or not examples:
        raise CaptureError(f"{len(examples)} example inputs cannot hold {how.targets} targets")
    names = [*parameter_names(module.forward, inputs), *parameter_names(loss_fn, 1 + how.targets)[1:], "lr"]
    *parameters, rate_name = _distinct(names)
    signature = Signature(parameters, examples)
    add_module(signature, module)
    results = Results()
    trained: list[str] = []
    buffered: list[str] = []
    transform = how.grad_transform if how.micro_batch is None else None  # else it follows the accumulation

    def run(*flat: torch.Tensor) -> list[Any]:
        arguments = signature.arguments(flat)
        frozen = {k for k, v in module.named_parameters() if not v.requires_grad}
        leaves = {
            k: v.detach() if k in frozen else v.detach().requires_grad_()
            for k, v in signature.of(Role.PARAMETER, flat).items()
        }
        buffers = {k: v.clone() for k, v in signature.of(Role.BUFFER, flat).items()}
        wanted = {k: v for k, v in leaves.items() if k in updated}

        def body() -> tuple[Any, Any]:
            result = loss_fn(module(*arguments[:inputs]), *arguments[inputs:])
            # With allow_unused some gradients are None, which torch's own annotation leaves out.
            grads = torch.autograd.grad(_loss_of(result), list(wanted.values()), allow_unused=True)
            buffers.update(present_buffers(module, buffers))
            return result, grads

        with torch.enable_grad():  # whatever mode the caller is in
            result, grads = with_state(module, {**leaves, **buffers}, body)
        found = {k: g for k, g in zip(wanted, grads, strict=True) if g is not None}
        with torch.no_grad():
            found = transformed(transform, found)
        trained[:], buffered[:] = found, buffers
        return [*(x.detach() for x in results.flat(result)), *buffers.values(), *found.values()]

    program, dims = export_signature(run, signature, options)
    if not trained:
        raise CaptureError("the loss depends on no parameter that the optimizer updates")
    name = options.name or f"train_{plan_name(module)}"
    return Traced(name, program, dims, signature, results, buffered, trained), rate_name


def _loss_of(result: Any) -> torch.Tensor:
    """The loss among what the loss function returned."""
    loss = result
    if isinstance(result, dict):
        if "loss" not in result:
            raise CaptureError(
                f"the loss function returned a dict without the key 'loss', but {list(result)}"
            )
        loss = result["loss"]
    elif isinstance(result, (tuple, list)) and result:
        loss = result[0]
    if not isinstance(loss, torch.Tensor):
        raise CaptureError(f"the loss must be a tensor, got {type(loss).__name__}")
    if loss.dim():
        raise CaptureError(
            f"the loss must be a scalar, got a tensor of {loss.dim()} dims; take its mean or sum"
        )
    if not loss.requires_grad:
        raise CaptureError("the loss depends on no parameter that requires a gradient")
    return loss


def _distinct(names: list[str]) -> list[str]:
    taken: set[str] = set()
    return [unique_name(name, taken) for name in names]
