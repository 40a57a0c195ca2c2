"""Calls written as torch's own functions with positional arguments, where an op's callable comes to one.

The op table's callables and the writers of `planc.lower.kernels` are Python functions where their parameters
differ from torch's: the frame and its keywords take as long as a small kernel. What is not here runs by them.
All of it is held against the op table, bit for bit, by `tests.lower.test_kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from planc.ir import Value
from planc.lower.calls import Call
from planc.lower.kernels import bare

aten = torch.ops.aten

_torch: Any = torch
"""The names of torch that have no public spelling."""


@dataclass(frozen=True, slots=True)
class Direct:
    """A call of torch: a function, its arguments in order (values, tuples of them, or what torch takes)."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    out: str = "out"
    """What its parameter for the result's memory is called; empty where its first argument is that memory."""


Made = Mapping[int, Call]
"""The calls before, by the number of each of their results."""
_Rule = Callable[[Call, Mapping[str, Any], bool], "Direct | None"]


def direct(call: Call, bindings: Mapping[str, int], written: bool, over: bool, made: Made) -> Direct | None:
    """The call of torch that does what the op's callable does; None where that callable is needed.

    Args:
        call: the call.
        bindings: the sizes of its graph's dims.
        written: whether its result is written into given memory.
        over: whether that memory is the first operand's.
        made: for operands that other calls made.
    """
    if call.op in _POOLS:
        return _unpool(call, bindings, made)
    rule = (_WRITTEN if written else _NEW).get(call.op)
    definition = call.definition
    if rule is None or definition is None or len(call.operands) != len(definition.operands):
        return None
    attrs = {**{p.name: p.default for p in definition.attrs if not p.required}, **call.attrs}
    return rule(call, attrs, over)


def _reshape(call: Call, attrs: Mapping[str, Any], _over: bool) -> Direct:
    return Direct(torch.reshape, (*call.operands, list(attrs["size"])))


def _permute(call: Call, attrs: Mapping[str, Any], _over: bool) -> Direct:
    return Direct(torch.permute, (*call.operands, list(attrs["dims"])))


def _slice(call: Call, attrs: Mapping[str, Any], _over: bool) -> Direct:
    bounds = (attrs[name] for name in ("dim", "start", "end", "step"))
    return Direct(bare(aten.slice.Tensor), (*call.operands, *bounds))


def _relu(call: Call, _attrs: Mapping[str, Any], over: bool) -> Direct:
    if over:
        return Direct(torch.relu_, call.operands, out="")
    return Direct(torch.clamp_min, (*call.operands, 0))


def _sum(call: Call, attrs: Mapping[str, Any], _over: bool) -> Direct | None:
    if attrs["dtype"] is not None:
        return None
    return Direct(torch.sum, (*call.operands, list(attrs["dim"] or ()), attrs["keepdim"]))


def _total(call: Call, attrs: Mapping[str, Any], over: bool) -> Direct | None:
    """A sum in memory of its own; over all dims it is the function without dims, which is another kernel."""
    if attrs["dim"] is not None or attrs["dtype"] is not None:
        return _sum(call, attrs, over)
    return None if attrs["keepdim"] else Direct(torch.sum, call.operands)


def _softmaxed(run: Callable[..., Any]) -> _Rule:
    def rule(call: Call, attrs: Mapping[str, Any], _over: bool) -> Direct | None:
        return None if attrs["half_to_float"] else Direct(run, (*call.operands, attrs["dim"], False))

    return rule


def _softmax_backward(run: Callable[..., Any], out: str) -> _Rule:
    def rule(call: Call, attrs: Mapping[str, Any], _over: bool) -> Direct:
        return Direct(run, (*call.operands, attrs["dim"], attrs["input_dtype"]), out)

    return rule


def _nll_forward(call: Call, attrs: Mapping[str, Any], _over: bool) -> Direct:
    run = bare(aten.nll_loss_forward.default)
    return Direct(run, (*call.operands, attrs["reduction"], attrs["ignore_index"]))


def _nll_backward(run: Callable[..., Any]) -> _Rule:
    def rule(call: Call, attrs: Mapping[str, Any], _over: bool) -> Direct:
        *operands, total = call.operands
        return Direct(run, (*operands, attrs["reduction"], attrs["ignore_index"], total), "grad_input")

    return rule


def _threshold_backward(call: Call, attrs: Mapping[str, Any], _over: bool) -> Direct:
    run = bare(aten.threshold_backward.grad_input)
    return Direct(run, (*call.operands, attrs["threshold"]), "grad_input")


def _backward(overload: Callable[..., Any]) -> _Rule:
    run = bare(overload)
    return lambda call, _attrs, _over: Direct(run, call.operands, "grad_input")


_NEW: dict[str, _Rule] = {
    "aten.view": _reshape,
    "aten.permute": _permute,
    "aten.slice": _slice,
    "aten.sum": _total,
    "aten.nll_loss_forward": _nll_forward,
    "aten.nll_loss_backward": _nll_backward(bare(aten.nll_loss_backward.default)),
}
_WRITTEN: dict[str, _Rule] = {
    "aten.relu": _relu,
    "aten.sum": _sum,
    "aten.softmax": _softmaxed(_torch._softmax),
    "aten.log_softmax": _softmaxed(_torch._log_softmax),
    "aten.softmax_backward": _softmax_backward(_torch._softmax_backward_data, "grad_input"),
    "aten.log_softmax_backward": _softmax_backward(_torch._log_softmax_backward_data, "out"),
    "aten.nll_loss_backward": _nll_backward(bare(aten.nll_loss_backward.grad_input)),
    "aten.threshold_backward": _threshold_backward,
    "aten.tanh_backward": _backward(aten.tanh_backward.grad_input),
    "aten.sigmoid_backward": _backward(aten.sigmoid_backward.grad_input),
}

# -- gradients of max pooling -----------------------------------

_BACKWARD = "_with_indices_backward"
_POOLS = {
    f"aten.max_pool{n}d{_BACKWARD}": bare(getattr(aten, f"max_pool{n}d{_BACKWARD}").default) for n in (2, 3)
}


def _unpool(call: Call, bindings: Mapping[str, int], made: Made) -> Direct | None:
    """The kernel without a look at all indices, where the pooling that made them is in the plan.

    The kernel writes where indices point. Those of a pooling without dilation and ceil_mode lie in what it
    pools, since each window begins there; and so in what is given here, where that has the same shape.
    """
    grad_output, inside, indices = call.operands
    pool = made.get(indices.index) if isinstance(indices, Value) else None
    if pool is None or f"{pool.op}_backward" != call.op or not isinstance(inside, Value):
        return None
    (pooled,) = pool.values()
    plain = {*pool.attrs.get("dilation", (1,))} == {1} and not pool.attrs.get("ceil_mode", False)
    same = pool.results[1].index == indices.index and pooled.type.shape == inside.type.shape
    if not (plain and same and all(inside.type.at(bindings))):
        return None
    settings = (call.attrs[name] for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode"))
    return Direct(_POOLS[call.op], (grad_output, inside, *settings, indices))


__all__ = ["Direct", "direct"]
