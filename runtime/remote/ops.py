"""Eager operations on remote tensors: one message each, of the op table's own ops."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from planc.errors import InputError, UnsupportedOpError
from planc.ops.randomness import make_key
from runtime.errors import WrongWorker
from runtime.messages import Apply, Argument, Handle, Items, Slot
from runtime.remote import recording
from runtime.remote.arguments import take_apart
from runtime.remote.resolve import Recipe, Ref, Step, resolve

if TYPE_CHECKING:
    from runtime.remote.handle import WorkerHandle
    from runtime.remote.tensor import RemoteTensor

# Questions that are answered here, at no message.
_LOCAL: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.numel: lambda input: input.numel(),
    torch.is_tensor: lambda obj: False,
    torch.is_floating_point: lambda input: input.is_floating_point(),
    torch.Tensor.size: lambda x, dim=None: x.size(dim),
    torch.Tensor.dim: lambda x: x.dim(),
    torch.Tensor.numel: lambda x: x.numel(),
}


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a torch function whose arguments hold remote tensors, at their worker.

    Local tensors among the arguments travel along. Results are remote tensors, in the function's own
    structure.

    Raises:
        WrongWorker: the tensors live at different workers.
        CaptureError, UnsupportedOpError: the function is no operation that a worker knows.
        InputError: arguments that do not fit, or a view whose tensor was changed in place.
        WorkerError: it failed there.
    """
    local = _LOCAL.get(function)
    if local is not None:
        return local(*args, **kwargs)
    if kwargs.get("out") is not None:
        raise UnsupportedOpError("out= is not supported for remote tensors: use what the function returns")
    tensors, key = take_apart(args, kwargs)
    worker = _check(tensors)
    recipe = resolve(function, args, kwargs, tensors, key)
    if recipe.writes:
        _check_writes(recipe, tensors)
    values: dict[int, Any] = dict(enumerate(tensors))
    if recipe.key >= 0:  # from torch's own generator, so torch.manual_seed holds
        values[recipe.key] = make_key(int(torch.randint(2**62, ())))
    if recipe.constants:
        values.update(recipe.constants)
    kept = {index: tensors[position] for index, position in recipe.kept.items()}
    for step in recipe.steps:
        _take(worker, step, values, kept)
    if recipe.writes:
        _write(recipe, tensors, values)
    for index, position in recipe.views.items():
        if not isinstance(tensors[position], torch.Tensor):
            _mark_view(values[index], tensors[position], _way_back(function, args, recipe))
    outputs = [values[index] for index in recipe.outputs]
    return outputs[0] if recipe.arrange is None else recipe.arrange(outputs)


def one_worker(tensors: Sequence[RemoteTensor]) -> WorkerHandle:
    """The worker where all these tensors live.

    Raises:
        WrongWorker: there are two.
    """
    first = tensors[0].location
    for tensor in tensors[1:]:
        if tensor.location is not first:
            raise WrongWorker(
                f"the operands live at {first.id!r} and at {tensor.location.id!r}: move one to the other's "
                "worker "
                f"first, as in y.move({first.id})"
            )
    return first


def _check(operands: Sequence[Any]) -> WorkerHandle:
    """The worker of a call, whose operands may be used there."""
    remote = [x for x in operands if not isinstance(x, torch.Tensor)]
    if len(remote) < len(operands) and torch.is_grad_enabled():
        local = (x for x in operands if isinstance(x, torch.Tensor))
        if any(x.requires_grad for x in local):
            raise InputError(
                "a local tensor that requires grad met a remote one: gradients do not cross workers; "
                "send it first, or detach it"
            )
    for x in remote:
        x.check_fresh()
    return one_worker(remote)


def _take(worker: WorkerHandle, step: Step, values: dict[int, Any], kept: dict[int, RemoteTensor]) -> None:
    """Send the message of a step, and put its results among the values.

    A result that replaces an operand (``kept``) does so at the worker too, where it stays what it was: a
    parameter with its gradient, an object with its tags.
    """
    from runtime.remote.tensor import RemoteTensor

    grad = torch.is_grad_enabled() and any(values[i].requires_grad for i in step.refs)
    recorder = recording.current()
    if kept and recorder is None:
        ids = tuple([kept[r.index].id if r.index in kept else worker.new_id() for r in step.node.results])
    else:
        ids = tuple([worker.new_id() for _ in step.node.results])
    if recorder is not None:
        recorder.add(worker, step.node, values, ids, grad)
    else:
        tensors: list[torch.Tensor] = []
        operands = tuple([_argument(operand, values, tensors) for operand in step.operands])
        worker.request(Apply(step.node.op, operands, step.attrs, ids, grad), tensors)
    for result, id, flows in zip(step.node.results, ids, step.differentiable, strict=True):
        handle = RemoteTensor(worker, id, result.type, requires_grad=grad and flows)
        if result.index in kept and id == kept[result.index].id:
            handle.is_owner = False  # the operand's handle is the owner
        if handle.requires_grad:
            handle.is_leaf = False
        values[result.index] = handle


def _argument(operand: Any, values: dict[int, Any], tensors: list[torch.Tensor]) -> Argument:
    if isinstance(operand, Ref):
        value = values[operand.index]
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            return Slot(len(tensors) - 1)
        return Handle(value.id)
    if isinstance(operand, tuple):
        items = [None if item is None else _argument(item, values, tensors) for item in operand]
        return Items(tuple(items))  # pyright: ignore[reportArgumentType] -- a Ref gives a handle or a slot
    return operand


def _check_writes(recipe: Recipe, operands: Sequence[Any]) -> None:
    for position, _ in recipe.writes:
        target = operands[position]
        if isinstance(target, torch.Tensor):
            raise InputError("a local tensor cannot be written in place with a remote value: get it first")
        if target.is_gradient or (target.view_base is not None and target.write_back is None):
            raise InputError(
                "an operation in place on this view (a reshape, a transpose, .grad) would not reach the "
                "tensor that it views: index that tensor itself, as in x[0, 1] += 1, or use x.zero_grad()"
            )
        if target.requires_grad and target.is_leaf and recording.current() is not None:
            raise InputError(
                "a leaf that requires grad cannot be changed in place while recording: its .grad would stay "
                "behind. Do it outside of record(), or use a RemoteOptimizer, or planc.train_step"
            )
        if target.requires_grad and target.is_leaf and torch.is_grad_enabled():
            raise InputError(
                "a leaf that requires grad cannot be changed in place: do it under torch.no_grad(), as an "
                "optimizer does"
            )


def _write(recipe: Recipe, operands: Sequence[Any], values: dict[int, Any]) -> None:
    """Let operands that were written in place stand for their new values."""
    for position, index in recipe.writes:
        target, new = operands[position], values[index]
        lost = target.id != new.id and target.requires_grad and target.is_leaf
        target.become(new)
        if lost:  # a parameter that is updated stays one
            target.location.require_grad([target], True)
        values[index] = target  # in-place methods return it
        base = target.view_base[0]() if target.view_base is not None else None
        shown = base if target.view_of is None else target.view_of
        if shown is not None:
            target.write_back(shown, target)  # which, if it is a view, goes on to what it views
        if base is not None:
            target.view_base = (weakref.ref(base), base.version)


WayBack = Callable[["RemoteTensor", "RemoteTensor"], None]


def _way_back(function: Callable[..., Any], args: tuple[Any, ...], recipe: Recipe) -> WayBack | None:
    """How a tensor gets what became of its view: an index, or the tensor detached; None for other views."""
    if function is torch.Tensor.__getitem__:
        return lambda base, view: base.__setitem__(args[1], view)
    return _set_whole if recipe.steps[-1].node.op == "aten.detach" else None


def _set_whole(base: RemoteTensor, view: RemoteTensor) -> None:
    with torch.no_grad():
        base.copy_(view)


def _mark_view(view: RemoteTensor, operand: RemoteTensor, way_back: WayBack | None) -> None:
    """Remember whose memory a view shows: it is of no use when that was changed."""
    nested = operand.view_base is not None
    view.view_base = operand.view_base or (weakref.ref(operand), operand.version)
    view.view_of = operand if nested else None
    view.write_back = None if nested and operand.write_back is None else way_back


__all__ = ["call", "one_worker"]
