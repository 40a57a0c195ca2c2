"""Algebraic simplification: the same bits by fewer or cheaper ops. Layers are fused elsewhere: `fusions`.

Floating-point arithmetic is not associative and rounds, so most of school algebra is absent here: a rule
says in ``why`` what makes it exact. ``x - lr*g`` is not ``add(x, g, alpha=-lr)``, which rounds once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from planc.ir import DType, Node, Operand, Value
from planc.ir.program import Program
from planc.ops.steps import stepwise
from planc.passes.arranging import ARRANGES, RESHAPES
from planc.passes.base import PassResult
from planc.passes.rewriting import (
    Context,
    Found,
    Rule,
    apply_rules,
    first_operand,
    in_two,
    remade,
    same_type,
)


@dataclass(frozen=True, slots=True)
class Simplify:
    """Apply `RULES` to every node until none fires."""

    name: str = "simplify"

    def apply(self, program: Program) -> PassResult:
        return apply_rules(program, RULES)


def _square(node: Node, context: Context) -> Found:
    """x**2 is x*x. The gradient by ``mul`` is g*x + g*x, which can overflow elsewhere than g*(2*x)."""
    x = first_operand(node)
    if x is None or (node.op == "aten.pow" and not _is_number(node.operands[1], 2)):
        return None
    if x.type.dtype.is_floating and not context.trains:
        return None
    return remade(node, "aten.mul", (x, x))


def _to_the_first(node: Node, context: Context) -> Found:
    return same_type(node, context) if _is_number(node.operands[1], 1) else None


def _by_power_of_two(node: Node, _context: Context) -> Found:
    x, by = first_operand(node), node.operands[1]
    if x is None or node.attrs or not x.type.dtype.is_floating or not isinstance(by, (int, float)):
        return None
    if not math.isfinite(by) or abs(math.frexp(by)[0]) != 0.5 or not 2**-14 <= abs(by) <= 2**14:
        return None
    return remade(node, "aten.mul", (x, 1.0 / by))


def _sign(node: Node, context: Context) -> Found:
    """x + (-y) is x - y, and x - (-y) is x + y."""
    x, y = node.operands
    inner = context.source(y, "aten.neg")
    if node.attrs or inner is None or not isinstance(x, Value):
        return None
    return remade(node, "aten.sub" if node.op == "aten.add" else "aten.add", (x, inner.operands[0]))


def _two_signs(node: Node, context: Context) -> Found:
    left, right = (context.source(operand, "aten.neg") for operand in node.operands)
    if node.attrs or left is None or right is None:
        return None
    return remade(node, node.op, (left.operands[0], right.operands[0]))


def _times_minus_one(node: Node, _context: Context) -> Found:
    x = first_operand(node)
    if x is None or node.attrs or not _is_number(node.operands[1], -1):
        return None
    return remade(node, "aten.neg", (x,)) if x.type.dtype is not DType.BOOL else None


def _reversed(node: Node, _context: Context) -> Found:
    x, y = node.operands
    if node.attrs or not isinstance(y, Value):
        return None
    return remade(node, "aten.sub", (y, x))


def _again(node: Node, context: Context) -> Found:
    return first_operand(node) if context.source(node.operands[0], node.op) else None


_LOSSLESS: dict[DType, frozenset[DType]] = {
    DType.F32: frozenset({DType.F64}),
    DType.BF16: frozenset({DType.F32, DType.F64}),
    DType.F16: frozenset({DType.F32, DType.F64}),
    DType.I8: frozenset({DType.I16, DType.I32, DType.I64}),
    DType.U8: frozenset({DType.I16, DType.I32, DType.I64}),
    DType.I16: frozenset({DType.I32, DType.I64}),
    DType.I32: frozenset({DType.I64}),
    DType.BOOL: frozenset(DType),
}


def _there_and_back(node: Node, context: Context) -> Found:
    inner = context.source(node.operands[0], "aten.to")
    x = None if inner is None else first_operand(inner)
    if inner is None or x is None or x.type != node.results[0].type:
        return None
    return x if inner.results[0].type.dtype in _LOSSLESS.get(x.type.dtype, ()) else None


def _filled(node: Node, context: Context) -> Found:
    """A number in place of a tensor that is full of it, where the number alone gives the same type."""
    for position in (1, 0):
        made = _full(node.operands[position], context)
        if made is None or not isinstance(node.operands[1 - position], Value):
            continue
        fill, dtype = made.attr("fill_value"), made.results[0].type.dtype
        if not isinstance(fill, (int, float)) or not _held(fill, dtype):
            continue
        if dtype is not node.results[0].type.dtype:
            continue  # the tensor may have been rounded, or not, on its way to the result's dtype
        number = bool(fill) if dtype is DType.BOOL else float(fill) if dtype.is_floating else int(fill)
        if position:
            return remade(node, node.op, (node.operands[0], number), dict(node.attrs))
        if node.op in ("aten.add", "aten.mul") and not node.attrs:
            return remade(node, node.op, (node.operands[1], number))
    return None


def _full(operand: Operand, context: Context) -> Node | None:
    """What makes an operand that is full of one number, also where that is repeated."""
    repeated = context.source(operand, "aten.expand")
    return context.source(operand if repeated is None else repeated.operands[0], "aten.full")


def _held(number: float, dtype: DType) -> bool:
    """Whether a dtype holds a number as the arithmetic on its elements would take it.

    Arithmetic on f16 and bf16 takes a number as f32, which a tensor full of it has rounded; f32 rounds both
    ways alike.
    """
    if not dtype.is_floating:
        return float(number).is_integer()
    if dtype in (DType.F32, DType.F64):
        return True
    return torch.tensor(number, dtype=dtype.torch).item() == torch.tensor(number, dtype=torch.float32).item()


def _flat_reduction(node: Node, context: Context) -> Found:
    """A reduction that keeps its dims, reshaped to what it is without them: a reduction that does not."""
    inner = context.source(node.operands[0], *_REDUCTIONS)
    if inner is None or not inner.attr("keepdim", False) or not context.only_read_here(inner):
        return None
    attrs = {name: value for name, value in inner.attrs if name != "keepdim"}
    return remade(node, inner.op, inner.operands, attrs)


def _expand_again(node: Node, context: Context) -> Found:
    """Two expands are one; but a gradient would be summed over all new dims at once, and round otherwise."""
    if node.results[0].type.dtype.is_floating and not context.trains:
        return None
    inner = context.source(node.operands[0], "aten.expand")
    if inner is None:
        return None
    return remade(node, node.op, inner.operands, {"size": node.results[0].type.shape})


def _expand_new(node: Node, context: Context) -> Found:
    """A dim of size 1 added in front is one that expanding would add."""
    inner = context.source(node.operands[0], "aten.unsqueeze")
    if inner is None or inner.attr("dim") not in (0, -inner.results[0].type.rank):
        return None
    return remade(node, node.op, inner.operands, {"size": node.results[0].type.shape})


def _view_of_view(node: Node, context: Context) -> Found:
    """Adding or dropping a dim of size 1 after a view is another view, where only this reads the first."""
    inner = context.source(node.operands[0], "aten.view")
    if inner is None or not context.only_read_here(inner):
        return None
    return remade(node, "aten.view", inner.operands, {"size": node.results[0].type.shape})


def _through(node: Node, context: Context) -> Found:
    """f(reshaped x), reshaped to the shape of x: f(x), for elementwise f."""
    operand = first_operand(node)
    inner = None if operand is None else context.made_by.get(operand.index)
    if inner is None or not context.only_read_here(inner) or stepwise(inner.op) is None:
        return None
    operands: list[Operand] = []
    for operand in inner.operands:
        reshape = context.source(operand, *RESHAPES)
        x = operand if reshape is None else first_operand(reshape)
        if isinstance(x, Value):
            if x.type.shape != node.results[0].type.shape or not _packed(x, context, 3):
                return None
            if not context.keeps_order(x):
                return None
        operands.append(x)
    return remade(node, inner.op, tuple(operands), dict(inner.attrs))


def _packed(x: Value, context: Context, depth: int) -> bool:
    """Whether the elements of a value surely lie side by side in memory, so that no reshape copies it.

    What torch computes for elements that lie apart may differ in the last bit.
    """
    made = context.made_by.get(x.index)
    if made is None or depth == 0:
        return False
    if made.op in _PACKED:
        return True
    same = (operand.type.shape == x.type.shape for operand in made.values())
    return (
        stepwise(made.op) is not None
        and all(same)
        and all(_packed(operand, context, depth - 1) for operand in made.values())
    )


def _unselected(node: Node, context: Context) -> Found:
    """The sum of the gradients of every x.select(dim, i): the stack of them, and a zero added.

    Each element is a sum of one number and zeros, in some order; 0.0 is added because it turns -0.0 into 0.0.
    """
    if node.attrs or (not context.trains and node.results[0].type.dtype.is_floating):
        return None
    parts: list[Node] = []
    rest: list[Operand] = [*node.operands]
    while rest:
        operand = rest.pop()
        inner = context.source(operand, "aten.add", "aten.select_backward")
        if inner is None or not context.only_read_here(inner) or len(parts) > _MOST_PARTS:
            return None
        if inner.op == "aten.add":
            if inner.attrs:
                return None
            rest += inner.operands
        else:
            parts.append(inner)
    return _stacked(node, parts)


def _stacked(node: Node, parts: list[Node]) -> Found:
    shape = node.results[0].type.shape
    found: dict[int, Operand] = {}
    dims: set[int] = set()
    for part in parts:
        dim, index = part.attr("dim"), part.attr("index")
        if not isinstance(dim, int) or not isinstance(index, int) or part.results[0].type.shape != shape:
            return None
        dims.add(dim % len(shape))
        size = shape[dim]
        if not isinstance(size, int) or index % size in found:
            return None
        found[index % size] = part.operands[0]
    if len(dims) != 1 or len(found) != shape[min(dims)]:
        return None
    tensors = tuple(x for _, x in sorted(found.items()) if isinstance(x, Value))
    zero = 0.0 if node.results[0].type.dtype.is_floating else 0
    return in_two(node, ("aten.stack", (tensors,), {"dim": min(dims)}), "aten.add", {}, zero)


def _full_again(node: Node, context: Context) -> Found:
    """What is full of one number is full of it in another shape too."""
    made = context.source(node.operands[0], "aten.full")
    if made is None or not context.only_read_here(made):
        return None
    return remade(node, "aten.full", (), {**dict(made.attrs), "size": node.results[0].type.shape})


def _is_number(operand: Operand, number: int) -> bool:
    return isinstance(operand, (int, float)) and not isinstance(operand, bool) and operand == number


_MOST_PARTS = 1024
_PACKED = {"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "fused.linear", "fused.linear_act"}
_REDUCTIONS = ("aten.sum", "aten.mean", "aten.amax", "aten.amin")
_IDEMPOTENT = ("aten.relu", "aten.floor", "aten.ceil", "aten.round", "aten.trunc")

RULES: tuple[Rule, ...] = (
    Rule("square", ("aten.pow", "aten.square"), _square, "torch's kernel for the exponent 2 is x*x"),
    Rule("power of one", ("aten.pow",), _to_the_first, "torch copies for the exponent 1"),
    Rule(
        "divide by 2**n",
        ("aten.div",),
        _by_power_of_two,
        "both round the same real number once; 2**-n is exact in every dtype for |n| of at most 14",
    ),
    Rule("sign", ("aten.add", "aten.sub"), _sign, "IEEE subtraction is the addition of the negation"),
    Rule("two signs", ("aten.mul",), _two_signs, "the sign of a product is set apart from its rounding"),
    Rule("times minus one", ("aten.mul",), _times_minus_one, "only the sign changes; nothing rounds"),
    Rule("reversed", ("aten.rsub",), _reversed, "rsub(x, y) is y - x by definition"),
    Rule("once is enough", _IDEMPOTENT, _again, "each gives back every value that it has given"),
    Rule("there and back", ("aten.to",), _there_and_back, "the dtype between holds every element"),
    Rule(
        "number for tensor",
        ("aten.add", "aten.sub", "aten.mul"),
        _filled,
        "the number is what each element is; not for div, which CUDA computes otherwise by a number",
    ),
    Rule("sum and view", ("aten.view", "aten.squeeze"), _flat_reduction, "keepdim only shapes the result"),
    Rule("expand twice", ("aten.expand",), _expand_again, "both repeat the same element"),
    Rule("expand a new dim", ("aten.expand",), _expand_new, "both add dims of stride 0 in front"),
    Rule(
        "view of a view",
        ("aten.unsqueeze", "aten.squeeze"),
        _view_of_view,
        "elements keep their row-major order",
    ),
    Rule("reshaped and back", RESHAPES, _through, "an elementwise op takes elements one by one, as they lie"),
    Rule("selected gradients", ("aten.add",), _unselected, "x + 0 + 0 is x + 0, in any order"),
    Rule("number in another shape", (*RESHAPES, *ARRANGES), _full_again, "every element is the number"),
)  # fmt: skip
