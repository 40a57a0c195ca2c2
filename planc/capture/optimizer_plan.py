"""One update of an optimizer as a program of its own: gradients in, its state updated.

For those who have gradients already (a model that is trained by eager backward calls); training steps have
their update within (`planc.capture.step`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn, optim

from planc.capture.importer import Port
from planc.capture.optimizers import rule_of
from planc.capture.trace import Captured, unique_name
from planc.capture.updates import Group
from planc.errors import CaptureError
from planc.ir import Role, TensorType, Value
from planc.ir.builder import GraphBuilder
from planc.ir.program import Program

GRAD = "grad."
"""Begins the paths of the gradients."""
LR = "lr"
"""The path of the learning rate."""


@torch.inference_mode(False)  # or its state could never be updated in place elsewhere
def optimizer_update(
    cls: type[optim.Optimizer],
    options: Mapping[str, Any],
    parameters: Mapping[str, TensorType],
    lr_input: bool = False,
    name: str | None = None,
) -> Captured:
    """Capture one update of ``cls(parameters, **options)``.

    The program's arguments are the gradients, in the order of ``parameters`` and of their types, at the paths
    ``grad.<path>``; then, with ``lr_input``, the learning rate, an ``f64[]`` at the path ``lr``. Its state
    are the parameters by path and what the optimizer keeps of each (``<path>.exp_avg``, ...), all of which it
    updates. It returns nothing else.

    Args:
        cls: an optimizer of torch.optim.
        options: its keyword arguments, ``lr`` among them.
        parameters: the types of the parameters by path; their dims are fixed.
        lr_input: whether the learning rate is an argument instead of fixed.
        name: the program's name; ``update_<class>`` by default.

    Returns:
        The program, and the state that the optimizer starts from, without the parameters.

    Raises:
        CaptureError: the optimizer's step cannot be a plan, or a parameter's dims are not fixed.
        ValueError: the optimizer does not take these options.
    """
    stand_ins = {path: _stand_in(path, t) for path, t in parameters.items()}
    make: Any = cls
    optimizer: optim.Optimizer = make(list(stand_ins.values()), **options)
    update = rule_of(optimizer, optimizer.param_groups[0])
    group = Group(update, tuple(stand_ins), tuple(stand_ins.values()))
    taken: set[str] = set()
    builder = GraphBuilder(name or f"update_{cls.__name__.lower()}")

    def add(role: Role, path: str, example: torch.Tensor) -> Value:
        port = Port(unique_name(path, taken), role, path, example)
        return builder.input(port.name, port.type, port.role, port.path)

    grads = {path: add(Role.ARGUMENT, GRAD + path, x) for path, x in stand_ins.items()}
    lr = add(Role.ARGUMENT, LR, torch.zeros((), dtype=torch.float64)) if lr_input else update.lr
    for path, x in stand_ins.items():
        add(Role.PARAMETER, path, x)
    state = dict(group.slots(optimizer))
    for path, x in state.items():
        add(Role.OPTIMIZER, path, x)
    updates: dict[Role, dict[str, Value]] = {Role.PARAMETER: {}, Role.OPTIMIZER: {}}
    group.emit(builder, grads, lr, updates)
    names: set[str] = set()
    for role, new in updates.items():
        for path, value in new.items():
            builder.output(value, unique_name(path, names), role, path)
    return Captured(Program(builder.build(), {}), {path: x.clone() for path, x in state.items()})


def _stand_in(path: str, t: TensorType) -> nn.Parameter:
    if not t.is_static:
        raise CaptureError(f"the dims of the parameter {path!r} must be fixed, got {t}")
    return nn.Parameter(torch.zeros(t.at({}), dtype=t.dtype.torch), requires_grad=t.dtype.is_floating)
