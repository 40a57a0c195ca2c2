"""CUDA graphs of executables: what one run launches is recorded, and launched at once from then on.

What can be replayed at all is `planc.lower.replayable`'s to say. A recording reads and writes memory of its
own: inputs are copied into it, and what a caller gets is copied out of it. How a device is recorded stands
behind `Recording`; the one of torch.cuda was never run on a device so far.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from planc.ir.program import Program
from planc.lower.executable import Executable, Instance
from planc.lower.record import late
from planc.lower.replayable import Ahead, Verdict, judge
from planc.ops.guards import vouched

Tensors = list[torch.Tensor]

_torch: Any = torch
"""The names of torch that have no public spelling."""


class Recording(Protocol):
    """Work of a device that can be given to it again.

    Attributes:
        nbytes: bytes of the memory that it keeps, inputs not included.
    """

    nbytes: int

    def capture(self, run: Callable[[], Tensors]) -> Tensors:
        """Record what ``run`` launches; returns its results, in which there is nothing before a replay.

        Raises:
            Exception: it cannot be recorded; the device goes on as before.
        """
        ...

    def replay(self) -> None:
        """Queue all of it on the current stream: it reads what was read, and writes the results anew."""
        ...


class CudaRecording:
    """A `torch.cuda.CUDAGraph` with a memory pool and a stream of its own.

    While it captures, other threads may use the device, but not wait for the whole of it.
    """

    def __init__(self, device: torch.device) -> None:
        self.nbytes = 0
        self._graph = torch.cuda.CUDAGraph()
        self._device = device

    def capture(self, run: Callable[[], Tensors]) -> Tensors:
        with _capturing:
            stream = self._own_stream()
            stream.wait_stream(torch.cuda.current_stream(self._device))
            # The outer one brings the caller's stream back where a capture fails: torch's own does not then.
            with (
                torch.cuda.stream(stream),
                torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
            ):
                outputs = run()
        pool = tuple(self._graph.pool())
        segments = [s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) == pool]
        self.nbytes = sum(segment["total_size"] for segment in segments)
        return outputs

    def replay(self) -> None:
        self._graph.replay()

    def _own_stream(self) -> torch.cuda.Stream:
        """A stream that no other graph was captured on: graphs of one stream would share cuBLAS's workspace.

        They could not be replayed at once then, nor outlive one another (pytorch issue 193402).
        """
        for _ in range(_STREAMS):  # torch hands out a device's streams in turn
            stream = torch.cuda.Stream(self._device)
            name = self._device, stream.cuda_stream
            if name not in _taken:
                _taken.add(name)
                weakref.finalize(self, _taken.discard, name)
                return stream
        raise RuntimeError(f"each of the device's {_STREAMS} streams has a graph already")


_STREAMS = 32
"""Streams that torch has for a device."""
_taken: set[tuple[torch.device, int]] = set()
_capturing = threading.Lock()
"""torch captures one graph at a time."""

RECORDERS: dict[str, Callable[[torch.device], Recording]] = {"cuda": CudaRecording}
"""What records the work of a type of device."""


class GraphExecutable(Executable):
    """As `Executable`, but what its code launches is recorded once it has run, and replayed from then on.

    That is so for each set of buffers. Where it cannot be, runs are those of an `Executable`. A deadline does
    not end a replay.
    """

    def __init__(self, program: Program, bindings: Mapping[str, int], device: torch.device) -> None:
        super().__init__(program, bindings, device)
        recorder = RECORDERS.get(device.type)
        if recorder is None:
            verdict = Verdict(f"graphs are recorded on {', '.join(RECORDERS)}; it runs on {device.type}")
        else:
            verdict = judge(self._calls, program.graph, self._bindings, device)
        note = weakref.WeakMethod(self._note)
        self._shared = _Shared(verdict, lambda: RECORDERS[device.type](device), note)

    @property
    def refusal(self) -> str | None:
        """Why runs are not replayed; None where they are, or will be."""
        return self._shared.why

    def _instance(self) -> Instance:
        instance = super()._instance()
        if self._shared.why is None:
            instance.entry = _Replaying(instance, self._shared)
        return instance

    def _drop(self, instance: Instance) -> None:
        super()._drop(instance)
        if isinstance(instance.entry, _Replaying):
            self._note(-instance.entry.nbytes)

    def _note(self, nbytes: int) -> None:
        """Count the memory of a recording that came or went."""
        self._resize(0, nbytes)


class _Shared:
    """What the recordings of one executable have in common.

    Attributes:
        why: why there will be no more of them; None where there may be.
        ahead: what to check before a replay.
        recording: makes one.
    """

    def __init__(
        self, verdict: Verdict, recording: Callable[[], Recording], note: weakref.WeakMethod[Any]
    ) -> None:
        self.why = verdict.why
        self.ahead: Ahead = verdict.ahead
        self.recording = recording
        self._note = note  # weak, so that what is dropped is freed at once

    def note(self, nbytes: int) -> None:
        """Tell the executable of memory that a recording keeps."""
        note = self._note()
        if note is not None:
            note(nbytes)


class _Replaying:
    """What runs one set of buffers: its code, which is recorded when it has run, then the recording.

    Attributes:
        nbytes: bytes of the recording's memory.
    """

    def __init__(self, instance: Instance, shared: _Shared) -> None:
        self.nbytes = 0
        self._run, self._namespace, self._shared = instance.entry, instance.namespace, shared
        self._recording: Recording | None = None
        self._inputs: Tensors = []
        self._outputs: Tensors = []

    def __call__(self, *values: torch.Tensor) -> Tensors:
        if self._recording is not None:
            return self._replayed(self._recording, values)
        outputs = self._run(*values)  # which also has libraries prepare in this thread what a capture may not
        if self._shared.why is None:
            self._record(values)
        return outputs

    def _replayed(self, recording: Recording, values: Sequence[torch.Tensor]) -> Tensors:
        if time.perf_counter() > self._namespace["limit"]:
            raise late()
        _copy(values, self._inputs)
        self._shared.ahead(self._inputs)
        recording.replay()
        fresh = [torch.empty_like(output) for output in self._outputs]
        _copy(self._outputs, fresh)
        return fresh

    def _record(self, values: Sequence[torch.Tensor]) -> None:
        """Record the code on inputs of its own; where that fails, say why, and it is never tried again."""
        self._namespace["limit"] = float("inf")
        handled, run = sys.exception(), self._run
        try:
            inputs = [_alike(value) for value in values]
            _copy(values, inputs)
            recording = self._shared.recording()
            with vouched():  # for what is checked before replays
                outputs = recording.capture(lambda: run(*inputs))
        except Exception as error:
            self._shared.why = f"it could not be recorded: {_first(error, handled)}"
            return
        self._recording, self._inputs, self._outputs = recording, inputs, outputs
        self.nbytes = recording.nbytes + sum(t.nbytes for t in inputs)
        self._shared.note(self.nbytes)


def _alike(tensor: torch.Tensor) -> torch.Tensor:
    """Memory for a tensor with exactly these strides: kernels are chosen by them."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _copy(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    """Copy tensors onto others of the same types, those of one dtype at once: that takes few launches."""
    groups: defaultdict[torch.dtype, tuple[Tensors, Tensors]] = defaultdict(lambda: ([], []))
    for source, target in zip(sources, targets, strict=True):
        if source.numel():
            groups[source.dtype][0].append(target)
            groups[source.dtype][1].append(source)
    for group in groups.values():
        _torch._foreach_copy_(*group)


def _first(error: BaseException, handled: BaseException | None) -> str:
    """What went wrong first, ``handled`` apart: the end of a failed capture fails too, and says less."""
    while error.__context__ not in (None, handled):
        error = error.__context__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


__all__ = ["RECORDERS", "CudaRecording", "GraphExecutable", "Recording"]
