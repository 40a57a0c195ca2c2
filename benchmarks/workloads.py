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


class SmallTransformer(nn.Module):
    """Words, embedded, through two layers of a transformer's encoder, in ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.core = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(self.embed(x)).mean(1))


def squared_error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((prediction - target) ** 2).sum()


def _toy(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return data[:size], data[:size, :1].clone()


def _digits(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 784), torch.randint(10, (size,))


def _images(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 1, 28, 28), torch.randint(10, (size,))


def _words(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(1000, (size, 32)), torch.randint(10, (size,))


def _pictures(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 3, 64, 64), torch.randint(10, (size,))


def resnet18() -> nn.Module:
    # Only here: the runtime is not there where the programs of others are measured.
    from runtime.demo.torchvision_compat import import_torchvision

    return import_torchvision().models.resnet18(num_classes=10)


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
TRANSFORMER = Workload("small transformer, batch 16, SGD", SmallTransformer, F.cross_entropy, sgd, _words, 16)
RESNET = Workload("ResNet-18, batch 8, SGD", resnet18, F.cross_entropy, sgd, _pictures, 8, "<= 1.0x")
STEPS = (LINEAR, MLP_SGD, MLP_ADAM, CNN, TRANSFORMER, RESNET)
LARGE = (RESNET,)
"""What takes long to capture: left out of quick runs."""
