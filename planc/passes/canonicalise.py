"""Canonicalisation: one way of writing each thing, and nothing that does nothing. Every rule is exact.

A rule looks at one node and what made its operands, and gives a value to use in its place, another node, or
None where it does not apply. Adding a rule is one function and one line in `RULES`. A rule must keep the
type, every bit of the value (``x + 0`` is not ``x`` where x is -0.0) and the gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planc.errors import TypeCheckError
from planc.ir import Attribute, Graph, Node, Operand, Role, Value
from planc.ir.graph import Scalar
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.ops import node as make_node
from planc.ops.schema import same
from planc.passes.base import PassResult, everywhere, result


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule may look at besides its node."""

    made_by: Mapping[int, Node]
    """The node that made a value, by the value's index; inputs and constants have none."""
    trains: bool
    """Whether the program takes its own gradients, so that nobody takes them through it from outside."""

    def source(self, operand: Operand, *ops: str) -> Node | None:
        """The node that made ``operand``, where it is one of ``ops``."""
        made = self.made_by.get(operand.index) if isinstance(operand, Value) else None
        return made if made is not None and made.op in ops else None


Found = Value | Node | None


@dataclass(frozen=True, slots=True)
class Rule:
    """A rewrite of the nodes of some ops; ``name`` is what notes call it."""

    name: str
    ops: tuple[str, ...]
    match: Callable[[Node, Context], Found]


@dataclass(frozen=True, slots=True)
class Canonicalise:
    """Apply `RULES` to every node until none fires."""

    name: str = "canonicalise"

    def apply(self, program: Program) -> PassResult:
        trains = any(port.role is Role.PARAMETER for port in program.graph.updates())
        fired: Counter[str] = Counter()
        graph, changes = everywhere(program.graph, lambda graph: _rewrite(graph, trains, fired))
        counts = ", ".join(f"{name} {count}" for name, count in sorted(fired.items()))
        return result(program, graph, changes, f"rules applied: {{}} ({counts})")


def _rewrite(graph: Graph, trains: bool, fired: Counter[str]) -> tuple[Graph, int]:
    rewriter = Rewriter(graph)
    made_by: dict[int, Node] = {}
    context = Context(made_by, trains)
    before = fired.total()
    for old in graph.nodes:
        first = rewriter.builder.next_index
        results = tuple(Value(first + i, value.type) for i, value in enumerate(old.results))
        found = _settle(Node(old.op, rewriter.operands(old), old.attrs, results, old.loc), context, fired)
        if isinstance(found, Value):
            rewriter.replace(old, (found,))
            continue
        rewriter.replace(old, rewriter.add(found))
        made_by.update((value.index, found) for value in found.results)
    changes = fired.total() - before
    return (rewriter.finish(), changes) if changes else (graph, 0)


def _settle(node: Node, context: Context, fired: Counter[str]) -> Node | Value:
    """Apply rules until none fires or a value takes the node's place."""
    again = True
    while again:
        again = False
        for rule in _BY_OP.get(node.op, ()):
            found = rule.match(node, context)
            if found is None:
                continue
            fired[rule.name] += 1
            if isinstance(found, Value):
                return found
            node, again = found, True
            break
    return node


def _operand(node: Node, position: int = 0) -> Value | None:
    operand = node.operands[position]
    return operand if isinstance(operand, Value) else None


def _same_type(node: Node, _context: Context) -> Found:
    """An op that only arranges or casts does nothing where its result has its operand's type."""
    x = _operand(node)
    return x if x is not None and x.type == node.results[0].type else None


def _always(node: Node, _context: Context) -> Found:
    return _operand(node)


def _detach(node: Node, context: Context) -> Found:
    """Detaching twice is detaching once; it is nothing at all where no gradient can be taken."""
    x = _operand(node)
    if x is None:
        return None
    if context.trains or not x.type.dtype.is_floating or context.source(x, "aten.detach"):
        return x
    return None


def _t(node: Node, context: Context) -> Found:
    x = _operand(node)
    if x is None or x.type.rank < 2:
        return x
    inner = context.source(x, "aten.t")
    return None if inner is None else _operand(inner)


def _transpose(node: Node, context: Context) -> Found:
    x = _operand(node)
    pair = _swapped(node)
    if x is None or len(pair) < 2:
        return x
    inner = context.source(x, "aten.transpose")
    return _operand(inner) if inner is not None and _swapped(inner) == pair else None


def _swapped(node: Node) -> frozenset[int]:
    """The dims that a transpose exchanges, counted from the front; one where it exchanges none."""
    dims = (node.attr("dim0"), node.attr("dim1"))
    rank = max(node.results[0].type.rank, 1)
    return frozenset(dim % rank for dim in dims if isinstance(dim, int))


def _permute(node: Node, context: Context) -> Found:
    """No permutation is nothing; two of them are one."""
    x = _operand(node)
    order = _order(node)
    if x is None or order == list(range(len(order))):
        return x
    inner = context.source(x, "aten.permute")
    if inner is None:
        return None
    first = _order(inner)
    return _with(node, (inner.operands[0],), {"dims": tuple(first[i] for i in order)})


def _order(node: Node) -> list[int]:
    dims = node.attr("dims")
    assert isinstance(dims, tuple)
    return [dim % len(dims) for dim in dims if isinstance(dim, int)]


_RESHAPES = ("aten.view", "aten.squeeze", "aten.unsqueeze")


def _reshape(node: Node, context: Context) -> Found:
    """Of several reshapes in a row only the last shape counts, and it is nothing if it is the first."""
    inner = context.source(node.operands[0], *_RESHAPES)
    x = None if inner is None else _operand(inner)
    if x is None:
        return None
    if x.type == node.results[0].type:
        return x
    return _with(node, (x,), {"size": node.results[0].type.shape}) if node.op == "aten.view" else None


def _explicit_size(node: Node, _context: Context) -> Found:
    """The size of a view or expand written out, without -1, so that equal ones look equal."""
    size = node.results[0].type.shape
    return None if same(node.attr("size"), size) else _with(node, node.operands, {"size": size})


def _whole_slice(node: Node, context: Context) -> Found:
    if node.attr("start", 0) not in (0, None) or node.attr("step", 1) != 1:
        return None
    return _same_type(node, context)


def _times_one(node: Node, context: Context) -> Found:
    return _same_type(node, context) if _is(node.operands[1], 1) and not node.attrs else None


def _minus_zero(node: Node, context: Context) -> Found:
    """x - 0 is x even for -0.0; x - (-0.0) is not."""
    zero = node.operands[1]
    if node.attrs or not _is(zero, 0) or repr(zero) == "-0.0":
        return None
    return _same_type(node, context)


def _plus_zero(node: Node, context: Context) -> Found:
    """x + 0 is x where there is no -0.0, and x + (-0.0) is x everywhere."""
    zero, x = node.operands[1], _operand(node)
    if node.attrs or x is None or not _is(zero, 0):
        return None
    if x.type.dtype.is_floating and repr(zero) != "-0.0":
        return None
    return _same_type(node, context)


def _twice(node: Node, context: Context) -> Found:
    """An op that undoes itself."""
    inner = context.source(node.operands[0], node.op)
    return None if inner is None else _operand(inner)


def _single(node: Node, _context: Context) -> Found:
    tensors = node.operands[0]
    return tensors[0] if isinstance(tensors, tuple) and len(tensors) == 1 else None


def _is(operand: Operand, number: Scalar) -> bool:
    return isinstance(operand, (int, float)) and operand == number


def _with(node: Node, operands: tuple[Operand, ...], attrs: dict[str, Attribute]) -> Node | None:
    """The same op on other operands and attributes, if the result keeps its type."""
    try:
        new = make_node(node.op, operands, attrs, node.results[0].index, loc=node.loc)
    except TypeCheckError:  # equal sizes that inference cannot see are equal
        return None
    return new if new.results == node.results else None


RULES: tuple[Rule, ...] = (
    Rule("identity view", ("aten.view", "aten.expand", "aten.squeeze"), _same_type),
    Rule("identity cast", ("aten.to",), _same_type),
    Rule("copy", ("aten.clone",), _always),
    Rule("detach", ("aten.detach",), _detach),
    Rule("transpose twice", ("aten.t",), _t),
    Rule("transpose twice", ("aten.transpose",), _transpose),
    Rule("permute", ("aten.permute",), _permute),
    Rule("reshape twice", _RESHAPES, _reshape),
    Rule("explicit size", ("aten.view", "aten.expand"), _explicit_size),
    Rule("whole slice", ("aten.slice",), _whole_slice),
    Rule("times one", ("aten.mul", "aten.div"), _times_one),
    Rule("minus zero", ("aten.sub",), _minus_zero),
    Rule("plus zero", ("aten.add",), _plus_zero),
    Rule("negate twice", ("aten.neg",), _twice),
    Rule("cat of one", ("aten.cat",), _single),
)


def _by_op() -> dict[str, tuple[Rule, ...]]:
    table: dict[str, list[Rule]] = {}
    for rule in RULES:
        for op in rule.ops:
            table.setdefault(op, []).append(rule)
    return {op: tuple(rules) for op, rules in table.items()}


_BY_OP = _by_op()
