"""What each node of a training step is for: taking the batch, forward, backward, update. By dataflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from planc.ir import Graph, Node, Role, Value
from planc.ops.structured import subplan_of


class Phase(Enum):
    """A part of a training step."""

    BATCH = "take the batch"
    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class Step:
    """A step's graph, the phase of each of its nodes, and which value is the gradient of which parameter."""

    graph: Graph
    phases: Sequence[Phase]
    gradients: Mapping[int, str]

    def of(self, phase: Phase) -> list[Node]:
        """The nodes of one phase, in the order that they run."""
        return [node for node, p in zip(self.graph.nodes, self.phases, strict=True) if p is phase]


def scan_of(graph: Graph) -> tuple[Node, Graph] | None:
    """The first scan of a plan and its body, if there is one."""
    return next(((node, subplan_of(graph, node)) for node in graph.nodes if node.op == "scan"), None)


def classify(graph: Graph) -> Step:
    """The phases of a training step's nodes.

    What the loss follows from is forward, or takes the batch where it only gathers rows of inputs; the
    optimizer's op is the update; all else can only be there for the update: backward.
    """
    needed = _ancestors(graph, [port.value for port in graph.results()])
    given = {port.value.index for port in graph.arguments()}
    gradients: dict[int, str] = {}
    phases: list[Phase] = []
    for node in graph.nodes:
        if node.op.startswith("opt."):
            phases.append(Phase.UPDATE)
            gradients |= _gradients(graph, node)
        elif not needed & {value.index for value in node.results}:
            phases.append(Phase.BACKWARD)
        elif node.op == "aten.index_select" and all(value.index in given for value in node.values()):
            phases.append(Phase.BATCH)
        else:
            phases.append(Phase.FORWARD)
    return Step(graph, phases, gradients)


def state_paths(graph: Graph) -> dict[int, str]:
    """The paths of a graph's state inputs, by number of their value."""
    return {port.value.index: port.path for port in graph.inputs if port.role.is_state}


def _gradients(graph: Graph, update: Node) -> dict[int, str]:
    """An update's operands start with the parameters and their gradients, in the same order."""
    params, grads = update.operands[:2]
    assert isinstance(params, tuple)
    assert isinstance(grads, tuple)
    paths = {port.value.index: port.path for port in graph.inputs if port.role is Role.PARAMETER}
    return {
        g.index: paths[p.index] for p, g in zip(params, grads, strict=True) if p is not None and g is not None
    }


def _ancestors(graph: Graph, values: Sequence[Value]) -> set[int]:
    found = {value.index for value in values}
    for node in reversed(graph.nodes):
        if found & {value.index for value in node.results}:
            found |= {value.index for value in node.values()}
    return found


__all__ = ["Phase", "Step", "classify", "scan_of", "state_paths"]
