"""The fast path of a worker: runs installed plans through compiled executables. Knows no objects, no rights.

Compilation and its cache are `planc.lower`'s; here is the check that a run fits in memory before it starts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from planc.cost import cost
from planc.errors import ExecutionError
from planc.ir import Graph
from planc.ir.program import Program
from planc.lower import ExecutableCache
from planc.lower.bind import bind_tensors
from runtime.errors import RemoteExecutionError, RemoteLimitError, StoreFull
from runtime.interpreter import interpret

_REMEMBERED = 4096
"""Combinations of plan and input shapes known to be within bounds: a few dozen bytes each."""


@dataclass(frozen=True, slots=True)
class RunBounds:
    """The most that one run of a plan may take, as estimated before it starts."""

    bytes: int = 64 * 2**30
    """Memory at its peak, inputs and constants included."""
    flops: int = 10**16
    """Floating-point operations: about a day of one core."""
    nodes: int = 10**9
    """Nodes run, each trip of a scan counted."""


class Runner(Protocol):
    """What runs a program: the compiled path, or the reference interpreter."""

    def run(
        self, plan_id: str, program: Program, inputs: list[torch.Tensor], device: torch.device, /
    ) -> list[torch.Tensor]:
        """The outputs of ``program.graph`` in order. Writes to no input."""
        ...


class Interpreting:
    """Runs programs through the reference interpreter, for comparison."""

    def run(
        self, plan_id: str, program: Program, inputs: list[torch.Tensor], device: torch.device, /
    ) -> list[torch.Tensor]:
        with torch.no_grad():
            return interpret(program.graph, inputs, program.constants, device)


class Executor:
    """Runs plans for one worker.

    Args:
        device: where they run.
        bounds: the most that one run may take.
        cache_bytes: the most memory that executables keep between runs.
        runner: what runs them; compiled executables where not given.
    """

    def __init__(
        self, device: torch.device, bounds: RunBounds, cache_bytes: int, runner: Runner | None = None
    ) -> None:
        self._device = device
        self._bounds = bounds
        self._runner: Runner = ExecutableCache(max_bytes=cache_bytes) if runner is None else runner
        self._within: OrderedDict[tuple[str, tuple[torch.Size, ...]], None] = OrderedDict()

    def run(self, plan_id: str, program: Program, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs of a plan in order, state included, as ordinary tensors that are not written to again.

        Raises:
            InputError: the inputs do not fit the plan.
            StoreFull: the run would take more memory than is allowed.
            RemoteLimitError: it would compute longer than is allowed.
            RemoteExecutionError: an op failed.
        """
        self._check_bounds(plan_id, program.graph, inputs)
        try:
            return self._runner.run(plan_id, program, inputs, self._device)
        except ExecutionError as error:
            raise _without_values(plan_id, program.graph, error) from error

    def run_with_grad(self, plan_id: str, program: Program, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """As `run`, by the interpreter, so that gradients flow from the outputs to the inputs.

        What autograd keeps for the backward pass comes on top of the memory that is checked.
        """
        self._check_bounds(plan_id, program.graph, inputs)
        try:
            with torch.enable_grad():
                return interpret(program.graph, inputs, program.constants, self._device)
        except ExecutionError as error:
            raise _without_values(plan_id, program.graph, error) from error

    def _check_bounds(self, plan_id: str, graph: Graph, inputs: Sequence[torch.Tensor]) -> None:
        """Refuse a run that is too large before it starts: a few bytes of a plan can ask for years."""
        key = (plan_id, tuple(tensor.shape for tensor in inputs))
        if key in self._within:
            self._within.move_to_end(key)
            return
        # Binding checks dtypes as well as shapes; the runner checks them again on a remembered shape.
        found = cost(graph, bind_tensors(graph, inputs))
        bounds = self._bounds
        if found.peak_bytes > bounds.bytes:
            raise StoreFull(
                f"plan {graph.name!r} would take {found.peak_bytes} bytes, {bounds.bytes} are allowed"
            )
        runs = sum(row.times for row in found.rows)
        for what, size, allowed in (("FLOPs", found.flops, bounds.flops), ("node runs", runs, bounds.nodes)):
            if size > allowed:
                raise RemoteLimitError(f"plan {graph.name!r} would take {size} {what}, {allowed} are allowed")
        self._within[key] = None
        if len(self._within) > _REMEMBERED:
            self._within.popitem(last=False)


def _without_values(plan_id: str, graph: Graph, error: ExecutionError) -> RemoteExecutionError:
    """The error for the caller: where it happened, and of what type. The text may quote elements."""
    root: BaseException = error
    while isinstance(root, ExecutionError) and root.__cause__ is not None:
        root = root.__cause__
    where = f"node {error.node} ({error.op})" if error.node >= 0 else "an op"
    inside = " or of a plan in it" if graph.subplans else ""
    return RemoteExecutionError(
        f"plan {graph.name!r}: {where} of it{inside} failed ({type(root).__name__})",
        plan_id=plan_id,
        node=error.node,
        op=error.op,
    )
