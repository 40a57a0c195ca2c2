"""Canonicalisation: one way of writing each thing, and nothing that does nothing. Every rule is exact.

Adding a rule is one function and one line in `RULES`. A rule must keep the type, every bit of the value
(``x + 0`` is not ``x`` where x is -0.0) and the gradient. Arithmetic is `planc.passes.simplify`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from planc.ir import Node, Operand
from planc.ir.graph import Scalar
from planc.ir.program import Program
from planc.ops.schema import same
from planc.passes.arranging import ARRANGES, ARRANGING, RESHAPES, arranged
from planc.passes.base import PassResult
from planc.passes.rewriting import Context, Found, Rule, apply_rules, first_operand, remade, same_type


@dataclass(frozen=True, slots=True)
class Canonicalise:
    """Apply `RULES` to every node until none fires."""

    name: str = "canonicalise"

    def apply(self, program: Program) -> PassResult:
        return apply_rules(program, RULES)


def _always(node: Node, _context: Context) -> Found:
    return first_operand(node)


def _detach(node: Node, context: Context) -> Found:
    """Detaching twice is detaching once; it is nothing at all where no gradient can be taken."""
    x = first_operand(node)
    if x is None:
        return None
    if context.trains or not x.type.dtype.is_floating or context.source(x, "aten.detach"):
        return x
    return None


def _arrange(node: Node, context: Context) -> Found:
    """No permutation of dims is nothing; two of them are one."""
    x = first_operand(node)
    order = arranged(node)
    if x is None or order == list(range(len(order))):
        return x
    inner = context.source(x, *ARRANGES)
    if inner is None:
        return None
    first = arranged(inner)
    dims = tuple(first[i] for i in order)
    if dims == tuple(range(len(dims))):
        return first_operand(inner)
    return remade(node, "aten.permute", (inner.operands[0],), {"dims": dims})


def _reshape(node: Node, context: Context) -> Found:
    """Of several reshapes in a row only the last shape counts, and it is nothing if it is the first."""
    inner = context.source(node.operands[0], *RESHAPES)
    x = None if inner is None else first_operand(inner)
    if x is None:
        return None
    if x.type == node.results[0].type:
        return x
    return (
        remade(node, node.op, (x,), {"size": node.results[0].type.shape}) if node.op == "aten.view" else None
    )


def _explicit_size(node: Node, _context: Context) -> Found:
    """The size of a view or expand written out, without -1, so that equal ones look equal."""
    size = node.results[0].type.shape
    return None if same(node.attr("size"), size) else remade(node, node.op, node.operands, {"size": size})


def _whole_slice(node: Node, context: Context) -> Found:
    if node.attr("start", 0) not in (0, None) or node.attr("step", 1) != 1:
        return None
    return same_type(node, context)


def _whole_gradient(node: Node, context: Context) -> Found:
    """The gradient of a slice of everything."""
    return same_type(node, context) if node.attr("start") == 0 and node.attr("step") == 1 else None


def _one_piece(node: Node, context: Context) -> Found:
    """Pieces of which there is one: the tensor itself, or the tensor without a dim of size 1."""
    if len(node.results) != 1:
        return None
    if node.op != "aten.unbind":
        return same_type(node, context)
    dim = node.attr("dim", 0)
    assert isinstance(dim, int)
    return remade(node, "aten.squeeze", node.operands, {"dim": (dim,)})


def _times_one(node: Node, context: Context) -> Found:
    return same_type(node, context) if _is(node.operands[1], 1) and not node.attrs else None


def _minus_zero(node: Node, context: Context) -> Found:
    """x - 0 is x even for -0.0; x - (-0.0) is not."""
    zero = node.operands[1]
    if node.attrs or not _is(zero, 0) or repr(zero) == "-0.0":
        return None
    return same_type(node, context)


def _plus_zero(node: Node, context: Context) -> Found:
    """x + 0 is x where there is no -0.0, and x + (-0.0) is x everywhere."""
    zero, x = node.operands[1], first_operand(node)
    if node.attrs or x is None or not _is(zero, 0):
        return None
    if x.type.dtype.is_floating and repr(zero) != "-0.0":
        return None
    return same_type(node, context)


def _twice(node: Node, context: Context) -> Found:
    """An op that undoes itself."""
    inner = context.source(node.operands[0], node.op)
    return None if inner is None else first_operand(inner)


def _single(node: Node, _context: Context) -> Found:
    tensors = node.operands[0]
    return tensors[0] if isinstance(tensors, tuple) and len(tensors) == 1 else None


def _is(operand: Operand, number: Scalar) -> bool:
    return isinstance(operand, (int, float)) and operand == number


RULES: tuple[Rule, ...] = (
    Rule(
        "identity view",
        ("aten.view", "aten.expand", "aten.squeeze"),
        same_type,
        "a view to the same shape is the tensor itself",
    ),
    Rule("identity cast", ("aten.to",), same_type, "a cast to the same dtype changes no element"),
    Rule("copy", ("aten.clone",), _always, "values never change, so a copy is the value"),
    Rule(
        "detach",
        ("aten.detach",),
        _detach,
        "the value is the same, and no gradient is cut that was not cut already",
    ),
    Rule("transposes", ARRANGES, _arrange, "permutations of dims compose, and move no element"),
    Rule("reshape twice", RESHAPES, _reshape, "elements keep their row-major order"),
    Rule("explicit size", ("aten.view", "aten.expand"), _explicit_size, "the same size, written out"),
    Rule("whole slice", ("aten.slice",), _whole_slice, "every element, in order"),
    Rule("gradient of a whole slice", ("aten.slice_backward",), _whole_gradient, "every element, in order"),
    Rule("one piece", ("aten.split", "aten.split_with_sizes", "aten.unbind"), _one_piece, "nothing is cut"),
    *ARRANGING,
    Rule(
        "times one", ("aten.mul", "aten.div"), _times_one, "x*1 and x/1 are x in IEEE arithmetic, for every x"
    ),
    Rule("minus zero", ("aten.sub",), _minus_zero, "x - 0 is x, even for -0.0"),
    Rule("plus zero", ("aten.add",), _plus_zero, "integers have no -0; x + (-0.0) is x"),
    Rule("negate twice", ("aten.neg",), _twice, "negation flips a bit"),
    Rule("cat of one", ("aten.cat",), _single, "there is nothing to join"),
)
