"""Training by eager PyTorch beside training by a plan: what tests of training steps compare. No fixtures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import planc

Batch = tuple[torch.Tensor, ...]
Loss = Callable[..., Any]
SIZES = (2, 3, 64, 1)
"""Batch sizes that no capture traces with; BatchNorm needs more than one value, hence 1 is the last."""


@dataclass
class Pair:
    """A module with its optimizer, and a plan captured from them; both train on the same batches."""

    module: nn.Module
    loss_fn: Loss
    optimizer: torch.optim.Optimizer
    plan: planc.Plan
    targets: int = 1

    def eager(self, batch: Batch, before_step: Callable[[], object] = lambda: None) -> Any:
        self.optimizer.zero_grad()
        inputs = len(batch) - self.targets
        result = self.loss_fn(self.module(*batch[:inputs]), *batch[inputs:])
        loss_of(result).backward()
        before_step()
        self.optimizer.step()
        return result

    def train(self, batches: Iterable[Batch], tolerance: float = 0.0) -> None:
        """Train both and compare results and state after every step."""
        for batch in batches:
            close(self.plan(*batch), self.eager(batch), tolerance)
            self.compare_state(tolerance)

    def compare_state(self, tolerance: float = 0.0) -> None:
        want = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        got = self.plan.state_dict()
        assert got.keys() == want.keys()
        for path, tensor in want.items():
            close(got[path], tensor, tolerance, path)


def pair(
    module: nn.Module,
    loss_fn: Loss,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | torch.optim.Optimizer,
    *examples: torch.Tensor,
    targets: int = 1,
    **options: Any,
) -> Pair:
    made = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(module.parameters())
    plan = planc.train_step(module, loss_fn, made, *examples, targets=targets, **options)
    return Pair(module, loss_fn, made, plan, targets)


def loss_of(result: Any) -> torch.Tensor:
    if isinstance(result, dict):
        return result["loss"]
    return result[0] if isinstance(result, tuple) else result


def close(got: Any, want: Any, tolerance: float = 0.0, where: str = "") -> None:
    """The same structure and dtypes, and values within a relative tolerance; 0 is bit for bit."""
    if isinstance(want, dict):
        assert list(got) == list(want)
        for key in want:
            close(got[key], want[key], tolerance, f"{where}[{key!r}]")
    elif isinstance(want, (tuple, list)):
        assert type(got) is type(want)
        assert len(got) == len(want)
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            close(a, b, tolerance, f"{where}[{i}]")
    else:
        torch.testing.assert_close(
            got, want.detach(), rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{where}: {m}"
        )


def classified(
    features: Sequence[int], classes: int = 3, dtype: torch.dtype = torch.float32
) -> Callable[[int], Batch]:
    """Makes batches of inputs of this shape and of labels."""

    def batch(rows: int) -> Batch:
        return torch.randn(rows, *features).to(dtype), torch.randint(classes, (rows,))

    return batch


def mlp(features: int = 6, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, classes))


def twin(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module)
