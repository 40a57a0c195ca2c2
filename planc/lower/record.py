"""The first run of a plan at concrete sizes: node by node, noting where every value lies in memory.

What a kernel's result looks like (its strides, whether it is a view) is measured here instead of predicted,
so that buffers made ahead of time have exactly the layout of what they replace, and give the same bits. It
compiles nothing; a plan that runs once is never compiled at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from planc.errors import ExecutionError, LimitError
from planc.ir import Graph, TensorType, Value
from planc.ir.binding import bind
from planc.lower.calls import Call, Calls, Constants, Key, Origin, key_of, static
from planc.lower.layout import Layouts, layout_of, note
from planc.lower.liveness import copied_outputs, last_reads, roots
from planc.ops import Trait
from planc.ops.apply import concrete
from planc.ops.bounds import check_bounds, unchecked
from planc.ops.structured import batch_name, scan_operands, subplan_of

Tensors = list[torch.Tensor]
FULL_TRIPS = 3
"""A scan of so many trips is run whole; of a longer one the first two, and the last where it is shorter."""


class Recorder:
    """Runs graphs through the op table's own callables and keeps the layout of every value.

    Attributes:
        layouts: of each graph at each of its sizes.
        exact: whether what it returned is the result; not so where a long scan was cut short.
        steady: whether all trips of each scan are known to have the same layouts.
    """

    def __init__(self, calls: Calls, constants: Constants, limit: float = float("inf")) -> None:
        self.layouts: dict[Key, Layouts] = {}
        self.exact = True
        self.steady = True
        self._calls = calls
        self._constants = constants
        self._limit = limit

    def outputs(self, graph: Graph, bindings: Mapping[str, int], values: Sequence[torch.Tensor]) -> Tensors:
        """As `run`, every output in memory of its own."""
        outputs = self.run(graph, bindings, values)
        layouts = self.layouts[key_of(graph, bindings)]
        kept = {v.index for v in _given(graph)}
        root = roots(graph, self._calls.of(graph, bindings), layouts)
        copied = copied_outputs(graph, root, kept)
        return [copy(t) if needed else t for t, needed in zip(outputs, copied, strict=True)]

    def run(self, graph: Graph, bindings: Mapping[str, int], values: Sequence[torch.Tensor]) -> Tensors:
        """The outputs of a graph; they may share memory with inputs, constants and each other.

        Raises:
            ExecutionError: an op failed.
        """
        layouts = self.layouts.setdefault(key_of(graph, bindings), {})
        calls = self._calls.of(graph, bindings)
        env = {port.value.index: value for port, value in zip(graph.inputs, values, strict=True)}
        for index, value in env.items():
            note(layouts, index, layout_of(value))
        env |= {c.value.index: self._constants[c.digest] for c in graph.constants}
        last = last_reads(graph, calls)
        for number, call in enumerate(calls):
            if time.perf_counter() > self._limit:
                raise late()
            try:
                results = self._results(graph, call, bindings, env)
            except (ExecutionError, LimitError):
                raise
            except Exception as error:
                raise failed(call.origin, error) from error
            for value, result in zip(call.results, results, strict=True):
                env[value.index] = result
                base = env[first.index] if (first := next(call.values(), None)) is not None else None
                fits = tuple(result.shape) == value.type.at(bindings)
                layout = layout_of(result, base if call.has(Trait.VIEW) else None)
                note(layouts, value.index, layout if fits else None)
            for index in last.get(number, ()):
                env.pop(index, None)
        return [env[port.value.index] for port in graph.outputs]

    def _results(
        self, graph: Graph, call: Call, bindings: Mapping[str, int], env: Mapping[int, torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        if call.op == "scan":
            return self._scan(graph, call, bindings, env)
        if call.op == "call":
            plan = subplan_of(graph, call.origin.node)
            values = list(call.values())
            inner = bind(plan, [static(v.type, bindings) for v in values])
            return self.run(plan, inner, [env[v.index] for v in values])
        operands = [
            env[x.index]
            if isinstance(x, Value)
            else [None if v is None else env[v.index] for v in x]
            if isinstance(x, tuple)
            else x
            for x in call.operands
        ]
        attrs = {**call.attrs, "device": self._constants.device} if call.has(Trait.FACTORY) else call.attrs
        if unchecked(self._constants.device):
            check_bounds(call.op, operands, attrs)
        results = call.run(*operands, **attrs)
        return results if isinstance(results, (tuple, list)) else (results,)

    def _scan(
        self, graph: Graph, call: Call, bindings: Mapping[str, int], env: Mapping[int, torch.Tensor]
    ) -> Tensors:
        node, body = call.origin.node, subplan_of(graph, call.origin.node)
        carry, over, given = ([env[v.index] for v in group] for group in scan_operands(node))
        types = [[static(v.type, bindings) for v in group] for group in scan_operands(node)]
        trips = trips_of(call, bindings)
        whole = trips.total <= FULL_TRIPS
        self.exact &= whole
        some = range(trips.total) if whole else [0, 1, *([trips.whole] if trips.rest else [])]
        carry = [own(t) for t in carry]
        before = _strides(carry)
        columns: list[Tensors] = [[] for _ in body.outputs[len(carry) :]]
        for number in some:
            start, stop = trips.rows(number)
            inner = bind(body, [*types[0], *batch_types(types[1], stop - start), *types[2]])
            outputs = self.run(body, inner, [*carry, *(t[start:stop] for t in over), *given])
            carry = outputs[: len(carry)]
            for column, output in zip(columns, outputs[len(carry) :], strict=True):
                column.append(output)
            if number and _strides(carry) != before:  # what the trips to come look like is not known
                self.steady = False
            before = _strides(carry)
        collected: Tensors = []
        for result, column, joins in zip(
            node.results[len(carry) :], columns, joined(call, body, len(carry), len(over)), strict=True
        ):
            if whole and column:
                collected.append(torch.cat(column) if joins else torch.stack(column))
            else:
                dtype, device = result.type.dtype.torch, self._constants.device
                collected.append(torch.zeros(result.type.at(bindings), dtype=dtype, device=device))
        return [*carry, *collected]


@dataclass(frozen=True, slots=True)
class Trips:
    """How often a scan runs its body: ``whole`` trips of ``size`` rows, and one of the ``rest``, if any."""

    whole: int
    size: int
    rest: int

    @property
    def total(self) -> int:
        return self.whole + (1 if self.rest else 0)

    def rows(self, number: int) -> tuple[int, int]:
        """The first row of a trip, and the one behind its last."""
        start = number * self.size
        return start, start + (self.size if number < self.whole else self.rest)


def trips_of(call: Call, bindings: Mapping[str, int]) -> Trips:
    """The trips of a scan; those of one without data are of no rows."""
    node = call.origin.node
    _, over, _ = scan_operands(node)
    if not over:
        return Trips(int(concrete(node.attr("trips", 1), bindings)), 0, 0)
    size, rows = int(concrete(node.attr("size", 0), bindings)), over[0].type.at(bindings)[0]
    return Trips(rows // size, size, 0 if node.attr("drop_last", False) else rows % size)


def batch_types(types: Sequence[TensorType], length: int) -> list[TensorType]:
    """The types of batches of ``length`` rows."""
    return [TensorType(t.dtype, (length, *t.shape[1:])) for t in types]


def joined(call: Call, body: Graph, carry: int, over: int) -> list[bool]:
    """For each collected output of a scan, whether its trips are concatenated (else stacked)."""
    batch = batch_name(body, carry, over)
    shapes = [port.value.type.shape for port in body.outputs[carry:]]
    return [batch is not None and bool(s) and str(s[0]) == batch for s in shapes]


def copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that a caller may keep."""
    return tensor.clone(memory_format=torch.contiguous_format)


def late() -> LimitError:
    """The error for a run whose time is over."""
    return LimitError("the run took longer than it may")


def _given(graph: Graph) -> list[Value]:
    return [port.value for port in (*graph.inputs, *graph.constants)]


def own(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that lies in memory as the tensor does; the tensor itself where that has gaps."""
    copy = tensor.clone()
    return copy if copy.stride() == tensor.stride() else tensor


def failed(origin: Origin, error: Exception) -> ExecutionError:
    """The error for an op that raised ``error``: names the op, the node and the user's line."""
    where = f" ({origin.node.loc}: {origin.node.loc.text})" if origin.node.loc else ""
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    failure = ExecutionError(
        f"plan {origin.plan!r}, node {origin.index}: {origin.node.op} failed{where}: "
        f"{type(error).__name__}: {first}"
    )
    failure.op, failure.node = origin.node.op, origin.index
    return failure


def _strides(tensors: Tensors) -> list[tuple[int, ...]]:
    return [t.stride() for t in tensors]


__all__ = [
    "FULL_TRIPS",
    "Recorder",
    "Trips",
    "batch_types",
    "copy",
    "failed",
    "joined",
    "late",
    "own",
    "trips_of",
]
