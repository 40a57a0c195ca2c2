"""``grad(loss, [w, c])``: which part of a plan is differentiated, and its gradient spliced into the plan.

How a derivative is found is not known here: whoever parses hands in a `Differentiate`, because tracing is a
layer above the language (`planc.capture.gradient`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from planc.ir import Graph, Node, Value
from planc.ir.builder import GraphBuilder, map_operand
from planc.ir.facts import known
from planc.ops import Trait, find

_DROPOUT = "random.dropout"


@dataclass(frozen=True)
class Derivative:
    """What a `Differentiate` finds.

    Attributes:
        graph: its inputs are those of the forward graph, then the forward graph's outputs, in order; its
            outputs are the gradients that there are, in the order asked for. It has no constants.
        reached: for every value asked for, whether the loss has a gradient with respect to it.
    """

    graph: Graph
    reached: tuple[bool, ...]


class Differentiate(Protocol):
    """Differentiates a graph's first output with respect to some of its values."""

    def __call__(self, forward: Graph, wrt: Sequence[Value]) -> Derivative:
        """The gradients of ``forward``'s first output, which is a scalar.

        Raises:
            PlancError: some operation cannot be differentiated.
        """
        ...


class Slice:
    """The nodes of a plan in the making on which a loss depends through given values, as a graph of its own.

    Random draws are cut out: their results are inputs of the graph, so that a gradient is that of the numbers
    that were drawn. A dropout stays, with the mask that it drew as one more input.

    Attributes:
        graph: the loss is its first output, every other result of its nodes the rest.
        wrt: the values asked for, in the graph's numbers.
        known: the plan's values that the gradient takes: the graph's inputs, then its outputs.
        reached: for every value asked for, whether the loss depends on it.
    """

    def __init__(self, builder: GraphBuilder, loss: Value, wrt: Sequence[Value]) -> None:
        nodes = _between(builder.nodes, loss, wrt)
        made = {result.index for node in nodes for result in node.results}
        read = {value.index: value for node in nodes for value in _reads(node)}
        read.update((value.index, value) for value in (loss, *wrt))
        inputs = [read[index] for index in sorted(read.keys() - made)]
        masks = [node.results[1] for node in nodes if node.op == _DROPOUT]
        facts = known()
        inner = GraphBuilder(builder.name, [var for var in builder.dims if var.equals is None])
        inner.subplans = builder.subplans
        values = {v.index: inner.input(f"i{v.index}", facts.type(v.type)) for v in (*inputs, *masks)}
        for node in nodes:
            taken = node.operands
            if node.op == _DROPOUT:  # the key gives way to the mask
                taken = (node.results[1], *taken[1:])
            operands = tuple(map_operand(operand, lambda v: values[v.index]) for operand in taken)
            results = tuple(Value(inner.next_index + i, r.type) for i, r in enumerate(node.results))
            inner.add(Node(node.op, operands, node.attrs, results, node.loc))
            values.update((old.index, new) for old, new in zip(node.results, results, strict=True))
        others = [result for node in nodes for result in node.results if result.index != loss.index]
        inner.output(values[loss.index], "loss")
        for value in others:
            inner.output(values[value.index], f"o{value.index}")
        self.graph = inner.build()
        self.wrt = tuple(values[value.index] for value in wrt)
        self.known = (*inputs, *masks, loss, *others)
        used = {value.index for node in nodes for value in node.values()} | {loss.index}
        self.reached = tuple(value.index in used for value in wrt)


def _between(nodes: Sequence[Node], loss: Value, wrt: Sequence[Value]) -> list[Node]:
    """The nodes that read one of ``wrt``, if only through others, and that ``loss`` needs."""
    changing = {value.index for value in wrt}
    dependent: list[Node] = []
    for node in nodes:
        if _is_draw(node) or changing.isdisjoint(value.index for value in node.values()):
            continue
        dependent.append(node)
        changing.update(result.index for result in node.results)
    needed = {loss.index}
    kept: list[Node] = []
    for node in reversed(dependent):
        if any(result.index in needed for result in node.results):
            kept.append(node)
            needed.update(value.index for value in _reads(node))
    return kept[::-1]


def _is_draw(node: Node) -> bool:
    definition = find(node.op)
    return definition is not None and definition.has(Trait.RANDOM) and node.op != _DROPOUT


def _reads(node: Node) -> tuple[Value, ...]:
    """The values that a node of a slice reads: a dropout no longer needs its key."""
    return tuple(node.values())[1 if node.op == _DROPOUT else 0 :]
