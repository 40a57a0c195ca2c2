"""A plan ready to run at concrete sizes: a first run that finds out its layouts, then generated code.

It keeps memory between runs, and no values: what it returns is never written to again.
"""

from __future__ import annotations

import itertools
import linecache
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

from planc.errors import ExecutionError, LimitError
from planc.ir.program import Program
from planc.lower.calls import Calls, Constants, Key, Origin
from planc.lower.emit import Emitter
from planc.lower.layout import Layouts
from planc.lower.mode import ordinarily, stream_of
from planc.lower.record import Recorder, failed
from planc.lower.schedule import scheduled

_numbers = itertools.count()
_BARE = 1024
"""Bytes of an executable without code, roughly."""
_IDLE = 4
"""Sets of buffers kept for calls that come at once; more are made where needed and dropped after."""

Tensors = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Code:
    """Generated code, without the memory that it runs on."""

    source: str
    filename: str
    code: CodeType
    namespace: dict[str, Any]
    entry: str
    origins: dict[int, Origin]
    nbytes: int
    """Bytes of the memory that it plans."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one node took in a profile."""

    plan: str
    node: int
    """Its number in its plan."""
    op: str
    where: str
    """The line that it came from, as far as that is known."""
    runs: int
    """How often it ran; the steps of a fused node count each."""
    seconds: float


class Instance:
    """One set of buffers and the functions bound to them: one run at a time."""

    __slots__ = ("entry", "namespace")

    def __init__(self, code: Code) -> None:
        self.namespace = dict(code.namespace)
        # Not text from anywhere: the emitter made every character of it out of names of its own.
        exec(code.code, self.namespace)
        self.entry: Callable[..., Tensors] = self.namespace[code.entry]


class Executable:
    """One graph at concrete sizes on one device.

    The first run goes node by node; the code is generated for the second, or within the first where that has
    long scans. Any number of threads may call it at once: each runs on memory of its own. Outputs are fresh,
    ordinary tensors that the caller may keep and change. On CUDA a run is queued on the caller's stream, and
    waited for where data are looked at.

    Attributes:
        source: the generated code; empty until there is some.
        filename: the name that tracebacks show for it.
        nbytes: a rough size of the code and what it keeps, for bounding caches.
    """

    def __init__(self, program: Program, bindings: Mapping[str, int], device: torch.device) -> None:
        self.source = ""
        self.filename = ""
        self._program = program
        self._bindings = dict(bindings)
        self._calls = Calls(scheduled)
        self._constants = Constants(program.constants, device)
        self._layouts: dict[Key, Layouts] | None = None
        self._code: Code | None = None
        self._device = device
        self._idle: defaultdict[int, list[Instance]] = defaultdict(list)
        """By stream: what one has queued may still use its buffers when the next run starts."""
        self._kept = 0
        """Sets of buffers that there are, idle or in use, less those that were dropped."""
        self._beside = 0
        """Bytes kept beside the buffers."""
        self.nbytes = _BARE
        self._lock = threading.Lock()
        for constant in program.graph.constants:  # what is missing is an error now, not in a run
            self._constants[constant.digest]
        self._calls.of(program.graph, bindings)

    def __call__(self, values: Sequence[torch.Tensor], seconds: float | None = None) -> Tensors:
        """Run on checked inputs.

        Args:
            values: one tensor for each input of the graph.
            seconds: how long it may take; checked between nodes and between trips of a scan.

        Raises:
            ExecutionError: an operation failed; names the op, the node and the user's line.
            LimitError: the time is over.
        """
        limit = float("inf") if seconds is None else time.perf_counter() + seconds
        idle = self._idle[stream_of(self._device)]
        try:
            instance = idle.pop()
        except IndexError:
            first = self._record(values, limit) if self._layouts is None else None
            if first is not None:
                return first
            instance = self._instance()
        instance.namespace["limit"] = limit
        try:
            return ordinarily(instance.entry, values)
        except Exception as error:
            explained = self._explained(error)
            if explained is error:
                raise
            raise explained from error
        finally:
            if len(idle) < _IDLE:
                idle.append(instance)
            else:
                self._drop(instance)

    def profile(self, values: Sequence[torch.Tensor]) -> tuple[Tensors, list[Timing]]:
        """Run with a clock, after runs that warm up: the outputs, and a row for each node that ran.

        The code is that of other runs but for the clock. What is computed before any run, because it depends
        on no input or is a view of memory that stays, takes no time and has no row.

        Raises:
            ExecutionError: an operation failed.
        """
        for _ in range(2):
            self(values)
        clock = _Clock()
        code = self._compiled(timed=True)
        instance = ordinarily(Instance, (code,))
        instance.namespace["clock"] = clock
        try:
            ordinarily(instance.entry, values)
            clock.clear()
            return ordinarily(instance.entry, values), clock.rows()
        finally:
            linecache.cache.pop(code.filename, None)

    def close(self) -> None:
        """Forget the generated source; the executable must not be used afterwards."""
        linecache.cache.pop(self.filename, None)

    def _record(self, values: Sequence[torch.Tensor], limit: float) -> Tensors | None:
        """Run node by node and keep the layouts; the outputs, or None where they are not the real ones."""
        recorder = Recorder(self._calls, self._constants, limit)
        graph = self._program.graph
        try:
            outputs = ordinarily(lambda: recorder.outputs(graph, self._bindings, values), ())
        except ExecutionError:
            if recorder.exact:
                raise
            outputs = []  # what stood for the results of a long scan did not do
        self._layouts = recorder.layouts if recorder.steady else {}
        return outputs if recorder.exact else None

    def _instance(self) -> Instance:
        with self._lock:
            if self._code is None:
                self._code = self._compiled()
                self.source, self.filename = self._code.source, self._code.filename
        try:
            instance = ordinarily(Instance, (self._code,))
        except Exception as error:
            raise self._explained(error) from error
        self._resize(1)
        return instance

    def _drop(self, instance: Instance) -> None:
        """Let go of a set of buffers that is one too many."""
        del instance  # whose memory is that of the code here; see `planc.lower.graphs`
        self._resize(-1)

    def _resize(self, instances: int, beside: int = 0) -> None:
        """Count sets of buffers, and bytes kept beside these, that came or went."""
        code = self._code
        assert code is not None
        with self._lock:
            self._kept += instances
            self._beside += beside
            self.nbytes = 16 * len(code.source) + max(self._kept, 1) * code.nbytes + self._beside

    def _compiled(self, *, timed: bool = False) -> Code:
        emitter = Emitter(self._calls, self._constants, self._layouts or {}, timed=timed)
        entry = emitter.function(self._program.graph, self._bindings)
        source, origins = emitter.source.finish()
        filename = f"<planc {self._program.graph.name} {next(_numbers)}>"
        code = compile(source, filename, "exec")
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        return Code(source, filename, code, emitter.source.namespace, entry, origins, emitter.source.nbytes)

    def _explained(self, error: Exception) -> Exception:
        """The error to raise for one that generated code raised."""
        code = self._code
        if code is None or isinstance(error, LimitError):
            return error
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == code.filename]
        origin = code.origins.get(frames[-1].lineno or 0) if frames else None
        return error if origin is None else failed(origin, error)


class _Clock:
    """Adds up the time between calls, by the origin that each call names."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Origin, int, float]] = {}
        self._last = 0.0

    def __call__(self, origin: Origin | None) -> None:
        now = time.perf_counter()
        if origin is not None:
            key = id(origin.node)
            _, count, seconds = self._found.get(key, (origin, 0, 0.0))
            self._found[key] = (origin, count + 1, seconds + now - self._last)
        self._last = time.perf_counter()

    def clear(self) -> None:
        self._found.clear()

    def rows(self) -> list[Timing]:
        return [
            Timing(origin.plan, origin.index, origin.node.op, str(origin.node.loc or ""), runs, seconds)
            for origin, runs, seconds in self._found.values()
        ]


__all__ = ["Executable", "Timing"]
