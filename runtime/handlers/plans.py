"""The messages that install, find and run plans. What it may touch is decided here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from planc.errors import InputError
from planc.ir import Graph, Input, Role
from planc.ir.binding import describe
from planc.ir.program import Program
from planc.lower.bind import bind_tensors
from planc.ops.apply import apply
from runtime.access.admission import denied
from runtime.access.approvals import Bound
from runtime.access.release import Clearance, clear
from runtime.call import Call, require_unique
from runtime.concealment import conceal, plan_stand_ins, quietly
from runtime.errors import PermissionDenied, QuotaExceeded
from runtime.messages import (
    Done,
    Drop,
    FetchPlan,
    Gradient,
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
from runtime.policy import Right, Secrecy
from runtime.shelf import Installed
from runtime.store import Stored


def _install(call: Call, body: Install) -> Done:
    constants = {name: call.slot_to_keep(slot) for name, slot in body.constants.items()}
    call.site.shelf.install(
        body.plan_id,
        body.plan,
        constants,
        call.client,
        body.tags,
        body.description,
        lambda plan: _accept(call, plan),
    )
    return Done()


def _accept(call: Call, plan: Installed) -> None:
    """Check that a client may install a plan of this size, and one more."""
    quota, shelf = call.rights.quota, call.site.shelf
    nodes = plan.program.graph.count_nodes()
    if quota.plan_nodes is not None and nodes > quota.plan_nodes:
        raise QuotaExceeded(
            f"plan {plan.program.graph.name!r} has {nodes} nodes, {call.client!r} may install plans of at "
            f"most {quota.plan_nodes} here; ask the worker's owner for more (quota.plan_nodes)"
        )
    if call.client in plan.clients:
        return
    mine = shelf.of(call.client)
    if quota.plans is not None and len(mine) >= quota.plans:
        raise QuotaExceeded(
            f"{call.client!r} has {len(mine)} plans of at most {quota.plans} installed here; uninstall "
            "one, or ask the worker's owner for more (quota.plans)"
        )
    if quota.bytes is not None:
        call.site.store.accounts.require(call.client, plan.nbytes, quota.bytes)


def _fetch_plan(call: Call, body: FetchPlan) -> PlanBytes:
    installed = call.site.shelf.get(body.plan_id)
    slots = {
        name: call.attach(tensor, f"constant {name}") for name, tensor in installed.program.constants.items()
    }
    return PlanBytes(installed.data, slots)


def _plans(call: Call, body: Plans) -> PlansFound:
    found = call.site.shelf.search(body.tags, call.client)
    return PlansFound(
        tuple(PlanInfo(id, p.program.graph.name, tuple(p.tags), p.description) for id, p in found)
    )


def _uninstall(call: Call, body: Uninstall) -> Done:
    for id in body.plan_ids:
        call.site.shelf.uninstall(id, call.client)
        if call.site.shelf.find(id) is None:
            call.site.approvals.forget(id)
    return Done()


def _run(call: Call, body: Run) -> Values:
    """Compute everything, then commit it: what fails before the commit has changed nothing."""
    puts, items = run_puts(call, body)
    call.site.store.commit(puts)
    return Values(tuple(items))


def run_puts(call: Call, body: Run, *, alone: bool = True) -> tuple[dict[int, Stored], list[Slot]]:
    """What a run makes and replaces, and what it sends back.

    Only where it is ``alone`` in its message does it let other requests in while it computes.
    """
    call.right = Right.RUN  # an optimizer update may have runs among its parts
    installed = call.site.shelf.get(body.plan_id)
    graph = installed.program.graph
    wishes = _wishes(graph, body)
    bound = _bind(call, graph, body, wishes)
    written = _written(wishes, bound)
    require_unique(written)
    call.require_writable(wish.id for wish in wishes if isinstance(wish, Keep))
    clearance = _clear(call, body.plan_id, graph, wishes, bound)
    secrecy = clearance.secrecy
    if body.grad and clearance.releases:
        raise PermissionDenied(
            f"plan {graph.name!r} is approved: its results may leave, but gradients would tell more of the "
            "private values than they do; run it without autograd"
        )
    # Before an approval is spent: inputs that do not fit use up no run of it.
    call.site.executor.check(body.plan_id, graph, bound.tensors)
    if clearance.approval is not None:
        call.site.approvals.spend(body.plan_id, clearance.approval)
    opened = call.site.computing(written) if alone else nullcontext()
    with call.site.usage.running(call.client, call.rights.quota):
        outputs = _outputs(call, body, installed.program, bound, secrecy, opened)
    call.touched.released |= clearance.releases
    return _place(call, graph, wishes, bound, outputs, secrecy)


def _clear(call: Call, plan_id: str, graph: Graph, wishes: Sequence[Wish], bound: _Bound) -> Clearance:
    call.touched.plan_id = plan_id
    leaves = [
        port.path for port, wish in zip(graph.outputs, wishes, strict=True) if not isinstance(wish, Drop)
    ]
    returns = any(isinstance(wish, Return) for wish in wishes)
    if returns and not call.rights.fetch.anything:
        raise denied(call.identity, call.rights, call.site.worker, Right.FETCH)
    return clear(call, plan_id, graph.name, bound.ports, leaves, returns=returns)


def _outputs(
    call: Call,
    body: Run,
    program: Program,
    bound: _Bound,
    secrecy: Secrecy,
    opened: AbstractContextManager[None],
) -> list[torch.Tensor]:
    """What the plan computes. A client that may not have it is not told if an op failed on the values."""
    site = call.site
    hidden = not site.policy.may_have(call.client, secrecy)
    seconds = site.usage.seconds_for_run(call.client, call.rights.quota)
    if body.grad:  # within the lock: a backward pass of another request may walk the same graph
        run_node = quietly(site.worker) if hidden else apply
        with call.charged():
            return site.executor.run_with_grad(body.plan_id, program, bound.tensors, run_node, seconds)
    try:
        with opened, call.charged():
            return site.executor.run(body.plan_id, program, bound.tensors, seconds, checked=True)
    except Exception as error:
        if not hidden:
            raise
        conceal(site.worker, f"plan {program.graph.name!r}", error)
        bindings = bind_tensors(program.graph, bound.tensors)
        return plan_stand_ins(program.graph, bound.tensors, bindings, site.device)


Wish = Keep | Return | Drop | Update


@dataclass(frozen=True, slots=True)
class _Bound:
    """The inputs of a run; ``state`` holds, by role and path, the object that an update replaces."""

    tensors: list[torch.Tensor]
    ports: list[Bound]
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
        id = argument.id if isinstance(argument, Handle) else None
        stored = None if id is None else call.site.store.get(id)
        bound.ports.append(Bound(port.path, id, stored, given.secrecy))
        if (port.role, port.path) in replaced:
            id = _state_id(graph, port, argument)
            bound.state[port.role, port.path] = id, call.change(id)
    return bound


def _state_id(graph: Graph, port: Input, argument: Handle | Slot | Gradient) -> int:
    if not isinstance(argument, Handle):
        raise InputError(
            f"plan {graph.name!r}: input {describe(port)} is state that the run replaces: expected an object "
            "at the worker, got a tensor in the message or a gradient"
        )
    return argument.id


def _written(wishes: Sequence[Wish], bound: _Bound) -> list[int]:
    """The ids of the objects that the run makes or replaces."""
    kept = [wish.id for wish in wishes if isinstance(wish, Keep)]
    return [*kept, *(id for id, _ in bound.state.values())]


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
            items.append(call.attach(output, port.path))
    return puts, items


HANDLERS: dict[type, Callable[..., Any]] = {
    Install: _install,
    FetchPlan: _fetch_plan,
    Plans: _plans,
    Uninstall: _uninstall,
    Run: _run,
}
