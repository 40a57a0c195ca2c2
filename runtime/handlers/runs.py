"""The message that runs a plan: what it may touch, what it makes, and what becomes of that.

Most runs are of a client on values of its own that are public: those are bound in one short loop. Whatever
else stands at an input goes through the rules of `runtime.access.release`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from planc.errors import InputError
from planc.ir import Graph
from planc.ir.binding import describe
from planc.ir.program import Program
from planc.lower.bind import bind_tensors
from planc.ops.apply import apply
from runtime.access.admission import denied
from runtime.access.approvals import Bound
from runtime.access.release import Clearance, clear
from runtime.call import Call, require_unique
from runtime.concealment import conceal, plan_stand_ins, quietly
from runtime.errors import PermissionDenied
from runtime.executor import Prepared
from runtime.handlers.repeats import Repeat
from runtime.messages import Drop, Gradient, Handle, Keep, Pointer, Return, Run, Slot, Update, Values
from runtime.policy import PUBLIC, Right
from runtime.shelf import Installed
from runtime.store import Stored

_FORMS = 64
"""Ways of asking for a plan's outputs that are remembered of each plan: nearly always there is one."""
_CLIENTS = 64
"""Clients whose last run of a plan is remembered."""
_BRIEF = 500e-6
"""Seconds: a run that took less the last time does not let other requests in, which would take as long."""
_OWN = Clearance(PUBLIC, releases=False, approval=None)
"""Of a run on public values of the client's own."""


@dataclass(frozen=True, slots=True)
class _Form:
    """What becomes of each output of a plan, as the kinds of wishes in a message say.

    Attributes:
        kept: outputs to keep, and the number of the wish that says under which id.
        returned: outputs to send back.
        updated: outputs that replace an object, and the input at which that stands.
        leaves: the paths of all outputs but those that are dropped.
    """

    kept: tuple[tuple[int, int], ...]
    returned: tuple[int, ...]
    updated: tuple[tuple[int, int], ...]
    leaves: tuple[str, ...]


def _run(call: Call, body: Run) -> Values:
    """Compute everything, then commit it: what fails before the commit has changed nothing."""
    installed, store = call.site.shelf.get(body.plan_id), call.site.store
    job, outputs = _computed(call, body, installed, alone=True)
    kept, items = _kept(call, job, outputs), _returned(call, installed.program.graph, job, outputs)
    repeat = job.repeat
    if repeat is not None and repeat.may_defer(store):
        repeat.defer(store, kept, job.bound.tensors, outputs)
    else:
        replaced = _replaced(job, outputs)
        if replaced or kept:
            store.commit({**replaced, **kept})
        _remember(call, installed, body, job, replaced)
    return Values(tuple(items))


def run_puts(call: Call, body: Run) -> dict[int, Stored]:
    """What a run that is a part of a message makes and replaces; it lets no other request in."""
    installed = call.site.shelf.get(body.plan_id)
    job, outputs = _computed(call, body, installed, alone=False)
    return {**_replaced(job, outputs), **_kept(call, job, outputs)}


def _computed(
    call: Call, body: Run, installed: Installed, *, alone: bool
) -> tuple[_Job, Sequence[torch.Tensor]]:
    """A run, and its outputs. Only where it is ``alone`` in its message does it let other requests in."""
    call.right = Right.RUN  # an optimizer update may have runs among its parts
    call.touched.plan_id = body.plan_id
    site, program = call.site, installed.program
    job = _again(call, installed, body) or _first(call, installed, body)
    quota, taken = call.rights.quota, call.taken
    clearance = job.bound.clearance
    if clearance.approval is not None:
        taken.require_run(quota)
        site.approvals.spend(body.plan_id, clearance.approval)
    seconds = taken.time_for_run(quota)
    opened = alone and not body.grad and job.prepared.took > _BRIEF
    if body.grad:
        with taken.run(quota):
            outputs = _distinct(_with_grad(call, body, program, job.bound, seconds), job.form)
    else:
        try:
            if opened:
                with taken.run(quota), site.computing([*job.kept, *job.written]):
                    outputs = _executed(call, program, job, seconds)
            else:
                taken.require_run(quota)
                outputs = _executed(call, program, job, seconds)
        except Exception as error:
            outputs = _concealed(call, program, job.bound, error)
    if opened:
        _look_again(call, installed, job)
    call.touched.released |= clearance.releases
    return job, outputs


def _look_again(call: Call, installed: Installed, job: _Job) -> None:
    """What other requests did to the objects that a run replaces while it let them in.

    Nobody replaces or frees them, but a backward pass gives them gradients, of whatever secrecy, and a
    transfer that was on its way takes them.

    Raises:
        ObjectNotFound: one was taken: the run changes nothing then.
    """
    job.replaced = [call.change(id) for id in job.written]
    if job.repeat is not None and not job.repeat.replaces(job.replaced):
        job.repeat = None
        installed.repeats.pop(call.standing, None)


class _Job(msgspec.Struct, eq=False, gc=False):
    """A run that may begin.

    Attributes:
        form: what becomes of its outputs.
        bound: its inputs.
        prepared: the plan at their sizes.
        kept: the ids of outputs to keep.
        written: the ids of objects that other outputs replace.
        replaced: these objects.
        repeat: the run before that this one is like.
    """

    form: _Form
    bound: _Bound
    prepared: Prepared
    kept: Sequence[int]
    written: Sequence[int]
    replaced: Sequence[Stored]
    repeat: Repeat | None = None


def _again(call: Call, installed: Installed, body: Run) -> _Job | None:
    """A run that is like the client's last one; None where it is not."""
    repeat: Repeat | None = installed.repeats.get(call.standing)
    tensors = repeat.inputs(call, body) if repeat is not None else None
    if repeat is None or tensors is None:
        return None
    form: _Form = repeat.form
    kept = _ids_to_keep(form, body)
    store = call.site.store
    for id in kept:
        if id in store:
            return None
    if len(kept) > 1 and len(set(kept)) < len(kept):
        return None
    if call.logged:
        handles = [argument for argument in body.inputs if isinstance(argument, Handle)]
        found = {argument.id: store.get(argument.id) for argument in handles}
        call.touched.data.update((id, stored) for id, stored in found.items() if stored is not None)
    bound = _Bound(tensors, None, _OWN)
    return _Job(form, bound, repeat.prepared, kept, repeat.updated, repeat.replaced(), repeat)


def _first(call: Call, installed: Installed, body: Run) -> _Job:
    """A run of which nothing is known."""
    program, site = installed.program, call.site
    form = _form(installed, body)
    bound = _bind(call, program.graph, body, form)
    kept = _ids_to_keep(form, body)
    replaced = [_state(call, program.graph, bound, body.inputs[i], i) for _, i in form.updated]
    written = [id for id, _ in replaced]
    require_unique([*kept, *written])
    call.require_writable(kept)
    if body.grad and bound.clearance.releases:
        raise PermissionDenied(
            f"plan {program.graph.name!r} is approved: its results may leave, but gradients would tell more "
            "of the private values than they do; run it without autograd"
        )
    # Before an approval is spent: what is refused uses up no run of it.
    prepared = site.executor.prepare(body.plan_id, program, bound.tensors)
    return _Job(form, bound, prepared, kept, written, [stored for _, stored in replaced])


def _ids_to_keep(form: _Form, body: Run) -> list[int]:
    if not form.kept:
        return []
    wishes = (*body.results, *body.updates) if body.updates else body.results
    return [wish.id for _, number in form.kept if isinstance(wish := wishes[number], Keep)]


def _form(installed: Installed, body: Run) -> _Form:
    key = tuple(map(type, body.results)), tuple(map(type, body.updates))
    found = installed.forms.get(key)
    if found is None:
        found = _formed(installed.program.graph, body)
        if len(installed.forms) >= _FORMS:
            installed.forms.clear()
        installed.forms[key] = found
    return found


def _formed(graph: Graph, body: Run) -> _Form:
    results, updates = graph.results(), graph.updates()
    if len(body.results) != len(results):
        raise InputError(f"plan {graph.name!r} has {len(results)} results, got {len(body.results)}")
    if body.updates and len(body.updates) != len(updates):
        raise InputError(f"plan {graph.name!r} updates {len(updates)} state tensors, got {len(body.updates)}")
    inputs = {(port.role, port.path): i for i, port in enumerate(graph.inputs)}
    for_results = enumerate(body.results)
    for_updates = enumerate(body.updates or (Update(),) * len(updates), len(results))
    kept: list[tuple[int, int]] = []
    returned: list[int] = []
    updated: list[tuple[int, int]] = []
    leaves: list[str] = []
    for i, port in enumerate(graph.outputs):
        number, wish = next(for_updates if port.role.is_state else for_results)
        if isinstance(wish, Keep):
            kept.append((i, number))
        elif isinstance(wish, Return):
            returned.append(i)
        elif isinstance(wish, Update):
            updated.append((i, inputs[port.role, port.path]))
        if not isinstance(wish, Drop):
            leaves.append(port.path)
    return _Form(tuple(kept), tuple(returned), tuple(updated), tuple(leaves))


class _Bound(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The inputs of a run.

    Attributes:
        tensors: one for each input.
        stored: the objects at the inputs of a run that may be remembered: the client may change all of them.
        clearance: what the run may do.
    """

    tensors: list[torch.Tensor]
    stored: Sequence[Stored | None] | None
    clearance: Clearance


def _bind(call: Call, graph: Graph, body: Run, form: _Form) -> _Bound:
    if len(body.inputs) != len(graph.inputs):
        raise InputError(f"plan {graph.name!r} takes {len(graph.inputs)} inputs, got {len(body.inputs)}")
    if form.returned and not call.rights.fetch.anything:
        raise denied(call.identity, call.rights, call.site.worker, Right.FETCH)
    own = None if body.grad else _own_public(call, body.inputs)
    if own is not None:
        return own
    tensors: list[torch.Tensor] = []
    bound: list[Bound] = []
    for port, argument in zip(graph.inputs, body.inputs, strict=True):
        given = call.given(argument)
        # Without autograd a result must not hold on to what computed its inputs; nor ever to another's.
        tensors.append(given.tensor if body.grad and given.owned else given.tensor.detach())
        id = argument.id if isinstance(argument, Handle) else None
        stored = None if id is None else call.site.store.get(id)
        bound.append(Bound(port.path, id, stored, given.secrecy))
    clearance = clear(call, body.plan_id, graph.name, bound, form.leaves, returns=bool(form.returned))
    return _Bound(tensors, None, clearance)


def _own_public(call: Call, inputs: Sequence[Handle | Slot | Gradient]) -> _Bound | None:
    """The inputs of a run, if all came along or are public objects of the client's own."""
    get, client, touched = call.site.store.get, call.client, call.touched.data
    tensors: list[torch.Tensor] = []
    found: list[Stored | None] = []
    for argument in inputs:
        if type(argument) is Handle:
            id = argument.id
            stored = get(id)
            if stored is None or stored.owner != client or stored.secrecy.private:
                return None
            tensor = stored.value
            if isinstance(tensor, Pointer):
                return None
            touched[id] = stored
            found.append(stored)
        elif type(argument) is Slot:
            tensor = call.slot(argument)
            found.append(None)
        else:
            return None
        tensors.append(tensor.detach() if tensor.requires_grad else tensor)
    return _Bound(tensors, found, _OWN)


def _state(
    call: Call, graph: Graph, bound: _Bound, argument: Handle | Slot | Gradient, position: int
) -> tuple[int, Stored]:
    """The object at an input that the run is going to replace."""
    if type(argument) is not Handle:
        raise InputError(
            f"plan {graph.name!r}: input {describe(graph.inputs[position])} is state that the run replaces: "
            "expected an object at the worker, got a tensor in the message or a gradient"
        )
    stored = bound.stored[position] if bound.stored is not None else None
    return argument.id, stored or call.change(argument.id)


def _executed(call: Call, program: Program, job: _Job, seconds: float | None) -> list[torch.Tensor]:
    """What the plan computes."""
    start = time.perf_counter()
    try:
        return call.site.executor.run(job.prepared, program, job.bound.tensors, seconds)
    finally:
        call.spent += time.perf_counter() - start


def _with_grad(
    call: Call, body: Run, program: Program, bound: _Bound, seconds: float | None
) -> list[torch.Tensor]:
    """As `_executed`, node by node, so that gradients flow.

    Within the lock: a backward pass of another request may walk the same graph.
    """
    site = call.site
    run_node = quietly(site.worker) if _hidden(call, bound) else apply
    with call.charged():
        return site.executor.run_with_grad(body.plan_id, program, bound.tensors, run_node, seconds)


def _concealed(call: Call, program: Program, bound: _Bound, error: Exception) -> list[torch.Tensor]:
    """What stands for the outputs of a run that failed: who may not have the values is not told so."""
    if not _hidden(call, bound):
        raise error
    conceal(call.site.worker, f"plan {program.graph.name!r}", error)
    bindings = bind_tensors(program.graph, bound.tensors)
    made = plan_stand_ins(program.graph, bound.tensors, bindings, call.site.device)
    return [tensor.detach() for tensor in made]  # state stays what it was, as an object of its own


def _hidden(call: Call, bound: _Bound) -> bool:
    return not call.site.policy.may_have(call.client, bound.clearance.secrecy)


def _distinct(outputs: Sequence[torch.Tensor], form: _Form) -> list[torch.Tensor]:
    """The outputs of a run with autograd, each a tensor object of its own: one may be an input, or another.

    What replaces state is a fresh leaf.
    """
    updated = {i for i, _ in form.updated}
    return [
        tensor.view_as(tensor) if tensor.requires_grad and i not in updated else tensor.detach()
        for i, tensor in enumerate(outputs)
    ]


def _kept(call: Call, job: _Job, outputs: Sequence[torch.Tensor]) -> dict[int, Stored]:
    """The outputs to keep, by id."""
    secrecy = job.bound.clearance.secrecy
    return {
        id: Stored(outputs[i], call.client, secrecy=secrecy)
        for (i, _), id in zip(job.form.kept, job.kept, strict=True)
    }


def _replaced(job: _Job, outputs: Sequence[torch.Tensor]) -> dict[int, Stored]:
    """The outputs that replace objects, by id."""
    secrecy = job.bound.clearance.secrecy
    return {
        id: old.updated(outputs[i], secrecy)
        for (i, _), id, old in zip(job.form.updated, job.written, job.replaced, strict=True)
    }


def _returned(call: Call, graph: Graph, job: _Job, outputs: Sequence[torch.Tensor]) -> list[Slot]:
    """The outputs to send back."""
    return [call.attach(outputs[i], graph.outputs[i].path) for i in job.form.returned]


def _remember(call: Call, installed: Installed, body: Run, job: _Job, replaced: Mapping[int, Stored]) -> None:
    """Know the next run that is like this one."""
    stored, repeat = job.bound.stored, job.repeat
    if repeat is None and stored is not None:
        repeat = Repeat.of(body, installed.program.graph, job.form, stored, job.prepared)
        if repeat is not None:
            if len(installed.repeats) >= _CLIENTS:
                installed.repeats.clear()
            installed.repeats[call.standing] = repeat
    if repeat is not None:
        repeat.replace(replaced)


HANDLERS: dict[type, Callable[..., Any]] = {Run: _run}
