"""Gradient accumulation: one update from the mean of the gradients of many micro-batches, as one graph.

The micro-batches are a scan that carries buffers, key and sums of gradients; the update follows it.
"""

from __future__ import annotations

from typing import Any

import torch

from planc.capture.clipping import GradTransform, transformed
from planc.capture.dynamic import DynamicDims
from planc.capture.epoch import batch_dim, one_epoch
from planc.capture.export import export
from planc.capture.importer import Importer, Port
from planc.capture.rules import RULES
from planc.capture.trace import (
    KEY,
    Captured,
    Traced,
    add_updates,
    as_value,
    import_program,
    initial_state,
    unique_name,
)
from planc.capture.updates import Optimizing, emit, value_of
from planc.errors import CaptureError, PlanError
from planc.ir import DType, Role, Value, sym
from planc.ir.builder import GraphBuilder
from planc.ir.dims import floordiv
from planc.ir.inline import inline
from planc.ir.program import Program

_SUM = "%sum."
"""Begins the paths of the sums within the scan; no parameter's path does."""


def accumulated(
    traced: Traced, optimizing: Optimizing, size: int, transform: GradTransform | None
) -> Captured:
    """A training step over micro-batches of ``size`` rows, from a traced one.

    Its results have the types of the traced step's: those with a row for each row of the batch are joined,
    of others the reals (losses) are averaged over micro-batches and the integers (counts) summed. Every
    micro-batch counts the same, as in a loop of ``(loss / count).backward()``.

    Raises:
        CaptureError: no argument has a batch dim, the transform draws random numbers, or a result is a bool.
    """
    if size < 1:
        raise CaptureError(f"micro_batch must be at least 1, got {size}")
    micro = _micro(traced)
    try:
        batch = batch_dim(micro.graph)
        scan = one_epoch(micro.graph, batch, size, named=batch.name)
    except PlanError as error:
        raise CaptureError(f"micro_batch: {error}") from error
    builder = GraphBuilder(traced.name, scan.dims)
    sums = {p.path: p for p in scan.inputs if p.path.startswith(_SUM)}
    order = [(p.role, p.path) for p in traced.signature.ports] + [(Role.KEY, KEY)]
    kept = [p for p in scan.inputs if p.path not in sums]
    for port in sorted(kept, key=lambda p: order.index((p.role, p.path))):
        builder.input(port.name, port.value.type, port.role, port.path)
    for port in optimizing.ports:
        builder.input(port.name, port.type, port.role, port.path)
    averaging = None if transform is None else _transform(transform, traced)
    for constant in averaging.graph.constants if averaging else ():
        builder.constant(constant.value.type, constant.digest)
    zeros = {
        k: emit(builder, "aten.full", size=p.value.type.shape, fill_value=0.0, dtype=p.value.type.dtype)[0]
        for k, p in sums.items()
    }
    inputs = [zeros.get(p.path) or value_of(builder, p.role, p.path) for p in scan.inputs]
    made = {(p.role, p.path): v for p, v in zip(scan.outputs, inline(builder, scan, inputs), strict=True)}
    trips = floordiv(sym(batch.name) + (size - 1), size)
    grads = [emit(builder, "aten.div", made[Role.OPTIMIZER, _SUM + k], trips)[0] for k in traced.trained]
    if averaging is not None:
        grads = inline(builder, averaging.graph, grads)
    new = optimizing.emit(builder, dict(zip(traced.trained, grads, strict=True)))
    new |= {role: _of(made, role) for role in (Role.BUFFER, Role.KEY)}
    names: set[str] = set()
    micro_types = {p.path: p.value.type for p in micro.graph.results()}
    for (role, path), value in made.items():
        if role is Role.ARGUMENT:
            whole = micro_types[path].shape[:1] == (sym(batch.name),)
            result = value if whole else _gathered(builder, value, path)
            builder.output(result, unique_name(path, names), role, path)
    for role in (Role.PARAMETER, Role.BUFFER, Role.OPTIMIZER, Role.KEY):
        for path, value in new[role].items():
            builder.output(value, unique_name(path, names), role, path)
    graph = builder.build(traced.signature.structure(), traced.results.structure())
    constants = {**micro.constants, **(averaging.constants if averaging else {})}
    ports = [*traced.signature.ports, *optimizing.ports]
    return Captured(Program(graph, constants), initial_state(ports, KEY in new[Role.KEY]))


def _gathered(builder: GraphBuilder, rows: Value, path: str) -> Value:
    """One result from its rows, one a micro-batch."""
    dtype = rows.type.dtype
    if dtype is DType.BOOL:
        raise CaptureError(
            f"micro_batch: the result {path!r} is a bool; return a count or a mean of it instead"
        )
    if dtype.is_floating:
        return emit(builder, "aten.mean", rows, dim=(0,))[0]
    return emit(builder, "aten.sum", rows, dim=(0,), dtype=dtype)[0]


def _of(made: dict[tuple[Role, str], Value], role: Role) -> dict[str, Value]:
    return {path: value for (found, path), value in made.items() if found is role}


def _micro(traced: Traced) -> Program:
    """One micro-batch as a step whose optimizer state is the sums of its gradients so far."""
    examples = {p.path: p.example for p in traced.signature.ports}
    taken = {p.name for p in traced.signature.ports}
    extra = [
        Port(unique_name(f"sum_{k}", taken), Role.OPTIMIZER, _SUM + k, examples[k]) for k in traced.trained
    ]
    importer = import_program("micro", traced.program, traced.signature, traced.dims, extra)
    names: set[str] = set()
    count, entries = traced.results.count, importer.outputs
    split = count + len(traced.buffered)
    traced.results.add_outputs(importer, entries[:count], names)
    buffers = dict(zip(traced.buffered, entries[count:split], strict=True))
    add_updates(importer, Role.BUFFER, buffers, names)
    sums = {
        _SUM + k: importer.emit(
            "aten.add", importer.value(Role.OPTIMIZER, _SUM + k), as_value(importer, entry)
        )
        for k, entry in zip(traced.trained, entries[split:], strict=True)
    }
    add_updates(importer, Role.OPTIMIZER, sums, names)
    if importer.key is not None:
        importer.builder.output(importer.key, unique_name(KEY, names), Role.KEY, KEY)
    return Program(importer.builder.build(), importer.constants)


def _transform(transform: GradTransform, traced: Traced) -> Program:
    """A gradient transform as a graph from gradients to gradients, in the order of ``traced.trained``."""
    examples = {p.path: p.example.detach() for p in traced.signature.ports}
    grads = [examples[path] for path in traced.trained]

    def run(*flat: torch.Tensor) -> list[Any]:
        with torch.no_grad():
            return list(transformed(transform, dict(zip(traced.trained, flat, strict=True))).values())

    fixed = DynamicDims(tuple({} for _ in grads))
    ports = [
        Port(f"g{i}", Role.ARGUMENT, path, g)
        for i, (path, g) in enumerate(zip(traced.trained, grads, strict=True))
    ]
    program = export(run, grads, fixed)
    importer = Importer("transform", program, ports, (), fixed, RULES, frozenset())
    for i, entry in enumerate(importer.outputs):
        importer.builder.output(as_value(importer, entry), f"r{i}")
    return Program(importer.builder.build(), importer.constants)
