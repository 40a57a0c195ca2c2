"""The optimizer's part of a training step: its parameter groups, their state, and the update nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

from planc.capture.importer import Port
from planc.capture.optimizers import Update, rule_of
from planc.capture.trace import Signature, unique_name
from planc.capture.tracing_updates import TracedUpdate
from planc.errors import CaptureError
from planc.ir import Attribute, Operand, Role, Value
from planc.ir.builder import GraphBuilder
from planc.ir.structure import LIST, Leaf
from planc.ir.structure import Sequence as TreeSequence
from planc.ops import node


@dataclass(frozen=True)
class Group:
    """One parameter group of the optimizer: its update and its parameters' paths."""

    update: Update | TracedUpdate
    paths: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]

    def only(self, trained: Sequence[str]) -> Group:
        """The group without parameters that the loss does not reach, which torch's optimizers skip too."""
        kept = [(k, p) for k, p in zip(self.paths, self.parameters, strict=True) if k in trained]
        return Group(self.update, tuple(k for k, _ in kept), tuple(p for _, p in kept))

    def slots(self, optimizer: optim.Optimizer) -> list[tuple[str, torch.Tensor]]:
        """The path and present value of each state tensor: the optimizer's own, or a fresh one."""
        fresh = [self.update.state_of(parameter.detach()) for parameter in self.parameters]
        out: list[tuple[str, torch.Tensor]] = []
        for name in dict.fromkeys(name for state in fresh for name in state):
            for path, parameter, state in zip(self.paths, self.parameters, fresh, strict=True):
                if name in state:
                    held: Any = optimizer.state.get(parameter, {}).get(name)
                    tensor = state[name] if held is None else torch.as_tensor(held).detach().clone()
                    out.append((f"{path}.{name}", tensor.to(state[name].dtype)))
        return out

    def emit(
        self,
        builder: GraphBuilder,
        grads: Mapping[str, Value],
        lr: Value | float,
        updates: dict[Role, dict[str, Value]],
    ) -> None:
        """Append the update and note the new value of every parameter and state tensor."""
        if not self.paths:
            return
        held = {p.path: p.value for p in builder.inputs if p.role is Role.OPTIMIZER}
        names = [self.update.names_of(parameter.detach()) for parameter in self.parameters]
        states = [{n: held[f"{k}.{n}"] for n in found} for k, found in zip(self.paths, names, strict=True)]
        parameters = [value_of(builder, Role.PARAMETER, path) for path in self.paths]
        new = self.update.emit(builder, parameters, [grads[path] for path in self.paths], states, lr)
        for path, (parameter, _) in zip(self.paths, new, strict=True):
            updates[Role.PARAMETER][path] = parameter
        for name in dict.fromkeys(name for found in names for name in found):
            for path, (_, state) in zip(self.paths, new, strict=True):
                if name in state:
                    updates[Role.OPTIMIZER][f"{path}.{name}"] = state[name]


@dataclass(frozen=True)
class Optimizing:
    """All groups of an optimizer, the inputs that its updates need beyond gradients, and what these hold."""

    groups: tuple[Group, ...]
    rates: tuple[str, ...]
    """The paths of the learning rates, one a group; none where they are fixed."""
    ports: tuple[Port, ...]

    @classmethod
    def of(
        cls,
        optimizer: optim.Optimizer,
        groups: Sequence[Group],
        trained: Sequence[str],
        signature: Signature,
        rate_name: str | None,
    ) -> Optimizing:
        """Of the trained parameters alone; ``rate_name`` names the argument that rates come by, if any."""
        kept = tuple(group.only(trained) for group in groups)
        rates = [] if rate_name is None else _rates(signature, kept, rate_name)
        taken = {p.name for p in signature.ports}
        ports = [Port(unique_name(path, taken), Role.ARGUMENT, path, rate) for path, rate in rates]
        for group in kept:
            slots = group.slots(optimizer)
            ports += [Port(unique_name(path, taken), Role.OPTIMIZER, path, tensor) for path, tensor in slots]
        return cls(kept, tuple(path for path, _ in rates), tuple(ports))

    def emit(self, builder: GraphBuilder, grads: Mapping[str, Value]) -> dict[Role, dict[str, Value]]:
        """Append all updates; returns the new values of parameters and optimizer state by path."""
        updates: dict[Role, dict[str, Value]] = {Role.PARAMETER: {}, Role.OPTIMIZER: {}}
        for i, group in enumerate(self.groups):
            lr = value_of(builder, Role.ARGUMENT, self.rates[i]) if self.rates else group.update.lr
            group.emit(builder, grads, lr, updates)
        return updates


def groups_of(module: nn.Module, optimizer: optim.Optimizer) -> list[Group]:
    """The optimizer's groups in terms of the module's parameters.

    Raises:
        CaptureError: the optimizer has no op, or updates a tensor that is no parameter of the module.
    """
    paths = {id(p): k for k, p in module.named_parameters()}
    out: list[Group] = []
    for group in optimizer.param_groups:
        parameters = tuple(p for p in group["params"] if p.requires_grad)
        strangers = [p for p in parameters if id(p) not in paths]
        if strangers:
            raise CaptureError(
                f"the optimizer updates a tensor of shape {tuple(strangers[0].shape)} that is no parameter "
                "of the module"
            )
        out.append(Group(rule_of(optimizer, group), tuple(paths[id(p)] for p in parameters), parameters))
    return out


def value_of(builder: GraphBuilder, role: Role, path: str) -> Value:
    """The input of this role and path."""
    return next(p.value for p in builder.inputs if p.role is role and p.path == path)


def emit(builder: GraphBuilder, op: str, *operands: Operand, **attrs: Attribute) -> tuple[Value, ...]:
    """Append a checked node."""
    return builder.add(node(op, operands, attrs, builder.next_index, subplans=tuple(builder.subplans)))


def _rates(signature: Signature, groups: Sequence[Group], name: str) -> list[tuple[str, torch.Tensor]]:
    """The learning rates as one more argument: its paths and examples. A list where there are several groups.

    They are f64, as Python's numbers are, so that a step computes exactly what it does with a fixed rate.
    """
    many = len(groups) > 1
    signature.add_argument(TreeSequence(LIST, (Leaf(),) * len(groups)) if many else Leaf())
    paths = [f"{name}.{i}" for i in range(len(groups))] if many else [name]
    return [(k, torch.tensor(g.update.lr, dtype=torch.float64)) for k, g in zip(paths, groups, strict=True)]
