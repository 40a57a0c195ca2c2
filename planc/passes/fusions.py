"""The fusions, and two passes over them: `Fuse` makes plans faster, `Group` only makes them shorter.

Every fused op computes bit for bit what the nodes that it takes the place of do. What is only nearly equal is
not done, and its ``check`` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from planc.ir import Node, Operand, Value
from planc.ir.program import Program
from planc.ops import Kind, lookup
from planc.ops.fused import ACTIVATIONS
from planc.passes.arranging import ARRANGES, arranged
from planc.passes.base import PassResult
from planc.passes.fuse import Around, Fused, Fusion, fuse
from planc.passes.rewriting import first_operand


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
    return "folding scales before the sum and not after: nearly equal, not equal; pass fold_batchnorm does it"


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


def _pieces(node: Node, around: Around) -> Fused | str | None:
    """Every x.select(dim, i), or slices that tile x: the first node of them here, and the others later."""
    x = node.operands[0]
    if not isinstance(x, Value) or not x.type.rank:
        return None
    dim, _ = _piece(node)
    size = x.type.shape[dim]
    if not isinstance(size, int) or size < 2:
        return None
    pieces: dict[int, tuple[int, Node]] = {}
    for position in around.read_by[x.index]:
        other = around.graph.nodes[position] if position < len(around.graph.nodes) else None
        if other is not None and other.op == node.op and other.operands[0] == x:
            along, piece = _piece(other)
            if along == dim and piece is not None:
                pieces.setdefault(piece[0], (piece[1], other))
    tiles: list[Node] = []
    ends = [0]
    while ends[-1] < size and ends[-1] in pieces:
        end, tile = pieces[ends[-1]]
        tiles.append(tile)
        ends.append(end)
    if ends[-1] != size or len(tiles) < 2 or node is not min(tiles, key=around.position):
        return None
    if x.type.dtype.is_floating and not around.trains:
        return "the gradients of its pieces would come together otherwise, and -0.0 with them"
    gives = tuple(tile.results[0] for tile in tiles)
    others = tuple(tile for tile in tiles if tile is not node)
    if node.op == "aten.select":
        return Fused("aten.unbind", (x,), {"dim": dim}, others, gives)
    sizes = [end - start for start, end in pairwise(ends)]
    if all(size == sizes[0] for size in sizes):
        return Fused("aten.split", (x,), {"split_size": sizes[0], "dim": dim}, others, gives)
    return Fused("aten.split_with_sizes", (x,), {"split_sizes": tuple(sizes), "dim": dim}, others, gives)


def _piece(node: Node) -> tuple[int, tuple[int, int] | None]:
    """The dim that a select or slice is along, and the positions that it takes, where they are known."""
    x = node.operands[0]
    assert isinstance(x, Value)
    dim = node.attr("dim", 0)
    assert isinstance(dim, int)
    dim %= x.type.rank
    size = x.type.shape[dim]
    if not isinstance(size, int) or node.attr("step", 1) != 1:
        return dim, None
    if node.op == "aten.select":
        index = node.attr("index")
        return dim, (index % size, index % size + 1) if isinstance(index, int) and size else None
    start, length = node.attr("start", 0) or 0, node.results[0].type.shape[dim]
    if not isinstance(start, int) or not isinstance(length, int):
        return dim, None
    start = max(start + size, 0) if start < 0 else start
    return dim, (start, start + length) if length else None


def _linear_backward(node: Node, around: Around) -> Fused | str | None:
    """The gradients of a linear layer: mm(g, w), mm(t(g), x), sum(g, [0]); the first of their nodes here."""
    grad = first_operand(node)
    if grad is None or grad.type.rank != 2:
        return None
    readers = [around.graph.nodes[i] for i in around.read_by[grad.index] if i < len(around.graph.nodes)]
    turns = [n for n in readers if n.op in ARRANGES and arranged(n) == [1, 0]]
    by_weight = [
        n
        for turn in turns
        for i in around.read_by.get(turn.results[0].index, ())
        if i < len(around.graph.nodes) and (n := around.graph.nodes[i]).op == "aten.mm"
        and n.operands[0] == turn.results[0]
    ]  # fmt: skip
    by_input = [n for n in readers if n.op == "aten.mm" and n.operands[0] == grad]
    by_bias = [n for n in readers if n.op == "aten.sum" and n.attrs == (("dim", (0,)),)]
    if len(by_weight) != 1 or len(by_input) > 1 or len(by_bias) > 1 or not (by_input or by_bias):
        return None
    every = [*turns, *by_weight, *by_input, *by_bias]
    if node is not min(every, key=around.position):
        return None
    x = by_weight[0].operands[1]
    weight = by_input[0].operands[1] if by_input else None
    here = around.position(node)
    if any(isinstance(v, Value) and around.made_by.get(v.index, (-1,))[0] > here for v in (x, weight)):
        return "what it reads is made too late"
    in_order = [around.position(n) for n in (*by_input, *turns, *by_bias)]
    if not around.trains and in_order != sorted(in_order):
        return "gradients taken through it would add up in another order"
    gives = tuple(n.results[0] for n in (*by_input, *by_weight, *by_bias))
    mask = (bool(by_input), True, bool(by_bias))
    absorbs = tuple(n for n in every if n is not node)
    return Fused("fused.linear_backward", (grad, x, weight), {"output_mask": mask}, absorbs, gives)


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
    Fusion("pieces", ("aten.select", "aten.slice"), _pieces, "the same views, made by one call"),
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
        "gradient of linear",
        ("aten.mm", "aten.sum", *ARRANGES),
        _linear_backward,
        "the same three functions, called in turn",
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
