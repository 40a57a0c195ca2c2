"""What stands for the results of an op that failed on private values. It decides no rights and runs nothing.

Whether an op fails may depend on elements: an index is out of range, a divisor is zero. A client that is told
so could read any private value by asking often enough, so it is told nothing: results of the right type come
into being, which tell nothing either, and the worker's own log has the error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from planc.errors import ExecutionError, PlancError
from planc.ir import Graph, Node, TensorType, Value
from planc.ops.apply import apply

Device = torch.device | str | None

_log = logging.getLogger("runtime.worker")


def conceal(worker: str, what: str, error: Exception) -> None:
    """Log an error that the client is not told.

    Raises:
        PlancError: the error itself, where it says what was wrong with types or sizes, which are no secret.
    """
    if isinstance(error, PlancError) and not isinstance(error, ExecutionError):
        raise error
    _log.warning(
        "worker %r: %s failed on private values; the client was not told", worker, what, exc_info=error
    )


def stand_ins(
    node: Node, tensors: Mapping[int, torch.Tensor], bindings: Mapping[str, int], device: Device
) -> tuple[torch.Tensor, ...]:
    """What an op gives for zeros, so that gradients flow through it just as through the real results.

    Where it fails on zeros too: tensors of the right types, through which they all flow.
    """
    zeros = {i: torch.where(torch.zeros_like(x, dtype=torch.bool), x, 0) for i, x in tensors.items()}
    try:
        return apply(node, lambda value: zeros[value.index], bindings, device)
    except Exception:
        return tuple(_stand_in(r.type, tensors.values(), bindings, device) for r in node.results)


def plan_stand_ins(
    graph: Graph, inputs: Sequence[torch.Tensor], bindings: Mapping[str, int], device: Device
) -> list[torch.Tensor]:
    """As `stand_ins`, for the outputs of a plan: state stays what it was."""
    before = {(p.role, p.path): x for p, x in zip(graph.inputs, inputs, strict=True) if p.role.is_state}
    return [
        before.get((port.role, port.path), _stand_in(port.value.type, (), bindings, device))
        if port.role.is_state
        else _stand_in(port.value.type, (), bindings, device)
        for port in graph.outputs
    ]


def quietly(worker: str) -> Callable[..., tuple[torch.Tensor, ...]]:
    """`planc.ops.apply.apply` for private values: it does not fail where that depends on elements."""

    def run(
        node: Node,
        read: Callable[[Value], torch.Tensor],
        bindings: Mapping[str, int],
        device: Device = None,
    ) -> tuple[torch.Tensor, ...]:
        try:
            return apply(node, read, bindings, device)
        except Exception as error:
            conceal(worker, node.op, error)
            tensors = {value.index: read(value) for value in node.values()}
            return stand_ins(node, tensors, bindings, device)

    return run


def _stand_in(
    type: TensorType,
    operands: Iterable[torch.Tensor],
    bindings: Mapping[str, int],
    device: Device,
) -> torch.Tensor:
    shape, dtype = type.at(bindings), type.dtype.torch
    if not type.dtype.is_floating:
        return torch.zeros(shape, dtype=dtype, device=device)
    made = torch.full(shape, float("nan"), dtype=dtype, device=device)
    if torch.is_grad_enabled():
        for operand in operands:
            if operand.requires_grad:
                made = made + operand.sum().to(dtype) * 0
    return made


__all__ = ["conceal", "plan_stand_ins", "quietly", "stand_ins"]
