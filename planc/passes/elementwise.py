"""Elementwise fusion: neighbouring elementwise nodes become one `fused.elementwise`, where it is asked for.

The fused op runs the same ops one after the other, so it gains nothing by itself: it makes a plan shorter,
and says what a backend could run with one pass over memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from planc.ir import DimExpr, Graph, Node, Operand, Value
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.ops import node as make_node
from planc.ops.steps import MAX_STEPS, Ref, Step, StepOperand, Steps, parse_steps, stepwise, writable
from planc.passes.base import PassResult, everywhere, place_of, result
from planc.passes.fuse import Around
from planc.passes.rewriting import takes_own_gradients

OP = "fused.elementwise"


@dataclass(frozen=True, slots=True)
class FuseElementwise:
    """Fuse elementwise nodes into those that alone read them, where both have the same shape."""

    name: str = "fuse_elementwise"

    def apply(self, program: Program) -> PassResult:
        trains = takes_own_gradients(program)
        missed: dict[str, None] = {}
        fused: Counter[str] = Counter()
        graph, changes = everywhere(program.graph, lambda graph: _fuse(graph, trains, missed, fused))
        note = f"elementwise nodes fused: {fused['nodes']} into {{}}"
        return result(program, graph, changes, note, missed=tuple(missed))


@dataclass(slots=True)
class _Group:
    """Nodes that become one: the last of them, and how many steps they take."""

    root: Node
    members: list[int] = field(default_factory=list[int])
    steps: int = 0


def _fuse(graph: Graph, trains: bool, missed: dict[str, None], fused: Counter[str]) -> tuple[Graph, int]:
    around = Around.of(graph, trains)
    groups = _groups(graph, around, missed)
    chosen = {group.members[0]: group for group in groups if len(group.members) > 1}
    for end in list(chosen):
        obstacle = around.reordered([graph.nodes[i] for i in chosen[end].members])
        if obstacle is not None:
            missed[f"elementwise at {place_of(graph, graph.nodes[end])}: {obstacle}"] = None
            del chosen[end]
    if not chosen:
        return graph, 0
    inside = {position for group in chosen.values() for position in group.members}
    fused["nodes"] += len(inside)
    rewriter = Rewriter(graph)
    for position, node in enumerate(graph.nodes):
        if position in chosen:
            members = [graph.nodes[i] for i in reversed(chosen[position].members)]
            inputs, steps = _written(members)
            operands = tuple(rewriter(value) for value in inputs)
            index = rewriter.builder.next_index
            new = make_node(OP, (operands,), {"steps": str(steps)}, index, loc=node.loc)
            rewriter.replace(node, rewriter.add(new))
        elif position not in inside:
            rewriter.copy(node)
    return rewriter.finish(), len(chosen)


def _groups(graph: Graph, around: Around, missed: dict[str, None]) -> list[_Group]:
    """Every elementwise node in one group, from the back: that of all its readers, or else one of its own."""
    groups: list[_Group] = []
    of: dict[int, _Group] = {}
    for position in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[position]
        if not _elementwise(node):
            continue
        readers = set(around.read_by.get(node.results[0].index, ()))
        near = {id(of[reader]): of[reader] for reader in readers if reader in of}
        group = next(iter(near.values())) if len(near) == 1 and readers <= of.keys() else None
        reason = _apart(node, graph, readers, group) if near else None
        if reason is not None:
            missed[f"elementwise at {place_of(graph, node)}: {reason}"] = None
        if group is None or reason is not None:
            group = _Group(node)
            groups.append(group)
        group.members.append(position)
        group.steps += _length(node)
        of[position] = group
    return groups


def _apart(node: Node, graph: Graph, readers: set[int], group: _Group | None) -> str | None:
    """Why a node that elementwise nodes read is in no group of theirs."""
    if group is None:
        if len(graph.nodes) in readers:
            return "what it makes is an output of the plan"
        return "not one group of nodes alone reads what it makes"
    made, wanted = node.results[0].type, group.root.results[0].type
    if made.shape != wanted.shape:
        return f"it makes {made}, of another shape than {wanted}"
    if group.steps + _length(node) > MAX_STEPS:
        return f"there may be {MAX_STEPS} steps"
    return None


def _elementwise(node: Node) -> bool:
    if node.op == OP:
        return True
    if stepwise(node.op) is None or len(node.results) != 1:
        return False
    held = (*(x for x in node.operands if not isinstance(x, Value)), *(value for _, value in node.attrs))
    return not any(isinstance(item, tuple) or not writable(item) for item in held)


def _length(node: Node) -> int:
    return len(_program(node).steps) if node.op == OP else 1


def _program(node: Node) -> Steps:
    text = node.attr("steps")
    assert isinstance(text, str)
    return parse_steps(text)


def _written(nodes: list[Node]) -> tuple[tuple[Value, ...], Steps]:
    """The inputs and the steps of nodes in order, fused ones among them taken apart."""
    inputs: dict[int, tuple[Ref, Value]] = {}
    made: dict[int, Ref] = {}
    steps: list[Step] = []

    def read(operand: Operand) -> StepOperand:
        if not isinstance(operand, Value):
            assert not isinstance(operand, (tuple, DimExpr))
            return operand
        if operand.index in made:
            return made[operand.index]
        return inputs.setdefault(operand.index, (Ref(len(inputs)), operand))[0]

    for node in nodes:
        if node.op == OP:
            (values,) = node.operands
            assert isinstance(values, tuple)
            outer = [read(value) for value in values]
            first = len(steps)
            for step in _program(node).steps:
                steps.append(Step(step.op, tuple(_moved(x, outer, first) for x in step.operands), step.attrs))
        else:
            steps.append(Step(node.op, tuple(read(operand) for operand in node.operands), node.attrs))
        made[node.results[0].index] = Ref(len(steps) - 1, made=True)
    return tuple(value for _, value in inputs.values()), Steps(tuple(steps))


def _moved(operand: StepOperand, outer: list[StepOperand], first: int) -> StepOperand:
    if not isinstance(operand, Ref):
        return operand
    return Ref(operand.number + first, made=True) if operand.made else outer[operand.number]


__all__ = ["FuseElementwise"]
