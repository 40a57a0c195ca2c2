"""From one torch function call to what is sent for it: by name where it is one op, else by capture.

Knows types only, no workers. Recipes are remembered by function, operand types and numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch

from planc.capture.call import CapturedCall, capture_call
from planc.capture.tree import unflatten
from planc.errors import UnsupportedOpError
from planc.ir import Attribute, DType, Node, Operand, TensorType, Value
from planc.ir.structure import Leaf
from planc.ops import Trait, lookup, node
from runtime.messages import ElementType, Numbers
from runtime.remote.arguments import fill, type_of_operand
from runtime.remote.direct import direct

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of a call, by the number of its value."""

    index: int


@dataclass(frozen=True, slots=True)
class Step:
    """One message: an op of the table.

    Attributes:
        node: the op as a plan has it.
        operands: as the message has them, with `Ref` for tensors.
        refs: all of them, in order.
        attrs: as the message has them.
        differentiable: for each result, whether a gradient can flow to it.
    """

    node: Node
    operands: tuple[Any, ...]
    refs: tuple[int, ...]
    attrs: dict[str, Any]
    differentiable: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a call comes down to.

    Values are numbered: operands, a random key if it ``draws``, constants, results.

    Attributes:
        steps: the messages, in order.
        key: the number of the random key, or -1.
        constants: tensors that the call brings along, by number.
        writes: for each operand that it changes in place, its position, and its new value by number.
        kept: of these, the new values (with the positions) that may replace the old ones at once: made by the
            last step, when nothing reads the old ones any more.
        outputs: the values that it returns, by number.
        arrange: makes what it returns out of these.
        views: for each output that shares memory with an operand, the operand's position.
    """

    steps: tuple[Step, ...]
    key: int
    constants: tuple[tuple[int, torch.Tensor], ...]
    writes: tuple[tuple[int, int], ...]
    kept: Mapping[int, int]
    outputs: tuple[int, ...]
    arrange: Callable[[Sequence[Any]], Any] | None
    views: Mapping[int, int]


_recipes: OrderedDict[Any, Recipe] = OrderedDict()
_lock = Lock()


def resolve(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    operands: Sequence[Any],
    key: Any,
) -> Recipe:
    """The recipe of a call.

    Args:
        function, args, kwargs: the call.
        operands: its tensors, in order.
        key: says all of the arguments but the elements of tensors.

    Raises:
        InputError: an index out of range.
        CaptureError: it branches on data, or torch refuses its operands.
        UnsupportedOpError: it needs an operation outside the op table.
    """
    key = (function, key)
    with _lock:
        found = _recipes.get(key)
        if found is not None:
            _recipes.move_to_end(key)
            return found
    types = [type_of_operand(x) for x in operands]
    call = direct(function, args, kwargs, types) or _captured(function, args, kwargs, types)
    made = _recipe(function, call)
    with _lock:
        _recipes[key] = made
        if len(_recipes) > _REMEMBERED:
            _recipes.popitem(last=False)
    return made


def _captured(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    types: Sequence[TensorType],
) -> CapturedCall:
    def call(*tensors: torch.Tensor) -> Any:
        filled = iter(tensors)
        return _plain(function(*fill(args, filled), **fill(dict(kwargs), filled)))

    return capture_call(call, types)


def _plain(result: Any) -> Any:
    """Torch's own named tuples (``max(dim=1)``) as tuples: `_recipe` names them again."""
    return tuple(result) if type(result).__module__ == "torch.return_types" else result


def _recipe(function: Callable[..., Any], call: CapturedCall) -> Recipe:
    call = _own_writes(call)
    for position, value in call.writes:
        if value.type.dtype is not call.inputs[position].type.dtype:
            raise UnsupportedOpError("an operation in place cannot change the dtype of its tensor")
    return Recipe(
        steps=tuple(_step(made) for made in call.nodes),
        key=call.inputs[-1].index if call.draws else -1,
        constants=tuple((value.index, tensor) for value, tensor in call.constants),
        writes=tuple((position, value.index) for position, value in call.writes),
        kept=_kept(call),
        outputs=tuple(value.index for value in call.outputs),
        arrange=_arrangement(function, call),
        views=_views(call),
    )


def _own_writes(call: CapturedCall) -> CapturedCall:
    """The call with a copy wherever an operand is written with another, which stays its own."""
    nodes, writes = list(call.nodes), list(call.writes)
    given = {value.index for value in call.inputs} | {value.index for value, _ in call.constants}
    following = max([*given, *(result.index for n in nodes for result in n.results)]) + 1
    for i, (position, value) in enumerate(writes):
        if value.index in given:
            nodes.append(node("aten.clone", (value,), {}, following + i))
            writes[i] = position, nodes[-1].results[0]
    return replace(call, nodes=tuple(nodes), writes=tuple(writes))


def _kept(call: CapturedCall) -> dict[int, int]:
    last = {result.index for result in call.nodes[-1].results} if call.nodes else set[int]()
    positions = {value.index: position for position, value in call.writes if value.index in last}
    # A value that stands for two operands is no replacement of both.
    return positions if len(positions) == sum(value.index in last for _, value in call.writes) else {}


def _step(made: Node) -> Step:
    flows = made.op != "aten.detach"
    only_first = made.op == "aten.batch_norm"  # autograd leaves the running statistics alone
    return Step(
        made,
        tuple(_operand(operand) for operand in made.operands),
        tuple(value.index for value in made.values()),
        {name: attribute(value) for name, value in made.attrs},
        tuple(
            flows and result.type.dtype.is_floating and not (only_first and i)
            for i, result in enumerate(made.results)
        ),
    )


def _operand(operand: Operand) -> Any:
    if isinstance(operand, Value):
        return Ref(operand.index)
    if isinstance(operand, tuple):
        return tuple(None if item is None else Ref(item.index) for item in operand)
    return operand


def attribute(value: Attribute) -> Any:
    """An attribute as a message has it."""
    if isinstance(value, DType):
        return ElementType(value)
    if isinstance(value, tuple):
        return Numbers(value)  # pyright: ignore[reportArgumentType] -- remote shapes are static
    return value


def _arrangement(function: Callable[..., Any], call: CapturedCall) -> Callable[[Sequence[Any]], Any] | None:
    """How the outputs are returned; None for one alone."""
    if isinstance(call.results, Leaf):
        return None
    named = getattr(torch.return_types, getattr(function, "__name__", ""), None)
    if named is not None and named.n_fields == len(call.outputs):
        return named
    tree = call.results
    return lambda leaves: unflatten(tree, iter(leaves))


def _views(call: CapturedCall) -> dict[int, int]:
    """Outputs, by number, that show the memory of an operand, with the operand's position."""
    shown = {value.index: i for i, value in enumerate(call.inputs)}
    made: set[int] = set()
    for n in call.nodes:
        first = next(n.values(), None)
        if first is not None and first.index in shown and Trait.VIEW in lookup(n.op).traits:
            shown |= {result.index: shown[first.index] for result in n.results}
        made |= {result.index for result in n.results}
    written = {value.index for _, value in call.writes}
    return {index: shown[index] for index in (made & shown.keys()) - written}


__all__ = ["Recipe", "Ref", "Step", "attribute", "resolve"]
