"""Bind a plan's named dims to the sizes of concrete input types, and check that these fit.

It sees no tensors: `planc.lower.bind` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from planc.errors import InputError
from planc.ir.dims import Dim, DimExpr, evaluate, names, show, solve
from planc.ir.graph import DimVar, Graph, Input
from planc.ir.types import TensorType


def bind(graph: Graph, types: Sequence[TensorType]) -> dict[str, int]:
    """The size of every named dim, from the types of concrete inputs.

    Args:
        graph: the plan that is called.
        types: one static type for each input of ``graph.inputs``, in order.

    Raises:
        InputError: wrong count, dtype, rank or size; a dim outside its range or with two sizes. Names the
            input, what it wants and what it got.
    """
    if len(types) != len(graph.inputs):
        raise InputError(f"plan {graph.name!r} takes {len(graph.inputs)} inputs, got {len(types)}")
    pairs = list(zip(graph.inputs, types, strict=True))
    for port, got in pairs:
        want = port.value.type
        if want.dtype is not got.dtype:
            raise _misfit(graph, port, got, f"the dtype is {got.dtype}, not {want.dtype}")
        if want.rank != got.rank:
            raise _misfit(graph, port, got, f"the rank is {got.rank}, not {want.rank}")
    bindings: dict[str, int] = {}
    origins: dict[str, Input] = {}
    while _bind_more(pairs, bindings, origins):
        pass
    for var in graph.dims:
        if var.name in bindings:
            check_range(graph, var, bindings[var.name], f" (from input {describe(origins[var.name])})")
    for port, got in pairs:
        for axis, (want, size) in enumerate(zip(port.value.type.shape, got.shape, strict=True)):
            _check_size(graph, port, got, axis, want, size, bindings, origins)
    missing = [var.name for var in graph.dims if var.name not in bindings]
    if missing:
        raise InputError(f"plan {graph.name!r}: no input determines dim {', '.join(missing)}")
    return bindings


def check_range(graph: Graph, var: DimVar, size: int, origin: str = "") -> None:
    """Check that a dim's size is within the range that the plan declares.

    Raises:
        InputError: it is not; names the dim, the range and the size.
    """
    if not var.lo <= size <= var.hi:
        raise InputError(
            f"plan {graph.name!r}: dim {var.name} is {size}{origin}, outside its range {var.lo}..{var.hi}"
        )


def _bind_more(
    pairs: Iterable[tuple[Input, TensorType]], bindings: dict[str, int], origins: dict[str, Input]
) -> bool:
    """Bind each name that one more dim determines; whether there was any."""
    before = len(bindings)
    dims = [
        (port, want, size)
        for port, got in pairs
        for want, size in zip(port.value.type.shape, got.shape, strict=True)
        if isinstance(want, DimExpr) and isinstance(size, int)
    ]
    # A bare name decides before an expression does: its message is the one that people understand.
    for port, want, size in sorted(dims, key=lambda item: not show(item[1]).isidentifier()):
        try:
            found = solve(want, size, bindings)
        except ZeroDivisionError:
            found = None
        if found is not None and found[0] not in bindings:
            bindings[found[0]] = found[1]
            origins[found[0]] = port
    return len(bindings) > before


def _check_size(
    graph: Graph,
    port: Input,
    got: TensorType,
    axis: int,
    want: Dim,
    size: Dim,
    bindings: Mapping[str, int],
    origins: Mapping[str, Input],
) -> None:
    used = sorted(set(names(want)))
    unknown = [name for name in used if name not in bindings]
    if unknown:
        raise _misfit(graph, port, got, f"no size of {', '.join(unknown)} fits dimension {axis}")
    try:
        wanted = evaluate(want, bindings)
    except ZeroDivisionError:
        raise _misfit(graph, port, got, f"dimension {axis} is {show(want)}, which divides by zero") from None
    if wanted == size:
        return
    because = ", ".join(f"{name} = {bindings[name]} from input {describe(origins[name])}" for name in used)
    expected = f"{show(want)} = {wanted} ({because})" if used else str(wanted)
    raise _misfit(graph, port, got, f"dimension {axis} is {size}, not {expected}")


def _misfit(graph: Graph, port: Input, got: TensorType, why: str) -> InputError:
    where = f"plan {graph.name!r}: input {describe(port)}"
    return InputError(f"{where} wants {port.value.type}, got {got}: {why}")


def describe(port: Input) -> str:
    """An input as messages name it: its name, and the user's path where that differs."""
    return repr(port.name) if port.path == port.name else f"{port.name!r} ({port.path})"
