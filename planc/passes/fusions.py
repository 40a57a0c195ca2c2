"""The fusions, and two passes over them: `Fuse` makes plans faster, `Group` only makes them shorter.

Every fused op computes bit for bit what the nodes that it takes the place of do. What is only nearly equal is
not done, and its ``check`` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from planc.ir import Node, Operand, Value
from planc.ir.program import Program
from planc.ops import Kind, lookup
from planc.ops.fused import ACTIVATIONS
from planc.passes.base import PassResult
from planc.passes.canonicalise import ARRANGES, arranged
from planc.passes.fuse import Around, Fused, Fusion, fuse


@dataclass(frozen=True, slots=True)
class Fuse:
    """Fuse what runs faster as one op."""

    name: str = "fuse"

    def apply(self, program: Program) -> PassResult:
        return fuse(program, FUSIONS)


@dataclass(frozen=True, slots=True)
class Group:
    """Fuse what is easier to read as one op, and runs no faster: not among the passes that always run."""

    name: str = "group"

    def apply(self, program: Program) -> PassResult:
        return fuse(program, GROUPS)


def _linear(node: Node, around: Around) -> Fused | str | None:
    """addmm(bias, x, t(w)) or mm(x, t(w))."""
    bias: Operand = None
    if node.op == "aten.addmm":
        bias, x, matrix = node.operands
    else:
        x, matrix = node.operands
    weight = _turned(matrix, around)
    if weight is None:
        return None if bias is None else "its second matrix is not the transpose of a weight"
    if node.attrs:
        return "it scales by alpha or beta, which torch's linear does not"
    if isinstance(bias, Value) and bias.type.shape != weight.type.shape[:1]:
        return f"{bias.type} is no bias: it has not one number for each of {weight.type.shape[0]} columns"
    if not weight.type.dtype.is_floating:
        return f"torch's linear is for floating-point numbers, not {weight.type.dtype}"
    if (
        not around.trains
        and isinstance(matrix, Value)
        and (around.reads(matrix) > 1 or around.reads(weight) > 2)
    ):
        return f"{weight.type} is read elsewhere too: its gradients would add up in another order"
    return Fused("fused.linear", (x, weight, bias), {}, (), node.results)


def _turned(operand: Operand, around: Around) -> Value | None:
    """The matrix that ``operand`` is the transpose of."""
    made = around.source(operand, *ARRANGES)
    if made is None or arranged(made) != [1, 0]:
        return None
    matrix = made.operands[0]
    return matrix if isinstance(matrix, Value) else None


def _linear_act(node: Node, around: Around) -> Fused | str | None:
    linear = around.source(node.operands[0], "fused.linear")
    if linear is None:
        return None
    if node.attrs:
        return f"{node.op} with {', '.join(name for name, _ in node.attrs)} is none of the fused activations"
    activation = node.op.removeprefix("aten.")
    return Fused("fused.linear_act", linear.operands, {"activation": activation}, (linear,), node.results)


def _cross_entropy(node: Node, around: Around) -> Fused | str | None:
    logs = around.source(node.operands[0], "aten.log_softmax")
    if logs is None:
        return None
    rank = logs.results[0].type.rank
    if rank != 2 or logs.attr("dim") not in (1, -1):
        return f"only the classes of a batch, along dim 1 of 2, are fused; these are along {logs.attr('dim')}"
    if logs.attr("half_to_float", False):
        return "the softmax changes the dtype"
    operands = (logs.operands[0], *node.operands[1:])
    return Fused("fused.cross_entropy", operands, dict(node.attrs), (logs,), (*node.results, logs.results[0]))


def _cross_entropy_backward(node: Node, around: Around) -> Fused | str | None:
    inner = around.source(node.operands[0], "aten.nll_loss_backward")
    if inner is None:
        return None
    output = node.operands[1]
    if output != inner.operands[1]:
        return "softmax and loss are not of the same logarithms"
    if node.results[0].type.rank != 2 or node.attr("dim") not in (1, -1):
        return f"only the classes of a batch, along dim 1 of 2, are fused; these are along {node.attr('dim')}"
    return Fused("fused.cross_entropy_backward", inner.operands, dict(inner.attrs), (inner,), node.results)


def _batch_norm(node: Node, around: Around) -> Fused | str | None:
    if around.source(node.operands[0], "aten.convolution") is None:
        return None
    if node.op == "aten.batch_norm":
        return "in training its statistics are those of the batch: there is nothing to fold"
    return "folding it into the weights scales before the sum and not after: nearly equal, not equal"


def _update(node: Node, around: Around) -> Fused | str | None:
    """sub(x, mul(y, k)), as an update by hand is written."""
    x, scaled = node.operands
    product = around.source(scaled, "aten.mul")
    if product is None or node.attrs or product.attrs or not isinstance(x, Value):
        return None
    y, factor = product.operands
    if isinstance(factor, Value) or not isinstance(y, Value):
        return None
    if node.results[0].type.dtype.is_floating:
        return (
            f"alpha={factor} would round once what mul and sub round twice" if node.op == "aten.sub" else None
        )
    if not isinstance(factor, int) or isinstance(factor, bool):
        return None
    return Fused(node.op, (x, y), {"alpha": factor}, (product,), node.results)


def _optimizer(node: Node, around: Around) -> Fused | str | None:
    """The same update of other parameters, made earlier."""
    end = around.position(node)
    earlier = [other for other in around.graph.nodes[:end] if other.op == node.op]
    if not earlier:
        return None
    reason = ""
    for other in reversed(earlier):
        if repr(other.attrs) != repr(node.attrs):  # not ==, which takes 1 for 1.0
            reason = reason or "it has other settings than the update before it"
        elif not _same_numbers(other, node):
            reason = reason or "it has another learning rate than the update before it"
        elif {v.index for v in other.results} & {v.index for v in node.values()}:
            reason = reason or "it goes on from the update before it"
        else:
            return _joined(other, node)
    return reason


def _same_numbers(a: Node, b: Node) -> bool:
    pairs = zip(a.operands, b.operands, strict=True)
    return all(x == y and repr(x) == repr(y) for x, y in pairs if not isinstance(x, tuple))


def _joined(a: Node, b: Node) -> Fused:
    """One update of the parameters of both; results come in groups, as long as the lists they are of."""
    operands = tuple(
        (*x, *y) if isinstance(x, tuple) and isinstance(y, tuple) else x
        for x, y in zip(a.operands, b.operands, strict=True)
    )
    lists = [
        (len(x), len(y))
        for p, x, y in zip(lookup(a.op).operands, a.operands, b.operands, strict=True)
        if p.kind is Kind.TENSORS and p.name != "grads" and isinstance(x, tuple) and isinstance(y, tuple)
    ]
    gives: list[Value | None] = []
    first, second = iter(a.results), iter(b.results)
    for of_first, of_second in lists:
        gives += [next(first) for _ in range(of_first)]
        gives += [next(second) for _ in range(of_second)]
    return Fused(a.op, operands, dict(a.attrs), (a,), tuple(gives))


FUSIONS: tuple[Fusion, ...] = (
    Fusion(
        "linear", ("aten.addmm", "aten.mm"), _linear, "torch's linear is addmm or mm of the transposed weight"
    ),
    Fusion(
        "optimizer",
        ("opt.sgd", "opt.adam", "opt.rmsprop", "opt.adagrad"),
        _optimizer,
        "an update treats each parameter by itself",
    ),
    Fusion("scaled update", ("aten.sub", "aten.add"), _update, "integers do not round"),
    Fusion(
        "convolution and batch norm",
        ("aten.batch_norm_eval", "aten.batch_norm"),
        _batch_norm,
        "it never fires: there is no exact form",
    ),
)
GROUPS: tuple[Fusion, ...] = (
    Fusion(
        "linear and activation",
        tuple(f"aten.{name}" for name in ACTIVATIONS),
        _linear_act,
        "the same two functions, called in turn",
    ),
    Fusion(
        "softmax and loss",
        ("aten.nll_loss_forward",),
        _cross_entropy,
        "the same two functions, called in turn",
    ),
    Fusion(
        "gradient of softmax and loss",
        ("aten.log_softmax_backward",),
        _cross_entropy_backward,
        "the same two functions, called in turn",
    ),
)

__all__ = ["FUSIONS", "GROUPS", "Fuse", "Group"]
