"""Constant folding: evaluate now what depends on no input, and keep the result as a constant.

Only small results become constants, since constants travel with the plan. A factory (zeros, arange, ...) is
evaluated only as an operand of something folded: left alone it is smaller than its result. Random and
structured ops are never folded, and neither is anything whose shape is not yet known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planc.ir import Graph, Node, TensorType, Value, type_of
from planc.ir.constants import digest
from planc.ir.dims import DimExpr, product
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.ops import Trait, lookup
from planc.ops.apply import apply
from planc.passes.base import PassResult, everywhere, result

_NEVER = {Trait.RANDOM, Trait.STRUCTURED, Trait.OPTIMIZER}


@dataclass(frozen=True, slots=True)
class FoldConstants:
    """Replace nodes over constants by constants.

    Attributes:
        max_bytes: the largest tensor evaluated, and so the largest constant made.
        max_total_bytes: the most that one run of the pass adds to one graph.
    """

    name: str = "fold"
    max_bytes: int = 16 * 1024
    max_total_bytes: int = 1024 * 1024

    def apply(self, program: Program) -> PassResult:
        data = dict(program.constants)
        notes: list[str] = []

        def rewrite(graph: Graph) -> tuple[Graph, int]:
            return self._fold(graph, data, notes)

        graph, changes = everywhere(program.graph, rewrite)
        before = Program(program.graph, data) if changes else program
        return result(before, graph, changes, "nodes folded: {}", *notes)

    def _fold(self, graph: Graph, data: dict[str, torch.Tensor], notes: list[str]) -> tuple[Graph, int]:
        known: dict[int, torch.Tensor] = {
            constant.value.index: data[constant.digest].cpu()
            for constant in graph.constants
            if constant.digest in data and _bytes(constant.value.type) <= self.max_bytes
        }
        folded = [node for node in graph.nodes if self._evaluate(node, known, notes)]
        chosen = self._frontier(graph, folded)
        if not chosen:
            return graph, 0
        rewriter = Rewriter(graph)
        made = {constant.digest: rewriter(constant.value) for constant in graph.constants}
        constants: dict[int, tuple[Value, ...]] = {}
        for node in chosen:
            constants[node.results[0].index] = tuple(
                _constant(rewriter, value.type, known[value.index], made, data) for value in node.results
            )
        for node in graph.nodes:
            if node.results and node.results[0].index in constants:
                rewriter.replace(node, constants[node.results[0].index])
            else:
                rewriter.copy(node)
        return rewriter.finish(), len(chosen)

    def _evaluate(self, node: Node, known: dict[int, torch.Tensor], notes: list[str]) -> bool:
        """Add the node's results to ``known`` where they can be had now; whether they could."""
        definition = lookup(node.op)
        if definition.traits & _NEVER or not node.results:
            return False
        if any(_is_dynamic(item) for item in (*node.operands, *(value for _, value in node.attrs))):
            return False
        if not all(value.index in known for value in node.values()):
            return False
        if not all(v.type.is_static and _bytes(v.type) <= self.max_bytes for v in node.results):
            return False
        if not definition.has(Trait.FACTORY) and not any(True for _ in node.values()):
            return False
        try:
            with torch.no_grad():
                results = apply(node, lambda value: known[value.index], {}, "cpu")
        except Exception as error:  # an op that fails must fail where it runs, with its line
            notes.append(f"{node.op} was not folded: {type(error).__name__}: {error}")
            return False
        if [type_of(tensor) for tensor in results] != [value.type for value in node.results]:
            notes.append(f"{node.op} was not folded: its results are not of their inferred types")
            return False
        if not all(tensor.is_contiguous() for tensor in results):
            return False  # constants are; what reads the node may round otherwise in another layout
        known.update((value.index, tensor) for value, tensor in zip(node.results, results, strict=True))
        return True

    def _frontier(self, graph: Graph, folded: list[Node]) -> list[Node]:
        """The folded nodes, factories aside, whose results something that stays reads."""
        gone = {id(node) for node in folded}
        needed = {port.value.index for port in graph.outputs}
        for node in graph.nodes:
            if id(node) not in gone:
                needed.update(value.index for value in node.values())
        chosen: list[Node] = []
        budget = self.max_total_bytes
        for node in folded:
            if lookup(node.op).has(Trait.FACTORY) or not any(v.index in needed for v in node.results):
                continue
            budget -= sum(_bytes(value.type) for value in node.results)
            if budget < 0:
                break
            chosen.append(node)
        return chosen


def _constant(
    rewriter: Rewriter,
    type: TensorType,
    tensor: torch.Tensor,
    made: dict[str, Value],
    data: dict[str, torch.Tensor],
) -> Value:
    """The constant that holds ``tensor``: one for equal tensors, however often it is needed."""
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    name = digest(tensor)
    if name not in made:
        made[name] = rewriter.builder.constant(type, name)
        data[name] = tensor
    return made[name]


def _bytes(type: TensorType) -> int:
    size = product(type.shape)
    assert isinstance(size, int)
    return size * type.dtype.itemsize


def _is_dynamic(value: object) -> bool:
    if isinstance(value, tuple):
        return any(_is_dynamic(item) for item in value)
    return isinstance(value, DimExpr)
