"""The messages that install, find and run plans. What it may touch is decided here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.call import Call
from runtime.errors import QuotaExceeded
from runtime.messages import (
    Done,
    FetchPlan,
    Install,
    PlanBytes,
    PlanInfo,
    Plans,
    PlansFound,
    Uninstall,
)
from runtime.shelf import Installed


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
            call.site.executor.forget(id)
    return Done()


HANDLERS: dict[type, Callable[..., Any]] = {
    Install: _install,
    FetchPlan: _fetch_plan,
    Plans: _plans,
    Uninstall: _uninstall,
}
