"""The plain reference interpreter: a short loop over the nodes of a graph.

It is the oracle that the fast path is held against, and the path with autograd. It plans no buffers, frees
nothing early and caches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from planc.errors import ExecutionError, LimitError, PlancError
from planc.ir import Graph, Node, Value
from planc.ir.dims import evaluate
from planc.lower.bind import bind_tensors
from planc.ops.apply import apply
from planc.ops.structured import batch_name, scan_operands, subplan_of, trip_count

Tensors = list[torch.Tensor]
RunNode = Callable[..., tuple[torch.Tensor, ...]]
"""What runs one node: `planc.ops.apply.apply`, or something with its arguments."""


def interpret(
    graph: Graph,
    values: Sequence[torch.Tensor],
    constants: Mapping[str, torch.Tensor] | None = None,
    device: torch.device | str | None = None,
    run_node: RunNode = apply,
) -> Tensors:
    """The outputs of a graph on concrete inputs.

    Outputs may share memory with inputs, constants and each other. Gradients flow where torch lets them.

    Args:
        graph: the plan to run.
        values: one tensor for each input of ``graph.inputs``, state included, in order.
        constants: the data of the constants by digest, for this graph and its subplans.
        device: where factories make tensors and constants go; that of the first input where not given.
        run_node: what runs the nodes that are no plans themselves.

    Raises:
        InputError: the inputs do not fit the plan.
        ExecutionError: an op failed; names the op, the node and the line it came from.
    """
    data = {} if constants is None else constants
    if device is None and values and isinstance(values[0], torch.Tensor):
        device = values[0].device
    bindings = bind_tensors(graph, values)
    env: dict[int, torch.Tensor] = {
        port.value.index: value for port, value in zip(graph.inputs, values, strict=True)
    }
    for constant in graph.constants:
        if constant.digest not in data:
            raise ExecutionError(f"plan {graph.name!r}: the data of constant {constant.digest} is not there")
        env[constant.value.index] = data[constant.digest].to(device)

    def read(value: Value) -> torch.Tensor:
        return env[value.index]

    def run(subplan: Graph, inputs: Tensors) -> Tensors:
        return interpret(subplan, inputs, data, device, run_node)

    for i, node in enumerate(graph.nodes):
        try:
            if node.op == "call":
                results = run(subplan_of(graph, node), [read(value) for value in node.values()])
            elif node.op == "scan":
                results = _scan(subplan_of(graph, node), node, read, run, bindings)
            else:
                results = run_node(node, read, bindings, device)
        except LimitError:  # no op failed: its time was over
            raise
        except Exception as error:
            where = f"plan {graph.name!r}: node {i} ({node.op})" + (f" at {node.loc}" if node.loc else "")
            cause = str(error) if isinstance(error, PlancError) else f"{type(error).__name__}: {error}"
            failure = ExecutionError(f"{where}: {cause}")
            inner = error if isinstance(error, ExecutionError) else None
            failure.op, failure.node = (inner.op, inner.node) if inner else (node.op, i)
            raise failure from error
        for value, result in zip(node.results, results, strict=True):
            env[value.index] = result
    return [read(port.value) for port in graph.outputs]


def _scan(
    body: Graph,
    node: Node,
    read: Callable[[Value], torch.Tensor],
    run: Callable[[Graph, Tensors], Tensors],
    bindings: Mapping[str, int],
) -> Tensors:
    """Run the body once a trip, in order; see `planc.ops.structured` for what a scan means."""
    carry, over, given = ([read(value) for value in group] for group in scan_operands(node))
    width, size = len(carry), node.attr("size", 0)
    assert isinstance(size, int)
    trips: list[Tensors] = []
    for i in range(evaluate(trip_count(node), bindings)):
        outputs = run(body, [*carry, *(t[i * size : (i + 1) * size] for t in over), *given])
        carry = outputs[:width]
        trips.append(outputs[width:])
    batch = batch_name(body, width, len(over))
    collected: Tensors = []
    for k, (result, port) in enumerate(zip(node.results[width:], body.outputs[width:], strict=True)):
        column = [outputs[k] for outputs in trips]
        lead = port.value.type.shape[:1]
        if not column:  # no trip: the leading dim is 0, so nothing of the tensor is undefined
            device = next((t.device for t in (*carry, *over, *given)), None)
            shape, dtype = result.type.at(bindings), result.type.dtype.torch
            collected.append(torch.empty(shape, dtype=dtype, device=device))
        elif lead and str(lead[0]) == batch:
            collected.append(torch.cat(column))
        else:
            collected.append(torch.stack(column))
    return [*carry, *collected]
