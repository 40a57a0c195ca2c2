"""The derivative of a graph by torch's own autograd: what ``grad`` in the language means.

The graph's ops are run under tracing as a user's code is, dims open, and what autograd did is imported.
Values that the forward graph has computed already are taken from it, not computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from planc.capture.dynamic import DynamicDims
from planc.capture.export import export
from planc.capture.importer import Entry, Importer, Port
from planc.capture.rules import RULES
from planc.capture.symbols import to_dim
from planc.errors import CaptureError
from planc.ir import Dim, DimExpr, DimVar, Graph, Node, Role, TensorType, Value, sym
from planc.ir.builder import GraphBuilder, map_operand
from planc.ir.dims import evaluate, show
from planc.ops import Trait, lookup, node
from planc.ops.apply import apply
from planc.ops.structured import subplan_of
from planc.text import Derivative

_DROPOUT = "random.dropout"
_LARGEST_SIZE = 4096


def differentiate(forward: Graph, wrt: Sequence[Value]) -> Derivative:
    """The gradients of ``forward``'s first output, a scalar, by ``wrt``: a `planc.text.Differentiate`.

    A dropout of ``forward`` has the mask that it drew as its first operand, instead of a key.

    Raises:
        CaptureError: an operation has no gradient, or its gradient no counterpart in the op table.
    """
    _check(forward, outermost=True)
    names = [var.name for var in forward.dims]
    inputs = [port.value.type for port in forward.inputs]
    dims = _TraceDims.of(forward.dims, inputs)
    sizes = dims.trace_sizes(())
    examples = [torch.zeros(sizes[name]) for name in names]
    examples += [torch.zeros(t.at(sizes), dtype=t.dtype.torch) for t in inputs]
    reached: list[bool] = []

    def run(*flat: torch.Tensor) -> list[Any]:
        bindings = {name: x.shape[0] for name, x in zip(names, flat, strict=False)}
        leaves = {value.index for value in wrt}
        values = {
            port.value.index: x.detach().requires_grad_() if port.value.index in leaves else x
            for port, x in zip(forward.inputs, flat[len(names) :], strict=True)
        }
        loss, *others = _execute(forward, values, bindings)
        asked = [values[value.index] for value in wrt]
        found: Sequence[torch.Tensor | None] = [None] * len(asked)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, asked, allow_unused=True)
        reached[:] = [gradient is not None for gradient in found]
        known = [x.detach() for x in (loss, *others)]
        return [*known, *(gradient for gradient in found if gradient is not None)]

    program = export(run, examples, dims)
    ports = [Port(f"x{i}", Role.ARGUMENT, f"x{i}", example) for i, example in enumerate(examples)]
    importer = _Importer(forward.name, program, ports, dims)
    return Derivative(_backward(forward, importer, len(names)), tuple(reached))


def _check(graph: Graph, outermost: bool) -> None:
    """Refuse what has no gradient, in words that fit the language."""
    for n in graph.nodes:
        definition = lookup(n.op)
        if n.op == "scan":
            raise CaptureError("a loop has no gradient; take the gradient inside it")
        if definition.has(Trait.OPTIMIZER):
            raise CaptureError(f"the update {n.op} has no gradient")
        if definition.has(Trait.RANDOM) and not (outermost and n.op == _DROPOUT):
            raise CaptureError(f"plan {graph.name!r} draws random numbers, so a call of it has no gradient")
        if n.op == "call":
            _check(subplan_of(graph, n), outermost=False)


@dataclass(frozen=True)
class _TraceDims(DynamicDims):
    """Every dim of the inputs that is no number stays open, whether it is a name or an expression of names.

    Ranges count: a slice means the same at all sizes in them, and need not at others.
    """

    dims: Mapping[str, Dim] = field(default_factory=dict[str, Dim])
    """What each name that tracing uses stands for: dims by their text."""
    fixed: frozenset[int] = frozenset()

    @classmethod
    def of(cls, variables: Sequence[DimVar], inputs: Sequence[TensorType]) -> _TraceDims:
        dims: dict[str, Dim] = {var.name: sym(var.name) for var in variables}
        open_dims = [{0: var.name} for var in variables]
        for t in inputs:
            open_dims.append({i: show(d) for i, d in enumerate(t.shape) if isinstance(d, DimExpr)})
            dims.update((show(d), d) for d in t.shape if isinstance(d, DimExpr))
        fixed = {d for t in inputs for d in t.shape if isinstance(d, int)}
        ranges = {var.name: (var.lo, var.hi) for var in variables}
        return cls(tuple(open_dims), ranges, dims=dims, fixed=frozenset(fixed))

    def trace_sizes(self, taken: Iterable[int]) -> dict[str, int]:
        """Sizes for names at which no two different dims of the inputs are equal by accident.

        They are in their ranges, unless these are so narrow that no such sizes are.
        """
        try:
            return self._sizes(self.ranges)
        except CaptureError:
            return self._sizes({})

    def _sizes(self, ranges: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        names = [name for name, dim in self.dims.items() if dim == sym(name)]
        bare = DynamicDims(tuple({0: name} for name in names), ranges)
        used = set(self.fixed) | {0, 1}
        while True:
            sizes = bare.trace_sizes(used)
            found = {text: evaluate(dim, sizes) for text, dim in self.dims.items()}
            if len({*found.values(), *self.fixed, 0, 1}) == len(found) + len(self.fixed | {0, 1}):
                return found
            if max(sizes.values()) > _LARGEST_SIZE:
                raise CaptureError(f"no sizes tell the dims {', '.join(found)} apart")
            used |= set(sizes.values())


class _Importer(Importer):
    """An importer whose inputs may have dims that are expressions of other inputs' dims."""

    def __init__(self, name: str, program: Any, ports: Sequence[Port], dims: _TraceDims) -> None:
        self._dims = dims.dims
        super().__init__(name, program, ports, (), dims, RULES, frozenset())

    def _name_symbols(self, n: torch.fx.Node, names: Mapping[int, str], dims: DynamicDims) -> None:
        for i, name in names.items():
            size, dim = n.meta["val"].shape[i], self._dims[name]
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                self._symbols.setdefault(size.node.expr.name, dim)
            if to_dim(size, self._symbols) != dim:
                raise CaptureError(f"a gradient exists only where dim {name} is {size}")


def _execute(
    graph: Graph, values: dict[int, torch.Tensor], bindings: Mapping[str, int]
) -> list[torch.Tensor]:
    """Run a graph on traced tensors; adds every value to ``values`` and returns the outputs."""
    for n in graph.nodes:
        results = (
            _called(graph, n, values)
            if n.op == "call"
            else _dropped(n, values)
            if n.op == _DROPOUT
            else apply(n, lambda v: values[v.index], bindings)
        )
        values.update((value.index, x) for value, x in zip(n.results, results, strict=True))
    return [values[port.value.index] for port in graph.outputs]


def _called(graph: Graph, n: Node, values: Mapping[int, torch.Tensor]) -> Sequence[torch.Tensor]:
    plan = subplan_of(graph, n)
    inner: dict[int, torch.Tensor] = {}
    bindings: dict[str, int] = {}
    for port, value in zip(plan.inputs, n.values(), strict=True):
        inner[port.value.index] = values[value.index]
        for dim, size in zip(port.value.type.shape, values[value.index].shape, strict=True):
            if isinstance(dim, DimExpr):
                bindings.setdefault(show(dim), size)
    return _execute(plan, inner, bindings)


def _dropped(n: Node, values: Mapping[int, torch.Tensor]) -> Sequence[torch.Tensor]:
    """As `planc.ops.randomness` drops, with the mask that was drawn."""
    mask, x = (values[value.index] for value in n.values())
    p = n.attr("p")
    assert isinstance(p, float)
    keep = 1.0 - p
    return x.mul(mask).mul(1.0 / keep if keep else 0.0), mask


def _backward(forward: Graph, importer: Importer, witnesses: int) -> Graph:
    """The imported nodes that gradients need, on the forward graph's inputs and outputs."""
    builder = GraphBuilder(forward.name, forward.dims)
    values: dict[int, Value] = {}
    traced = importer.builder
    for port, source in zip(forward.inputs, traced.inputs[witnesses:], strict=True):
        values[source.value.index] = builder.input(port.name, port.value.type)
    known, gradients = importer.outputs[: len(forward.outputs)], importer.outputs[len(forward.outputs) :]
    for port, entry in zip(forward.outputs, known, strict=True):
        value = builder.input(port.name, port.value.type)
        if isinstance(entry, Value):
            values.setdefault(entry.index, value)
    needed = _needed(traced.nodes, gradients, values)
    for constant in traced.constants:
        if constant.value.index in needed:
            values[constant.value.index] = _number(
                builder, importer.constants[constant.digest], constant.value
            )
    for n in traced.nodes:
        if any(result.index in needed for result in n.results):
            operands = tuple(map_operand(operand, lambda v: values[v.index]) for operand in n.operands)
            made = builder.add(node(n.op, operands, dict(n.attrs), builder.next_index, loc=n.loc))
            values.update((old.index, new) for old, new in zip(n.results, made, strict=True))
    for position, entry in enumerate(gradients):
        builder.output(values[entry.index], f"g{position}")
    return builder.build()


def _needed(nodes: Sequence[Node], outputs: Sequence[Entry], known: Mapping[int, Value]) -> set[int]:
    """The values that must be computed: ``outputs`` and what they read, but not ``known``."""
    needed = {entry.index for entry in outputs} - known.keys()
    for n in reversed(nodes):
        if any(result.index in needed for result in n.results):
            needed |= {value.index for value in n.values()} - known.keys()
    return needed


def _number(builder: GraphBuilder, data: torch.Tensor, value: Value) -> Value:
    """A number that autograd brings along, as a node: constants cannot follow a plan's nodes."""
    if data.dim():
        raise CaptureError(f"its gradient uses a constant tensor of type {value.type}")
    attrs = {"size": (), "fill_value": data.item(), "dtype": value.type.dtype}
    return builder.add(node("aten.full", (), attrs, builder.next_index))[0]
