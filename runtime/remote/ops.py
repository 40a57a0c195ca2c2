"""Eager operations on remote tensors: one message each, of the op table's own ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from planc.capture.tree import unflatten
from planc.errors import InputError, UnsupportedOpError
from planc.ir import Attribute, DType, Node, TensorType, Value, type_of
from planc.ops.randomness import make_key
from runtime.errors import WrongWorker
from runtime.messages import Apply, Argument, ElementType, Handle, Items, Numbers, Slot
from runtime.remote.resolve import Operands, resolve

if TYPE_CHECKING:
    from runtime.remote.handle import WorkerHandle
    from runtime.remote.tensor import RemoteTensor

# Questions that are answered here, at no message.
_LOCAL: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.numel: lambda x: x.numel(),
    torch.is_tensor: lambda x: False,
    torch.is_floating_point: lambda x: x.is_floating_point(),
    torch.Tensor.size: lambda x, dim=None: x.size(dim),
    torch.Tensor.dim: lambda x: x.dim(),
    torch.Tensor.numel: lambda x: x.numel(),
}


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a torch function whose arguments hold remote tensors, at their worker.

    Local tensors among the arguments travel along. Results are remote tensors, in the function's own structure.

    Raises:
        WrongWorker: the tensors live at different workers.
        CaptureError, UnsupportedOpError: the function is no operation that a worker knows.
        WorkerError: it failed there.
    """
    from runtime.remote.tensor import RemoteTensor

    if function in _LOCAL:
        return _LOCAL[function](*args, **kwargs)
    if kwargs.get("out") is not None:
        raise UnsupportedOpError("out= is not supported for remote tensors: use what the function returns")
    operands = Operands(args, kwargs, lambda x: isinstance(x, (RemoteTensor, torch.Tensor)))
    worker = one_worker([x for x in operands.tensors if isinstance(x, RemoteTensor)])
    captured = resolve(function, operands, [_type(x) for x in operands.tensors])
    tensors: list[torch.Tensor] = []
    known: dict[int, Argument] = {}
    for value, operand in zip(captured.inputs, operands.tensors, strict=False):
        known[value.index] = _argument(operand, tensors)
    local = {index: tensor for index, tensor in enumerate(tensors)}
    if captured.draws:
        seed = int(torch.randint(2**62, ()))  # from torch's own generator, so torch.manual_seed holds
        local[len(local)] = make_key(seed)
        known[captured.inputs[-1].index] = Slot(len(local) - 1)
    for value, constant in captured.constants:
        local[len(local)] = constant
        known[value.index] = Slot(len(local) - 1)
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in operands.tensors)
    handles = _send(worker, captured.nodes, known, local, grad)
    _write(captured.writes, operands.tensors, handles)
    leaves = [_result(value, captured.inputs, operands.tensors, handles) for value in captured.outputs]
    return unflatten(captured.results, iter(leaves))


def one_worker(tensors: Sequence[RemoteTensor]) -> WorkerHandle:
    """The worker where all these tensors live.

    Raises:
        WrongWorker: there are two.
    """
    first = tensors[0].location
    for tensor in tensors[1:]:
        if tensor.location is not first:
            raise WrongWorker(
                f"the operands live at {first.id!r} and at {tensor.location.id!r}: move one to the other's worker "
                f"first, as in y.move({first.id})"
            )
    return first


def _send(
    worker: WorkerHandle,
    nodes: Sequence[Node],
    known: dict[int, Argument],
    local: dict[int, torch.Tensor],
    grad: bool,
) -> dict[int, RemoteTensor]:
    """Send one message a node; returns a handle for each value that it made. Unused ones free themselves."""
    from runtime.remote.tensor import RemoteTensor

    made: dict[int, RemoteTensor] = {}
    for node in nodes:
        used: list[torch.Tensor] = []

        def place(value: Value, used: list[torch.Tensor] = used) -> Argument:
            argument = known[value.index]
            if isinstance(argument, Slot):
                used.append(local[argument.index])
                return Slot(len(used) - 1)
            return argument

        operands = tuple(_operand(operand, place) for operand in node.operands)
        ids = tuple(worker.new_id() for _ in node.results)
        attrs = {name: _attribute(value) for name, value in node.attrs}
        worker.request(Apply(node.op, operands, attrs, ids, grad), used)
        for result, id in zip(node.results, ids, strict=True):
            differentiable = grad and result.type.dtype.is_floating and node.op != "aten.detach"
            handle = RemoteTensor(worker, id, result.type, requires_grad=differentiable)
            handle.is_leaf = not differentiable
            made[result.index] = handle
            known[result.index] = Handle(id)
    return made


def _operand(operand: Any, place: Callable[[Value], Argument]) -> Argument:
    if isinstance(operand, Value):
        return place(operand)
    if isinstance(operand, tuple):
        items = [None if item is None else place(item) for item in operand]
        return Items(tuple(items))  # pyright: ignore[reportArgumentType] -- place gives handles and slots
    return operand


def _attribute(value: Attribute) -> Any:
    if isinstance(value, DType):
        return ElementType(value)
    if isinstance(value, tuple):
        return Numbers(value)  # pyright: ignore[reportArgumentType] -- remote shapes are static
    return value


def _type(x: RemoteTensor | torch.Tensor) -> TensorType:
    if not isinstance(x, torch.Tensor):
        return x.type
    found = type_of(x)
    if found is None:
        raise InputError(f"a tensor of dtype {x.dtype} cannot be sent to a worker")
    return found


def _argument(x: RemoteTensor | torch.Tensor, tensors: list[torch.Tensor]) -> Argument:
    if isinstance(x, torch.Tensor):
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "a local tensor that requires grad met a remote one: gradients do not cross workers; "
                "send it first, or detach it"
            )
        tensors.append(x)
        return Slot(len(tensors) - 1)
    return Handle(x.id)


def _write(
    writes: Sequence[tuple[int, Value]], operands: Sequence[Any], handles: dict[int, RemoteTensor]
) -> None:
    """Let operands that were written in place stand for their new values."""
    for position, value in writes:
        target = operands[position]
        if isinstance(target, torch.Tensor):
            raise InputError("a local tensor cannot be written in place with a remote value: get it first")
        new = handles[value.index]
        new._let_go()
        leaf = target.requires_grad and target.is_leaf and not new.requires_grad
        target._rebind(new.location, new.id, free_old=True)
        target.type = new.type
        if leaf:  # a parameter that was updated under no_grad stays a parameter
            target.location.require_grad([target], True)
        else:
            target._requires_grad, target.is_leaf = new.requires_grad, new.is_leaf


def _result(
    value: Value, inputs: Sequence[Value], operands: Sequence[Any], handles: dict[int, RemoteTensor]
) -> Any:
    """The handle of an output; an output that is an operand is that operand, as in-place methods return."""
    if value.index in handles:
        written = next((x for x in operands if getattr(x, "_id", None) == handles[value.index].id), None)
        return handles[value.index] if written is None else written
    for candidate, operand in zip(inputs, operands, strict=False):
        if candidate.index == value.index:
            return operand
    raise InputError("a torch function returned a tensor that does not depend on its operands")
