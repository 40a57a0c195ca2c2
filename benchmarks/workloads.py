"""The networks and training steps that are measured, each with its loss, data and optimizer; seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Workload:
    """One training step: a fresh module and optimizer, its loss, and one batch."""

    name: str
    module: Callable[[], nn.Module]
    loss: Callable[..., torch.Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]]
    size: int
    target: str = ""

    def start(self) -> tuple[nn.Module, torch.optim.Optimizer, tuple[torch.Tensor, torch.Tensor]]:
        torch.manual_seed(0)
        module = self.module()
        return module, self.optimizer(module.parameters()), self.batch(self.size)


class TutorialNet(nn.Module):
    """The convolutional network of the PySyft tutorial's MNIST part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5, 1)
        self.conv2 = nn.Conv2d(20, 50, 5, 1)
        self.fc1 = nn.Linear(4 * 4 * 50, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2, 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2, 2)
        x = F.relu(self.fc1(x.view(-1, 4 * 4 * 50)))
        return F.log_softmax(self.fc2(x), dim=1)


def squared_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((prediction - target) ** 2).sum()


def _toy(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return data[:size], data[:size, :1].clone()


def _digits(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 784), torch.randint(10, (size,))


def _images(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 1, 28, 28), torch.randint(10, (size,))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


LINEAR = Workload("linear 2x1, SGD", lambda: nn.Linear(2, 1), squared_error, sgd, _toy, 4, "<= 0.25x")
MLP_SGD = Workload("MLP 784-64-10, batch 32, SGD", mlp, F.cross_entropy, sgd, _digits, 32, "<= 0.75x")
MLP_ADAM = Workload("MLP 784-64-10, batch 32, Adam", mlp, F.cross_entropy, adam, _digits, 32, "<= 0.6x")
CNN = Workload("tutorial CNN, batch 64, SGD", TutorialNet, F.nll_loss, sgd, _images, 64, "<= 1.0x")
STEPS = (LINEAR, MLP_SGD, MLP_ADAM, CNN)
