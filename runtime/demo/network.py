"""The demo's network, that of the PyTorch tutorial, and its training step as a plan. Knows no workers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import planc

LEARNING_RATE = 0.05
MOMENTUM = 0.9


class Net(nn.Module):
    """Two convolutions and two linear layers: float32 [b, 1, 28, 28] to log probabilities [b, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(4 * 4 * 50, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(x, 2, 2)
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(x, 2, 2)
        x = x.view(-1, 4 * 4 * 50)
        x = F.relu(self.fc1(x))
        x = self.fc2(x)
        return F.log_softmax(x, dim=1)


def make_network(seed: int) -> Net:
    """A fresh network; the same seed gives the same one. Leaves torch's own generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


def sgd(network: nn.Module) -> optim.SGD:
    """The demo's optimizer over a network's parameters."""
    return optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def capture_step(network: nn.Module, optimizer: optim.Optimizer | None = None) -> planc.Plan:
    """One training step of the network on a batch of images and labels, as a plan; takes seconds.

    Args:
        network: takes float32 [b, 1, 28, 28], gives log probabilities; its parameters are the plan's state.
        optimizer: over them; `sgd` where not given.
    """
    # Seven rows: a size that no layer has, so that the batch dim is fixed by nothing by accident.
    images, labels = torch.zeros(7, 1, 28, 28), torch.zeros(7, dtype=torch.int64)
    return planc.train_step(network, F.nll_loss, optimizer or sgd(network), images, labels)


__all__ = ["LEARNING_RATE", "MOMENTUM", "Net", "capture_step", "make_network", "sgd"]
