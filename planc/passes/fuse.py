"""Fusion: several nodes become one that computes the same bits. The patterns are in `planc.passes.fusions`.

A fusion's ``check`` says whether it fits at a node, or why it does not where it nearly does; those reasons
are the result's ``missed``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from planc.errors import TypeCheckError
from planc.ir import Attribute, Graph, Node, Operand, Value
from planc.ir.builder import map_operand
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.ops import node as make_node
from planc.passes.base import PassResult, everywhere, place_of, result
from planc.passes.rewriting import takes_own_gradients


@dataclass(frozen=True, slots=True)
class Fused:
    """The node to put in the place of several: of the one where the pattern ends and those it absorbs.

    ``gives`` has the values that the new node's results stand for, in order; None for one that is new.
    """

    op: str
    operands: tuple[Operand, ...]
    attrs: Mapping[str, Attribute]
    absorbs: tuple[Node, ...]
    gives: tuple[Value | None, ...]


@dataclass(frozen=True, slots=True)
class Around:
    """What a fusion may look at: a graph, and who makes and reads its values."""

    graph: Graph
    trains: bool
    """Whether the program takes its own gradients, so that nobody takes them through it from outside."""
    made_by: Mapping[int, tuple[int, Node]] = field(default_factory=dict[int, tuple[int, Node]])
    read_by: Mapping[int, Sequence[int]] = field(default_factory=dict[int, list[int]])
    """The positions of the nodes that read a value; that of no node stands for an output."""

    @staticmethod
    def of(graph: Graph, trains: bool) -> Around:
        made = {v.index: (i, node) for i, node in enumerate(graph.nodes) for v in node.results}
        read: dict[int, list[int]] = {}
        for i, node in enumerate(graph.nodes):
            for value in node.values():
                read.setdefault(value.index, []).append(i)
        for port in graph.outputs:
            read.setdefault(port.value.index, []).append(len(graph.nodes))
        return Around(graph, trains, made, read)

    def source(self, operand: Operand, *ops: str) -> Node | None:
        """The node that made ``operand``, where it is one of ``ops``."""
        made = self.made_by.get(operand.index) if isinstance(operand, Value) else None
        return made[1] if made is not None and made[1].op in ops else None

    def reads(self, value: Value) -> int:
        """How many nodes and outputs read a value."""
        return len(self.read_by.get(value.index, ()))

    def position(self, node: Node) -> int:
        return self.made_by[node.results[0].index][0]

    def obstacle(self, root: Node, fused: Fused) -> str | None:
        """Why absorbed nodes cannot go: what they make is read where it would be missing."""
        end = self.position(root)
        inside = {end, *(self.position(node) for node in fused.absorbs)}
        given = {value.index for value in fused.gives if value is not None}
        for node in (*fused.absorbs, root):
            for value in node.results:
                for reader in self.read_by.get(value.index, ()):
                    if reader in inside or (value.index in given and reader > end):
                        continue
                    if reader == len(self.graph.nodes):
                        return f"what {node.op} makes is an output of the plan"
                    when = " before the last of them" if value.index in given else ""
                    return f"{self.graph.nodes[reader].op} also reads what {node.op} makes{when}"
        return self.reordered((*fused.absorbs, root))

    def reordered(self, nodes: Sequence[Node]) -> str | None:
        """Why nodes cannot become one at the place of one of them: gradients would add up in another order.

        Autograd adds up the gradients of a value from its last reader to its first. Two add up to the same in
        either order, three or more may not.
        """
        if self.trains:
            return None
        inside = {self.position(node) for node in nodes}
        between = set(range(min(inside), max(inside))) - inside
        for node in nodes:
            for value in node.values():
                if not value.type.dtype.is_floating or self.reads(value) < 3:
                    continue
                if not between.isdisjoint(self.read_by[value.index]):
                    return f"{value.type} is read in between too: its gradients would add up in another order"
        return None


Check = Callable[[Node, Around], "Fused | str | None"]


@dataclass(frozen=True, slots=True)
class Fusion:
    """A pattern that ends at one of ``ops``; ``why`` says why the fused op is exact.

    ``check`` gives what to do, or None where there is no such pattern, or why it does not fire where there is
    nearly one.
    """

    name: str
    ops: tuple[str, ...]
    check: Check
    why: str


def fuse(program: Program, fusions: Sequence[Fusion]) -> PassResult:
    """The program after every fusion has been applied wherever it fits."""
    trains = takes_own_gradients(program)
    missed: dict[str, None] = {}
    fired: dict[str, int] = {}

    def rewrite(graph: Graph) -> tuple[Graph, int]:
        total = 0
        while True:  # each turn removes a node or turns one into a fused one
            reasons: list[str] = []
            graph, count = _once(Around.of(graph, trains), fusions, fired, reasons)
            total += count
            if not count:
                missed.update(dict.fromkeys(reasons))
                return graph, total

    graph, changes = everywhere(program.graph, rewrite)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(fired.items()))
    return result(program, graph, changes, f"fused: {{}} ({counts})", missed=tuple(missed))


def _once(
    around: Around, fusions: Sequence[Fusion], fired: dict[str, int], missed: list[str]
) -> tuple[Graph, int]:
    graph = around.graph
    chosen: dict[int, Fused] = {}
    gone: set[int] = set()
    for position, node in enumerate(graph.nodes):
        for fusion in fusions:
            if node.op not in fusion.ops:
                continue
            found = fusion.check(node, around)
            if isinstance(found, Fused):
                absorbed = {around.position(other) for other in found.absorbs}
                if absorbed & (gone | chosen.keys()):
                    continue  # taken by another pattern in this turn
                obstacle = around.obstacle(node, found) or _unfit(found)
                if obstacle is None:
                    chosen[position] = found
                    gone |= absorbed
                    fired[fusion.name] = fired.get(fusion.name, 0) + 1
                    break
                found = obstacle
            if isinstance(found, str):
                missed.append(f"{fusion.name} at {place_of(graph, node)}: {found}")
    return (_rebuilt(graph, chosen, gone), len(chosen)) if chosen else (graph, 0)


def _unfit(fused: Fused) -> str | None:
    """Why the fused op does not take these operands, or does not give the types that they gave."""
    try:
        made = make_node(fused.op, fused.operands, fused.attrs, 0)
    except TypeCheckError as error:
        return str(error)
    for value, new in zip(fused.gives, made.results, strict=True):
        if value is not None and value.type != new.type:
            return f"{fused.op} would give {new.type} for {value.type}"
    return None


def _rebuilt(graph: Graph, chosen: Mapping[int, Fused], gone: set[int]) -> Graph:
    rewriter = Rewriter(graph)
    for position, node in enumerate(graph.nodes):
        if position in gone:
            continue
        fused = chosen.get(position)
        if fused is None:
            rewriter.copy(node)
            continue
        operands = tuple(map_operand(operand, rewriter) for operand in fused.operands)
        new = make_node(fused.op, operands, fused.attrs, rewriter.builder.next_index, loc=node.loc)
        results = {
            old.index: value
            for old, value in zip(fused.gives, rewriter.add(new), strict=True)
            if old is not None
        }
        for old in (*fused.absorbs, node):
            for value in old.results:
                if value.index in results:
                    rewriter.stand_for(value, results[value.index])
    return rewriter.finish()


__all__ = ["Around", "Check", "Fused", "Fusion", "fuse"]
