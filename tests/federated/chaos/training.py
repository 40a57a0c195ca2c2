"""What the tests of killed workers train: an MLP on real MNIST digits, and what comes of it undisturbed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import planc
from runtime import VirtualWorker, WorkerHandle
from runtime.demo.mnist import load_embedded
from runtime.federated import Federation, Population, Uniform

ROUNDS, CLIENTS, COHORT, SEED = 50, 30, 9, 11
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Digits:
    """Images in rows of 784 pixels, and what they show: to train with, and held out."""

    x: torch.Tensor
    y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


@cache
def digits() -> Digits:
    split = load_embedded()
    return Digits(split.train_x.flatten(1), split.train_y, split.test_x.flatten(1), split.test_y)


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, 10))


@cache
def plan() -> planc.Plan:
    net, d = network(), digits()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    return planc.epoch(planc.train_step(net, F.cross_entropy, optimizer, d.x[:32], d.y[:32]), batch_size=32)


def population(workers: list[WorkerHandle]) -> Population:
    d = digits()
    return Population.split((d.x, d.y), CLIENTS, workers, seed=SEED)


def federation(at: Population, **options: Any) -> Federation:
    options = {"sampling": Uniform(COHORT), "seed": SEED, "quorum": 1.0} | options
    return Federation(options.pop("plan", None) or plan(), at, **options)


def same(a: State, b: State) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[path], b[path]) for path in a)


@cache
def undisturbed(client_state: str = "fresh") -> State:
    """The model after all rounds, of workers in this process that nobody kills."""
    workers: list[WorkerHandle] = [VirtualWorker("here")]
    return federation(population(workers), client_state=client_state).run(ROUNDS).state_dict()


def accuracy(state: State) -> float:
    """The part of the held-out digits that a model tells right."""
    net, d = network(), digits()
    net.load_state_dict(state)
    with torch.no_grad():
        return float((net(d.test_x).argmax(1) == d.test_y).double().mean())
