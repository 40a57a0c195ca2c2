"""From a Python function over flat tensors to torch's exported graph, by the one route that was found exact.

``make_fx`` with symbolic shapes, then ``torch.export`` of what it made, then its functional decompositions.
Nothing of the IR here, and no private API.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import permutations, zip_longest
from types import FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)

from planc.capture.dynamic import DynamicDims, stretched
from planc.capture.location import AfterCall, is_hidden, location_at, noting_locations, pointing, users_line
from planc.capture.refusals import VALUE_NEEDED
from planc.errors import CaptureError, PlancError
from planc.ir import Location, sym
from planc.ir.dims import evaluate
from planc.ir.dims import names as names_in

_LOGGERS = ("torch._subclasses.fake_tensor", "torch.export")
_MODULES = os.path.dirname(torch.nn.__file__) + os.sep

Flat = Callable[..., list[Any]]
Progress = Callable[[str, int], None]
"""Called with the stage of a long capture and how many calls of torch were traced so far."""


class TraceError(CaptureError):
    """torch itself could not run the code on these shapes."""


@contextmanager
def quiet() -> Generator[None]:
    """While active, torch's own noise is off: it logs what it also raises, and warns of its deprecations."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


alone = threading.RLock()
"""Tracing patches torch for the whole process: two at once spoil each other, and all that come after."""


def export(
    function: Flat,
    examples: Sequence[torch.Tensor],
    dynamic: DynamicDims,
    progress: Progress | None = None,
    watch: AfterCall | None = None,
) -> ExportedProgram:
    """Trace ``function`` over flat tensors; dims named by ``dynamic`` stay open, all others are fixed.

    ``watch`` is told of every call of torch that the code makes while it is traced.

    Returns:
        The exported program, whose user inputs are ``examples`` in order.

    Raises:
        CaptureError: the function needs a value, or branches on a varying dim, or torch cannot trace it;
            shows the user's own line.
    """
    fixed = {
        d
        for x, named in zip(examples, dynamic.names, strict=True)
        for i, d in enumerate(x.shape)
        if i not in named
    }
    free = dynamic.trace_sizes(fixed)
    sizes = dynamic.sizes_at(free)
    inputs = [stretched(x, named, sizes) for x, named in zip(examples, dynamic.names, strict=True)]
    symbols = _Symbols(dynamic)
    stages = _Stages(progress)

    def after_call(frame: FrameType, func: Any, args: tuple[Any, ...], result: Any) -> None:
        stages.count()
        symbols.watch(frame)
        if watch is not None:
            watch(frame, func, args, result)

    try:
        with alone, quiet():
            stages.begin("tracing")
            # oneDNN has layers of its own (a whole LSTM is one), which only its own kernels know.
            with (
                _as_named(inputs, dynamic, symbols),
                noting_locations(after_call),
                torch.backends.mkldnn.flags(enabled=False),
            ):
                # Tensors that the code brings along (no inputs, parameters or buffers) become constants.
                graph = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
            symbols.check_guards(free)
            stages.begin("exporting")
            shapes = tuple(
                {i: ExportDim.AUTO if i in named else ExportDim.STATIC for i in range(x.dim())}
                for x, named in zip(inputs, dynamic.names, strict=True)
            )
            program = torch.export.export(graph, tuple(inputs), dynamic_shapes=shapes, strict=False)
            stages.begin("decomposing")
            return program.run_decompositions({})
    except PlancError:
        raise
    except GuardOnDataDependentSymNode as error:
        raise CaptureError(pointing(VALUE_NEEDED, users_line(error))) from error
    except Exception as error:
        reason = symbols.named(_first_line(error))
        message = f"PyTorch could not trace this: {type(error).__name__}: {reason}"
        raise TraceError(pointing(message, users_line(error))) from error


@contextmanager
def _as_named(inputs: Sequence[torch.Tensor], dynamic: DynamicDims, symbols: _Symbols) -> Generator[None]:
    """While active, tracing takes the named dims of these tensors for symbols, and all others for numbers.

    Left to itself, make_fx makes a symbol of every dim, those of parameters too, and reasoning about their
    products takes most of the time of a capture.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_fallback_kernels=False, allow_non_fake_inputs=True)
    fakes: list[torch.Tensor] = []  # the mode remembers what it made of each input for as long as that lives
    for x, named in zip(inputs, dynamic.names, strict=True):
        if named:
            sizes = [DimDynamic.DUCK if i in named else DimDynamic.STATIC for i in range(x.dim())]
            fakes.append(mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(sizes)))
        else:
            fakes.append(mode.from_tensor(x, static_shapes=True))
    symbols.note(fakes)
    with mode:
        yield
    fakes.clear()


class _Stages:
    """Tells the caller where a capture is, not more often than a person can read."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._calls = 0

    def begin(self, stage: str) -> None:
        if self._progress is not None:
            self._progress(stage, self._calls)

    def count(self) -> None:
        self._calls += 1
        if self._calls % 100 == 0:
            self.begin("tracing")


class _Symbols:
    """What torch's symbols are in the user's terms: what the varying dims are called."""

    def __init__(self, dynamic: DynamicDims) -> None:
        self._dynamic = dynamic
        self._varying: dict[Any, str] = {}
        self._guards: list[Any] = []
        self._places: list[Location | None] = []
        """The user's line below which each guard came up."""

    def note(self, fakes: Sequence[torch.Tensor]) -> None:
        """Read the symbols off the inputs before the code can have fixed any; relate them as the dims are."""
        named = [
            (called, x.shape[i])
            for x, names in zip(fakes, self._dynamic.names, strict=True)
            for i, called in names.items()
        ]
        by_name: dict[str, Any] = {}
        for called, size in named:
            if isinstance(size, torch.SymInt):
                self._guards = size.node.shape_env.guards
                self._varying[size.node.expr] = called
                meaning = self._dynamic.meaning(called)
                if meaning == sym(str(meaning)):
                    by_name.setdefault(str(meaning), size)
        for called, size in named:
            meaning = self._dynamic.meaning(called)
            if all(name in by_name for name in names_in(meaning)):
                assert size == evaluate(meaning, by_name)  # which torch then takes for granted

    def watch(self, frame: FrameType | None) -> None:
        """Note whose line brought up the guards that are new since the last call."""
        if len(self._guards) > len(self._places):
            self._places += [location_at(frame)] * (len(self._guards) - len(self._places))

    def named(self, message: str) -> str:
        """A message of torch's with the user's names for its symbols."""
        known = {str(s): name for s, name in self._varying.items()}
        return re.sub(r"\bs\d+\b", lambda found: known.get(found[0], found[0]), message)

    def check_guards(self, sizes: Mapping[str, int]) -> None:
        """Refuse code that took a branch on a varying dim: another size would have taken the other branch.

        Every guard that tracing met in the user's code, or in a module of torch.nn, is tried at sizes across
        the range of each varying dim. Guards of torch's kernels choose between implementations of one result.
        """
        for guard, below in zip_longest(self._guards, self._places):
            place = _place(guard)
            rest = guard.expr
            if place is None and not _fixes_a_size(rest):
                continue
            if place is None or is_hidden(place.file):
                place = below or place
            for name in dict.fromkeys(
                name
                for symbol in rest.free_symbols
                if symbol in self._varying
                for name in names_in(self._dynamic.meaning(self._varying[symbol]))
            ):
                lo, hi = self._dynamic.range_of(name)
                for trial in sorted({max(lo, 2), 3, 5, 8, 64, 1000, hi}):
                    at = {**sizes, name: trial}
                    if lo <= trial <= hi and self._dynamic.allow(at, least=2) and self._fails(rest, at):
                        raise CaptureError(self._branched(rest, name, trial, place))

    def _fails(self, expression: Any, sizes: Mapping[str, int]) -> bool:
        found = self._dynamic.sizes_at(sizes)
        values = {symbol: found[called] for symbol, called in self._varying.items()}
        return expression.subs(values) == False  # noqa: E712 -- a sympy truth value

    def _branched(self, expression: Any, name: str, trial: int, place: Location | None) -> str:
        asked = expression.subs({s: type(s)(called) for s, called in self._varying.items()})
        sign = {"Equality": "==", "Unequality": "!="}.get(type(asked).__name__)
        condition = f"{asked.lhs} {sign} {asked.rhs}" if sign else str(asked)
        return pointing(
            f"the code depends on the size of dim {name} ({condition}): with {name} = {trial} it would do "
            f"something else. Give the dim a range in which it does not, ranges={{{name!r}: (lo, hi)}}, "
            "or fix it, dynamic=False",
            place,
        )


def _fixes_a_size(guard: Any) -> bool:
    """Whether a guard says that one symbol is one number, so that all that follows is for that size alone."""
    return type(guard).__name__ == "Equality" and any(
        a.is_Symbol and b.is_Integer for a, b in permutations(guard.args)
    )


def _place(guard: Any) -> Location | None:
    """Where the code asked, if that is code whose meaning may hang on it."""
    frame = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    if not isinstance(frame, traceback.FrameSummary) or frame.lineno is None:
        return None
    if is_hidden(frame.filename) and not frame.filename.startswith(_MODULES):
        return None
    return Location(frame.filename, frame.lineno, frame.line or "")


_MISFIT = re.compile(
    r"Attempting to broadcast a dimension of length .* had torch\.Size\((.*)\); "
    r"but expected shape should be broadcastable to (.*)"
)
"""What torch says of sizes that are numbers, in words about its own affairs."""


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return _MISFIT.sub(r"tensors of shapes \2 and \1 cannot be broadcast to one shape", line)
