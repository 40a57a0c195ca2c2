"""Common subexpression elimination: a node that repeats an earlier one gives way to it.

Two nodes repeat each other when op, operands and attributes are the same in value *and* type. Random ops are
no exception: the same key and attributes are the same draw, and another key is another operand.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from planc.ir import Attribute, Graph, Node, Operand, Value
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.ops import Trait, lookup
from planc.passes.base import PassResult, everywhere, result


@dataclass(frozen=True, slots=True)
class CommonSubexpressions:
    """Merge nodes that compute the same thing."""

    name: str = "cse"

    def apply(self, program: Program) -> PassResult:
        graph, changes = everywhere(program.graph, _merge)
        return result(program, graph, changes, "repeated nodes merged: {}")


def _merge(graph: Graph) -> tuple[Graph, int]:
    rewriter = Rewriter(graph)
    seen: dict[Hashable, tuple[Value, ...]] = {}
    changes = 0
    for node in graph.nodes:
        key = _key(node, rewriter.operands(node))
        first = seen.get(key)
        if first is None:
            seen[key] = rewriter.copy(node)
        else:
            rewriter.replace(node, first)
            changes += 1
    return (rewriter.finish(), changes) if changes else (graph, 0)


def _key(node: Node, operands: tuple[Operand, ...]) -> Hashable:
    keys = [_typed(operand) for operand in operands]
    # With attributes the first two operands may play different parts: add(x, y, alpha=2) is x + 2*y.
    if not node.attrs and lookup(node.op).has(Trait.COMMUTATIVE):
        keys[:2] = sorted(keys[:2], key=repr)
    types = tuple(value.type for value in node.results)
    return node.op, tuple(keys), tuple((name, _typed(value)) for name, value in node.attrs), types


def _typed(value: Operand | Attribute) -> Hashable:
    """A key that tells 1 from 1.0 and True, and 0.0 from -0.0."""
    if isinstance(value, Value):
        return "value", value.index
    if isinstance(value, tuple):
        return "list", tuple(_typed(item) for item in value)
    return type(value).__name__, repr(value)
