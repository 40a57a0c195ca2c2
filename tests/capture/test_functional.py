"""Every loss and activation of torch.nn.functional: equal eager in value and gradient, or listed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import planc
from planc.errors import CaptureError
from planc.ops.document import NOT_COVERED
from tests.capture.training import close

Call = Callable[[torch.Tensor], torch.Tensor]
ROWS, COLUMNS = 4, 6


def noise(*shape: int) -> torch.Tensor:
    return torch.linspace(-1.3, 1.7, torch.Size(shape).numel()).sin().reshape(shape)


# What each takes after x (f32[b, 6]); positive is for logarithms, signs for losses of -1 and 1.
_X = "x"
ACTIVATIONS: dict[str, tuple[Any, ...]] = {
    "celu": (0.7,),
    "elu": (0.7,),
    "gelu": (),
    "glu": (1,),
    "hardshrink": (0.3,),
    "hardsigmoid": (),
    "hardswish": (),
    "hardtanh": (-0.5, 0.7),
    "leaky_relu": (0.1,),
    "log_softmax": (1,),
    "logsigmoid": (),
    "mish": (),
    "prelu": (torch.tensor([0.2]),),
    "relu": (),
    "relu6": (),
    "selu": (),
    "sigmoid": (),
    "silu": (),
    "softmax": (1,),
    "softmin": (1,),
    "softplus": (0.5,),
    "softshrink": (0.3,),
    "softsign": (),
    "tanh": (),
    "tanhshrink": (),
    "threshold": (0.1, 0.2),
    "rrelu": (0.1, 0.1),
}
RANDOM = {"gumbel_softmax"}  # a draw has no equal; tests.ops holds its distribution
"""In-place forms (``relu_``) are the same operations, written into their operand."""

LOSSES: dict[str, Call] = {
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(x.sigmoid(), x.detach().cos().abs()),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(
        x, x.detach().cos().abs()
    ),
    "cosine_embedding_loss": lambda x: F.cosine_embedding_loss(x, x.flip(1) + 0.1, sign(x)),
    "cross_entropy": lambda x: F.cross_entropy(x, classes(x), label_smoothing=0.1),
    "hinge_embedding_loss": lambda x: F.hinge_embedding_loss(x[:, 0], sign(x)),
    "huber_loss": lambda x: F.huber_loss(x, x.detach().cos(), delta=0.4),
    "kl_div": lambda x: F.kl_div(x.log_softmax(1), x.detach().cos().softmax(1), reduction="batchmean"),
    "l1_loss": lambda x: F.l1_loss(x, x.detach().cos()),
    "linear_cross_entropy": lambda x: F.linear_cross_entropy(x, noise(5, COLUMNS), classes(x) % 5),
    "margin_ranking_loss": lambda x: F.margin_ranking_loss(x[:, 0], x[:, 1], sign(x), margin=0.1),
    "mse_loss": lambda x: F.mse_loss(x, x.detach().cos()),
    "multi_margin_loss": lambda x: F.multi_margin_loss(x, classes(x)),
    "multilabel_margin_loss": lambda x: F.multilabel_margin_loss(x, x.detach().argsort(1)),
    "multilabel_soft_margin_loss": lambda x: F.multilabel_soft_margin_loss(x, (x.detach() > 0).float()),
    "nll_loss": lambda x: F.nll_loss(x.log_softmax(1), classes(x)),
    "poisson_nll_loss": lambda x: F.poisson_nll_loss(x, x.detach().cos().abs() + 1, full=True),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, x.detach().cos(), beta=0.4),
    "soft_margin_loss": lambda x: F.soft_margin_loss(x, x.detach().sign()),
    "triplet_margin_loss": lambda x: F.triplet_margin_loss(x, x.flip(1), x * 0.5 + 0.2),
    "triplet_margin_with_distance_loss": lambda x: F.triplet_margin_with_distance_loss(
        x, x.flip(1), x * 0.5 + 0.2
    ),
    "ctc_loss": lambda x: F.ctc_loss(
        x.log_softmax(1).unsqueeze(1), torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])
    ),
    "gaussian_nll_loss": lambda x: F.gaussian_nll_loss(x, x.detach().cos(), x.detach().abs() + 1),
}


def classes(x: torch.Tensor) -> torch.Tensor:
    return x.detach().abs().argmax(1)


def sign(x: torch.Tensor) -> torch.Tensor:
    return x.detach()[:, 0].sign()


def _named(name: str, args: tuple[Any, ...]) -> Call:
    def call(x: torch.Tensor) -> torch.Tensor:
        return getattr(F, name)(x, *args, **({"training": True} if name == "rrelu" else {}))

    return call


CALLS: dict[str, Call] = {name: _named(name, args) for name, args in ACTIVATIONS.items()} | LOSSES


def _is_activation(name: str) -> bool:
    """The functions of torch.nn.functional that the documentation of torch.nn.modules.activation is about."""
    modules = torch.nn.modules.activation
    return f"F.{name}(" in inspect.getsource(modules) and not name.startswith("multi_head")


def test_every_loss_and_activation_is_here() -> None:
    public = [n for n in dir(F) if callable(getattr(F, n)) and not n.startswith("_") and not n.endswith("_")]
    losses = {n for n in public if "loss" in n or "entropy" in n or n == "kl_div"}
    activations = {n for n in public if _is_activation(n)}
    assert len(activations) > 20
    assert losses | activations <= CALLS.keys() | RANDOM


def with_gradient(call: Call) -> Callable[[torch.Tensor], Any]:
    def run(x: torch.Tensor) -> Any:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            out = call(leaf)
            (gradient,) = torch.autograd.grad((out * out).sum(), leaf)
        return out.detach(), gradient

    return run


@pytest.mark.parametrize("name", CALLS)
def test_value_and_gradient_equal_eager_or_are_documented_as_refused(name: str) -> None:
    run = with_gradient(CALLS[name])
    example = noise(ROWS, COLUMNS)
    if name in NOT_COVERED:
        with pytest.raises(CaptureError, match=NOT_COVERED[name][1]):
            planc.trace(run, example)
        return
    plan = planc.trace(run, example)
    for rows in (2, 3):
        x = noise(rows, COLUMNS) + 0.01
        close(plan(x), run(x), 1e-6)
