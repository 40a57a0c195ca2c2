"""Dead code elimination: drop what no output needs. Every op is pure, so nothing else keeps a node alive.

Outputs keep everything that they read, updates of state among them. Inputs stay even where nothing reads
them: they are the plan's interface.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planc.ir import Attribute, Graph, Node
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.passes.base import PassResult, everywhere, result, subplan_attrs


@dataclass(frozen=True, slots=True)
class DeadCode:
    """Drop nodes, constants and subplans that no output needs."""

    name: str = "dce"

    def apply(self, program: Program) -> PassResult:
        graph, changes = everywhere(program.graph, _sweep)
        return result(program, graph, changes, "unused nodes, constants and subplans dropped: {}")


def _sweep(graph: Graph) -> tuple[Graph, int]:
    live = {port.value.index for port in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(value.index in live for value in node.results):
            live.update(value.index for value in node.values())
            kept.append(node)
    kept.reverse()
    constants = tuple(constant for constant in graph.constants if constant.value.index in live)
    used = sorted({index for node in kept for _, index in subplan_attrs(node)})
    changes = (
        (len(graph.nodes) - len(kept))
        + (len(graph.constants) - len(constants))
        + (len(graph.subplans) - len(used))
    )
    if not changes:
        return graph, 0
    moved = {old: new for new, old in enumerate(used)}
    rewriter = Rewriter(replace(graph, constants=constants), tuple(graph.subplans[i] for i in used))
    for node in kept:
        rewriter.copy(_renumber_subplans(node, moved))
    return rewriter.finish(), changes


def _renumber_subplans(node: Node, moved: dict[int, int]) -> Node:
    new: dict[str, Attribute] = {name: moved[index] for name, index in subplan_attrs(node)}
    return replace(node, attrs=tuple((k, new.get(k, v)) for k, v in node.attrs)) if new else node
