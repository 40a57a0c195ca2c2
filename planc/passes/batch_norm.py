"""Folds batch norms of evaluation into the convolutions before them. Run only where asked for: nearly exact.

    scale = weight / sqrt(running_var + eps);  w' = w * scale;  b' = (b - running_mean) * scale + bias

It scales before the convolution's sums, where a batch norm scales after them, so the last bits differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from planc.ir import Attribute, Dim, Graph, Node, Operand, Value, type_of
from planc.ir.builder import map_operand
from planc.ir.constants import digest
from planc.ir.program import Program
from planc.ir.rewrite import Rewriter
from planc.ops import lookup
from planc.ops import node as make_node
from planc.passes.base import PassResult, everywhere, place_of, result
from planc.passes.fuse import Around

Scaled = tuple[Value, ...]
"""The weight and the bias of the convolution that stands for two nodes."""


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Fold batch norms that normalise by running statistics, as arithmetic on the small tensors of both.

    Where all of these are constants the arithmetic is done here, else by the plan in each run: on a few
    numbers a channel in place of every element. In f32 results are within 1e-5 of what they were, relative to
    the largest of them; the tests hold it to that.
    """

    name: str = "fold_batchnorm"

    def apply(self, program: Program) -> PassResult:
        data = dict(program.constants)
        missed: dict[str, None] = {}
        graph, changes = everywhere(program.graph, lambda graph: _fold(graph, data, missed))
        before = Program(program.graph, data) if changes else program
        note = "batch norms folded into convolutions, within 1e-5 in f32: {}"
        return result(before, graph, changes, note, missed=tuple(missed))


def _fold(graph: Graph, data: dict[str, torch.Tensor], missed: dict[str, None]) -> tuple[Graph, int]:
    around = Around.of(graph, trains=False)
    chosen: dict[int, Node] = {}  # convolutions by the position of their batch norm
    for position, node in enumerate(graph.nodes):
        convolution = around.source(node.operands[0], "aten.convolution") if node.operands else None
        if convolution is None or node.op not in ("aten.batch_norm_eval", "aten.batch_norm"):
            continue
        reason = _obstacle(node, convolution, around)
        if reason is None:
            chosen[position] = convolution
        else:
            missed[f"batch norm at {place_of(graph, node)}: {reason}"] = None
    if not chosen:
        return graph, 0
    rewriter = Rewriter(graph)
    made = {constant.digest: rewriter(constant.value) for constant in graph.constants}
    held = {c.value.index: data[c.digest] for c in graph.constants if c.digest in data}
    ready: dict[int, Scaled] = {}
    for position, convolution in chosen.items():  # before any node
        both = _evaluated(_Pair.of(graph.nodes[position], convolution), held)
        if both is not None:
            ready[position] = tuple(_constant(rewriter, tensor, made, data) for tensor in both)
    gone = {around.position(convolution) for convolution in chosen.values()}
    for position, node in enumerate(graph.nodes):
        if position in chosen:
            _replace(rewriter, node, chosen[position], ready.get(position))
        elif position not in gone:
            rewriter.copy(node)
    return rewriter.finish(), len(chosen)


def _obstacle(node: Node, convolution: Node, around: Around) -> str | None:
    """Why a batch norm cannot be folded into its convolution."""
    if node.op == "aten.batch_norm":
        return "in training its statistics are those of the batch: there is nothing to fold"
    if any(around.reads(value) for value in node.results[1:]):
        return "what it saves for its gradient is read"
    if around.reads(convolution.results[0]) > 1:
        return "what the convolution makes is read elsewhere too"
    if convolution.attr("transposed", False) and convolution.attr("groups", 1) != 1:
        return "the channels of a transposed convolution in groups are not a dim of its weight"
    values = [*convolution.values(), *node.values()]
    if len({value.type.dtype for value in values}) > 1:
        return "the convolution and the statistics are of different dtypes"
    return None


@dataclass(frozen=True, slots=True)
class _Pair:
    """What the arithmetic is on: weight and bias of the convolution; scale, shift, mean and variance."""

    tensors: tuple[Operand, ...]
    eps: float
    shape: tuple[Dim, ...]
    """The shape in which a number a channel broadcasts to the convolution's weight."""

    @staticmethod
    def of(node: Node, convolution: Node) -> _Pair:
        weight, mean = convolution.operands[1], node.operands[3]
        eps = node.attr("eps")
        assert isinstance(weight, Value)
        assert isinstance(mean, Value)
        assert isinstance(eps, float)
        shape: list[Dim] = [1] * weight.type.rank
        shape[1 if convolution.attr("transposed", False) else 0] = mean.type.shape[0]
        return _Pair((*convolution.operands[1:], *node.operands[1:]), eps, tuple(shape))


def _scaled(call: Callable[..., Any], tensors: Sequence[Any], pair: _Pair) -> tuple[Any, Any]:
    """The weight and the bias that stand for both, by ``call(op, *operands, **attrs)``."""
    weight, bias, scale, shift, mean, var = tensors
    factor = call("aten.rsqrt", call("aten.add", var, pair.eps))
    if scale is not None:
        factor = call("aten.mul", factor, scale)
    weight = call("aten.mul", weight, call("aten.view", factor, size=pair.shape))
    start = call("aten.neg", mean) if bias is None else call("aten.sub", bias, mean)
    bias = call("aten.mul", start, factor)
    return weight, bias if shift is None else call("aten.add", bias, shift)


def _evaluated(pair: _Pair, held: Mapping[int, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The scaled weight and bias, where all that they are made of is constant."""
    tensors: list[torch.Tensor | None] = []
    for operand in pair.tensors:
        if isinstance(operand, Value) and operand.index not in held:
            return None
        tensors.append(held[operand.index].cpu() if isinstance(operand, Value) else None)

    def call(op: str, *operands: Any, **attrs: Any) -> Any:
        return lookup(op).run(*operands, **attrs)

    with torch.no_grad():
        return _scaled(call, tensors, pair)


def _constant(
    rewriter: Rewriter, tensor: torch.Tensor, made: dict[str, Value], data: dict[str, torch.Tensor]
) -> Value:
    type, name = type_of(tensor), digest(tensor)
    assert type is not None
    if name not in made:
        made[name] = rewriter.builder.constant(type, name)
        data[name] = tensor.clone(memory_format=torch.contiguous_format)
    return made[name]


def _replace(rewriter: Rewriter, node: Node, convolution: Node, ready: Scaled | None) -> None:
    """Append the convolution that stands for both."""

    def call(op: str, *operands: Operand, **attrs: Attribute) -> Value:
        index = rewriter.builder.next_index
        return rewriter.add(make_node(op, operands, attrs, index, loc=node.loc))[0]

    if ready is None:
        pair = _Pair.of(node, convolution)
        ready = _scaled(call, [map_operand(operand, rewriter) for operand in pair.tensors], pair)
    input = map_operand(convolution.operands[0], rewriter)
    value = call(convolution.op, input, *ready, **dict(convolution.attrs))
    rewriter.stand_for(node.results[0], value)
