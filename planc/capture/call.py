"""Capture of one call of a torch function: the op-table nodes that it comes down to.

Eager operations on remote tensors go through this: a call is captured once for its operands' types, and its
nodes are then sent as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from planc.capture.dynamic import DynamicDims
from planc.capture.export import export
from planc.capture.importer import Importer, Port
from planc.capture.rules import RANDOM, RULES
from planc.capture.trace import Results, as_value
from planc.ir import Node, Role, TensorType, Value
from planc.ir.structure import Tree


@dataclass(frozen=True)
class CapturedCall:
    """What a call comes down to.

    Attributes:
        inputs: the tensor operands as values, in order; then the random key, if ``draws``.
        nodes: the operations, in order.
        results: the structure of what the call returns, its leaves being ``outputs``.
        outputs: the value of each leaf.
        writes: for each operand that the call changes in place, its position and its new value.
        constants: tensors that the call brings along, by value.
        draws: whether the call draws random numbers, from a key that is its last input.
    """

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    results: Tree
    outputs: tuple[Value, ...]
    writes: tuple[tuple[int, Value], ...]
    constants: tuple[tuple[Value, torch.Tensor], ...]
    draws: bool


def capture_call(function: Callable[..., Any], types: Sequence[TensorType]) -> CapturedCall:
    """Capture ``function(*tensors)`` for tensors of these fixed types.

    Raises:
        CaptureError: it branches on data, or torch refuses the operands.
        UnsupportedOpError: it needs an operation outside the op table.
    """
    examples = [torch.empty(t.at({}), dtype=t.dtype.torch) for t in types]
    ports = [Port(f"x{i}", Role.ARGUMENT, str(i), x) for i, x in enumerate(examples)]
    dims = DynamicDims(tuple({} for _ in examples))
    results = Results()

    def run(*flat: torch.Tensor) -> list[Any]:
        with torch.no_grad():
            return results.flat(function(*flat))

    program = export(run, examples, dims)
    importer = Importer("call", program, ports, (), dims, RULES, frozenset(RANDOM), allow_writes=True)
    outputs = tuple(as_value(importer, entry) for entry in importer.outputs)
    builder = importer.builder
    return CapturedCall(
        inputs=tuple(port.value for port in builder.inputs),
        nodes=_reached(builder.nodes, [*outputs, *importer.writes.values()]),
        results=results.tree,
        outputs=outputs,
        writes=tuple((int(path), value) for path, value in importer.writes.items()),
        constants=tuple((c.value, importer.constants[c.digest]) for c in builder.constants),
        draws=importer.key is not None,
    )


def _reached(nodes: Sequence[Node], wanted: Sequence[Value]) -> tuple[Node, ...]:
    """The nodes that the wanted values need."""
    needed = {value.index for value in wanted}
    kept: list[Node] = []
    for node in reversed(nodes):
        if any(result.index in needed for result in node.results):
            kept.append(node)
            needed.update(value.index for value in node.values())
    return tuple(reversed(kept))
