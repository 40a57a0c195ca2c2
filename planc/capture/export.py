"""From a Python function over flat tensors to torch's exported graph, by the one route that was found exact.

``make_fx`` with symbolic shapes, then ``torch.export`` of what it made, then its functional decompositions.
Nothing of the IR here, and no private API.
"""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from planc.capture.dynamic import DynamicDims, stretched
from planc.capture.location import is_hidden, noting_locations, pointing, users_line
from planc.errors import CaptureError, PlancError
from planc.ir import Location

_LOGGERS = ("torch._subclasses.fake_tensor", "torch.export")
_MODULES = os.path.dirname(torch.nn.__file__) + os.sep

Flat = Callable[..., list[Any]]


class TraceError(CaptureError):
    """torch itself could not run the code on these shapes."""


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs what it also raises, and warns of its own deprecations; a user's warnings repeat at run time."""
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


def export(
    function: Flat, examples: Sequence[torch.Tensor], dynamic: DynamicDims
) -> ExportedProgram:
    """Trace ``function`` over flat tensors; dims named by ``dynamic`` stay open, all others are fixed.

    Returns:
        The exported program, whose user inputs are ``examples`` in order.

    Raises:
        CaptureError: the function branches on data or on a varying dim, or torch cannot trace it; shows the
            user's own line.
    """
    fixed = {d for x, named in zip(examples, dynamic.names, strict=True)
             for i, d in enumerate(x.shape) if i not in named}
    sizes = dynamic.trace_sizes(fixed)
    inputs = [stretched(x, named, sizes) for x, named in zip(examples, dynamic.names, strict=True)]
    try:
        with _quiet():
            with noting_locations():
                graph = make_fx(function, tracing_mode="symbolic")(*inputs)
            _check_guards(graph, dynamic, sizes)
            shapes = tuple(
                {i: ExportDim.AUTO if i in named else ExportDim.STATIC for i in range(x.dim())}
                for x, named in zip(inputs, dynamic.names, strict=True)
            )
            program = torch.export.export(graph, tuple(inputs), dynamic_shapes=shapes, strict=False)
            return program.run_decompositions({})
    except PlancError:
        raise
    except GuardOnDataDependentSymNode as error:
        raise CaptureError(
            pointing(
                "the code branches on the value of a tensor, which a plan cannot do; "
                "use torch.where, or a mask, so that both sides are computed",
                users_line(error),
            )
        ) from error
    except Exception as error:
        raise TraceError(
            pointing(f"PyTorch could not trace this: {type(error).__name__}: {_first_line(error)}", users_line(error))
        ) from error


def _check_guards(graph: torch.fx.GraphModule, dynamic: DynamicDims, sizes: Mapping[str, int]) -> None:
    """Refuse code that took a branch on a varying dim: another size would have taken the other branch.

    Every guard that tracing met in the user's code, or in a module of torch.nn, is tried at sizes across the
    range of each varying dim. Guards of torch's kernels choose between implementations of one result.
    """
    environment: Any = getattr(graph, "shape_env", None)
    if environment is None:
        return
    symbols: dict[Any, str] = {}
    fixed: dict[Any, int] = {}
    by_size = {size: name for name, size in sizes.items()}
    for node in graph.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):
            for size in node.meta["val"].shape:
                if isinstance(size, torch.SymInt):
                    hint = size.node.hint
                    if hint in by_size:
                        symbols[size.node.expr] = by_size[hint]
                    else:
                        fixed[size.node.expr] = hint
    for guard in environment.guards:
        place = _place(guard)
        if place is None:
            continue
        rest = guard.expr.subs(fixed)
        free = [s for s in rest.free_symbols if s in symbols]
        for symbol in free:
            lo, hi = dynamic.range_of(symbols[symbol])
            for trial in sorted({max(lo, 2), 3, 5, 8, 64, 1000, hi}):
                if max(lo, 2) <= trial <= hi and _fails(rest, symbols, sizes, symbol, trial):
                    raise CaptureError(_branched(symbols, rest, symbol, trial, place))


def _fails(expression: Any, symbols: Mapping[Any, str], sizes: Mapping[str, int], symbol: Any, trial: int) -> bool:
    values = {s: sizes[name] for s, name in symbols.items()}
    values[symbol] = trial
    return expression.subs(values) == False  # noqa: E712 -- a sympy truth value


def _place(guard: Any) -> Location | None:
    """Where the code asked, if that is code whose meaning may hang on it."""
    frame = getattr(getattr(guard, "sloc", None), "framework_loc", None)
    if not isinstance(frame, traceback.FrameSummary) or frame.lineno is None:
        return None
    if is_hidden(frame.filename) and not frame.filename.startswith(_MODULES):
        return None
    return Location(frame.filename, frame.lineno, frame.line or "")


def _branched(symbols: Mapping[Any, str], expression: Any, symbol: Any, trial: int, place: Location) -> str:
    name = symbols[symbol]
    condition = expression.subs({s: type(s)(known) for s, known in symbols.items()})
    return pointing(
        f"the code depends on the size of dim {name} ({condition}): with {name} = {trial} it would do something "
        f"else. Give the dim a range in which it does not, ranges={{{name!r}: (lo, hi)}}, or fix it",
        place,
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


