"""The messages of eager code: one op, one optimizer step. Every op is one of planc's op table.

Nothing is written in place: an update replaces objects, so views and copies never see half of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from planc.errors import InputError, TypeCheckError
from planc.ir import Attribute, Node, Operand, TensorType, Value
from planc.ops import Kind, OpDef, Trait, lookup, node
from planc.ops.apply import apply as run_node
from runtime.call import Call, Given, require_unique
from runtime.concealment import quietly
from runtime.errors import RemoteExecutionError
from runtime.messages import (
    Apply,
    Attrs,
    Done,
    ElementType,
    Handle,
    Items,
    Numbers,
    Pointer,
    Slot,
    Step,
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
    secrecy = derive(g.secrecy for g in given)
    with torch.set_grad_enabled(body.grad):
        results = _run(call, checked, tensors, secrecy)
    call.site.store.commit(
        {
            id: _stored(call, id, result, secrecy)
            for id, result in zip(body.results, _apart(call, tensors, results), strict=True)
            if id is not None
        }
    )
    return Done()


def _step(call: Call, body: Step) -> Done:
    call.site.store.commit(step_puts(call, body))
    return Done()


def step_puts(call: Call, body: Step) -> dict[int, Stored]:
    """What an optimizer update replaces, and with what."""
    definition = lookup(body.optimizer)
    if not definition.has(Trait.OPTIMIZER):
        raise TypeCheckError(f"{body.optimizer} is not an optimizer")
    names = [p.name for p in definition.operands if p.kind is Kind.TENSORS][2:]
    _check_state(body, names)
    stored = [call.change(id) for id in body.params]
    params = [call.tensor(id, s) for id, s in zip(body.params, stored, strict=True)]
    at = [i for i, param in enumerate(params) if param.is_leaf and param.grad is not None]
    if not at:
        return {}
    ids = [_pick(group, at) for group in (body.params, *body.state)]
    groups = [_pick(params, at), [gradient for i in at if (gradient := params[i].grad) is not None]]
    olds: list[list[Stored | None]] = [_pick(list[Stored | None](stored), at)]
    for name, group in zip(names, ids[1:], strict=True):
        found = [_state(call, id) for id in group]
        olds.append(found)
        groups.append(_state_tensors(call, name, group, found, groups[0]))
    checked, tensors = _step_node(call, body, groups)
    # All parameters of a step are of one secrecy: an op may mix them (a clipped norm does).
    known = [s for group in olds for s in group if s is not None]
    secrecy = derive([s.secrecy for s in known] + [stored[i].grad_secrecy for i in at])
    with torch.no_grad():
        results = iter(_apart(call, tensors, _run(call, checked, [t.detach() for t in tensors], secrecy)))
    puts: dict[int, Stored] = {}
    for group, found in zip(ids, olds, strict=True):
        for id, old in zip(group, found, strict=True):
            new = next(results).detach()
            puts[id] = Stored(new, call.client, secrecy=secrecy) if old is None else old.updated(new, secrecy)
    return puts


def _stored(call: Call, id: int, result: torch.Tensor, secrecy: Secrecy) -> Stored:
    """A result as an object. One that replaces another is that object after an operation in place."""
    old = call.site.store.get(id)
    if old is None or isinstance(old.value, Pointer):
        return Stored(result, call.client, secrecy=secrecy)
    if result.requires_grad:
        return old.with_value(result, secrecy)
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
    """Refuse results that cannot be kept, and work without end, before anything is made.

    A few bytes can ask for terabytes: in memory, or in the elements of a view, which others then go over.
    """
    call.site.executor.check_op(checked)
    needed = _bytes_of(checked.results)
    if definition.has(Trait.VIEW):
        if needed > _bytes_of(checked.values()):
            call.require_room(needed)
    else:
        call.site.store.accounts.require_all(needed)


def _bytes_of(values: Iterable[Value]) -> int:
    return sum(n for value in values if isinstance(n := value.type.nbytes, int))


def _run(
    call: Call, checked: Node, tensors: Sequence[torch.Tensor], secrecy: Secrecy
) -> tuple[torch.Tensor, ...]:
    """The results of an op. A client that may not have them is not told if it failed on the values."""
    site = call.site
    run = run_node if site.policy.may_have(call.client, secrecy) else quietly(site.worker)
    try:
        return run(checked, lambda value: tensors[value.index], {}, site.device)
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


HANDLERS: dict[type, Callable[..., Any]] = {Apply: _apply, Step: _step}
