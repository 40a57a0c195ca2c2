"""Bind a plan's named dims to the sizes of concrete input types, and check that these fit.

It sees no tensors: `planc.lower.bind` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from planc.errors import InputError
from planc.ir.dims import Dim, DimExpr, evaluate, names, show, solve, sym
from planc.ir.graph import DimVar, Graph, Input
from planc.ir.types import TensorType


def bind(graph: Graph, types: Sequence[TensorType]) -> dict[str, int]:
    """The size of every named dim, from the types of concrete inputs.

    Args:
        graph: the plan that is called.
        types: one static type for each input of ``graph.inputs``, in order.

    Raises:
        InputError: wrong count, dtype, rank or size; a dim outside its range or with two sizes; dims that are
            not related as the plan says. Names the inputs, what they want and what they got.
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
    origins: dict[str, _Origin] = {}
    while _bind_more(pairs, bindings, origins) or _bind_related(graph, bindings, origins):
        pass
    for var in graph.dims:
        if var.name in bindings:
            check_range(graph, var, bindings[var.name], f" (from input {describe(origins[var.name].port)})")
    for port, got in pairs:
        for axis, (want, size) in enumerate(zip(port.value.type.shape, got.shape, strict=True)):
            _check_size(graph, port, got, axis, want, size, bindings, origins)
    check_relations(graph, bindings, {name: f" from {origin}" for name, origin in origins.items()})
    missing = [var.name for var in graph.dims if var.name not in bindings]
    if missing:
        raise InputError(f"plan {graph.name!r}: no input determines dim {', '.join(missing)}")
    return bindings


def sizes_of(graph: Graph, given: Mapping[str, int]) -> dict[str, int]:
    """The size of every named dim, from those that are given: what the plan's relations say of the rest.

    Raises:
        InputError: a size is missing, outside its range, not related as the plan says, or for a dim that the
            plan does not have.
    """
    known = {var.name for var in graph.dims}
    unknown = [name for name in given if name not in known]
    if unknown:
        have = ", ".join(sorted(known)) or "none"
        raise InputError(f"plan {graph.name!r} has no dim {', '.join(unknown)}; its dims: {have}")
    sizes = solved(graph, given)
    missing = [var.name for var in graph.dims if var.name not in sizes]
    if missing:
        raise InputError(f"plan {graph.name!r}: give a size for dim {', '.join(missing)}")
    check_relations(graph, sizes, {})
    for var in graph.dims:
        check_range(graph, var, sizes[var.name])
    return sizes


def solved(graph: Graph, given: Mapping[str, int]) -> dict[str, int]:
    """The given sizes, and those that follow from them by the plan's relations."""
    sizes = dict(given)
    while _bind_related(graph, sizes, {}):
        pass
    return sizes


def check_relations(graph: Graph, sizes: Mapping[str, int], origins: Mapping[str, str]) -> None:
    """Check that sizes are related as the plan says, as far as they are known.

    Args:
        graph: the plan.
        sizes: the sizes of dims by name.
        origins: for messages, where each is from (`` from input 'x'``).

    Raises:
        InputError: two sides differ; names the relation, and each dim with its size and origin.
    """
    for var in graph.dims:
        if var.equals is None:
            continue
        used = [var.name, *dict.fromkeys(names(var.equals))]
        told = ", ".join(f"{name} = {sizes[name]}{origins.get(name, '')}" for name in used if name in sizes)
        what = f"plan {graph.name!r} wants {var.name} == {show(var.equals)}"
        if any(name not in sizes for name in used):
            rest = ", ".join(name for name in used if name not in sizes)
            raise InputError(f"{what}, and no size of {rest} fits {told}")
        try:
            wanted = evaluate(var.equals, sizes)
        except ZeroDivisionError:
            raise InputError(f"{what}, which divides by zero where {told}") from None
        if wanted != sizes[var.name]:
            raise InputError(f"{what}, got {told}")


def check_range(graph: Graph, var: DimVar, size: int, origin: str = "") -> None:
    """Check that a dim's size is within the range that the plan declares.

    Raises:
        InputError: it is not; names the dim, the range and the size.
    """
    if not var.lo <= size <= var.hi:
        raise InputError(
            f"plan {graph.name!r}: dim {var.name} is {size}{origin}, outside its range {var.lo}..{var.hi}"
        )


@dataclass(frozen=True, slots=True)
class _Origin:
    """The input whose type told a dim, as messages name it."""

    port: Input
    type: TensorType

    def __str__(self) -> str:
        return f"input {describe(self.port)}: {self.type}"


def _bind_related(graph: Graph, bindings: dict[str, int], origins: dict[str, _Origin]) -> bool:
    """Bind each name that the relations between dims determine; whether there was any."""
    before = len(bindings)
    for var in graph.dims:
        if var.equals is None:
            continue
        try:
            found = solve(var.equals - sym(var.name), 0, bindings)
        except ZeroDivisionError:
            found = None
        if found is not None:
            bindings[found[0]] = found[1]
            known = [name for name in (var.name, *names(var.equals)) if name in origins]
            if known:
                origins[found[0]] = origins[known[0]]
    return len(bindings) > before


def _bind_more(
    pairs: Iterable[tuple[Input, TensorType]], bindings: dict[str, int], origins: dict[str, _Origin]
) -> bool:
    """Bind each name that one more dim determines; whether there was any."""
    before = len(bindings)
    dims = [
        (port, got, want, size)
        for port, got in pairs
        for want, size in zip(port.value.type.shape, got.shape, strict=True)
        if isinstance(want, DimExpr) and isinstance(size, int)
    ]
    # A bare name decides before an expression does: its message is the one that people understand.
    for port, got, want, size in sorted(dims, key=lambda item: not show(item[2]).isidentifier()):
        try:
            found = solve(want, size, bindings)
        except ZeroDivisionError:
            found = None
        if found is not None and found[0] not in bindings:
            bindings[found[0]] = found[1]
            origins[found[0]] = _Origin(port, got)
    return len(bindings) > before


def _check_size(
    graph: Graph,
    port: Input,
    got: TensorType,
    axis: int,
    want: Dim,
    size: Dim,
    bindings: Mapping[str, int],
    origins: Mapping[str, _Origin],
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
    because = ", ".join(
        f"{name} = {bindings[name]} from input {describe(origins[name].port)}" for name in used
    )
    expected = f"{show(want)} = {wanted} ({because})" if used else str(wanted)
    raise _misfit(graph, port, got, f"dimension {axis} is {size}, not {expected}")


def _misfit(graph: Graph, port: Input, got: TensorType, why: str) -> InputError:
    where = f"plan {graph.name!r}: input {describe(port)}"
    return InputError(f"{where} wants {port.value.type}, got {got}: {why}")


def describe(port: Input) -> str:
    """An input as messages name it: its name, and the user's path where that differs."""
    return repr(port.name) if port.path == port.name else f"{port.name!r} ({port.path})"
