"""The toy data and model of T4, T5 and T9. Not an example by itself."""

import torch
from torch import nn

DATA = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1.0]])
TARGET = torch.tensor([[0], [0], [1], [1.0]])


def linear() -> nn.Linear:
    """The same model each time."""
    torch.manual_seed(0)
    return nn.Linear(2, 1)
