"""Whether a plan can be replayed without the host's looking at data; why not, and what to check ahead.

A replay runs what was launched once, on the same memory. So nothing may be taken out of tensors on the way:
no number that decides what is launched, no check of data, no number drawn on the CPU. Checks of the plan's
inputs can be made before it all the same. Runs no plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from planc.ir import Graph, Role, Value
from planc.ir.binding import bind
from planc.lower.calls import Call, Calls, static
from planc.lower.direct import Made, direct
from planc.lower.record import batch_types, failed, trips_of
from planc.ops import Trait
from planc.ops.bounds import check_ahead, has_bounds, looked_at, unchecked
from planc.ops.structured import scan_operands, subplan_of

MOST = 10_000
"""Calls of a plan that is replayed, every trip of its scans counted: each keeps memory in a graph."""
_LOOKING = {
    "aten.adaptive_max_pool2d_backward",
    "aten.adaptive_max_pool3d_backward",
    "aten.grid_sampler_2d",
    "aten.grid_sampler_2d_backward",
    "aten.max_pool2d_with_indices_backward",
    "aten.max_pool3d_with_indices_backward",
}
"""Ops whose callables look at data, which are seldom a plan's inputs."""

Bindings = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Ahead:
    """The checks of data to make before a replay: of a plan's inputs and of views of them.

    Attributes:
        inputs: the numbers of the values that the inputs are.
        views: the calls that make the views, in order.
        checks: the calls whose data are checked, with what stands for the operands that are not looked at.
    """

    inputs: tuple[int, ...] = ()
    views: tuple[Call, ...] = ()
    checks: tuple[tuple[Call, tuple[Any, ...]], ...] = ()

    def __call__(self, values: Sequence[torch.Tensor]) -> None:
        """Check the inputs of a run.

        Raises:
            ExecutionError: an op would have refused them; as it would have been said there.
        """
        if not self.checks:
            return
        env = dict(zip(self.inputs, values, strict=True))
        for call in self.views:
            made = call.run(*(_read(env, operand) for operand in call.operands), **call.attrs)
            results = made if isinstance(made, (tuple, list)) else (made,)
            env.update(zip((result.index for result in call.results), results, strict=True))
        for call, operands in self.checks:
            try:
                check_ahead(call.op, [_read(env, operand) for operand in operands], call.attrs)
            except Exception as error:
                raise failed(call.origin, error) from error


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a plan can be replayed.

    Attributes:
        why: why not; None where it can.
        ahead: what to check before each replay.
    """

    why: str | None
    ahead: Ahead = field(default_factory=Ahead)


def judge(calls: Calls, graph: Graph, bindings: Bindings, device: torch.device) -> Verdict:
    """Say whether a graph at these sizes can be replayed on a device, and if not, why."""
    for port in graph.inputs:
        if port.role is Role.KEY:
            return Verdict(f"input {port.path!r} is a random key: numbers are drawn from it on the CPU")
    ahead, seen_to = _foresee(graph, calls.of(graph, bindings), bindings)
    total = 0
    for call, made, sizes, times in _runs(calls, graph, bindings):
        total += times
        why = None if id(call) in seen_to else _looks(call, made, sizes, device)
        if why is not None:
            where = call.origin
            return Verdict(f"plan {where.plan!r}, node {where.index}: {call.op} {why}")
    if total > MOST:
        return Verdict(f"it makes {total} calls in a run, and those of a graph are {MOST} at most")
    return Verdict(None, ahead)


def _runs(
    calls: Calls, graph: Graph, bindings: Bindings, times: int = 1
) -> Iterator[tuple[Call, Made, Bindings, int]]:
    """Every call of a graph and of the plans in it; the calls before it, its sizes, and how often it runs."""
    made: dict[int, Call] = {}
    for call in calls.of(graph, bindings):
        if call.definition is not None:
            yield call, made, bindings, times
        for body, sizes, count in _bodies(graph, call, bindings):
            yield from _runs(calls, body, sizes, times * count)
        made.update((result.index, call) for result in call.results)


def _bodies(graph: Graph, call: Call, bindings: Bindings) -> Iterator[tuple[Graph, Bindings, int]]:
    """The plans that a structured call runs, at their sizes, and how often."""
    if call.op == "call":
        plan = subplan_of(graph, call.origin.node)
        yield plan, bind(plan, [static(v.type, bindings) for v in call.values()]), 1
    elif call.op == "scan":
        plan, trips = subplan_of(graph, call.origin.node), trips_of(call, bindings)
        carry, over, given = (
            [static(v.type, bindings) for v in group] for group in scan_operands(call.origin.node)
        )
        for count, length in ((trips.whole, trips.size), (1 if trips.rest else 0, trips.rest)):
            if count:
                yield plan, bind(plan, [*carry, *batch_types(over, length), *given]), count


def _looks(call: Call, made: Made, bindings: Bindings, device: torch.device) -> str | None:
    """What a call has to do on the host, if anything."""
    if call.has(Trait.RANDOM):
        return "draws its numbers on the CPU"
    if call.has(Trait.OPTIMIZER):
        return _takes(call)
    if looked_at(call.op) is not None and (not has_bounds(call.op) or unchecked(device)):
        return "has data checked that are neither inputs of the plan nor views of them"
    if call.op in _LOOKING and direct(call, bindings, False, False, made) is None:
        return "looks at its data on the host"
    return None


def _takes(call: Call) -> str | None:
    """What an update of an optimizer takes out of tensors, to compute with as with Python's numbers."""
    assert call.definition is not None
    operands = {p.name: operand for p, operand in zip(call.definition.operands, call.operands, strict=True)}
    if operands.get("steps"):
        return "takes the number of its steps out of a tensor"
    if isinstance(operands.get("lr"), Value):
        return "takes its learning rate out of a tensor"
    return None


# -- checks ahead -----------------------------------


def _foresee(graph: Graph, calls: Sequence[Call], bindings: Bindings) -> tuple[Ahead, set[int]]:
    """The checks that can be made ahead, and the ids of the calls that they are for.

    What depends on no input was checked in the run before, and is the same in each.
    """
    fixed = {constant.value.index for constant in graph.constants}
    inputs = tuple(port.value.index for port in graph.inputs)
    seen = set(inputs)
    views: list[Call] = []
    checks: list[tuple[Call, tuple[Any, ...]]] = []
    seen_to: set[int] = set()
    for call in calls:
        position, data = looked_at(call.op), {v.index for v in _looked_at(call)}
        if position is not None:
            if data <= fixed:
                seen_to.add(id(call))
            elif data <= seen:
                seen_to.add(id(call))
                checks.append((call, _standing_in(call, position, bindings)))
        read, results = {v.index for v in call.values()}, {r.index for r in call.results}
        if call.definition is not None and not call.has(Trait.RANDOM) and read <= fixed:
            fixed |= results
        elif call.has(Trait.VIEW) and read <= seen:
            views.append(call)
            seen |= results
    return Ahead(inputs, _needed(views, [call for call, _ in checks]), tuple(checks)), seen_to


def _needed(views: Sequence[Call], checked: Sequence[Call]) -> tuple[Call, ...]:
    """The views that calls are checked by, in order."""
    read = {v.index for call in checked for v in _looked_at(call)}
    kept: list[Call] = []
    for view in reversed(views):
        if any(result.index in read for result in view.results):
            kept.append(view)
            read.update(v.index for v in view.values())
    return tuple(reversed(kept))


def _looked_at(call: Call) -> list[Value]:
    """The values that are checked before a call."""
    position = looked_at(call.op)
    operand = None if position is None else call.operands[position]
    items: tuple[Any, ...] = operand if isinstance(operand, tuple) else (operand,)
    return [item for item in items if isinstance(item, Value)]


def _standing_in(call: Call, position: int, bindings: Bindings) -> tuple[Any, ...]:
    """A call's operands; for those that are not looked at, tensors of their shapes alone."""
    return tuple(
        torch.empty(operand.type.at(bindings), dtype=operand.type.dtype.torch, device="meta")
        if isinstance(operand, Value) and place != position
        else operand
        for place, operand in enumerate(call.operands)
    )


def _read(env: Mapping[int, torch.Tensor], operand: Any) -> Any:
    if isinstance(operand, Value):
        return env[operand.index]
    if isinstance(operand, tuple):
        items: tuple[Value | None, ...] = operand
        return [None if item is None else env[item.index] for item in items]
    return operand


__all__ = ["MOST", "Ahead", "Verdict", "judge"]
