"""The opt-in backend "inductor": functions of a plan through `torch.compile`, which writes C++ for them.

Never the default: it compiles for seconds to minutes, and rounds as fused kernels do, not as the op table.
A function is one of the graph or of a subplan; scans stay loops of Python around those.
"""

from __future__ import annotations

import itertools
import linecache
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from planc.errors import ExecutionError, InputError, LimitError
from planc.ir import Graph
from planc.ir.program import Program
from planc.lower.calls import Call, Calls, Constants
from planc.lower.emit import Emitter, Scope
from planc.ops.bounds import guarded, has_bounds, unchecked

_COMPILERS = ("g++", "clang++", "c++", "cl")
_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"pattern_matcher": False}
"""torch's fusion of products of matrices with additions forgets ``alpha``, which steps of optimizers have: it
is off (pytorch issue 167313)."""
_numbers = itertools.count()


def find_compiler() -> str:
    """The C++ compiler to use: what ``CXX`` says, or the first of the usual names.

    Raises:
        InputError: there is none.
    """
    asked = os.environ.get("CXX")
    names = (asked,) if asked else _COMPILERS
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise InputError(
            f'backend "inductor" needs a C++ compiler, and there is no {" or ".join(names)} on the PATH; '
            "install one, name it in CXX, or leave the backend out"
        )
    return found


class InductorExecutable:
    """One graph at concrete sizes on one device, compiled by torch at its first call; one run at a time.

    What it gives equals what the op table gives but for rounding. Outputs are fresh, ordinary tensors. What
    torch cannot trace (random numbers, checks of data) runs by the op table's callables.

    Raises:
        InputError: there is no C++ compiler, or as `Executable`.
    """

    nbytes = 2**20
    """A guess: what torch keeps of its code cannot be asked for."""

    def __init__(self, program: Program, bindings: Mapping[str, int], device: torch.device) -> None:
        if device.type == "cpu":
            find_compiler()
        constants = Constants(program.constants, device)
        for constant in program.graph.constants:
            constants[constant.digest]
        emitter = _PlainEmitter(Calls(), constants)
        entry = emitter.function(program.graph, bindings)
        source, _ = emitter.source.finish()
        self.source = source
        self._name = program.graph.name
        self._lock = threading.Lock()
        self._namespace = emitter.source.namespace
        self.filename = f"<planc inductor {program.graph.name} {next(_numbers)}>"
        code = compile(source, self.filename, "exec")
        linecache.cache[self.filename] = (len(source), None, source.splitlines(True), self.filename)
        with torch.inference_mode(False), torch.no_grad():
            exec(code, self._namespace)  # every character of it is the emitter's
        for name in emitter.straight:
            self._namespace[name] = torch.compile(self._namespace[name], dynamic=False, options=_OPTIONS)
        self._entry = self._namespace[entry]

    def __call__(self, values: Sequence[torch.Tensor], seconds: float | None = None) -> list[torch.Tensor]:
        """Run on checked inputs; the first call compiles, which ``seconds`` does not end.

        Raises:
            ExecutionError: an operation failed, or torch could not compile the plan.
            LimitError: a scan took longer than it may.
        """
        try:
            with self._lock, torch.inference_mode(False), torch.no_grad():
                limit = float("inf") if seconds is None else time.perf_counter() + seconds
                self._namespace["limit"] = limit
                return list(self._entry(*values))
        except LimitError:
            raise
        except Exception as error:
            first = next(iter(str(error).strip().splitlines()), "")
            raise ExecutionError(
                f'plan {self._name!r}, backend "inductor": {type(error).__name__}: {first}'
            ) from error

    def close(self) -> None:
        """Forget the generated source; the executable must not be used afterwards."""
        linecache.cache.pop(self.filename, None)


class _PlainEmitter(Emitter):
    """Calls of the op table's own callables, which torch can trace; all memory is left to torch."""

    look = 2**31
    """No looks at the clock within a function: they would cut it in pieces."""

    def __init__(self, calls: Calls, constants: Constants) -> None:
        super().__init__(calls, constants, {})
        self.straight: list[str] = []
        """The functions without a scan."""

    def function(
        self,
        graph: Graph,
        bindings: Mapping[str, int],
        owned: frozenset[int] = frozenset(),
        fixed: tuple[tuple[int, str], ...] = (),
    ) -> str:
        name = super().function(graph, bindings, owned, fixed)
        if name not in self.straight and not _scans(graph):
            self.straight.append(name)
        return name

    def _called(self, scope: Scope, call: Call, out: str = "", update: bool = False) -> str:
        if call.definition is None:
            return super()._called(scope, call)
        trusting = unchecked(self._device) and has_bounds(call.op)
        run = guarded(call.op, call.run) if trusting else call.run
        return self._spelled(call, run, self._operands(scope, call, call.attrs))


def _scans(graph: Graph) -> bool:
    return any(node.op == "scan" for node in graph.nodes) or any(_scans(plan) for plan in graph.subplans)


__all__ = ["InductorExecutable", "find_compiler"]
