"""The messages that install, find and run plans. What it may touch is decided here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from planc.errors import InputError
from planc.ir import Graph, Input, Role
from planc.ir.binding import describe
from runtime.call import Call, require_unique
from runtime.messages import (
    Done,
    Drop,
    FetchPlan,
    Handle,
    Install,
    Keep,
    PlanBytes,
    PlanInfo,
    Plans,
    PlansFound,
    Return,
    Run,
    Slot,
    Uninstall,
    Update,
    Values,
)
from runtime.policy import Secrecy, derive, derive_approved
from runtime.store import Stored


def _install(call: Call, body: Install) -> Done:
    constants = {name: call.slot_to_keep(slot) for name, slot in body.constants.items()}
    call.site.shelf.install(body.plan_id, body.plan, constants, call.client, body.tags, body.description)
    return Done()


def _fetch_plan(call: Call, body: FetchPlan) -> PlanBytes:
    installed = call.site.shelf.get(body.plan_id)
    slots = {name: call.attach(tensor) for name, tensor in installed.program.constants.items()}
    return PlanBytes(installed.data, slots)


def _plans(call: Call, body: Plans) -> PlansFound:
    found = call.site.shelf.search(body.tags, call.client)
    return PlansFound(
        tuple(PlanInfo(id, p.program.graph.name, tuple(p.tags), p.description) for id, p in found)
    )


def _uninstall(call: Call, body: Uninstall) -> Done:
    for id in body.plan_ids:
        call.site.shelf.uninstall(id, call.client)
    return Done()


def _run(call: Call, body: Run) -> Values:
    """Compute everything, then commit it: what fails before the commit has changed nothing."""
    installed = call.site.shelf.get(body.plan_id)
    graph = installed.program.graph
    wishes = _wishes(graph, body)
    bound = _bind(call, graph, body, wishes)
    _check_ids(call, wishes, bound)
    sources = [*bound.secrecies]
    secrecy = derive_approved(sources) if body.plan_id in call.site.approved else derive(sources)
    if any(isinstance(wish, Return) for wish in wishes):
        call.require_having(call.client, secrecy, f"the result of plan {graph.name!r} on private inputs")
    run = call.site.executor.run_with_grad if body.grad else call.site.executor.run
    outputs = run(body.plan_id, installed.program, bound.tensors)
    puts, items = _place(call, graph, wishes, bound, outputs, secrecy)
    call.site.store.commit(puts)
    return Values(tuple(items))


Wish = Keep | Return | Drop | Update


@dataclass(frozen=True, slots=True)
class _Bound:
    """The inputs of a run; ``state`` holds, by role and path, the object that an update replaces."""

    tensors: list[torch.Tensor]
    secrecies: list[Secrecy]
    state: dict[tuple[Role, str], tuple[int, Stored]]


def _wishes(graph: Graph, body: Run) -> list[Wish]:
    """What becomes of each output, in the graph's order."""
    results, updates = graph.results(), graph.updates()
    if len(body.results) != len(results):
        raise InputError(f"plan {graph.name!r} has {len(results)} results, got {len(body.results)}")
    if body.updates and len(body.updates) != len(updates):
        raise InputError(f"plan {graph.name!r} updates {len(updates)} state tensors, got {len(body.updates)}")
    for_results = iter(body.results)
    for_updates = iter(body.updates or (Update(),) * len(updates))
    return [next(for_updates) if port.role.is_state else next(for_results) for port in graph.outputs]


def _bind(call: Call, graph: Graph, body: Run, wishes: Sequence[Wish]) -> _Bound:
    if len(body.inputs) != len(graph.inputs):
        raise InputError(f"plan {graph.name!r} takes {len(graph.inputs)} inputs, got {len(body.inputs)}")
    replaced = {
        (port.role, port.path)
        for port, wish in zip(graph.outputs, wishes, strict=True)
        if isinstance(wish, Update)
    }
    bound = _Bound([], [], {})
    for port, argument in zip(graph.inputs, body.inputs, strict=True):
        given = call.given(argument)
        # Without autograd a result must not hold on to what computed its inputs; nor ever to another's.
        bound.tensors.append(given.tensor if body.grad and given.owned else given.tensor.detach())
        bound.secrecies.append(given.secrecy)
        if (port.role, port.path) in replaced:
            id = _state_id(graph, port, argument)
            bound.state[port.role, port.path] = id, call.change(id)
    return bound


def _state_id(graph: Graph, port: Input, argument: Handle | Slot) -> int:
    if isinstance(argument, Slot):
        raise InputError(
            f"plan {graph.name!r}: input {describe(port)} is state that the run replaces: expected an object "
            "at the worker, got a tensor in the message"
        )
    return argument.id


def _check_ids(call: Call, wishes: Sequence[Wish], bound: _Bound) -> None:
    kept = [wish.id for wish in wishes if isinstance(wish, Keep)]
    require_unique([*kept, *(id for id, _ in bound.state.values())])
    call.require_writable(kept)


def _place(
    call: Call,
    graph: Graph,
    wishes: Sequence[Wish],
    bound: _Bound,
    outputs: Sequence[torch.Tensor],
    secrecy: Secrecy,
) -> tuple[dict[int, Stored], list[Slot]]:
    """What to put, and what to send back. Each output becomes a tensor object of its own."""
    puts: dict[int, Stored] = {}
    items: list[Slot] = []
    for port, wish, output in zip(graph.outputs, wishes, outputs, strict=True):
        if isinstance(wish, Update):
            id, old = bound.state[port.role, port.path]
            puts[id] = old.updated(output.detach(), secrecy)
        elif isinstance(wish, Keep):
            # An object of its own: with autograd an output may be an input, or another output.
            kept = output.view_as(output) if output.requires_grad else output.detach()
            puts[wish.id] = Stored(kept, call.client, secrecy=secrecy)
        elif isinstance(wish, Return):
            items.append(call.attach(output))
    return puts, items


HANDLERS: dict[type, Callable[..., Any]] = {
    Install: _install,
    FetchPlan: _fetch_plan,
    Plans: _plans,
    Uninstall: _uninstall,
    Run: _run,
}
