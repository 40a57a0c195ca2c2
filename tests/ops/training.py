"""Training a bundle of layers by a plan and by PyTorch, and how far the two are apart. Knows no layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

import planc

Tensor = torch.Tensor
Forward = Callable[..., Tensor]


class Branch(nn.Module):
    """``layer`` with a learned scale and shift of its input before it, so that gradients flow through it."""

    def __init__(self, layer: nn.Module | Forward, *sample: int) -> None:
        super().__init__()
        self.layer = layer
        self.sample = sample
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, sample[-1]))
        self.shift = nn.Parameter(torch.linspace(-0.2, 0.2, sample[-1]))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x * self.scale + self.shift)
        weights = torch.arange(1, out.shape[-1] + 1, dtype=torch.float32) if out.dim() else torch.ones(())
        return (out * weights).mean()


class Apply(nn.Module):
    """A layer whose result is made a tensor by ``take``: attention and recurrent layers return tuples."""

    def __init__(self, layer: nn.Module, take: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.take = layer, take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(self.layer, x)


class Bundle(nn.Module):
    """Several branches side by side, each on an input of its own; returns their losses."""

    def __init__(self, branches: Mapping[str, Branch]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(dict(branches))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: branch(inputs[name]) for name, branch in self.branches.items()}

    def batch(self, b: int, seed: int) -> dict[str, Tensor]:
        source = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(b, *branch.sample, generator=source)  # pyright: ignore[reportCallIssue] -- a Branch
            for name, branch in self.branches.items()
        }


def total(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


Make = Callable[[], Branch]


def bundle(names: Mapping[str, Make]) -> Bundle:
    torch.manual_seed(0)
    return Bundle({name: make() for name, make in names.items()})


def worst(net: Bundle, steps: int = 3, sizes: tuple[int, ...] = (2, 5)) -> dict[str, float]:
    """Train by a plan and by PyTorch; for each branch the largest difference in losses and parameters.

    The difference of a tensor is relative to its largest magnitude. The plan is traced at another batch size.
    """
    step = planc.train_step(net, total, torch.optim.SGD(net.parameters(), lr=0.1), net.batch(7, 0), targets=0)
    out = dict.fromkeys(net.branches, 0.0)
    start = {k: v.clone() for k, v in net.state_dict().items()}
    first = dict(step.state)
    for size in sizes:
        net.load_state_dict(start)
        step.state = dict(first)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for i in range(steps):
            batch = net.batch(size, i + 1)
            got = step(batch)
            optimizer.zero_grad()
            losses = total(net(batch))
            losses["loss"].backward()
            optimizer.step()
            for name in out:
                out[name] = max(out[name], _difference(got[name], losses[name].detach()))
        state = step.state_dict()
        for key, value in net.state_dict().items():
            name = key.split(".")[1]
            out[name] = max(out[name], _difference(state[key], value))
    net.load_state_dict(start)
    return out


def _difference(got: Tensor, want: Tensor) -> float:
    if not want.is_floating_point():
        return float(not torch.equal(got, want))
    scale = max(float(want.abs().max()), 1e-3)
    return float((got - want).abs().max()) / scale if torch.isfinite(got).all() else float("inf")
