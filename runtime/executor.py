"""The fast path of a worker: runs installed plans through compiled executables. Knows no objects, no rights.

Compilation and its cache are `planc.lower`'s; here is the check that a run is within bounds before it starts,
and the deadline that ends it where it is not.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from planc.cost import cost, flops_of
from planc.errors import ExecutionError, LimitError
from planc.ir import Graph, Node
from planc.ir.program import Program
from planc.lower import Entry, ExecutableCache, Kinds, kinds_of
from planc.lower.bind import bind_tensors
from planc.lower.record import late
from planc.ops.apply import apply
from runtime.errors import RemoteExecutionError, RemoteLimitError, StoreFull
from runtime.interpreter import RunNode, interpret

_REMEMBERED = 4096
"""Combinations of plan and input shapes that are remembered: some hundred bytes each."""


@dataclass(frozen=True, slots=True)
class RunBounds:
    """The most that one run of a plan may take: as estimated before it starts, and by the clock."""

    bytes: int = 64 * 2**30
    """Memory at its peak, inputs and constants included."""
    flops: int = 10**16
    """Floating-point operations: about a day of one core."""
    nodes: int = 10**9
    """Nodes run, each trip of a scan counted."""
    seconds: float | None = None
    """Time, looked at between nodes: one node is never interrupted. As long as it takes, where not given."""


class Runner(Protocol):
    """What runs a program: the compiled path, or the reference interpreter."""

    def run(
        self,
        plan_id: str,
        program: Program,
        values: list[torch.Tensor],
        device: torch.device,
        /,
        *,
        seconds: float | None = None,
    ) -> list[torch.Tensor]:
        """The outputs of ``program.graph`` in order. Writes to no input. Any number may run at once.

        Each output is a tensor object of its own, and no input.

        Raises:
            LimitError: it took longer than ``seconds``.
        """
        ...


class Interpreting:
    """Runs programs through the reference interpreter, for comparison."""

    def run(
        self,
        plan_id: str,
        program: Program,
        values: list[torch.Tensor],
        device: torch.device,
        /,
        *,
        seconds: float | None = None,
    ) -> list[torch.Tensor]:
        with torch.no_grad():
            outputs = interpret(program.graph, values, program.constants, device, _timed(apply, seconds))
        return [output.detach() for output in outputs]


class Prepared:
    """A plan at the sizes and layouts of its inputs, found to be within bounds: what running it again needs.

    It holds nothing of the plan itself.

    Attributes:
        plan_id: names the plan.
        kinds: those of the inputs.
        took: the seconds that it took the last time; infinite where it was not run yet.
        entry: the executable, where the executor's own cache has one.
    """

    __slots__ = ("entry", "kinds", "plan_id", "took")

    def __init__(self, plan_id: str, kinds: Kinds) -> None:
        self.plan_id = plan_id
        self.kinds = kinds
        self.took = math.inf
        self.entry: Entry | None = None


class Executor:
    """Runs plans for one worker; any number at once, each on memory of its own.

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
        self._runner = runner
        self._cache = ExecutableCache(max_bytes=cache_bytes)
        self._prepared: OrderedDict[tuple[str, Kinds], Prepared] = OrderedDict()
        self._light: dict[int, Node] = {}
        self._lock = threading.Lock()

    def prepare(
        self,
        plan_id: str,
        program: Program,
        inputs: Sequence[torch.Tensor],
        kinds: Kinds | None = None,
    ) -> Prepared:
        """What running a plan on such inputs needs; a run that is too large is refused before it starts.

        A few bytes of a plan can ask for years. What was found to be right once is remembered, so that asking
        again costs next to nothing.

        Args:
            plan_id: names ``program``.
            program: what to run.
            inputs: one tensor for each of its inputs, or what stands for them.
            kinds: those of the inputs, where they are known.

        Raises:
            InputError: the inputs do not fit the plan.
            StoreFull: the run would take more memory than is allowed.
            RemoteLimitError: it would compute more than is allowed.
        """
        key = plan_id, kinds or kinds_of(inputs)
        with self._lock:
            known = self._prepared.get(key)
            if known is not None:
                self._prepared.move_to_end(key)
                return known
        self._check(program.graph, inputs)
        made = Prepared(plan_id, key[1])
        with self._lock:
            known = self._prepared.setdefault(key, made)
            if len(self._prepared) > _REMEMBERED:
                self._prepared.popitem(last=False)
        return known

    def forget(self, plan_id: str) -> None:
        """Let go of all that is kept of a plan: it was uninstalled."""
        with self._lock:
            for key in [key for key in self._prepared if key[0] == plan_id]:
                del self._prepared[key]
        self._cache.forget(plan_id)

    def run(
        self,
        prepared: Prepared,
        program: Program,
        inputs: Sequence[torch.Tensor],
        seconds: float | None = None,
    ) -> list[torch.Tensor]:
        """The outputs of a plan in order, state included, as ordinary tensors that are not written to again.

        Args:
            prepared: what `prepare` found out about the plan.
            program: the plan.
            inputs: one tensor for each of its inputs, of the kinds that it was prepared for; they are not
                written to.
            seconds: how long it may take; never longer than the bounds allow.

        Raises:
            RemoteLimitError: it took too long.
            RemoteExecutionError: an op failed.
        """
        limit = seconds if self._bounds.seconds is None else self._seconds(seconds)
        start = time.perf_counter()
        try:
            if self._runner is None:
                entry = prepared.entry
                if entry is None or entry.executable is None:
                    entry = prepared.entry = self._cache.entry(
                        prepared.plan_id, program, inputs, self._device, prepared.kinds
                    )
                outputs = self._cache.use(entry, program, inputs, limit)
            else:
                outputs = self._runner.run(
                    prepared.plan_id, program, list(inputs), self._device, seconds=limit
                )
        except ExecutionError as error:
            raise _without_values(prepared.plan_id, program.graph, error) from error
        except LimitError as error:
            raise _too_long(program.graph, limit) from error
        prepared.took = time.perf_counter() - start
        return outputs

    def run_with_grad(
        self,
        plan_id: str,
        program: Program,
        inputs: list[torch.Tensor],
        run_node: RunNode = apply,
        seconds: float | None = None,
    ) -> list[torch.Tensor]:
        """As `run`, by the interpreter, so that gradients flow from the outputs to the inputs.

        What autograd keeps for the backward pass comes on top of the memory that is checked.
        """
        self.prepare(plan_id, program, inputs)
        limit = self._seconds(seconds)
        timed = _timed(run_node, limit)
        try:
            with torch.enable_grad():
                return interpret(program.graph, inputs, program.constants, self._device, timed)
        except ExecutionError as error:
            raise _without_values(plan_id, program.graph, error) from error
        except LimitError as error:
            raise _too_long(program.graph, limit) from error

    def check_op(self, node: Node) -> None:
        """Refuse one op by itself, on operands of known sizes, that would compute more than a run may.

        Raises:
            RemoteLimitError: it would.
        """
        if self._light.get(id(node)) is node:  # eager operations come again and again
            return
        needed = flops_of(node, {})
        if needed > self._bounds.flops:
            raise RemoteLimitError(f"{node.op} would take {needed} FLOPs, {self._bounds.flops} are allowed")
        if len(self._light) >= _REMEMBERED:
            self._light.clear()
        self._light[id(node)] = node

    def _seconds(self, asked: float | None) -> float | None:
        """The shorter of what a caller asks for and what the bounds allow."""
        given = [limit for limit in (asked, self._bounds.seconds) if limit is not None]
        return min(given, default=None)

    def _check(self, graph: Graph, inputs: Sequence[torch.Tensor]) -> None:
        """Refuse a run that does not fit or is too large."""
        found = cost(graph, bind_tensors(graph, inputs))
        bounds = self._bounds
        # A result that is a view takes none by the estimate, and is copied to be the caller's own.
        needed = max(found.peak_bytes, found.result_bytes + found.update_bytes)
        if needed > bounds.bytes:
            raise StoreFull(f"plan {graph.name!r} would take {needed} bytes, {bounds.bytes} are allowed")
        runs = sum(row.times for row in found.rows)
        for what, size, allowed in (("FLOPs", found.flops, bounds.flops), ("node runs", runs, bounds.nodes)):
            if size > allowed:
                raise RemoteLimitError(f"plan {graph.name!r} would take {size} {what}, {allowed} are allowed")


def _timed(run_node: RunNode, seconds: float | None) -> RunNode:
    """``run_node`` until the time is over, and a `LimitError` from then on."""
    if seconds is None:
        return run_node
    limit = time.perf_counter() + seconds

    def run(
        node: Node, read: Any, bindings: Mapping[str, int], device: torch.device | str | None
    ) -> tuple[torch.Tensor, ...]:
        if time.perf_counter() > limit:
            raise late()
        return run_node(node, read, bindings, device)

    return run


def _too_long(graph: Graph, seconds: float | None) -> RemoteLimitError:
    return RemoteLimitError(f"plan {graph.name!r} took longer than the {seconds} seconds that are allowed")


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
