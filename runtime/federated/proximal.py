"""FedProx: a training step that is held near the round's model, made of ordinary modules.

Only modules, losses and plans here: a federation runs such a plan as it runs any other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from planc.errors import InputError
from planc.ir import Graph, Input, Output, Role
from planc.ir.builder import GraphBuilder
from planc.ir.inline import inline
from planc.ir.program import Program
from planc.plans import Plan
from runtime.federated.numbers import is_number

_MODULE = "module."
_ANCHOR = "proximal_anchor."

LossFunction = Callable[..., Any]


class Proximal(nn.Module):
    """A module whose output comes with how far its parameters are from where a round began.

    Its parameters and buffers are those of ``module``, at the paths ``module.<path>``. For each parameter
    that is trained there is one buffer more, ``proximal_anchor.<path>``: what the parameter was when the
    round began. It is first what the parameter is now.

    Calling it gives ``(module(...), sum over parameters of ||w - anchor||^2)``.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.proximal_anchor = _tree(
            {path: p.detach().clone() for path, p in module.named_parameters() if p.requires_grad}
        )
        self.training = module.training  # its own alone: parts of the module may be in another mode

    def distance(self) -> torch.Tensor:
        """The squared distance of all trained parameters from the anchor, a scalar."""
        parameters = dict(self.module.named_parameters())
        parts = [
            (parameters[path] - anchor).square().sum()
            for path, anchor in self.proximal_anchor.named_buffers()
        ]
        return torch.stack(parts).sum()

    @property
    def forward(self) -> Callable[..., Any]:  # pyright: ignore[reportIncompatibleMethodOverride] -- it gives the method
        """The module's own, with the distance; a property so that its arguments keep their names."""
        inner = self.module.forward

        @functools.wraps(inner)
        def forward(*inputs: Any, **named: Any) -> tuple[Any, torch.Tensor]:
            return self.module(*inputs, **named), self.distance()

        return forward


def fedprox(module: nn.Module, loss_fn: LossFunction, mu: float) -> tuple[Proximal, LossFunction]:
    """A module and a loss of which `planc.train_step` makes a FedProx step.

    Minimised is ``loss + mu/2 * ||w - w_round||^2``, over the parameters that require a gradient; the
    gradient of the term is ``mu * (w - w_round)``: Li et al., Federated Optimization in Heterogeneous
    Networks (2020), equation 2.

    >>> near, loss = fedprox(net, F.cross_entropy, mu=0.1)
    >>> step = planc.train_step(near, loss, torch.optim.SGD(net.parameters(), lr=0.1), x, y)
    >>> plan = anchored(planc.epoch(step, batch_size=32))

    ``w_round`` are buffers of the step, see `anchors`; `anchored` makes them the parameters that the plan is
    given. `unwrapped` gives back paths that ``net.load_state_dict`` takes.

    Args:
        module: what is trained; it is not copied, so optimizers over its parameters are over those of the
            result.
        loss_fn: as for `planc.train_step`; where it returns more than the loss, so does the result.
        mu: not negative; with 0 the step is an ordinary one.

    Raises:
        InputError: ``mu`` is out of range, or nothing in the module requires a gradient.
    """
    if not (is_number(mu) and mu >= 0):
        raise InputError(f"fedprox: mu must be a finite number, not negative, got {mu!r}")
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError(
            f"fedprox needs parameters to train, but none of {type(module).__name__} requires a gradient"
        )

    @functools.wraps(loss_fn, updated=())
    def loss(out: tuple[Any, torch.Tensor], *targets: Any) -> Any:
        result, distance = out
        return _plus(loss_fn(result, *targets), mu / 2 * distance)

    return Proximal(module), loss


def anchors(plan: Plan) -> dict[str, str]:
    """By the path of each anchor among the plan's state, the path of the parameter that it is the anchor of.

    Empty for a plan without `fedprox`, and for one that is `anchored`. Who runs any other plan gives it, at
    the start of a round, each parameter as its anchor, too.
    """
    return _anchors(plan.graph)


def anchored(plan: Plan) -> Plan:
    """The plan with its anchors being the parameters that it is given: what a round begins with.

    It takes and returns what the plan does, but has no anchors in its state, so nothing but the model
    travels. For the whole plan that a client runs in a round, such as an epoch: a single step begins at its
    anchor, where the term has no gradient.
    """
    graph = plan.graph
    found = _anchors(graph)
    builder = GraphBuilder(graph.name, graph.dims)
    values = {
        (port.role, port.path): builder.input(port.name, port.value.type, port.role, port.path)
        for port in graph.inputs
        if not _is_anchor(port, found)
    }
    for constant in graph.constants:
        builder.constant(constant.value.type, constant.digest)
    inputs = [
        values[Role.PARAMETER, found[port.path]] if _is_anchor(port, found) else values[port.role, port.path]
        for port in graph.inputs
    ]
    outputs = inline(builder, graph, inputs)
    for port, value in zip(graph.outputs, outputs, strict=True):
        if not _is_anchor(port, found):
            builder.output(value, port.name, port.role, port.path)
    state = {path: tensor for path, tensor in plan.state.items() if path not in found}
    return Plan(Program(builder.build(graph.takes, graph.gives), plan.constants), state, plan.records)


def unwrapped(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state with the paths of the module that was given to `fedprox`, without anchors.

    >>> net.load_state_dict(unwrapped(federation.state_dict()))
    """
    return {
        path.removeprefix(_MODULE): tensor for path, tensor in state.items() if not path.startswith(_ANCHOR)
    }


def _anchors(graph: Graph) -> dict[str, str]:
    parameters = {port.path: port.value.type for port in graph.inputs if port.role is Role.PARAMETER}
    out: dict[str, str] = {}
    for port in graph.inputs:
        path = _MODULE + port.path.removeprefix(_ANCHOR)
        if port.role is Role.BUFFER and port.path.startswith(_ANCHOR) and path in parameters:
            out[port.path] = path
    return out


def _is_anchor(port: Input | Output, found: Mapping[str, str]) -> bool:
    return port.role is Role.BUFFER and port.path in found


def _plus(result: Any, term: torch.Tensor) -> Any:
    """What a loss function returned, the term added to its loss. What is no loss is planc's to refuse."""
    if isinstance(result, torch.Tensor):
        return result + term
    if isinstance(result, dict) and "loss" in result:
        return {**result, "loss": _plus(result["loss"], term)}
    if isinstance(result, (tuple, list)) and result:
        return (_plus(result[0], term), *result[1:])
    return result


def _tree(tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module that has nothing but these buffers, at these paths."""
    root = nn.Module()
    for path, tensor in tensors.items():
        *parents, name = path.split(".")
        at = root
        for parent in parents:
            if parent not in dict(at.named_children()):
                at.add_module(parent, nn.Module())
            at = at.get_submodule(parent)
        at.register_buffer(name, tensor)
    return root


__all__ = ["Proximal", "anchored", "anchors", "fedprox", "unwrapped"]
