"""Rows of tensors at a worker that are taken when they are needed: by themselves, or within a plan's own run.

So a batch costs one message: that of the plan that is called with it, or the one that takes it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from planc.ir import DimVar, DType, TensorType, Value
from planc.ir.builder import GraphBuilder
from planc.ir.dims import sym
from planc.ir.inline import inline
from planc.ir.program import Program
from planc.ops import node
from planc.plans import Plan
from runtime.remote.tensor import RemoteTensor

if TYPE_CHECKING:
    from runtime.remote.plan import RemotePlan

_REMEMBERED = 64
_plans: OrderedDict[tuple[str, tuple[int, ...]], Plan | None] = OrderedDict()


class RowsTensor(RemoteTensor):
    """Some rows of a remote tensor, as a tensor of their own; not there until something asks for its id."""

    def __init__(self, rows: Rows, whole: RemoteTensor) -> None:
        dtype, shape = whole.tensor_type.dtype, whole.tensor_type.shape
        super().__init__(whole.location, 0, TensorType(dtype, (len(rows.index), *shape[1:])), owned=False)
        self.rows = rows
        self.whole = whole

    @property
    def id(self) -> int:
        """The tensor's id at its worker: takes the rows first, one message for all tensors of the batch."""
        if not self._id:
            self.rows.take()
        return self._id

    @property
    def is_there(self) -> bool:
        """Whether the rows were taken."""
        return bool(self._id)

    def check_fresh(self) -> None:
        """Before an operation: the rows have to be there."""
        if not self._id:
            self.rows.take()
        super().check_fresh()


class Rows:
    """The rows of an index, of several tensors at one worker.

    Args:
        whole: the tensors, of equal leading size.
        index: the rows, whole numbers.
        take: a plan at their worker that takes rows of tensors like these: arguments are the tensors, then
            the index.
    """

    def __init__(self, whole: Sequence[RemoteTensor], index: torch.Tensor, take: RemotePlan) -> None:
        self.index = index
        self._take = take
        self._lock = threading.Lock()
        self.tensors = tuple(RowsTensor(self, tensor) for tensor in whole)

    def take(self) -> None:
        """Take the rows, unless they were taken. One message."""
        with self._lock:
            if self.tensors[0].is_there:
                return
            taken = self._take(*(tensor.whole for tensor in self.tensors), self.index)
            for mine, made in zip(self.tensors, taken if isinstance(taken, tuple) else (taken,), strict=True):
                mine.become(made)


def lazy_rows(leaves: Sequence[Any]) -> Rows | None:
    """The rows that are not taken yet, where all such among the arguments are of one batch."""
    lazy = [leaf for leaf in leaves if isinstance(leaf, RowsTensor) and not leaf.is_there]
    if not lazy or any(leaf.rows is not lazy[0].rows for leaf in lazy):
        return None
    return lazy[0].rows


def on_rows(plan: Plan, positions: tuple[int, ...]) -> Plan | None:
    """The plan that takes rows itself, of the arguments at these positions; the last argument is their index.

    None where the plan does not take equally many rows of each.
    """
    key = plan.id, positions
    if key not in _plans:
        _plans[key] = _on_rows(plan, positions)
        if len(_plans) > _REMEMBERED:
            _plans.popitem(last=False)
    return _plans[key]


def _on_rows(plan: Plan, positions: tuple[int, ...]) -> Plan | None:
    graph = plan.graph
    ports = [graph.arguments()[i] for i in positions]
    leading = {port.value.type.shape[:1] for port in ports}
    if len(leading) != 1 or () in leading:
        return None
    (batch,) = leading
    name = _free("rows", {var.name for var in graph.dims})
    builder = GraphBuilder(f"{plan.name}_on_rows", [*graph.dims, DimVar(name)])
    values: dict[int, Value] = {}
    for port in graph.arguments():
        type = port.value.type
        if port in ports:
            type = TensorType(type.dtype, (sym(name), *type.shape[1:]))
        values[port.value.index] = builder.input(port.name, type, port.role, port.path)
    index = builder.input(_free("rows", {port.name for port in graph.inputs}), TensorType(DType.I64, batch))
    for port in graph.state():
        values[port.value.index] = builder.input(port.name, port.value.type, port.role, port.path)
    for constant in graph.constants:
        builder.constant(constant.value.type, constant.digest)
    for port in ports:
        made = node("aten.index_select", (values[port.value.index], index), {"dim": 0}, builder.next_index)
        (values[port.value.index],) = builder.add(made)
    outputs = inline(builder, graph, [values[port.value.index] for port in graph.inputs])
    for port, value in zip(graph.outputs, outputs, strict=True):
        builder.output(value, port.name, port.role, port.path)
    return Plan(Program(builder.build(gives=graph.gives), plan.constants)).optimized()


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


__all__ = ["Rows", "RowsTensor", "lazy_rows", "on_rows"]
