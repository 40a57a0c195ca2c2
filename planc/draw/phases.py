"""What each node of a training step is for: taking the batch, forward, backward, update. By dataflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from planc.ir import Graph, Node, Role
from planc.ops.structured import subplan_of


class Phase(Enum):
    """A part of a training step."""

    BATCH = "take the batch"
    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class Step:
    """A graph, the phase of each of its nodes, and which value is the gradient of which parameter."""

    graph: Graph
    phases: Sequence[Phase]
    gradients: Mapping[int, str]

    @property
    def is_training(self) -> bool:
        """Whether it computes gradients and applies them; the phases of any other graph say little."""
        return Phase.BACKWARD in self.phases and Phase.UPDATE in self.phases

    def of(self, *phases: Phase) -> list[Node]:
        """The nodes of these phases, in the order that they run."""
        return [node for node, p in zip(self.graph.nodes, self.phases, strict=True) if p in phases]


def scan_of(graph: Graph) -> tuple[Node, Graph] | None:
    """The first scan of a plan and its body, if there is one."""
    return next(((node, subplan_of(graph, node)) for node in graph.nodes if node.op == "scan"), None)


def classify(graph: Graph) -> Step:
    """The phases of a training step's nodes.

    What the results follow from is forward, or takes the batch where it only gathers rows of inputs. What an
    optimizer's op follows from besides is backward. The optimizer's op, and all that is left, is the update:
    it can only be there for the state.
    """
    is_update = [node.op.startswith("opt.") for node in graph.nodes]
    if not any(is_update):
        return Step(graph, [Phase.FORWARD] * len(graph.nodes), {})
    forward = _ancestors(graph, (port.value.index for port in graph.results()))
    read = (v.index for n, up in zip(graph.nodes, is_update, strict=True) if up for v in n.values())
    backward = _ancestors(graph, read)
    given = {port.value.index for port in graph.arguments()}
    gradients: dict[int, str] = {}
    phases: list[Phase] = []
    for node, update in zip(graph.nodes, is_update, strict=True):
        made = {value.index for value in node.results}
        if update:
            phases.append(Phase.UPDATE)
            gradients |= _gradients(graph, node)
        elif not forward.isdisjoint(made):
            takes = node.op == "aten.index_select" and all(v.index in given for v in node.values())
            phases.append(Phase.BATCH if takes else Phase.FORWARD)
        else:
            phases.append(Phase.UPDATE if backward.isdisjoint(made) else Phase.BACKWARD)
    return Step(graph, phases, gradients)


def _gradients(graph: Graph, update: Node) -> dict[int, str]:
    """An update's operands start with the parameters and their gradients, in the same order."""
    params, grads = update.operands[:2]
    assert isinstance(params, tuple)
    assert isinstance(grads, tuple)
    paths = {port.value.index: port.path for port in graph.inputs if port.role is Role.PARAMETER}
    pairs = zip(params, grads, strict=True)
    return {g.index: paths[p.index] for p, g in pairs if p is not None and g is not None and p.index in paths}


def _ancestors(graph: Graph, values: Iterable[int]) -> set[int]:
    """These values and all that they are computed from."""
    found = set(values)
    for node in reversed(graph.nodes):
        if not found.isdisjoint(value.index for value in node.results):
            found |= {value.index for value in node.values()}
    return found


__all__ = ["Phase", "Step", "classify", "scan_of"]
