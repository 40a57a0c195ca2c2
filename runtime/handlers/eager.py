"""The messages of eager code: one op, its gradients, one optimizer step. Every op is one of planc's op table.

Nothing is written in place: an update replaces objects, so views and copies never see half of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from planc.errors import InputError, TypeCheckError
from planc.ir import Attribute, Node, Operand, TensorType, Value
from planc.ops import Kind, OpDef, Trait, lookup, node
from planc.ops.apply import apply as run_node
from runtime.call import Call, Given, require_unique
from runtime.errors import RemoteExecutionError, StoreFull
from runtime.messages import (
    Apply,
    Attrs,
    Backward,
    Done,
    ElementType,
    Grad,
    Handle,
    Items,
    Numbers,
    Pointer,
    RequireGrad,
    Slot,
    Step,
    ZeroGrad,
)
from runtime.policy import PUBLIC, Secrecy, derive
from runtime.store import Stored

_T = TypeVar("_T")
_STEPS = "steps"
"""The state operand that counts updates, an ``f32[]`` a parameter. Other state has its parameter's type."""


def _apply(call: Call, body: Apply) -> Done:
    definition = lookup(body.op)
    if definition.has(Trait.STRUCTURED):
        raise TypeCheckError(f"{body.op} runs plans: it stands in a plan, not by itself")
    given: list[Given] = []
    for argument in body.operands:
        _collect(call, argument, given)
    checked = _checked(call, body, given)
    if len(body.results) != len(checked.results):
        raise InputError(f"{body.op} has {len(checked.results)} results, got {len(body.results)} ids")
    call.require_writable(id for id in body.results if id is not None)
    _check_room(call, definition, checked)
    # What belongs to another is a constant here: nobody's gradient reaches it.
    tensors = [g.tensor if g.owned else g.tensor.detach() for g in given]
    with torch.set_grad_enabled(body.grad):
        results = _run(call, checked, tensors)
    secrecy = derive(g.secrecy for g in given)
    call.site.store.commit(
        {
            id: _stored(call, id, result, secrecy)
            for id, result in zip(body.results, _apart(call, tensors, results), strict=True)
            if id is not None
        }
    )
    return Done()


def _backward(call: Call, body: Backward) -> Done:
    stored = call.change(body.id)
    tensor = call.tensor(body.id, stored)
    if not tensor.requires_grad:
        raise InputError(f"object {body.id} does not require grad, nor does what it was computed from")
    sources = [stored.secrecy]
    gradient = None
    if body.gradient is not None:
        given = call.given(body.gradient)
        gradient = given.tensor.detach()
        sources.append(given.secrecy)
    _check_gradient(body.id, tensor, gradient)
    store = call.site.store
    ids = [id for leaf in _leaves(tensor) if (id := store.id_of(leaf)) is not None]
    leaves = [call.tensor(id, call.change(id)) for id in ids]
    if not leaves:  # the client gave them all up: nobody can ask for their gradients
        return Done()
    try:
        gradients = _gradients(tensor, leaves, gradient, body.retain)
        new = [
            g if g is None or leaf.grad is None else leaf.grad + g
            for leaf, g in zip(leaves, gradients, strict=True)
        ]
    except Exception as error:
        hint = ""
        if "second time" in str(error):
            hint = ": it was done before and what it needs is freed; pass retain=True the first time"
        raise RemoteExecutionError(
            f"the backward pass of object {body.id} failed ({type(error).__name__}){hint}", op="backward"
        ) from error
    changed: dict[int, Stored] = {}
    for id, leaf, gradient in zip(ids, leaves, new, strict=True):
        if gradient is not None:
            leaf.grad = gradient.detach()
            before = call.see(id)
            changed[id] = replace(before, grad_secrecy=derive([*sources, before.grad_secrecy]))
    store.commit(changed)
    return Done()


def _grad(call: Call, body: Grad) -> Done:
    stored = call.change(body.id)
    gradient = call.tensor(body.id, stored).grad
    if gradient is None:
        raise InputError(f"object {body.id} has no gradient: no backward pass reached it")
    call.require_writable([body.result])
    result = gradient.detach()
    call.site.store.commit({body.result: Stored(result, call.client, secrecy=stored.grad_secrecy)})
    return Done()


def _zero_grad(call: Call, body: ZeroGrad) -> Done:
    found = {id: call.change(id) for id in body.ids}
    tensors = [call.tensor(id, stored) for id, stored in found.items()]
    for tensor in tensors:
        tensor.grad = None
    call.site.store.commit({id: replace(stored, grad_secrecy=PUBLIC) for id, stored in found.items()})
    return Done()


def _require_grad(call: Call, body: RequireGrad) -> Done:
    tensors = [call.tensor(id, call.change(id)) for id in body.ids]
    for id, tensor in zip(body.ids, tensors, strict=True):
        if not tensor.is_leaf:
            raise InputError(f"object {id} was computed under autograd: detach it to change requires_grad")
        if body.value and not tensor.is_floating_point():
            raise InputError(f"object {id}: only floating-point tensors can require grad, got {tensor.dtype}")
    for tensor in tensors:
        tensor.requires_grad_(body.value)
    return Done()


def _step(call: Call, body: Step) -> Done:
    definition = lookup(body.optimizer)
    if not definition.has(Trait.OPTIMIZER):
        raise TypeCheckError(f"{body.optimizer} is not an optimizer")
    names = [p.name for p in definition.operands if p.kind is Kind.TENSORS][2:]
    _check_state(body, names)
    stored = [call.change(id) for id in body.params]
    params = [call.tensor(id, s) for id, s in zip(body.params, stored, strict=True)]
    at = [i for i, param in enumerate(params) if param.grad is not None]
    if not at:
        return Done()
    ids = [_pick(group, at) for group in (body.params, *body.state)]
    groups = [_pick(params, at), [gradient for i in at if (gradient := params[i].grad) is not None]]
    olds: list[list[Stored | None]] = [_pick(list[Stored | None](stored), at)]
    for name, group in zip(names, ids[1:], strict=True):
        found = [_state(call, id) for id in group]
        olds.append(found)
        groups.append(_state_tensors(call, name, group, found, groups[0]))
    checked, tensors = _step_node(call, body, groups)
    with torch.no_grad():
        results = iter(_apart(call, tensors, _run(call, checked, [t.detach() for t in tensors])))
    # All parameters of a step are of one secrecy: an op may mix them (a clipped norm does).
    known = [s for group in olds for s in group if s is not None]
    secrecy = derive([s.secrecy for s in known] + [stored[i].grad_secrecy for i in at])
    puts: dict[int, Stored] = {}
    for group, found in zip(ids, olds, strict=True):
        for id, old in zip(group, found, strict=True):
            new = next(results).detach()
            puts[id] = Stored(new, call.client, secrecy=secrecy) if old is None else old.updated(new, secrecy)
    call.site.store.commit(puts)
    return Done()


def _stored(call: Call, id: int, result: torch.Tensor, secrecy: Secrecy) -> Stored:
    """A result as an object. One that replaces another is that object after an operation in place."""
    old = call.site.store.get(id)
    if old is None or isinstance(old.value, Pointer):
        return Stored(result, call.client, secrecy=secrecy)
    if result.requires_grad:
        return replace(old, value=result, secrecy=secrecy)
    return old.updated(result.detach(), secrecy)


def _collect(call: Call, argument: object, given: list[Given]) -> None:
    """Append the tensors that an argument names."""
    if isinstance(argument, Handle):
        given.append(call.given(argument))
    elif isinstance(argument, Slot):
        # A result may be a view of it, and would hold the memory of the whole frame.
        given.append(Given(call.slot_to_keep(argument), PUBLIC, owned=True))
    elif isinstance(argument, Items):
        for item in argument.items:
            _collect(call, item, given)


_CHECKED = 4096
_checked_nodes: OrderedDict[object, Node] = OrderedDict()
_checked_lock = threading.Lock()  # workers of one process share it


def _checked(call: Call, body: Apply, given: Sequence[Given]) -> Node:
    """The op on these operands as a checked node; remembered: checking takes longer than a small op."""
    key = (
        body.op,
        tuple([_form(argument) for argument in body.operands]),
        tuple([(name, _form(value)) for name, value in body.attrs.items()]),
        tuple([(g.tensor.dtype, g.tensor.shape) for g in given]),
    )
    with _checked_lock:
        found = _checked_nodes.get(key)
        if found is not None:
            _checked_nodes.move_to_end(key)
            return found
    values = iter([Value(i, _type(call, g.tensor)) for i, g in enumerate(given)])
    operands = tuple(_operand(argument, values) for argument in body.operands)
    made = node(body.op, operands, _attributes(body.attrs), len(given))
    with _checked_lock:
        _checked_nodes[key] = made
        if len(_checked_nodes) > _CHECKED:
            _checked_nodes.popitem(last=False)
    return made


def _form(argument: object) -> object:
    """An operand or attribute as part of a key: where tensors stand, and numbers with their type and sign."""
    if isinstance(argument, (Handle, Slot)):
        return Handle
    if isinstance(argument, Items):
        return tuple([_form(item) for item in argument.items])
    if isinstance(argument, Numbers):
        return (Numbers, *(_form(item) for item in argument.items))
    return type(argument), repr(argument) if isinstance(argument, float) else argument


def _operand(argument: object, values: Iterator[Value]) -> Operand:
    """The operand as a plan's node has it."""
    if isinstance(argument, (Handle, Slot)):
        return next(values)
    if isinstance(argument, Items):
        return tuple(None if item is None else next(values) for item in argument.items)
    assert argument is None or isinstance(argument, (int, float, bool))
    return argument


def _type(call: Call, tensor: torch.Tensor) -> TensorType:
    return TensorType(call.element_type(tensor), tuple(tensor.shape))


def _attributes(attrs: Attrs) -> dict[str, Attribute]:
    return {name: _attribute(value) for name, value in attrs.items()}


def _attribute(value: object) -> Attribute:
    if isinstance(value, ElementType):
        return value.dtype
    if isinstance(value, Numbers):
        return value.items
    assert value is None or isinstance(value, (int, float, bool, str))
    return value


def _check_room(call: Call, definition: OpDef, checked: Node) -> None:
    """Refuse results that cannot be kept before they are made: a few bytes can ask for terabytes."""
    if definition.has(Trait.VIEW):
        return
    store = call.site.store
    needed = sum(n for r in checked.results if isinstance(n := r.type.nbytes, int))
    if store.nbytes + needed > store.max_bytes:
        raise StoreFull(
            f"{needed} more bytes do not fit: {store.nbytes} of at most {store.max_bytes} are held"
        )


def _run(call: Call, checked: Node, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    try:
        return run_node(checked, lambda value: tensors[value.index], {}, call.site.device)
    except Exception as error:
        # torch's text may quote elements (an index out of range); the types say enough to find the mistake.
        types = ", ".join(str(value.type) for value in checked.values())
        raise RemoteExecutionError(
            f"{checked.op} failed ({type(error).__name__}) on operands of type {types}", op=checked.op
        ) from error


def _apart(
    call: Call, operands: Sequence[torch.Tensor], results: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The results, each a tensor object of its own: some ops return their operand where nothing is to do."""
    seen = {id(tensor) for tensor in operands}
    for result in results:
        known = id(result) in seen or call.site.store.id_of(result) is not None
        seen.add(id(result))
        yield result.view_as(result) if known else result


def _check_gradient(id: int, tensor: torch.Tensor, gradient: torch.Tensor | None) -> None:
    if gradient is None:
        if tensor.numel() != 1:
            raise InputError(
                f"object {id} has shape {list(tensor.shape)}: a gradient of that shape is needed; "
                "only for one element it can be left out"
            )
    elif gradient.shape != tensor.shape or gradient.dtype is not tensor.dtype:
        raise InputError(
            f"object {id}: expected a gradient of {tensor.dtype}{list(tensor.shape)}, "
            f"got {gradient.dtype}{list(gradient.shape)}"
        )


def _leaves(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The leaves of autograd's graph below a tensor, each once."""
    if tensor.grad_fn is None:
        return [tensor]
    found: list[torch.Tensor] = []
    stack: list[Any] = [tensor.grad_fn]
    seen: set[Any] = set()
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        leaf = getattr(function, "variable", None)  # only AccumulateGrad, the function of a leaf, has one
        if leaf is not None:
            found.append(leaf)
        stack.extend(below for below, _ in function.next_functions)
    return found


def _gradients(
    tensor: torch.Tensor, leaves: Sequence[torch.Tensor], gradient: torch.Tensor | None, retain: bool
) -> Sequence[torch.Tensor | None]:
    """The gradient of each leaf; None where autograd found no path to it after all."""
    seeds = None if gradient is None else [gradient]
    return torch.autograd.grad([tensor], leaves, seeds, retain_graph=retain, allow_unused=True)


def _check_state(body: Step, names: Sequence[str]) -> None:
    if len(body.state) != len(names):
        raise InputError(
            f"{body.optimizer} has the state {', '.join(names)}, got {len(body.state)} lists of ids"
        )
    for name, group in zip(names, body.state, strict=True):
        if len(group) not in (0, len(body.params)):
            raise InputError(
                f"{name}: expected no ids or {len(body.params)}, one a parameter, got {len(group)}"
            )
    require_unique(id for group in (body.params, *body.state) for id in group)


def _state(call: Call, id: int) -> Stored | None:
    call.require_writable([id])
    return call.site.store.get(id)


def _state_tensors(
    call: Call, name: str, ids: Sequence[int], found: Sequence[Stored | None], params: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    out: list[torch.Tensor] = []
    for id, stored, param in zip(ids, found, params, strict=False):
        if stored is not None:
            out.append(call.tensor(id, stored))
        elif name == _STEPS:
            out.append(torch.zeros((), dtype=torch.float32, device=call.site.device))
        else:
            out.append(torch.zeros_like(param, requires_grad=False))
    return out


def _step_node(
    call: Call, body: Step, groups: Sequence[Sequence[torch.Tensor]]
) -> tuple[Node, list[torch.Tensor]]:
    tensors = [tensor for group in groups for tensor in group]
    values = iter(range(len(tensors)))
    operands: list[Operand] = []
    for group in groups:
        types = [_type(call, tensor) for tensor in group]
        operands.append(tuple(Value(next(values), type) for type in types))
    operands.append(body.lr)
    return node(body.optimizer, tuple(operands), _attributes(body.attrs), len(tensors)), tensors


def _pick(items: Sequence[_T], at: Sequence[int]) -> list[_T]:
    """The items at these places; none of an empty list."""
    return [items[i] for i in at] if items else []


HANDLERS: dict[type, Callable[..., Any]] = {
    Apply: _apply,
    Backward: _backward,
    Grad: _grad,
    ZeroGrad: _zero_grad,
    RequireGrad: _require_grad,
    Step: _step,
}
