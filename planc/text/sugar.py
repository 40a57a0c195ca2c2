"""What people may write beside the names of the op table: short names, operators, a few composed functions.

Each elaborates to ordinary ops; nothing here survives into a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from planc.ir import Attribute, Operand, Value
from planc.ir.dims import show
from planc.ir.facts import known
from planc.ops import all_ops, find
from planc.ops.schema import OpDef
from planc.text.syntax import Place, Problem

NAMESPACES = ("aten", "random", "opt")
"""Where a name without a dot is looked for, in this order."""

ALIASES = {
    "reshape": "aten.view",
    "concat": "aten.cat",
    "norm": "aten.vector_norm",
    "conv": "aten.convolution",
}
"""Short names that differ from the op's own."""


class Emit(Protocol):
    """Appends a node and returns its results."""

    def __call__(
        self, op: str, operands: tuple[Operand, ...], at: Place, /, **attrs: Attribute
    ) -> tuple[Value, ...]: ...


def resolve(name: str) -> OpDef | None:
    """The op that a written name means, if it means one."""
    if name in ALIASES:
        return find(ALIASES[name])
    if "." in name:
        return find(name)
    spaces = (find(f"{space}.{name}") for space in NAMESPACES)
    return find(name) or next((op for op in spaces if op is not None), None)


def known_names() -> Iterator[str]:
    """Everything that can be called, for suggestions: short names and full ones."""
    yield from FUNCTIONS
    yield from ALIASES
    for op in all_ops():
        yield op.name.rpartition(".")[2]
        yield op.name


# -- operators -----------------------------------------------------------------------------------------------

_INFIX = {
    "+": "aten.add",
    "-": "aten.sub",
    "*": "aten.mul",
    "/": "aten.div",
    "//": "aten.floor_divide",
    "%": "aten.remainder",
    "**": "aten.pow",
    "==": "aten.eq",
    "!=": "aten.ne",
    "<": "aten.lt",
    "<=": "aten.le",
    ">": "aten.gt",
    ">=": "aten.ge",
}
# The op that takes the tensor first where the number was written first.
_SWAPPED = {
    "+": "aten.add",
    "-": "aten.rsub",
    "*": "aten.mul",
    "==": "aten.eq",
    "!=": "aten.ne",
    "<": "aten.gt",
    "<=": "aten.ge",
    ">": "aten.lt",
    ">=": "aten.le",
}


def infix(emit: Emit, op: str, left: Operand, right: Operand, at: Place) -> Value:
    """``left op right`` where at least one of them is a value.

    Raises:
        Problem: the operator does not work on these.
    """
    if op == "@":
        return matmul(emit, at, left, right)
    if isinstance(left, Value) or op == "**":
        return emit(_INFIX[op], (left, right), at)[0]
    if op == "/":  # as torch does it
        (inverse,) = emit("aten.reciprocal", (right,), at)
        if left == 1:
            return inverse
        return emit("aten.mul", (inverse, left), at)[0]
    if op not in _SWAPPED:
        raise Problem(f"'{op}' wants a tensor on its left", at, "make one of the number: full([], number)")
    return emit(_SWAPPED[op], (right, left), at)[0]


# -- composed functions --------------------------------------------------------------------------------------

_PRODUCTS = {(1, 1): "aten.dot", (2, 1): "aten.mv", (2, 2): "aten.mm", (3, 3): "aten.bmm"}


def matmul(emit: Emit, at: Place, left: Operand, right: Operand) -> Value:
    """The matrix product, by the ranks of its operands; a batch of rows of any rank times a matrix."""
    if not isinstance(left, Value) or not isinstance(right, Value):
        raise Problem("'@' wants two tensors", at, "multiply by a number with '*'")
    a, b = known().type(left.type), known().type(right.type)
    product = _PRODUCTS.get((a.rank, b.rank))
    if product is not None:
        if product == "aten.mm" and a.shape[1] != b.shape[0]:
            hint = "the columns of the left and the rows of the right must be equal"
            if a.shape[1] == b.shape[1]:
                hint = "did you mean to turn the right one? a @ t(b)"
            message = f"'@' of {a} and {b}: {show(a.shape[1])} columns meet {show(b.shape[0])} rows"
            raise Problem(message, at, hint)
        return emit(product, (left, right), at)[0]
    if a.rank < 3 or b.rank != 2:
        raise Problem(
            f"'@' of {a} and {b}", at, "vectors, matrices, batches of equal size, or rows times a matrix"
        )
    (rows,) = emit("aten.view", (left,), at, size=(-1, a.shape[-1]))
    (flat,) = emit("aten.mm", (rows, right), at)
    return emit("aten.view", (flat,), at, size=(*a.shape[:-1], b.shape[1]))[0]


def linear(emit: Emit, at: Place, input: Operand, weight: Operand, bias: Operand = None) -> Value:
    """``input @ t(weight) + bias``, as torch.nn.functional.linear."""
    (turned,) = emit("aten.t", (weight,), at)
    if bias is not None and isinstance(input, Value) and input.type.rank == 2:
        return emit("aten.addmm", (bias, input, turned), at)[0]
    product = matmul(emit, at, input, turned)
    return product if bias is None else emit("aten.add", (product, bias), at)[0]


def nll_loss(emit: Emit, at: Place, input: Operand, target: Operand, weight: Operand = None) -> Value:
    """The mean negative log-likelihood of class numbers, without the total weight beside it."""
    return emit("aten.nll_loss_forward", (input, target, weight), at)[0]


def cross_entropy(emit: Emit, at: Place, input: Operand, target: Operand, weight: Operand = None) -> Value:
    """``nll_loss(log_softmax(input, dim=1), target)``."""
    (logs,) = emit("aten.log_softmax", (input,), at, dim=1)
    return nll_loss(emit, at, logs, target, weight)


FUNCTIONS: dict[str, tuple[Callable[..., Value], tuple[str, ...], int]] = {
    "matmul": (matmul, ("left", "right"), 2),
    "linear": (linear, ("input", "weight", "bias"), 2),
    "nll_loss": (nll_loss, ("input", "target", "weight"), 2),
    "cross_entropy": (cross_entropy, ("input", "target", "weight"), 2),
}
"""Functions by name: what makes it, its parameters, and how many of them are required."""
