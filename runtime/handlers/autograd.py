"""The messages of autograd at a worker: backward passes, and what becomes of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from msgspec.structs import replace

from planc.errors import InputError
from runtime.call import Call
from runtime.concealment import conceal
from runtime.errors import RemoteExecutionError
from runtime.messages import Backward, Done, Grad, RequireGrad, ZeroGrad
from runtime.policy import PUBLIC, Secrecy, derive
from runtime.store import Stored


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
    secrecy = derive(sources)
    new = _accumulated(call, body, stored, gradient, leaves, secrecy)
    changed: dict[int, Stored] = {}
    store.touch(ids)
    for id, leaf, gradient in zip(ids, leaves, new, strict=True):
        if gradient is not None:
            leaf.grad = gradient.detach()
            before = call.see(id)
            changed[id] = replace(before, grad_secrecy=derive([secrecy, before.grad_secrecy]))
    if tensor.grad_fn is not None and not body.retain:
        changed[body.id] = replace(stored, spent=True)
    store.commit(changed)
    return Done()


def _accumulated(
    call: Call,
    body: Backward,
    stored: Stored,
    gradient: torch.Tensor | None,
    leaves: Sequence[torch.Tensor],
    secrecy: Secrecy,
) -> list[torch.Tensor | None]:
    """The new ``.grad`` of each leaf; None where autograd found no path to it after all."""
    hidden = not call.site.policy.may_have(call.client, secrecy)
    hint = ": it was done before and what it needs is freed; pass retain=True the first time"
    try:
        if hidden and stored.spent:  # said before anything is computed: a failure then would not be told
            raise RemoteExecutionError(f"the backward pass of object {body.id} failed{hint}", op="backward")
        gradients = _gradients(call.tensor(body.id, stored), leaves, gradient, body.retain)
        return [
            g if g is None or leaf.grad is None else leaf.grad + g
            for leaf, g in zip(leaves, gradients, strict=True)
        ]
    except RemoteExecutionError:
        raise
    except Exception as error:
        if hidden:
            conceal(call.site.worker, f"the backward pass of object {body.id}", error)
            return [torch.full_like(leaf, float("nan"), requires_grad=False) for leaf in leaves]
        raise RemoteExecutionError(
            f"the backward pass of object {body.id} failed ({type(error).__name__})"
            f"{hint if 'second time' in str(error) else ''}",
            op="backward",
        ) from error


def _grad(call: Call, body: Grad) -> Done:
    given = call.gradient(body.id)
    call.require_writable([body.result])
    call.site.store.commit({body.result: Stored(given.tensor, call.client, secrecy=given.secrecy)})
    return Done()


def _zero_grad(call: Call, body: ZeroGrad) -> Done:
    found = {id: call.change(id) for id in body.ids}
    tensors = [call.tensor(id, stored) for id, stored in found.items()]
    call.site.store.touch(body.ids)
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
    call.site.store.touch(body.ids)
    for tensor in tensors:
        tensor.requires_grad_(body.value)
    return Done()


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


HANDLERS: dict[type, Callable[..., Any]] = {
    Backward: _backward,
    Grad: _grad,
    ZeroGrad: _zero_grad,
    RequireGrad: _require_grad,
}
