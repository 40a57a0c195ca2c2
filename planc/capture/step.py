"""Capture of a whole training step: forward, loss, gradients and the optimizer's update, as one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

from planc.capture.dynamic import Dynamic
from planc.capture.importer import Importer, Port
from planc.capture.optimizers import Update, update_of
from planc.capture.trace import (
    Captured,
    Ranges,
    Results,
    Signature,
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
from planc.errors import CaptureError
from planc.ir import Role, Value

LossFunction = Callable[..., Any]


def train_step(
    module: nn.Module,
    loss_fn: LossFunction,
    optimizer: optim.Optimizer,
    examples: Sequence[Any],
    targets: int = 1,
    dynamic: Dynamic = None,
    ranges: Ranges = None,
    name: str | None = None,
) -> Captured:
    """Capture ``loss = loss_fn(module(*inputs), *targets)``, its gradients, and the optimizer's update.

    Args:
        module: its mode (train or eval) is captured as it is.
        loss_fn: returns the loss (a scalar), or a tuple whose first entry is the loss, or a dict with the key
            ``"loss"``; all of it is the step's result.
        optimizer: over parameters of ``module``; its present state is where the plan starts.
        examples: the module's inputs, then the loss function's targets.
        targets: how many of the examples are targets.

    Raises:
        CaptureError: the code cannot be a plan, the loss is no scalar or reaches no parameter, or the optimizer
            has no op; shows the user's line where there is one.
    """
    if not 0 <= targets < len(examples) + (1 if targets == 0 else 0):
        raise CaptureError(f"{len(examples)} example inputs cannot hold {targets} targets and an input of the module")
    inputs = len(examples) - targets
    parameters = parameter_names(module.forward, inputs) + parameter_names(loss_fn, 1 + targets)[1:]
    signature = Signature(_distinct(parameters), examples)
    add_module(signature, module)
    groups = _groups(module, optimizer)
    updated = {path for group in groups for path in group.paths}
    results = Results()
    trained: list[str] = []
    buffered: list[str] = []

    def run(*flat: torch.Tensor) -> list[Any]:
        arguments = signature.arguments(flat)
        frozen = {k for k, v in module.named_parameters() if not v.requires_grad}
        leaves = {
            k: v.detach() if k in frozen else v.detach().requires_grad_()
            for k, v in signature.of(Role.PARAMETER, flat).items()
        }
        buffers = {k: v.clone() for k, v in signature.of(Role.BUFFER, flat).items()}
        out = torch.func.functional_call(module, {**leaves, **buffers}, arguments[:inputs], tie_weights=True)
        result = loss_fn(out, *arguments[inputs:])
        wanted = {k: v for k, v in leaves.items() if k in updated}
        grads = torch.autograd.grad(_loss_of(result), list(wanted.values()), allow_unused=True)
        found = {k: g for k, g in zip(wanted, grads, strict=True) if g is not None}
        trained[:], buffered[:] = found, buffers
        return [*(x.detach() for x in results.flat(result)), *buffers.values(), *found.values()]

    program, dims = export_signature(run, signature, dynamic, ranges)
    if not trained:
        raise CaptureError("the loss depends on no parameter that the optimizer updates")
    groups = [group.only(trained) for group in groups]
    slots = [slot for group in groups for slot in group.slots(optimizer)]
    taken = {p.name for p in signature.ports}
    extra = [Port(unique_name(path, taken), Role.OPTIMIZER, path, tensor) for path, tensor in slots]
    importer = import_program(name or f"train_{plan_name(module)}", program, signature, dims, extra)
    names: set[str] = set()
    entries = importer.outputs
    split = results.count + len(buffered)
    results.add_outputs(importer, entries[: results.count], names)
    grads = {k: as_value(importer, e) for k, e in zip(trained, entries[split:], strict=True)}
    updates: dict[Role, dict[str, Value]] = {Role.PARAMETER: {}, Role.OPTIMIZER: {}}
    for group in groups:
        group.emit(importer, grads, updates)
    add_updates(importer, Role.PARAMETER, updates[Role.PARAMETER], names)
    add_updates(importer, Role.BUFFER, dict(zip(buffered, entries[results.count : split], strict=True)), names)
    add_updates(importer, Role.OPTIMIZER, updates[Role.OPTIMIZER], names)
    return finish(importer, [*signature.ports, *extra], signature, results, names)


@dataclass(frozen=True)
class Group:
    """One parameter group of the optimizer: its update op and its parameters' paths."""

    update: Update
    paths: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]

    def only(self, trained: Sequence[str]) -> Group:
        """The group without parameters that the loss does not reach, which torch's optimizers skip too."""
        kept = [(k, p) for k, p in zip(self.paths, self.parameters, strict=True) if k in trained]
        return Group(self.update, tuple(k for k, _ in kept), tuple(p for _, p in kept))

    def slots(self, optimizer: optim.Optimizer) -> list[tuple[str, torch.Tensor]]:
        """The path and present value of each state tensor: the optimizer's own, or a fresh one."""
        out: list[tuple[str, torch.Tensor]] = []
        for slot in self.update.slots:
            if slot is None:
                continue
            name, fresh = slot
            for path, parameter in zip(self.paths, self.parameters, strict=True):
                held: Any = optimizer.state.get(parameter, {}).get(name)
                tensor = fresh(parameter.detach()) if held is None else torch.as_tensor(held).detach().clone()
                out.append((f"{path}.{name}", tensor.to(torch.float32) if name == "step" else tensor))
        return out

    def emit(self, importer: Importer, grads: Mapping[str, Value], updates: dict[Role, dict[str, Value]]) -> None:
        """Append the update op and note the new value of every parameter and state tensor."""
        if not self.paths:
            return
        operands: list[tuple[Value, ...]] = [
            tuple(importer.value(Role.PARAMETER, path) for path in self.paths),
            tuple(grads[path] for path in self.paths),
        ]
        targets = [(Role.PARAMETER, path) for path in self.paths]
        for slot in self.update.slots:
            paths = () if slot is None else tuple(f"{path}.{slot[0]}" for path in self.paths)
            operands.append(tuple(importer.value(Role.OPTIMIZER, path) for path in paths))
            targets += [(Role.OPTIMIZER, path) for path in paths]
        results = importer.emit_all(self.update.op, *operands, self.update.lr, **self.update.attrs)
        for (role, path), value in zip(targets, results, strict=True):
            updates[role][path] = value


def _groups(module: nn.Module, optimizer: optim.Optimizer) -> list[Group]:
    paths = {id(p): k for k, p in module.named_parameters()}
    out: list[Group] = []
    for group in optimizer.param_groups:
        parameters = tuple(p for p in group["params"] if p.requires_grad)
        strangers = [p for p in parameters if id(p) not in paths]
        if strangers:
            raise CaptureError(
                f"the optimizer updates a tensor of shape {tuple(strangers[0].shape)} that is no parameter of the module"
            )
        out.append(Group(update_of(optimizer, group), tuple(paths[id(p)] for p in parameters), parameters))
    return out


def _loss_of(result: Any) -> torch.Tensor:
    """The loss among what the loss function returned."""
    loss = result
    if isinstance(result, dict):
        if "loss" not in result:
            raise CaptureError(f"the loss function returned a dict without the key 'loss', but {list(result)}")
        loss = result["loss"]
    elif isinstance(result, (tuple, list)) and result:
        loss = result[0]
    if not isinstance(loss, torch.Tensor):
        raise CaptureError(f"the loss must be a tensor, got {type(loss).__name__}")
    if loss.dim():
        raise CaptureError(f"the loss must be a scalar, got shape {list(loss.shape)}; take its mean or sum")
    if not loss.requires_grad:
        raise CaptureError("the loss depends on no parameter that requires a gradient")
    return loss


def _distinct(names: list[str]) -> list[str]:
    taken: set[str] = set()
    return [unique_name(name, taken) for name in names]
