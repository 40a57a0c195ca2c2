"""The fast path of a worker: runs installed plans through compiled executables. Knows no objects, no rights.

Compilation and its cache are `planc.lower`'s; here is the check that a run fits in memory before it starts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch

from planc.cost import cost
from planc.errors import ExecutionError
from planc.ir import Graph
from planc.ir.program import Program
from planc.lower import ExecutableCache
from planc.lower.bind import bind_tensors
from runtime.errors import RemoteExecutionError, StoreFull
from runtime.interpreter import interpret

_REMEMBERED = 4096
"""Combinations of plan and input shapes whose peak memory is remembered: a few dozen bytes each."""


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
        run_bytes: the most memory that one run may take, its inputs and constants included.
        cache_bytes: the most memory that executables keep between runs.
        runner: what runs them; compiled executables where not given.
    """

    def __init__(
        self, device: torch.device, run_bytes: int, cache_bytes: int, runner: Runner | None = None
    ) -> None:
        self._device = device
        self._run_bytes = run_bytes
        self._runner: Runner = ExecutableCache(max_bytes=cache_bytes) if runner is None else runner
        self._peaks: OrderedDict[tuple[str, tuple[torch.Size, ...]], int] = OrderedDict()

    def run(self, plan_id: str, program: Program, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs of a plan in order, state included, as ordinary tensors that are not written to again.

        Raises:
            InputError: the inputs do not fit the plan.
            StoreFull: the run would take more memory than is allowed.
            RemoteExecutionError: an op failed.
        """
        self._check_memory(plan_id, program.graph, inputs)
        try:
            return self._runner.run(plan_id, program, inputs, self._device)
        except ExecutionError as error:
            raise _without_values(plan_id, program.graph, error) from error

    def _check_memory(self, plan_id: str, graph: Graph, inputs: Sequence[torch.Tensor]) -> None:
        key = (plan_id, tuple(tensor.shape for tensor in inputs))
        if key in self._peaks:
            self._peaks.move_to_end(key)
        else:
            # Binding checks dtypes as well as shapes; the runner checks them again on a remembered shape.
            self._peaks[key] = cost(graph, bind_tensors(graph, inputs)).peak_bytes
            if len(self._peaks) > _REMEMBERED:
                self._peaks.popitem(last=False)
        if self._peaks[key] > self._run_bytes:
            raise StoreFull(
                f"plan {graph.name!r} would take {self._peaks[key]} bytes, {self._run_bytes} are allowed"
            )


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
