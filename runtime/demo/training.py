"""The demo's training: images at the workers, rounds of federated averaging, a local test after each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import planc
from runtime.data import FederatedDataset, federate
from runtime.demo.metering import Figures, metered
from runtime.demo.mnist import MnistSplit
from runtime.demo.network import Net
from runtime.federated import FederatedAveraging
from runtime.remote import VirtualWorker, WorkerHandle

_TEST_ROWS = 250


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a training: the same settings on the same images give the same model, bit for bit."""

    workers: int = 4
    rounds: int = 10
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything in its place: images and plan at the workers, and what it took to get there."""

    plan: planc.Plan
    dataset: FederatedDataset
    averaging: FederatedAveraging
    sending: Figures
    installing: Figures


@dataclass(frozen=True, slots=True)
class Score:
    """How a model does on images that it was not trained on: mean loss, and the share that it gets right."""

    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The model after a round, and how it went. ``figures`` are those of the round, not of the test."""

    number: int
    loss: float
    held_out: Score
    figures: Figures
    model: dict[str, Tensor]

    def json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "round": self.number,
            "training_loss": _finite(self.loss),
            "held_out_loss": _finite(self.held_out.loss),
            "accuracy": self.held_out.accuracy,
            **self.figures.json(),
        }


def set_up(
    settings: Settings, split: MnistSplit, step: planc.Plan, workers: Sequence[WorkerHandle] | None = None
) -> Setup:
    """Send the training images to workers, and install an epoch of ``step`` there.

    Args:
        settings: says how many workers, where they are not given.
        split: the images.
        step: a training step.
        workers: fresh ones; those of this process where not given.

    Raises:
        DataError: there are more workers than images.
    """
    epoch = planc.epoch(step, batch_size=settings.batch_size)
    if workers is None:
        workers = [VirtualWorker(f"worker{i + 1}") for i in range(settings.workers)]
    with metered() as sending:
        dataset = federate([split.train_x, split.train_y], workers)
    with metered() as installing:
        for worker in workers:
            worker.install(epoch)
    return Setup(epoch, dataset, FederatedAveraging(epoch, dataset, settings.seed), sending, installing)


def train(setup: Setup, split: MnistSplit, rounds: int) -> Iterator[Trained]:
    """Train, one round at a time. A round that is not finished leaves no trace."""
    for _ in range(rounds):
        with metered() as figures:
            done = setup.averaging.round()
        model = setup.averaging.state_dict()
        network = Net()
        network.load_state_dict(model)
        yield Trained(done.number, done.loss, test(network, split), figures, model)


def test(network: nn.Module, split: MnistSplit) -> Score:
    """The network on the held-out images, here: an ordinary loop."""
    network.eval()
    loss, right = 0.0, 0
    with torch.inference_mode():
        for x, y in zip(split.test_x.split(_TEST_ROWS), split.test_y.split(_TEST_ROWS), strict=True):
            scores = network(x)
            loss += F.nll_loss(scores, y, reduction="sum").item()
            right += int((scores.argmax(1) == y).sum())
    return Score(loss / len(split.test_y), right / len(split.test_y))


def _finite(number: float) -> float | None:
    """JSON has no word for a loss that diverged."""
    return number if math.isfinite(number) else None


__all__ = ["Score", "Settings", "Setup", "Trained", "set_up", "test", "train"]
