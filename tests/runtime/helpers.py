"""What the tests of the worker share: connections, and small plans made by hand. No fixtures."""

from __future__ import annotations

import itertools

import torch

from planc.codec import encode, plan_id
from planc.ir import DimVar, DType, Graph, Role, TensorType, sym
from planc.ir.builder import GraphBuilder
from planc.ir.constants import digest
from planc.ops import node
from runtime.channels import Connection
from runtime.messages import Get, Handle, Install, Put, PutItem, Slot
from runtime.remote import virtual
from runtime.worker import Worker

F32 = DType.F32
_ids = itertools.count(1000)


def connect(worker: Worker, client: str = "me") -> Connection:
    return virtual.join(worker, client)


def put(connection: Connection, tensor: torch.Tensor, **options: object) -> int:
    """Send a tensor and return its new id."""
    id = next(_ids)
    connection.call(Put((PutItem(id, Slot(0), **options),)), [tensor])  # type: ignore[arg-type]
    return id


def get(connection: Connection, *ids: int) -> list[torch.Tensor]:
    return [t for t in connection.values(Get(ids)) if isinstance(t, torch.Tensor)]


def handles(*ids: int) -> tuple[Handle, ...]:
    return tuple(Handle(id) for id in ids)


def new_id() -> int:
    return next(_ids)


def state_of(worker: Worker) -> dict[int, object]:
    """A picture of a worker's store that is equal only if nothing at all changed."""
    store = worker._site.store
    return {
        id: (s.value.tolist() if isinstance(s.value, torch.Tensor) else s.value, s.tags, s.owner, s.secrecy)
        for id in store
        if (s := store.get(id)) is not None
    } | {-1: store.nbytes}


def install(connection: Connection, graph: Graph, *constants: torch.Tensor, **options: object) -> str:
    id = plan_id(graph)
    slots = {digest(tensor): Slot(i) for i, tensor in enumerate(constants)}
    connection.call(Install(id, encode(graph), slots, **options), constants)  # type: ignore[arg-type]
    return id


class Building(GraphBuilder):
    """A builder that checks and adds a node in one call."""

    def op(self, name: str, *operands: object, **attrs: object) -> object:
        made = node(name, operands, attrs, self.next_index, subplans=tuple(self.subplans))  # type: ignore[arg-type]
        results = self.add(made)
        return results[0] if len(results) == 1 else results


def adding() -> Graph:
    """(x + y, x * y) of any length."""
    b = Building("adding", [DimVar("n", 0, 100)])
    x, y = (b.input(name, TensorType(F32, (sym("n"),))) for name in "xy")
    b.output(b.op("aten.add", x, y), "sum")
    b.output(b.op("aten.mul", x, y), "product")
    return b.build()


def identity() -> Graph:
    b = Building("identity", [DimVar("n", 0, 100)])
    b.output(b.input("x", TensorType(F32, (sym("n"),))), "y")
    return b.build()


def stepping() -> Graph:
    """Two parameters w, c are moved by x; the result is their old sum."""
    b = Building("stepping")
    w = b.input("w", TensorType(F32, (3,)), Role.PARAMETER, "fc.weight")
    c = b.input("c", TensorType(F32, (3,)), Role.PARAMETER, "fc.bias")
    x = b.input("x", TensorType(F32, (3,)))
    total = b.op("aten.add", w, c)
    b.output(b.op("aten.add", w, x), "w_new", Role.PARAMETER, "fc.weight")
    b.output(total, "total")
    b.output(b.op("aten.sub", c, x), "c_new", Role.PARAMETER, "fc.bias")
    return b.build()


def picking() -> Graph:
    """State w doubles, then ``index`` picks of it: an index out of range fails after w was computed."""
    b = Building("picking")
    w = b.input("w", TensorType(F32, (2,)), Role.PARAMETER, "w")
    index = b.input("index", TensorType(DType.I64, (2,)))
    w_new = b.op("aten.add", w, w)
    b.output(w_new, "w_new", Role.PARAMETER, "w")
    b.output(b.op("aten.index_select", w_new, index, dim=0), "picked")
    return b.build()


def constant_sum(constant: torch.Tensor) -> Graph:
    """x + a constant."""
    b = Building("constant_sum")
    type = TensorType(F32, tuple(constant.shape))
    x = b.input("x", type)
    b.output(b.op("aten.add", x, b.constant(type, digest(constant))), "y")
    return b.build()
