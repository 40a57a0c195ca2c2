"""The messages of the worker's owner: how it is, what it holds, and decisions about plans. Never elements.

That nobody else sends them is `runtime.access.admission`'s to see to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from planc.errors import InputError
from runtime.access.approvals import Approval, Asked
from runtime.call import Call
from runtime.messages import (
    ApprovalInfo,
    Approve,
    AskedInfo,
    ClientInfo,
    Deny,
    Done,
    OwnerObject,
    OwnerObjects,
    OwnerObjectsFound,
    OwnerPlan,
    OwnerPlans,
    OwnerPlansFound,
    Pending,
    PendingFound,
    PendingPlan,
    Pointer,
    Status,
    StatusReport,
)
from runtime.shelf import Installed
from runtime.store import Stored


def _status(call: Call, _body: Status) -> StatusReport:
    site = call.site
    store, shelf, usage = site.store, site.shelf, site.usage
    clients = tuple(
        ClientInfo(
            name,
            len(taken.sessions),
            taken.requests,
            taken.refused,
            taken.running,
            store.accounts.held(name) + sum(plan.nbytes for plan in shelf.of(name)),
            taken.seconds,
        )
        for name, taken in sorted(usage.clients.items())
        if name != call.client
    )
    return StatusReport(
        worker=site.worker,
        device=str(site.device),
        uptime=time.time() - site.started,
        objects=len(store),
        bytes=store.nbytes,
        plans=len(shelf),
        plan_bytes=shelf.nbytes,
        running=sum(taken.running for taken in usage.clients.values()),
        pending=sum(bool(each.pending) for each in site.approvals.all().values()),
        clients=clients,
        audit=site.audit_head(),
    )


def _objects(call: Call, _body: OwnerObjects) -> OwnerObjectsFound:
    store = call.site.store
    found = ((id, store.get(id)) for id in store.search(()))
    return OwnerObjectsFound(tuple(_object(call, id, stored) for id, stored in found if stored is not None))


def _plans(call: Call, _body: OwnerPlans) -> OwnerPlansFound:
    approvals = call.site.approvals
    installed = dict(call.site.shelf)
    ids = sorted({*installed, *approvals.all()})
    return OwnerPlansFound(tuple(_plan(call, id, installed.get(id)) for id in ids))


def _pending(call: Call, _body: Pending) -> PendingFound:
    found: list[PendingPlan] = []
    waiting = {id: each.pending for id, each in call.site.approvals.all().items() if each.pending}
    for plan_id, asked in sorted(waiting.items(), key=lambda item: min(a.first for a in item[1].values())):
        installed = call.site.shelf.find(plan_id)
        if installed is None:
            continue
        constants = installed.program.constants
        slots = {name: call.attach(tensor, f"constant {name}") for name, tensor in constants.items()}
        who = tuple(_asked(each) for each in asked.values())
        found.append(PendingPlan(plan_id, installed.data, slots, installed.description, who))
    return PendingFound(tuple(found))


def _approve(call: Call, body: Approve) -> Done:
    installed = call.site.shelf.find(body.plan_id)
    if installed is not None:
        paths = {port.path for port in installed.program.graph.inputs}
        unknown = sorted(body.inputs.keys() - paths)
        if unknown:
            raise InputError(
                f"plan {installed.program.graph.name!r} has no input {unknown[0]!r}; it has "
                f"{', '.join(repr(path) for path in sorted(paths))}"
            )
    if any(not names for names in body.inputs.values()):
        raise InputError("an input is given without data that may stand there")
    if body.expires is not None and not body.expires > call.site.approvals.clock():
        raise InputError("an approval that ends in the past could never be used")
    inputs = {path: tuple(names) for path, names in body.inputs.items()}
    approval = Approval(body.clients or None, inputs, body.runs, body.expires)
    call.site.approvals.approve(body.plan_id, approval)
    return Done()


def _deny(call: Call, body: Deny) -> Done:
    call.site.approvals.deny(body.plan_id, body.reason)
    return Done()


def _object(call: Call, id: int, stored: Stored) -> OwnerObject:
    value, secrecy = stored.value, stored.secrecy
    tensor = value if isinstance(value, torch.Tensor) else None
    return OwnerObject(
        id=id,
        owner=stored.owner,
        dtype=None if tensor is None else call.element_type(tensor),
        shape=() if tensor is None else tuple(tensor.shape),
        tags=stored.tags,
        description=stored.description,
        private=secrecy.private,
        derived=secrecy.derived,
        allowed=tuple(sorted(secrecy.allowed)),
        bytes=0 if tensor is None else tensor.nbytes,
        pointer=value if isinstance(value, Pointer) else None,
    )


def _plan(call: Call, plan_id: str, installed: Installed | None) -> OwnerPlan:
    decided = call.site.approvals.of(plan_id)
    return OwnerPlan(
        plan_id=plan_id,
        name=installed.program.graph.name if installed else "",
        tags=tuple(installed.tags) if installed else (),
        description=installed.description if installed else "",
        clients=tuple(sorted(installed.clients)) if installed else (),
        nodes=installed.program.graph.count_nodes() if installed else 0,
        bytes=installed.nbytes if installed else 0,
        approvals=tuple(
            ApprovalInfo(each.clients, each.inputs, each.runs, each.expires) for each in decided.approved
        ),
        denied=decided.denied,
    )


def _asked(asked: Asked) -> AskedInfo:
    return AskedInfo(asked.client, asked.inputs, asked.leaves, asked.first, asked.last, asked.count)


HANDLERS: dict[type, Callable[..., Any]] = {
    Status: _status,
    OwnerObjects: _objects,
    OwnerPlans: _plans,
    Pending: _pending,
    Approve: _approve,
    Deny: _deny,
}
