"""A bounded cache of executables, by plan, sizes, layouts and device. Safe to share between threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from planc.errors import InputError
from planc.ir import Graph, Role
from planc.ir.program import Program
from planc.lower.bind import bind_tensors
from planc.lower.executable import Executable, Timing
from planc.lower.graphs import GraphExecutable
from planc.lower.inductor import InductorExecutable
from planc.lower.transfer import numbered, to_device

_Runs = Executable | InductorExecutable
Kind = tuple[Any, ...] | None
"""What executables differ by, of one input: dtype, shape, strides where it is not contiguous, on the CPU or
not."""
Kinds = tuple[Kind, ...]
"""Those of all inputs, in order."""


def kind_of(value: torch.Tensor, shape: tuple[int, ...] | None = None) -> Kind:
    """The kind of a value; with ``shape``, of a contiguous one of that shape beside it."""
    if not isinstance(value, torch.Tensor):
        return None
    if shape is not None:
        return value.dtype, shape, None, value.is_cpu
    return value.dtype, value.shape, None if value.is_contiguous() else value.stride(), value.is_cpu


def kinds_of(values: Sequence[torch.Tensor]) -> Kinds:
    """The kinds of values: looking at them is what a run costs that has been made before."""
    return tuple([kind_of(value) for value in values])


Backend = Literal["python", "inductor"]
"""What runs a plan: Python (`planc.lower.executable`), or `torch.compile` (`planc.lower.inductor`)."""
BACKENDS: tuple[Backend, ...] = get_args(Backend)


class Entry:
    """An executable in a cache.

    Attributes:
        executable: the same; None once the cache has let go of it.
        used: when it was used last, by the cache's own count.
    """

    __slots__ = ("counted", "executable", "key", "moves", "place", "used")

    def __init__(self, key: tuple[Any, ...], executable: _Runs, place: torch.device, moves: bool) -> None:
        self.key = key
        self.executable: _Runs | None = executable
        self.place = place
        self.moves = moves
        """Whether inputs have to be brought to where it runs."""
        self.used = 0
        self.counted = 0
        """Bytes that the cache counts for it."""


class ExecutableCache:
    """Executables; the least recently used go when code and buffers outgrow ``max_bytes``.

    Args:
        max_bytes: what they may keep between runs. A CUDA graph keeps all memory of its run, in blocks of
            some MiB: with ``graphs`` there should be room for these.
        backend: what runs plans.
        graphs: whether plans are recorded as CUDA graphs at their second run at the same sizes, and replayed
            from the third on. Those that cannot be run as ever; `refusals` says why.

    Raises:
        InputError: there is no such backend, or none of it with graphs.
    """

    def __init__(
        self, max_bytes: int = 64 * 2**20, backend: Backend = "python", *, graphs: bool = False
    ) -> None:
        if backend not in BACKENDS:
            raise InputError(
                f"there is no backend {backend!r}; there are {' and '.join(map(repr, BACKENDS))}"
            )
        if backend == "python":
            self._kind = GraphExecutable if graphs else Executable
        elif graphs:
            raise InputError(f"graphs are recorded of the backend 'python', not of {backend!r}")
        else:
            self._kind = InductorExecutable
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: dict[tuple[Any, ...], Entry] = {}
        self._uses = itertools.count(1)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the executables' code and of the buffers that they keep."""
        return self._bytes

    @property
    def refusals(self) -> dict[str, str]:
        """Why plans are not replayed as CUDA graphs, by plan id; plans that are have no entry."""
        with self._lock:
            entries = list(self._entries.values())
        found = [(e.key[0], e.executable) for e in entries if isinstance(e.executable, GraphExecutable)]
        return {plan_id: made.refusal for plan_id, made in found if made.refusal is not None}

    def run(
        self,
        plan_id: str,
        program: Program,
        values: Sequence[torch.Tensor],
        device: torch.device | str = "cpu",
        *,
        seconds: float | None = None,
    ) -> list[torch.Tensor]:
        """The outputs of a plan on these inputs, in the graph's order; fresh, ordinary tensors.

        Args:
            plan_id: names ``program`` in the cache; the same id must always mean the same program.
            values: one tensor for each of the graph's inputs, in order, on any device.
            device: where to run.
            seconds: how long it may take.

        Raises:
            InputError: an input does not fit the plan.
            ExecutionError: an operation failed.
            LimitError: the time is over.
        """
        place = numbered(device)
        entry = self.entry(plan_id, program, values, place, kinds_of(values))
        return self.use(entry, program, values, seconds)

    def entry(
        self,
        plan_id: str,
        program: Program,
        values: Sequence[torch.Tensor],
        device: torch.device,
        kinds: Kinds,
    ) -> Entry:
        """The executable for inputs of these kinds, which are ``kinds_of(values)``; made if there is none.

        Raises:
            InputError: an input does not fit the plan.
        """
        key = plan_id, device, kinds
        found = self._entries.get(key)
        if found is None:
            bindings = bind_tensors(program.graph, values)
            place = numbered(device)
            moves = place.type != "cpu" or not all(value.is_cpu for value in values)
            made = Entry(key, self._kind(program, bindings, place), place, moves)
            with self._lock:
                found = self._entries.setdefault(key, made)
                found.used = next(self._uses)
            self._count(found)
        return found

    def forget(self, plan_id: str) -> None:
        """Let go of the executables of a plan."""
        with self._lock:
            for entry in [entry for key, entry in self._entries.items() if key[0] == plan_id]:
                self._let_go(entry)

    def use(
        self,
        entry: Entry,
        program: Program,
        values: Sequence[torch.Tensor],
        seconds: float | None = None,
    ) -> list[torch.Tensor]:
        """As `run`, by an entry of the program, on inputs of its kinds.

        Raises:
            ExecutionError: an operation failed.
            LimitError: the time is over.
        """
        executable = entry.executable
        if executable is None:
            plan_id, place, kinds = entry.key
            return self.use(self.entry(plan_id, program, values, place, kinds), program, values, seconds)
        entry.used = next(self._uses)
        if entry.moves:
            values = _on_device(program.graph, values, entry.place)
        try:
            return executable(values, seconds)
        finally:
            if executable.nbytes != entry.counted:
                self._count(entry)

    def _count(self, entry: Entry) -> None:
        """Note how large an executable has become, and let go of others for it."""
        with self._lock:
            if entry.executable is None:
                return
            nbytes = entry.executable.nbytes
            self._bytes += nbytes - entry.counted
            entry.counted = nbytes
            while self._bytes > self._max_bytes and len(self._entries) > 1:
                self._let_go(min(self._entries.values(), key=lambda each: each.used))

    def _let_go(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._bytes -= entry.counted
        gone, entry.executable = entry.executable, None
        if gone is not None:
            gone.close()


def profile(
    program: Program, values: Sequence[torch.Tensor], device: torch.device | str = "cpu"
) -> tuple[list[torch.Tensor], list[Timing]]:
    """The outputs of a program, as `ExecutableCache.run` gives them, and where the time went.

    See `Executable.profile`.

    Raises:
        InputError: an input does not fit the plan.
        ExecutionError: an operation failed.
    """
    place = numbered(device)
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
            placed[i] = to_device(value, device)
    return placed


__all__ = [
    "BACKENDS",
    "Backend",
    "Entry",
    "ExecutableCache",
    "Kind",
    "Kinds",
    "kind_of",
    "kinds_of",
    "profile",
]
