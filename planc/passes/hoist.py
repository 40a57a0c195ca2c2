"""Loop-invariant code motion: what every trip of a scan computes alike is computed once, before it.

A node of the body moves out where it depends on nothing but values ``given`` to every trip, and constants;
it reaches the body as one more given value. What a scan may run zero times moves nothing: it may fail, or
cost, where before nothing ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from planc.errors import TypeCheckError
from planc.ir import Attribute, Dim, DimExpr, Graph, Node, Operand, Value
from planc.ir.builder import GraphBuilder, map_operand
from planc.ir.dims import names, substitute
from planc.ir.facts import known
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.ops import Trait, lookup
from planc.ops import node as make_node
from planc.ops.structured import batch_name, scan_operands, subplan_of, trip_count
from planc.passes.base import PassResult, everywhere, place_of, result, subplan_attrs
from planc.passes.rewriting import takes_own_gradients


@dataclass(frozen=True, slots=True)
class Hoist:
    """Move what does not change from trip to trip out of scans, innermost first."""

    name: str = "hoist"

    def apply(self, program: Program) -> PassResult:
        trains = takes_own_gradients(program)
        missed: dict[str, None] = {}
        graph, changes = everywhere(program.graph, lambda graph: _hoist(graph, trains, missed))
        return result(program, graph, changes, "nodes moved out of loops: {}", missed=tuple(missed))


@dataclass
class _Plan:
    """What moves out of one body, and what stays."""

    body: Graph
    dims: Mapping[str, Dim]
    """The body's dims in terms of the dims around it; the batch is not among them."""
    fixed: set[int]
    """The numbers of the body's values that are the same in every trip."""
    moves: list[Node] = field(default_factory=list[Node])
    stays: list[Node] = field(default_factory=list[Node])


def _hoist(graph: Graph, trains: bool, missed: dict[str, None]) -> tuple[Graph, int]:
    plans = {
        index: plan
        for index, node in enumerate(graph.nodes)
        if node.op == "scan" and (plan := _plan(graph, node, trains, missed)) is not None
    }
    if not plans:
        return graph, 0
    rewriter = Rewriter(graph)
    constants = {constant.digest: rewriter(constant.value) for constant in graph.constants}
    for plan in plans.values():  # before any node
        read = {value.index for node in plan.moves for value in node.values()}
        for constant in plan.body.constants:
            if constant.value.index in read and constant.digest not in constants:
                constants[constant.digest] = rewriter.builder.constant(constant.value.type, constant.digest)
    uses = Counter(number for node in graph.nodes for _, number in subplan_attrs(node))
    for index, node in enumerate(graph.nodes):
        if index in plans:
            _replace(rewriter, node, plans[index], constants, uses)
        else:
            rewriter.copy(node)
    return rewriter.finish(), sum(len(plan.moves) for plan in plans.values())


def _plan(graph: Graph, scan: Node, trains: bool, missed: dict[str, None]) -> _Plan | None:
    body, trips = subplan_of(graph, scan), trip_count(scan)
    if trips == 1:
        return None
    given = body.inputs[len(body.inputs) - len(scan_operands(scan)[2]) :]
    fixed = {port.value.index for port in (*given, *body.constants)}
    plan = _Plan(body, _dims(body, scan), fixed)
    differentiable = {port.value.index for port in given if port.value.type.dtype.is_floating}
    for node in body.nodes:
        reason = _stays(node, plan, differentiable, trains)
        if reason is None:
            plan.moves.append(node)
            plan.fixed.update(value.index for value in node.results)
            if any(value.index in differentiable for value in node.values()):
                differentiable.update(value.index for value in node.results)
            continue
        plan.stays.append(node)
        if reason:
            missed[f"hoist {place_of(body, node)}: {reason}"] = None
    if plan.moves and not _surely_runs(graph, trips):
        missed[f"hoist out of {place_of(graph, scan)}: it may have no trips at all"] = None
        return None
    return plan if plan.moves else None


def _stays(node: Node, plan: _Plan, differentiable: set[int], trains: bool) -> str | None:
    """Why a node stays in the body: "" where it simply depends on the trip, None where it moves."""
    if any(value.index not in plan.fixed for value in node.values()):
        return ""
    if _dim_names(node) - plan.dims.keys():
        return ""  # sized by the batch, and the last may be shorter
    definition = lookup(node.op)
    if definition.has(Trait.RANDOM):
        return "random draws stay where they are written"
    if definition.has(Trait.STRUCTURED):
        return "it runs a plan of its own"
    differs = any(value.index in differentiable for value in node.values())
    if differs and not trains:
        return "gradients taken through it would add up in another order"
    if not _same_outside(node, plan.dims):
        return "its size follows from the loop's own ranges of dims"
    return None


def _same_outside(node: Node, dims: Mapping[str, Dim]) -> bool:
    """Whether a node makes values of the same types around the scan, where dims have other ranges."""
    try:
        made = _outside(node, lambda value: Value(value.index, value.type.substitute(dims)), dims, 0)
    except TypeCheckError:
        return False
    wanted = [known().type(value.type.substitute(dims)) for value in node.results]
    return [value.type for value in made.results] == wanted


def _outside(node: Node, outside_of: Callable[[Value], Value], dims: Mapping[str, Dim], index: int) -> Node:
    """A node of the body as one around the scan."""
    operands = tuple(_around(map_operand(x, outside_of), dims) for x in node.operands)
    attrs = {name: _attr_around(value, dims) for name, value in node.attrs}
    return make_node(node.op, operands, attrs, index, loc=node.loc)


def _dims(body: Graph, scan: Node) -> dict[str, Dim]:
    """The body's dims as those around the scan; without the batch's, which differs from trip to trip."""
    carry, over, given = scan_operands(scan)
    batch = batch_name(body, len(carry), len(over))
    out: dict[str, Dim] = {}
    for port, value in zip(body.inputs, (*carry, *over, *given), strict=True):
        for want, got in zip(port.value.type.shape, value.type.shape, strict=True):
            if isinstance(want, DimExpr) and str(want).isidentifier() and str(want) != batch:
                out.setdefault(str(want), got)
    return out


def _dim_names(node: Node) -> set[str]:
    found = {name for value in (*node.values(), *node.results) for name in value.type.dim_names()}
    for item in (*node.operands, *(value for _, value in node.attrs)):
        for part in item if isinstance(item, tuple) else (item,):
            if isinstance(part, DimExpr):
                found.update(names(part))
    return found


def _surely_runs(graph: Graph, trips: Dim) -> bool:
    """Whether a scan runs its body at least once whatever the dims are: at their least, and it grows."""
    if isinstance(trips, int):
        return trips > 0
    least = {var.name: var.lo for var in graph.dims}
    grows = all(coefficient > 0 for _, coefficient in trips.terms)
    value = substitute(trips, least)
    return grows and isinstance(value, int) and value > 0


def _replace(
    rewriter: Rewriter, scan: Node, plan: _Plan, constants: Mapping[str, Value], uses: Mapping[int, int]
) -> None:
    """Append what moves, and the scan of what stays."""
    operands = rewriter.operands(scan)
    given = operands[2]
    assert isinstance(given, tuple)
    outside: dict[int, Value] = {
        c.value.index: constants[c.digest] for c in plan.body.constants if c.digest in constants
    }
    first = len(plan.body.inputs) - len(given)
    for port, value in zip(plan.body.inputs[first:], given, strict=True):
        assert value is not None
        outside[port.value.index] = value

    def outside_of(value: Value) -> Value:
        return outside[value.index]

    for node in plan.moves:
        new = _outside(node, outside_of, plan.dims, rewriter.builder.next_index)
        outside |= {old.index: value for old, value in zip(node.results, rewriter.add(new), strict=True)}
    body, added = _without(plan)
    number = scan.attr("body")
    assert isinstance(number, int)
    if uses[number] == 1:
        rewriter.builder.subplans[number] = body
    else:  # another node runs the body as it was
        number = rewriter.builder.subplan(body)
    new = make_node(
        "scan",
        (*operands[:2], (*given, *(outside[value.index] for value in added))),
        {**dict(scan.attrs), "body": number},
        rewriter.builder.next_index,
        subplans=tuple(rewriter.builder.subplans),
        loc=scan.loc,
    )
    rewriter.replace(scan, rewriter.add(new))


def _without(plan: _Plan) -> tuple[Graph, list[Value]]:
    """The body without what moves, and those of its old values that are new inputs, in order."""
    body = plan.body
    made = {value.index: value for node in plan.moves for value in node.results}
    wanted = [value.index for node in plan.stays for value in node.values()]
    wanted += [port.value.index for port in body.outputs]
    added = [made[index] for index in dict.fromkeys(wanted) if index in made]
    builder = GraphBuilder(body.name, body.dims)
    builder.subplans = list(body.subplans)
    new: dict[int, Value] = {}
    for port in body.inputs:
        new[port.value.index] = builder.input(port.name, port.value.type, port.role, port.path)
    taken = {port.name for port in body.inputs}
    names_left = (name for i in count() if (name := f"fixed{i}") not in taken)
    for value in added:
        new[value.index] = builder.input(next(names_left), value.type)
    for constant in body.constants:
        new[constant.value.index] = builder.constant(constant.value.type, constant.digest)

    def inside(value: Value) -> Value:
        return new[value.index]

    for node in plan.stays:
        start = builder.next_index
        results = tuple(Value(start + i, value.type) for i, value in enumerate(node.results))
        operands = tuple(map_operand(operand, inside) for operand in node.operands)
        builder.add(replace(node, operands=operands, results=results))
        new |= {old.index: value for old, value in zip(node.results, results, strict=True)}
    for port in body.outputs:
        builder.output(new[port.value.index], port.name, port.role, port.path)
    return builder.build(None, body.gives), added


def _around(operand: Operand, dims: Mapping[str, Dim]) -> Operand:
    return substitute(operand, dims) if isinstance(operand, DimExpr) else operand


def _attr_around(value: Attribute, dims: Mapping[str, Dim]) -> Attribute:
    if isinstance(value, tuple):
        return tuple(substitute(item, dims) if isinstance(item, DimExpr) else item for item in value)
    return substitute(value, dims) if isinstance(value, DimExpr) else value
