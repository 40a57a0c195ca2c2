"""Rules of canonicalisation for permutations between reshapes: fewer views of the same elements.

A reshape that splits dims may as well come before a permutation, and one that joins dims after it; there it
meets another reshape, and two reshapes are one. No element moves and none is computed.
"""

from __future__ import annotations

from planc.ir import Dim, Node, Shape, Value
from planc.ir.dims import product
from planc.passes.rewriting import Context, Found, Rule, first_operand, in_two, remade

ARRANGES = ("aten.t", "aten.transpose", "aten.permute")
RESHAPES = ("aten.view", "aten.squeeze", "aten.unsqueeze")


def arranged(node: Node) -> list[int]:
    """The dims of its operand, counted from the front, in the order in which a transposing op puts them."""
    rank = node.results[0].type.rank
    order = list(range(rank))
    if node.op == "aten.t":
        return order[::-1]
    if node.op == "aten.permute":
        dims = node.attr("dims")
        assert isinstance(dims, tuple)
        return [dim % rank for dim in dims if isinstance(dim, int)]
    if rank:
        a, b = (dim % rank for dim in (node.attr("dim0"), node.attr("dim1")) if isinstance(dim, int))
        order[a], order[b] = b, a
    return order


def split(shape: Shape, finer: Shape) -> list[list[Dim]] | None:
    """For each dim of ``shape`` the dims of ``finer`` that it is split into; None where it is not just split.

    A dim of size 1 may be split into none at all.
    """
    rest = list(finer)
    groups: list[list[Dim]] = []
    for size in shape:
        group: list[Dim] = []
        while rest and (product(tuple(group)) != size or (size == 1 and not group and rest[0] == 1)):
            if product(tuple(group)) == size:
                group.append(rest.pop(0))
                break
            group.append(rest.pop(0))
        if product(tuple(group)) != size:
            return None
        groups.append(group)
    if any(size != 1 for size in rest) or (rest and not groups):
        return None
    if rest:
        groups[-1] += rest
    return groups


def _units(node: Node, _context: Context) -> Found:
    """A permutation that moves dims of size 1 alone is a reshape."""
    x = first_operand(node)
    if x is None:
        return None
    order = arranged(node)
    moved = [i for i in order if x.type.shape[i] != 1]
    if moved != sorted(moved) or order == sorted(order):
        return None
    return remade(node, "aten.view", (x,), {"size": node.results[0].type.shape})


def _split_before(node: Node, context: Context) -> Found:
    """reshape(permute(reshape(x))), where the last splits dims: permute(reshape(x))."""
    arrange, x = _between(node, context)
    if arrange is None or x is None or not context.only_read_here(arrange):
        return None
    groups = split(arrange.results[0].type.shape, node.results[0].type.shape)
    if groups is None:
        return None
    order = arranged(arrange)
    before = [groups[order.index(dim)] for dim in range(len(order))]
    return _permuted(node, x, before, order)


def _joined_after(node: Node, context: Context) -> Found:
    """reshape(permute(reshape(x))), where the first joins dims: reshape(permute(x))."""
    arrange, x = _between(node, context)
    if arrange is None or x is None or context.readers(arrange) - set(RESHAPES):
        return None
    joined = first_operand(arrange)
    groups = None if joined is None else split(joined.type.shape, x.type.shape)
    if groups is None:
        return None
    starts = [sum(len(group) for group in groups[:i]) for i in range(len(groups))]
    dims = tuple(starts[i] + k for i in arranged(arrange) for k in range(len(groups[i])))
    size = node.results[0].type.shape
    inner = context.source(x, *ARRANGES)
    if inner is not None:
        first, below = arranged(inner), first_operand(inner)
        assert below is not None
        x, dims = below, tuple(first[i] for i in dims)
    if dims == tuple(range(len(dims))):
        return remade(node, "aten.view", (x,), {"size": size})
    return in_two(node, ("aten.permute", (x,), {"dims": dims}), "aten.view", {"size": size})


def _between(node: Node, context: Context) -> tuple[Node | None, Value | None]:
    """The permutation between a reshape and one before it, and what the first reshape is of."""
    arrange = context.source(node.operands[0], *ARRANGES)
    reshape = None if arrange is None else context.source(arrange.operands[0], *RESHAPES)
    if reshape is None or not context.only_read_here(reshape):
        return None, None
    x = first_operand(reshape)
    while x is not None and (below := context.source(x, *RESHAPES)) is not None:
        x = first_operand(below)
    return (arrange, x) if x is not None and context.keeps_order(x) else (None, None)


def _permuted(node: Node, x: Value, before: list[list[Dim]], order: list[int]) -> Found:
    """x reshaped to the dims of ``before`` and then permuted, group by group, in this order."""
    size = tuple(dim for group in before for dim in group)
    starts = [sum(len(group) for group in before[:i]) for i in range(len(before))]
    dims = tuple(starts[i] + k for i in order for k in range(len(before[i])))
    if dims == tuple(range(len(dims))):
        return remade(node, "aten.view", (x,), {"size": size})
    if x.type.shape == size:
        return remade(node, "aten.permute", (x,), {"dims": dims})
    return in_two(node, ("aten.view", (x,), {"size": size}), "aten.permute", {"dims": dims})


ARRANGING: tuple[Rule, ...] = (
    Rule("permuted units", ARRANGES, _units, "dims of size 1 order no elements"),
    Rule("split before", RESHAPES, _split_before, "splitting a dim moves no element, wherever the dim is"),
    Rule("joined after", RESHAPES, _joined_after, "dims that stay side by side may be joined later"),
)

__all__ = ["ARRANGES", "ARRANGING", "RESHAPES", "arranged", "split"]
