"""A plan ready to run at concrete sizes, and a bounded cache of such. Checks inputs; keeps no state."""

from __future__ import annotations

import itertools
import linecache
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from planc.errors import ExecutionError, InputError
from planc.ir import Graph, Role
from planc.ir.program import Program
from planc.lower.bind import bind_tensors
from planc.lower.emit import Emitter, Origin

_numbers = itertools.count()


class Executable:
    """Generated code for one graph at concrete sizes on one device.

    Re-entrant: it owns no buffers. Outputs are fresh, ordinary tensors that the caller may keep and change.
    """

    def __init__(self, program: Program, bindings: Mapping[str, int], device: torch.device) -> None:
        emitter = Emitter(program.constants, device)
        try:
            entry = emitter.function(program.graph, bindings, fresh=True)
        except ZeroDivisionError:
            raise InputError(
                f"plan {program.graph.name!r}: with {_sizes(bindings)} a dim is divided by 0"
            ) from None
        self.source = emitter.source.text()
        self.filename = f"<planc {program.graph.name} {next(_numbers)}>"
        self._origins = emitter.source.origins
        self._device = device
        namespace = dict(emitter.source.namespace)
        # Not text from anywhere: the emitter made every character of it out of names of its own.
        exec(compile(self.source, self.filename, "exec"), namespace)
        self._run: Callable[..., tuple[torch.Tensor, ...]] = namespace[entry]
        linecache.cache[self.filename] = (len(self.source), None, self.source.splitlines(True), self.filename)

    @property
    def nbytes(self) -> int:
        """A rough size of the generated code, for bounding caches."""
        return 16 * len(self.source)

    def __call__(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run on checked inputs.

        Raises:
            ExecutionError: an operation failed; names the op, the node and the user's line.
        """
        try:
            with torch.no_grad():
                return list(self._run(*values))
        except Exception as error:
            origin = self._origin_of(error)
            if origin is None:
                raise
            raise _failed(origin, error) from error

    def close(self) -> None:
        """Forget the generated source; the executable must not be used afterwards."""
        linecache.cache.pop(self.filename, None)

    def _origin_of(self, error: BaseException) -> Origin | None:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == self.filename]
        return self._origins.get(frames[-1].lineno or 0) if frames else None


def _sizes(bindings: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in bindings.items()) or "no dims"


def _failed(origin: Origin, error: Exception) -> ExecutionError:
    where = f" ({origin.node.loc}: {origin.node.loc.text})" if origin.node.loc else ""
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    failure = ExecutionError(
        f"plan {origin.plan!r}, node {origin.index}: {origin.node.op} failed{where}: "
        f"{type(error).__name__}: {first}"
    )
    failure.op, failure.node = origin.node.op, origin.index
    return failure


class ExecutableCache:
    """Executables by plan, sizes and device; the least recently used go when they outgrow ``max_bytes``.

    Safe to share between threads.
    """

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[Any, ...], Executable] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def run(
        self,
        plan_id: str,
        program: Program,
        values: Sequence[torch.Tensor],
        device: torch.device | str = "cpu",
    ) -> list[torch.Tensor]:
        """The outputs of a plan on these inputs, in the graph's order; fresh, ordinary tensors.

        Args:
            plan_id: names ``program`` in the cache; the same id must always mean the same program.
            values: one tensor for each of the graph's inputs, in order, on any device.

        Raises:
            InputError: an input does not fit the plan.
            ExecutionError: an operation failed.
        """
        place = torch.device(device)
        # Shapes and dtypes, not bound dims: looking at them is what a call costs that has been made before.
        kinds = [(v.dtype, v.shape) if isinstance(v, torch.Tensor) else None for v in values]
        key = (plan_id, place, *kinds)
        with self._lock:
            executable = self._entries.get(key)
            if executable is not None:
                self._entries.move_to_end(key)
        if executable is None:
            bindings = bind_tensors(program.graph, values)
            executable = self._add(key, Executable(program, bindings, place))
        return executable(_on_device(program.graph, values, place))

    def _add(self, key: tuple[Any, ...], made: Executable) -> Executable:
        with self._lock:
            kept = self._entries.setdefault(key, made)
            if kept is made:
                self._bytes += made.nbytes
            while self._bytes > self._max_bytes and len(self._entries) > 1:
                _, old = self._entries.popitem(last=False)
                self._bytes -= old.nbytes
                old.close()
            return kept


def _on_device(graph: Graph, values: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Inputs where the plan runs; keys stay on the CPU, where their numbers are drawn."""
    placed = list(values)
    for i, value in enumerate(values):
        if value.device != device and graph.inputs[i].role is not Role.KEY:
            placed[i] = value.to(device)
        elif graph.inputs[i].role is Role.KEY and not value.is_cpu:
            placed[i] = value.cpu()
    return placed


__all__ = ["Executable", "ExecutableCache"]
