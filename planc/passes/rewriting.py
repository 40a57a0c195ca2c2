"""The engine of passes that are tables of rules: apply rules to every node until none fires. Holds no rules.

A rule looks at one node and what made its operands, and gives a value to use in its place, another node, or
None where it does not apply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from planc.errors import TypeCheckError
from planc.ir import Attribute, Graph, Node, Operand, Role, Value
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.ops import node as make_node
from planc.passes.base import PassResult, everywhere, result


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule may look at besides its node."""

    made_by: Mapping[int, Node]
    """The node that made a value, by the value's index; inputs and constants have none."""
    reads: Mapping[int, int]
    """How often nodes and outputs read a value that a node made, by the value's index."""
    trains: bool
    """Whether the program takes its own gradients, so that nobody takes them through it from outside."""
    read_by: Mapping[int, set[str]]
    """The ops that read a value that a node made, by the value's index; "" for an output."""

    def source(self, operand: Operand, *ops: str) -> Node | None:
        """The node that made ``operand``, where it is one of ``ops``."""
        made = self.made_by.get(operand.index) if isinstance(operand, Value) else None
        return made if made is not None and made.op in ops else None

    def only_read_here(self, node: Node) -> bool:
        """Whether a node's first result is read once, so that it goes when its reader no longer wants it."""
        return self.reads.get(node.results[0].index, 0) <= 1

    def readers(self, node: Node) -> set[str]:
        """The ops that read a node's first result; "" for an output."""
        return self.read_by.get(node.results[0].index, set())

    def keeps_order(self, value: Value) -> bool:
        """Whether a value may be read elsewhere: of three gradients or more the order of their sum counts."""
        return self.trains or not value.type.dtype.is_floating or self.reads.get(value.index, 0) <= 2


Found = Value | Node | tuple[Node, Node] | None
"""What takes a node's place: a value, a node, or two of which the second reads the first."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rewrite of the nodes of some ops; ``name`` is what notes call it, ``why`` says why it is exact."""

    name: str
    ops: tuple[str, ...]
    match: Callable[[Node, Context], Found]
    why: str


def apply_rules(program: Program, rules: Sequence[Rule]) -> PassResult:
    """The program after every rule has been applied wherever it fits; the note counts them."""
    table: dict[str, list[Rule]] = {}
    for rule in rules:
        for op in rule.ops:
            table.setdefault(op, []).append(rule)
    fired: Counter[str] = Counter()
    trains = takes_own_gradients(program)
    graph, changes = everywhere(program.graph, lambda graph: _rewrite(graph, table, trains, fired))
    counts = ", ".join(f"{name} {count}" for name, count in sorted(fired.items()))
    return result(program, graph, changes, f"rules applied: {{}} ({counts})")


def takes_own_gradients(program: Program) -> bool:
    """Whether the program updates parameters: then nobody takes gradients through it from outside."""
    return any(port.role is Role.PARAMETER for port in program.graph.updates())


def _rewrite(
    graph: Graph, table: Mapping[str, Sequence[Rule]], trains: bool, fired: Counter[str]
) -> tuple[Graph, int]:
    rewriter = Rewriter(graph)
    made_by: dict[int, Node] = {}
    reads: Counter[int] = Counter()
    read_by: dict[int, set[str]] = {}
    context = Context(made_by, reads, trains, read_by)
    before = fired.total()
    readers = Counter(value.index for node in graph.nodes for value in node.values())
    readers.update(port.value.index for port in graph.outputs)
    reading = {port.value.index: {""} for port in graph.outputs}
    for node in graph.nodes:
        for value in node.values():
            reading.setdefault(value.index, set()).add(node.op)
    for port in (*graph.inputs, *graph.constants):
        reads[rewriter(port.value).index] = readers[port.value.index]

    def emit(node: Node) -> None:
        made_by.update((value.index, node) for value in rewriter.add(node))
        reads.update(value.index for value in node.values())

    for old in graph.nodes:
        first = rewriter.builder.next_index
        results = tuple(Value(first + i, value.type) for i, value in enumerate(old.results))
        node = Node(old.op, rewriter.operands(old), old.attrs, results, old.loc)
        found = _settle(node, table, context, fired, emit)
        if found is not node:  # what it read it reads no longer
            reads.subtract(value.index for value in node.values())
            reads.update(_read_by(found))
        if isinstance(found, Value):
            rewriter.replace(old, (found,))
            reads[found.index] += readers[old.results[0].index]
            read_by.setdefault(found.index, set()).update(reading.get(old.results[0].index, ()))
            continue
        rewriter.replace(old, rewriter.add(found))
        made_by.update((value.index, found) for value in found.results)
        for was, now in zip(old.results, found.results, strict=True):
            reads[now.index] += readers[was.index]
            read_by[now.index] = set(reading.get(was.index, ()))
    changes = fired.total() - before
    return (rewriter.finish(), changes) if changes else (graph, 0)


def _read_by(found: Node | Value) -> Iterator[int]:
    return (value.index for value in found.values()) if isinstance(found, Node) else iter(())


def _settle(
    node: Node,
    table: Mapping[str, Sequence[Rule]],
    context: Context,
    fired: Counter[str],
    emit: Callable[[Node], None],
) -> Node | Value:
    """Apply rules until none fires or a value takes the node's place."""
    again = True
    while again:
        again = False
        for rule in table.get(node.op, ()):
            found = rule.match(node, context)
            if found is None:
                continue
            if isinstance(found, Value) and found.type != node.results[0].type:
                continue  # dims that are equal by a relation: what the program says of its results stays
            fired[rule.name] += 1
            if isinstance(found, Value):
                return found
            if isinstance(found, tuple):
                first, found = found
                emit(first)
            node, again = found, True
            break
    return node


def first_operand(node: Node, position: int = 0) -> Value | None:
    """The operand at ``position``, where it is a value."""
    operand = node.operands[position]
    return operand if isinstance(operand, Value) else None


def same_type(node: Node, _context: Context) -> Found:
    """The first operand, where the result has its type."""
    x = first_operand(node)
    return x if x is not None and x.type == node.results[0].type else None


def remade(
    node: Node, op: str, operands: tuple[Operand, ...], attrs: Mapping[str, Attribute] | None = None
) -> Node | None:
    """Another node in a node's place, if its result has the same type."""
    try:
        new = make_node(op, operands, attrs or {}, node.results[0].index, loc=node.loc)
    except TypeCheckError:  # equal sizes that inference cannot see are equal
        return None
    return new if new.results == node.results else None


def in_two(
    node: Node,
    first: tuple[str, tuple[Operand, ...], Mapping[str, Attribute]],
    op: str,
    attrs: Mapping[str, Attribute],
    *more: Operand,
) -> tuple[Node, Node] | None:
    """Two nodes in a node's place, if the result has its type: ``first``, and ``op`` of what that makes."""
    index = node.results[0].index
    try:
        one = make_node(*first, index, loc=node.loc)
        two = make_node(op, (one.results[0], *more), attrs, index + 1, loc=node.loc)
    except TypeCheckError:
        return None
    same = [value.type for value in two.results] == [value.type for value in node.results]
    return (one, two) if same else None


__all__ = [
    "Context",
    "Found",
    "Rule",
    "apply_rules",
    "first_operand",
    "in_two",
    "remade",
    "same_type",
    "takes_own_gradients",
]
