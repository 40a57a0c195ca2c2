"""Adafactor's update as a function of tensors; torch.optim's own takes numbers out of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def adafactor(
    parameter: torch.Tensor, grad: torch.Tensor, state: dict[str, torch.Tensor], options: Mapping[str, Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One update, by the arithmetic of torch.optim.Adafactor's single-tensor form.

    Args:
        parameter, grad: of one shape and dtype.
        state: ``step`` (``f64[]``) and either ``row_var`` and ``col_var`` or, for a vector, ``variance``.
        options: those of the parameter group; ``lr`` a number or an ``f64[]``.

    Returns:
        The new parameter and the new state.
    """
    eps1, eps2 = options["eps"]
    eps1 = torch.finfo(parameter.dtype).eps if eps1 is None else eps1
    lr = options["lr"]
    grad = -grad if options["maximize"] else grad
    step = state["step"] + 1
    weight = step ** options["beta2_decay"]
    slowing = 1 / step**0.5
    rate = torch.minimum(lr, slowing) if isinstance(lr, torch.Tensor) else slowing.clamp(max=lr)
    size = torch.clamp(_norm(parameter) / parameter.numel() ** 0.5, min=eps2)
    if options["weight_decay"]:
        parameter = parameter * (1 - lr * options["weight_decay"])
    new = {"step": step}
    if grad.dim() > 1:
        row_mean = torch.norm(grad, dim=-1, keepdim=True).square() / grad.size(-1)
        column_mean = torch.norm(grad, dim=-2, keepdim=True).square() / grad.size(-2)
        new["row_var"] = row = _mixed(state["row_var"], row_mean, weight)
        new["col_var"] = column = _mixed(state["col_var"], column_mean, weight)
        variance = (row @ column) / row.mean(dim=-2, keepdim=True).clamp(min=eps1)
    else:
        new["variance"] = variance = _mixed(state["variance"], grad * grad, weight)
    update = variance.clamp(min=eps1 * eps1).rsqrt() * grad
    limit = torch.clamp(_norm(update) / (update.numel() ** 0.5 * options["d"]), min=1.0)
    return parameter + update * (-(size * rate) / limit), new


def _norm(x: torch.Tensor) -> torch.Tensor:
    return x.norm(2).to(torch.float64)


def _mixed(old: torch.Tensor, new: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.lerp(old, new, weight.to(old.dtype))
