"""Training steps of real networks: how many nodes the passes leave, and that no bit of a result differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import planc
from planc.ir.program import Program
from planc.passes import PASSES, named, run_pipeline
from runtime.interpreter import interpret
from tests.passes.test_exact import same_bits


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 8, 3), nn.Linear(200, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        return self.last(F.relu(self.second(x)).flatten(1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, activation="gelu")
        self.last = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(x)[0][:, -1])


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, int]]] = {
    "perceptron": (perceptron, (12,), (24, 12)),
    "convolutions": (Convolutions, (1, 14, 14), (26, 21)),
    "block": (Block, (5, 16), (81, 67)),
    "recurrent": (Recurrent, (3, 4), (132, 91)),
}
"""Networks, the shape of a sample, and the most nodes that a step may have after `PASSES`, and after all."""

ALL = (*PASSES, *named(["group", "fuse_elementwise"]))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_gets_smaller_and_computes_the_same_bits(name: str) -> None:
    make, sample, most = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    examples = torch.randn(7, *sample), torch.randint(0, 5, (7,))
    step = planc.train_step(net, F.cross_entropy, optimizer, *examples, optimize=False)
    usual, whole = (run_pipeline(step.program, steps).program for steps in (PASSES, ALL))
    for batch in (2, 6):
        values = [torch.randn(batch, *sample), torch.randint(0, 5, (batch,))]
        values += [step.state[port.path] for port in step.program.graph.state()]
        want = run(step.program, values)
        for program in (usual, whole):
            got = run(program, values)
            assert [same_bits(g, w) for g, w in zip(got, want, strict=True)] == [True] * len(want)
    assert usual.graph.count_nodes() <= most[0]
    assert whole.graph.count_nodes() <= most[1]


def run(program: Program, values: list[Any]) -> list[torch.Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads may add up otherwise from run to run
    try:
        return interpret(program.graph, values, program.constants)
    finally:
        torch.set_num_threads(threads)
