"""Optimizer ops against torch.optim: bit for bit, over several steps, for every option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim

import planc

Make = Callable[[Any], optim.Optimizer]


def _sgd(**options: Any) -> Make:
    return lambda parameters: optim.SGD(parameters, lr=0.1, **options)


def _of(cls: type[optim.Optimizer], **options: Any) -> Make:
    return lambda parameters: cls(parameters, **{"lr": 0.01, **options})  # pyright: ignore[reportCallIssue]


OPTIMIZERS: dict[str, Make] = {
    "sgd": _sgd(),
    "sgd decay": _sgd(weight_decay=0.1),
    "sgd maximize": _sgd(maximize=True),
    "sgd momentum": _sgd(momentum=0.9),
    "sgd nesterov": _sgd(momentum=0.9, nesterov=True),
    "sgd dampening": _sgd(momentum=0.9, dampening=0.3, weight_decay=0.01, maximize=True),
    "adam": _of(optim.Adam),
    "adam amsgrad": _of(optim.Adam, amsgrad=True, betas=(0.5, 0.8), eps=1e-3),
    "adam decay": _of(optim.Adam, weight_decay=0.1, maximize=True),
    "adam decoupled": _of(optim.Adam, weight_decay=0.1, decoupled_weight_decay=True),
    "adamw": _of(optim.AdamW),
    "adamw amsgrad": _of(optim.AdamW, amsgrad=True, weight_decay=0.3, maximize=True),
    "rmsprop": _of(optim.RMSprop),
    "rmsprop centered": _of(optim.RMSprop, centered=True, alpha=0.9),
    "rmsprop momentum": _of(optim.RMSprop, momentum=0.9, weight_decay=0.1, maximize=True),
    "rmsprop everything": _of(optim.RMSprop, momentum=0.5, centered=True, weight_decay=0.1, eps=1e-4),
    "adagrad": _of(optim.Adagrad),
    "adagrad decay": _of(optim.Adagrad, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5),
    "adagrad maximize": _of(optim.Adagrad, maximize=True, eps=1e-3),
}


class Parameters(nn.Module):
    """A loss that is as cheap as can be, with gradients that change from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
        self.b = nn.Parameter(torch.linspace(0.5, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x @ self.a) * self.b.sin()).pow(2).sum()


def _loss(out: torch.Tensor) -> torch.Tensor:
    return out


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_torchs_own(name: str) -> None:
    net = Parameters()
    optimizer = OPTIMIZERS[name](net.parameters())
    x = torch.linspace(-1, 1, 6).view(3, 2)
    step = planc.train_step(net, _loss, optimizer, x, targets=0, dynamic=False)
    for i in range(5):
        step(x + i)
        optimizer.zero_grad()
        net(x + i).backward()
        optimizer.step()
        for key, value in net.named_parameters():
            assert torch.equal(step.state[key], value), f"{key} after step {i + 1}"
            for slot, held in optimizer.state[value].items():
                if f"{key}.{slot}" in step.state:
                    assert torch.equal(step.state[f"{key}.{slot}"], held), f"{key}.{slot} after step {i + 1}"


@pytest.mark.parametrize(
    "name", ["sgd nesterov", "sgd dampening", "adam amsgrad", "rmsprop everything", "adagrad decay"]
)
def test_training_goes_on_where_torch_was(name: str) -> None:
    net = Parameters()
    optimizer = OPTIMIZERS[name](net.parameters())
    x = torch.linspace(-1, 1, 6).view(3, 2)
    for _ in range(2):
        optimizer.zero_grad()
        net(x).backward()
        optimizer.step()
    step = planc.train_step(net, _loss, optimizer, x, targets=0, dynamic=False)
    step(x)
    optimizer.zero_grad()
    net(x).backward()
    optimizer.step()
    for key, value in net.named_parameters():
        assert torch.equal(step.state[key], value)
