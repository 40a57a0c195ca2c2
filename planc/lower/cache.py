"""A bounded cache of executables, by plan, sizes, layouts and device. Safe to share between threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from planc.errors import InputError
from planc.ir import Graph, Role
from planc.ir.program import Program
from planc.lower.bind import bind_tensors
from planc.lower.executable import Executable, Timing
from planc.lower.inductor import InductorExecutable

_Runs = Executable | InductorExecutable
Kinds = tuple[Any, ...]
"""What executables differ by, of each input: dtype, shape, and strides where it is not contiguous."""


def kinds_of(values: Sequence[torch.Tensor]) -> Kinds:
    """The kinds of values: looking at them is what a run costs that has been made before."""
    return tuple(
        [
            (v.dtype, v.shape, None if v.is_contiguous() else v.stride())
            if isinstance(v, torch.Tensor)
            else None
            for v in values
        ]
    )


Backend = Literal["python", "inductor"]
"""What runs a plan: Python (`planc.lower.executable`), or `torch.compile` (`planc.lower.inductor`)."""
BACKENDS: tuple[Backend, ...] = get_args(Backend)


class ExecutableCache:
    """Executables; the least recently used go when code and buffers outgrow ``max_bytes``.

    Raises:
        InputError: there is no such backend.
    """

    def __init__(self, max_bytes: int = 64 * 2**20, backend: Backend = "python") -> None:
        if backend not in BACKENDS:
            raise InputError(
                f"there is no backend {backend!r}; there are {' and '.join(map(repr, BACKENDS))}"
            )
        self._backend = backend
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[Any, ...], _Runs] = OrderedDict()
        self._counted: dict[tuple[Any, ...], int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the executables' code and of the buffers that they keep."""
        return self._bytes

    def run(
        self,
        plan_id: str,
        program: Program,
        values: Sequence[torch.Tensor],
        device: torch.device | str = "cpu",
        *,
        seconds: float | None = None,
        kinds: Kinds | None = None,
    ) -> list[torch.Tensor]:
        """The outputs of a plan on these inputs, in the graph's order; fresh, ordinary tensors.

        Args:
            plan_id: names ``program`` in the cache; the same id must always mean the same program.
            values: one tensor for each of the graph's inputs, in order, on any device.
            device: where to run.
            seconds: how long it may take.
            kinds: ``kinds_of(values)``, where somebody has asked for that already.

        Raises:
            InputError: an input does not fit the plan.
            ExecutionError: an operation failed.
            LimitError: the time is over.
        """
        place = torch.device(device) if isinstance(device, str) else device
        key = plan_id, place, kinds or kinds_of(values)
        with self._lock:
            executable = self._entries.get(key)
            if executable is not None:
                self._entries.move_to_end(key)
        if executable is None:
            bindings = bind_tensors(program.graph, values)
            kind = Executable if self._backend == "python" else InductorExecutable
            executable = self._add(key, kind(program, bindings, place))
        if place.type != "cpu" or not all(v.is_cpu for v in values):
            values = _on_device(program.graph, values, place)
        outputs = executable(values, seconds)
        if executable.nbytes != self._counted.get(key):
            self._count(key, executable)
        return outputs

    def _add(self, key: tuple[Any, ...], made: _Runs) -> _Runs:
        with self._lock:
            return self._entries.setdefault(key, made)

    def _count(self, key: tuple[Any, ...], executable: _Runs) -> None:
        """Note how large an executable has become, and let go of others for it."""
        with self._lock:
            if self._entries.get(key) is not executable:
                return
            self._bytes += executable.nbytes - self._counted.get(key, 0)
            self._counted[key] = executable.nbytes
            while self._bytes > self._max_bytes and len(self._entries) > 1:
                oldest, old = self._entries.popitem(last=False)
                self._bytes -= self._counted.pop(oldest, 0)
                old.close()


def profile(
    program: Program, values: Sequence[torch.Tensor], device: torch.device | str = "cpu"
) -> tuple[list[torch.Tensor], list[Timing]]:
    """The outputs of a program, as `ExecutableCache.run` gives them, and where the time went.

    See `Executable.profile`.

    Raises:
        InputError: an input does not fit the plan.
        ExecutionError: an operation failed.
    """
    place = torch.device(device)
    executable = Executable(program, bind_tensors(program.graph, values), place)
    try:
        return executable.profile(_on_device(program.graph, values, place))
    finally:
        executable.close()


def _on_device(graph: Graph, values: Sequence[torch.Tensor], device: torch.device) -> Sequence[torch.Tensor]:
    """Inputs where the plan runs; keys stay on the CPU, where their numbers are drawn."""
    placed = list(values)
    for i, value in enumerate(values):
        if graph.inputs[i].role is Role.KEY:
            placed[i] = value.cpu()
        elif value.device != device:
            placed[i] = value.to(device)
    return placed


__all__ = ["BACKENDS", "Backend", "ExecutableCache", "Kinds", "kinds_of", "profile"]
