"""NAdam's update as a function of tensors, rounded where torch.optim's usual form rounds.

Its capturable form, which the other optimizers are traced in, keeps ``mu_product`` to other digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def nadam(
    parameter: torch.Tensor, grad: torch.Tensor, state: dict[str, torch.Tensor], options: Mapping[str, Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One update, by the arithmetic of torch.optim.NAdam's single-tensor form.

    Args:
        parameter, grad: of one shape and dtype.
        state: ``step`` and ``mu_product`` (``f64[]``), ``exp_avg`` and
            ``exp_avg_sq``.
        options: those of the parameter group; ``lr`` a number or an ``f64[]``.

    Returns:
        The new parameter and the new state.
    """
    beta1, beta2 = options["betas"]
    lr, weight_decay, decay = options["lr"], options["weight_decay"], options["momentum_decay"]
    grad = -grad if options["maximize"] else grad
    step = state["step"] + 1
    if weight_decay and options["decoupled_weight_decay"]:
        parameter = parameter * (1 - lr * weight_decay)
    elif weight_decay:
        grad = grad.add(parameter, alpha=weight_decay)
    mu = beta1 * (1.0 - 0.5 * (0.96 ** (step * decay)))
    mu_next = beta1 * (1.0 - 0.5 * (0.96 ** ((step + 1) * decay)))
    # ``mu_product`` is a tensor of this type there, and a product with one rounds the number first.
    kept = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    product = (state["mu_product"].to(kept) * mu.to(kept)).double()
    average = state["exp_avg"].lerp(grad, 1 - beta1)
    square = (state["exp_avg_sq"] * beta2).addcmul(grad, grad, value=1 - beta2)
    root = (square / (1 - beta2**step)).sqrt() + options["eps"]
    for moved, rate in (
        (grad, -lr * (1.0 - mu) / (1.0 - product)),
        (average, (-lr * mu_next) / (1.0 - product * mu_next)),
    ):
        # addcdiv rounds its number to the tensors' type and multiplies by it before it divides.
        parameter = parameter + moved * rate / root
    return parameter, {"step": step, "mu_product": product, "exp_avg": average, "exp_avg_sq": square}
