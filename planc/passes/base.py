"""What a pass is, and the way in which passes reach subplans. Runs nothing: see `planc.passes.pipeline`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from planc.ir import Graph, Node
from planc.ir.facts import knowing
from planc.ir.program import Program
from planc.ops import Kind, lookup


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass made of a program.

    ``modified`` is False exactly when the program is the one that came in. For people, ``notes`` say what was
    done, and ``missed`` where something was nearly done and why it was not.
    """

    program: Program
    modified: bool
    notes: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()


class Pass(Protocol):
    """A frozen dataclass with a ``name`` and one ``apply``: valid IR in, valid IR out, the same meaning.

    The inputs and outputs of every graph stay as they are: names, roles, paths, types and order.
    """

    @property
    def name(self) -> str: ...

    def apply(self, program: Program) -> PassResult: ...


Rewrite = Callable[[Graph], tuple[Graph, int]]
"""A rewrite of one graph, subplans left alone, and how many changes it made: 0 if it is the same graph."""


def everywhere(graph: Graph, rewrite: Rewrite) -> tuple[Graph, int]:
    """Apply ``rewrite`` to the subplans of a graph, innermost first, and then to the graph itself.

    Changes are counted rather than found by comparing graphs, because graphs compare equal where attributes
    differ in type only (``1 == 1.0 == True``).
    """
    below = [everywhere(sub, rewrite) for sub in graph.subplans]
    changes = sum(count for _, count in below)
    if changes:
        graph = replace(graph, subplans=tuple(sub for sub, _ in below))
    with knowing(graph.dims):
        graph, count = rewrite(graph)
    return graph, changes + count


def result(
    program: Program, graph: Graph, changes: int, note: str, *more: str, missed: tuple[str, ...] = ()
) -> PassResult:
    """The result of a pass that changed only graphs; ``note`` has ``{}`` where the count of changes goes."""
    if not changes:
        return PassResult(program, False, more, missed)
    return PassResult(Program(graph, program.constants).pruned(), True, (note.format(changes), *more), missed)


def place_of(graph: Graph, node: Node) -> str:
    """Where a node is, for people: its op, and the user's line or else its number in its plan."""
    if node.loc is not None:
        return f"{node.op} ({node.loc})"
    index = next(i for i, other in enumerate(graph.nodes) if other is node)
    return f"{node.op} (node {index} of plan {graph.name})"


def subplan_attrs(node: Node) -> tuple[tuple[str, int], ...]:
    """The attributes of a node that are indexes of subplans."""
    names = {p.name for p in lookup(node.op).attrs if p.kind is Kind.SUBPLAN}
    return tuple((name, value) for name, value in node.attrs if name in names and isinstance(value, int))
