"""The same work done four ways, and measured: all training images once, for a model and each batch's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, optim

import planc
from runtime.data import FederatedDataLoader, FederatedDataset
from runtime.demo.metering import Figures, metered
from runtime.demo.mnist import MnistSplit
from runtime.demo.network import LEARNING_RATE, MOMENTUM, Net, sgd
from runtime.federated import FederatedAveraging
from runtime.federated.mean import weighted_mean
from runtime.remote import RemoteModule, RemoteOptimizer

EAGER_BATCHES = 8
"""How many batches are run eagerly; the rest is extrapolated: every batch is the same messages again."""

Model = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of doing the work and what it took. ``measured`` of ``batches`` batches were run."""

    key: str
    title: str
    figures: Figures
    measured: int
    batches: int

    @property
    def is_extrapolated(self) -> bool:
        return self.measured < self.batches

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "way": self.key,
            **self.figures.json(),
            "batches": self.batches,
            "batches_measured": self.measured,
            "extrapolated": self.is_extrapolated,
        }


class Comparison:
    """Runs the four ways on the workers that have the images.

    Nothing here changes the model that was trained: each way starts from ``model`` and drops what it gets.

    Args:
        dataset: the training images at the workers.
        split: the same images here, for plain PyTorch.
        step: a training step.
        epoch: a round of it, installed at the workers.
        model: parameters to start from.
        batch_size: rows a step.
        seed: of the order of the images.
    """

    def __init__(
        self,
        dataset: FederatedDataset,
        split: MnistSplit,
        step: planc.Plan,
        epoch: planc.Plan,
        model: Model,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        self._dataset = dataset
        self._split = split
        self._step = step.with_state(model)
        self._epoch = epoch.with_state(model)
        self._model = model
        self._batch_size = batch_size
        self._seed = seed
        self._loader = FederatedDataLoader(dataset, batch_size, num_iterators=len(dataset.workers))
        self._averaging = FederatedAveraging(self._epoch, dataset, seed)

    @property
    def batches(self) -> int:
        """Batches in the work, as the workers make them."""
        return len(self._loader)

    def stages(self, repeats: int) -> Iterator[tuple[str, Way | None]]:
        """Do the work: yields what comes next, and at the end one entry a way with its best of ``repeats``.

        A first turn of each way is not measured (plans and ops are compiled in it), and the ways take turns,
        so that whatever else the machine does meets all of them.
        """
        eager = min(EAGER_BATCHES, self.batches)
        everywhere = len(self._dataset.workers)  # a batch at each: what is sent once is at every worker then
        runs: list[tuple[Way, Callable[[], None], Callable[[], None]]] = [
            (self._way("local", "plain PyTorch, here"), self.local, lambda: self.local(1)),
            (self._way("eager", "eagerly", eager), lambda: self.eager(eager), lambda: self.eager(eager)),
            (self._way("batch", "a plan a batch"), self.plan_a_batch, lambda: self.plan_a_batch(everywhere)),
            (self._way("round", "a plan a round"), self.plan_a_round, self.plan_a_round),
        ]
        for _ in islice(self._loader, len(self._dataset.workers)):
            pass  # the plan that takes a batch's rows is installed at every worker now
        for way, _, warm_up in runs:
            yield f"warming up: {way.title}", None
            warm_up()
        best: dict[str, Figures] = {}
        for turn in range(repeats):
            for way, run, _ in runs:
                yield f"measuring {turn + 1}/{repeats}: {way.title}", None
                with metered() as figures:
                    run()
                if way.key not in best or figures.seconds < best[way.key].seconds:
                    best[way.key] = figures
        for way, _, _ in runs:
            yield "", replace(way, figures=best[way.key].times(way.batches / way.measured))

    def local(self, most: int | None = None) -> None:
        """An ordinary loop over all images, here."""
        network = self._network()
        optimizer = sgd(network)
        order = torch.randperm(len(self._split.train_y), generator=torch.Generator().manual_seed(self._seed))
        losses: list[float] = []
        for rows in islice(order.split(self._batch_size), most):
            optimizer.zero_grad()
            loss = F.nll_loss(network(self._split.train_x[rows]), self._split.train_y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    def eager(self, batches: int) -> None:
        """As the tutorial has it: the model travels to each batch and back, every operation is a message."""
        model = RemoteModule(self._network())
        optimizer = RemoteOptimizer(model, optim.SGD, lr=LEARNING_RATE, momentum=MOMENTUM)
        losses: list[Tensor] = []
        for data, target in islice(self._loader, batches):
            model.send(data.location)
            optimizer.zero_grad()
            loss = F.nll_loss(model(data), target)
            loss.backward()
            optimizer.step()
            model.get()
            losses.append(_fetched(loss))
        optimizer.forget()

    def plan_a_batch(self, most: int | None = None) -> None:
        """A model resident at each worker, trained there by a plan a batch; their mean at the end."""
        remotes = {worker: self._step.send(worker) for worker in self._dataset.workers}
        losses: list[Tensor] = []
        for data, target in islice(self._loader, most):
            losses.append(remotes[data.location].fetch(data, target))
        models = [remote.get().state_dict() for remote in remotes.values()]
        weighted_mean(models, [len(shard) for shard in self._dataset.shards])

    def plan_a_round(self) -> None:
        """What the demo does: one message a worker for all of its batches, all workers at once."""
        self._averaging.round()

    def _network(self) -> Net:
        network = Net()
        network.load_state_dict(self._model)
        return network

    def _way(self, key: str, title: str, measured: int | None = None) -> Way:
        return Way(key, title, Figures(), self.batches if measured is None else measured, self.batches)


def _fetched(loss: Any) -> Tensor:
    """The value of a remote loss: torch's functions say that they return tensors, whatever they are given."""
    return loss.get()


__all__ = ["EAGER_BATCHES", "Comparison", "Way"]
