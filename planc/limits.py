"""How large a plan may be, and the check of it. Sizes only; `planc.verifier` knows what plans mean.

The limits exist so that bytes from a stranger cost bounded time and memory before anything looks at their
meaning. The defaults leave room for networks far larger than those that were measured (1,100 nodes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planc.errors import LimitError
from planc.ir import Attribute, Dim, DimExpr, Graph, Node, Operand, Shape
from planc.ir.dims import FloorDiv
from planc.ir.structure import Fixed, Leaf, Mapping, Tree

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
"""Every integer in a plan fits 64 bits: torch takes no larger ones."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest plan that is accepted. Counts, unless a field says otherwise."""

    total_bytes: int = 16 * 2**20
    """Bytes of an encoded plan (without the data of its constants)."""
    plans: int = 256
    """Plans in all: the outermost one and those below."""
    depth: int = 8
    """How deep subplans nest; a plan without any has depth 1."""
    nodes: int = 50_000
    """Nodes of all plans together."""
    ports: int = 20_000
    """Inputs, outputs, or constants of one plan."""
    operands: int = 20_000
    """Values that one node reads."""
    results: int = 20_000
    """Values that one node makes."""
    rank: int = 16
    """Dims of one tensor."""
    dims: int = 64
    """Named dims of one plan."""
    dim_terms: int = 16
    """Terms of a polynomial within a dim expression."""
    dim_degree: int = 8
    """Factors of one term."""
    dim_depth: int = 8
    """How deep floor divisions nest."""
    dim_atoms: int = 64
    """Names, coefficients and divisions in a whole dim expression."""
    shape_terms: int = 4096
    """The product of the terms of a shape's dims: the terms that its number of elements can have."""
    list_length: int = 4096
    """Entries of one attribute."""
    name_length: int = 256
    """Characters of the name of a plan, port, dim, op or attribute."""
    text_length: int = 4096
    """Characters of a path, a string attribute, or a string in a structure."""
    tree_depth: int = 32
    """How deep the containers of arguments or results nest."""
    tree_size: int = 50_000
    """Containers, tensors and fixed values of one such structure."""


def check_limits(graph: Graph, limits: Limits) -> None:
    """Check every size in a plan, before anything expensive is done with it.

    Raises:
        LimitError: a limit is exceeded; says which, and by what.
    """
    counted = {"plans": 0, "nodes": 0}
    # A stack, not recursion: the nesting is among the things that are not known to be small yet.
    stack = [(graph, 1)]
    while stack:
        current, depth = stack.pop()
        where = f"plan {_brief(current.name)}"
        counted["plans"] += 1
        counted["nodes"] += len(current.nodes)
        _at_most(limits.depth, depth, "levels of subplans", where)
        _at_most(limits.plans, counted["plans"], "plans in all", where)
        _at_most(limits.nodes, counted["nodes"], "nodes in all", where)
        _check_graph(current, limits, where)
        stack.extend((sub, depth + 1) for sub in current.subplans)


def _check_graph(graph: Graph, limits: Limits, where: str) -> None:
    names = [graph.name, *(var.name for var in graph.dims)]
    names += [port.name for port in (*graph.inputs, *graph.outputs)]
    for name in names:
        _at_most(limits.name_length, len(name), f"characters of the name {_brief(name)}", where)
    for port in (*graph.inputs, *graph.outputs):
        _at_most(limits.text_length, len(port.path), f"characters of the path {_brief(port.path)}", where)
    _at_most(limits.dims, len(graph.dims), "named dims", where)
    for var in graph.dims:
        for bound in (var.lo, var.hi):
            _check_int(bound, f"a bound of dim {var.name}", where)
        _check_number(var.equals, limits, f"what dim {var.name} equals", where)
    for what, ports in (("inputs", graph.inputs), ("outputs", graph.outputs), ("constants", graph.constants)):
        _at_most(limits.ports, len(ports), what, where)
    for port in (*graph.inputs, *graph.constants):
        _check_shape(port.value.type.shape, limits, f"{where}, value {port.value.index}")
    for position, node in enumerate(graph.nodes):
        _check_node(node, limits, f"{where}, node {position} ({_brief(node.op)})")
    for tree in (graph.takes, graph.gives):
        if tree is not None:
            _check_tree(tree, limits, where)


def _check_node(node: Node, limits: Limits, where: str) -> None:
    _at_most(limits.name_length, len(node.op), "characters of the op's name", where)
    width = sum(len(operand) if isinstance(operand, tuple) else 1 for operand in node.operands)
    _at_most(limits.operands, width, "operands", where)
    _at_most(limits.results, len(node.results), "results", where)
    _at_most(limits.list_length, len(node.attrs), "attributes", where)
    for position, operand in enumerate(node.operands):
        _check_number(operand, limits, f"operand {position}", where)
    for name, value in node.attrs:
        _at_most(limits.name_length, len(name), "characters of an attribute's name", where)
        _check_attribute(name, value, limits, where)
    for result in node.results:
        _check_shape(result.type.shape, limits, f"{where}, value {result.index}")


def _check_attribute(name: str, value: Attribute, limits: Limits, where: str) -> None:
    what = f"attribute {name!r}"
    if isinstance(value, str):
        _at_most(limits.text_length, len(value), f"characters of {what}", where)
    elif isinstance(value, tuple):
        _at_most(limits.list_length, len(value), f"entries of {what}", where)
        for item in value:
            _check_number(item, limits, what, where)
        # Ops multiply the entries of a list of dims (a reshape's, say) just as those of a shape.
        _check_product(tuple(item for item in value if isinstance(item, DimExpr)), limits, f"{where}, {what}")
    else:
        _check_number(value, limits, what, where)


def _check_number(value: Attribute | Operand, limits: Limits, what: str, where: str) -> None:
    if isinstance(value, DimExpr):
        _check_dim(value, limits, f"{where}, {what}")
    elif isinstance(value, int):
        _check_int(value, what, where)


def _check_shape(shape: Shape, limits: Limits, where: str) -> None:
    _at_most(limits.rank, len(shape), "dims of one tensor", where)
    for dim in shape:
        if isinstance(dim, DimExpr):
            _check_dim(dim, limits, where)
        else:
            _check_int(dim, "a dim", where)
    _check_product(shape, limits, where)


def _check_product(dims: Shape, limits: Limits, where: str) -> None:
    terms = 1
    for dim in dims:
        terms *= max(1, len(dim.terms)) if isinstance(dim, DimExpr) else 1
        _at_most(limits.shape_terms, terms, "terms in the product of its dims", where)


def _check_dim(root: DimExpr, limits: Limits, where: str) -> None:
    atoms = 0
    stack: list[tuple[Dim, int]] = [(root, 0)]
    while stack:
        dim, depth = stack.pop()
        atoms += 1
        _at_most(limits.dim_atoms, atoms, "names, numbers and divisions in a dim", where)
        if isinstance(dim, int):
            _check_int(dim, "a number in a dim expression", where)
            continue
        _at_most(limits.dim_depth, depth, "levels of floor division in a dim", where)
        _at_most(limits.dim_terms, len(dim.terms), "terms in a dim", where)
        for monomial, coefficient in dim.terms:
            _at_most(limits.dim_degree, len(monomial), "factors in a term of a dim", where)
            _check_int(coefficient, "a coefficient of a dim", where)
            atoms += 1 + len(monomial)
            for atom in monomial:
                if isinstance(atom, FloorDiv):
                    stack += [(atom.numerator, depth + 1), (atom.denominator, depth + 1)]
                else:
                    _at_most(limits.name_length, len(atom), f"characters of the name {_brief(atom)}", where)
    _at_most(limits.dim_atoms, atoms, "names, numbers and divisions in a dim", where)


def _check_tree(root: Tree, limits: Limits, where: str) -> None:
    size = 0
    stack = [(root, 1)]
    while stack:
        tree, depth = stack.pop()
        size += 1
        _at_most(limits.tree_depth, depth, "levels of containers in a structure", where)
        _at_most(limits.tree_size, size, "entries of a structure", where)
        if isinstance(tree, Leaf):
            continue
        for text in _texts(tree):
            _at_most(limits.text_length, len(text), f"characters of {_brief(text)} in a structure", where)
        if isinstance(tree, Fixed):
            if isinstance(tree.value, int):
                _check_int(tree.value, "a fixed value in a structure", where)
            continue
        stack.extend((item, depth + 1) for item in tree.items)


def _texts(tree: Tree) -> Iterator[str]:
    if isinstance(tree, Fixed) and isinstance(tree.value, str):
        yield tree.value
    elif isinstance(tree, Mapping):
        yield from tree.keys


def _check_int(value: int, what: str, where: str) -> None:
    if not INT_MIN <= value <= INT_MAX:
        size = value.bit_length()  # the digits of a huge int may be too many to print
        raise LimitError(f"{what} must fit a signed 64-bit integer, got one of {size} bits", where)


def _at_most(limit: int, actual: int, what: str, where: str) -> None:
    if actual > limit:
        raise LimitError(f"at most {limit} {what} are allowed, got {actual}", where)


def _brief(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
