"""The tutorial's jobs that send anything, each done in every way that there is, and what each way sent.

A way whose count a plan's cost predicts carries the prediction. Recording has no autograd, so training is not
recorded. T1 (workers), T4 (local training) and T6 (why fetching leaks) send nothing of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import planc
from benchmarks.counting import Count, Watched
from benchmarks.workloads import CNN, LINEAR, MLP_SGD, Workload
from planc import Plan
from planc.cost import Cost
from runtime import (
    FederatedAveraging,
    FederatedDataLoader,
    FederatedDataset,
    RemoteModule,
    RemoteOptimizer,
    federate,
    record,
)

TOY = "T5 a training step of linear 2x1"
MLP_STEP = "a training step of MLP 784-64-10, batch 32"
MNIST = "T10 a training step of MNIST's CNN, batch 64"
OPERATIONS = "T13 14 operations"
EAGER, RESIDENT, RECORDED = "eager", "eager, model resident", "recorded"
PLAN = "plan a step"
ROUND = 10
"""Steps in a round."""


@dataclass(frozen=True)
class Predicted:
    """What `plan.cost` says that is sent."""

    messages: int
    tensors: int


@dataclass(frozen=True)
class Way:
    """One way to do a job.

    Attributes:
        name: as readers see it.
        count: what doing it once sent, everything being in place.
        predicted: the same by `plan.cost`, where a plan did it.
        before: what putting everything but the data in place sent.
    """

    name: str
    count: Count
    predicted: Predicted | None = None
    before: Count | None = None


@dataclass(frozen=True)
class Job:
    """A job, and the ways to do it."""

    name: str
    do: Callable[[], Iterator[Way]]

    @cached_property
    def ways(self) -> Sequence[Way]:
        return tuple(self.do())

    def way(self, name: str) -> Way | None:
        return next((way for way in self.ways if way.name == name), None)


def _send_and_get() -> Iterator[Way]:
    watched = Watched()
    bob = watched.worker("bob")
    yield Way(EAGER, watched.count(lambda: bob.send(torch.ones(5)).get()))


def _add() -> Iterator[Way]:
    def total(x: Any, y: Any) -> Any:
        return x + y

    yield from _function(total, torch.ones(5), torch.ones(5))


def _function(function: Callable[..., Any], *args: torch.Tensor) -> Iterator[Way]:
    """A function of tensors that are at a worker, its result fetched: without autograd, each way."""
    watched = Watched()
    bob = watched.worker("bob")
    there = [bob.send(arg) for arg in args]
    yield Way(EAGER, watched.count(lambda: function(*there).get()))

    def recorded() -> None:
        with record():
            result = function(*there)
        result.get()

    first = watched.count(recorded)
    yield Way(f"{RECORDED}, the first time", first)
    yield Way(RECORDED, watched.count(recorded))
    plan = planc.trace(function, *args, dynamic=False)
    yield from _called(watched, plan, bob, there, args)


def _called(
    watched: Watched, plan: Plan, worker: Any, there: Sequence[Any], here: Sequence[torch.Tensor], **dims: int
) -> Iterator[Way]:
    """A plan on arguments at the worker, and on local ones."""
    remote: list[Any] = []
    before = watched.count(lambda: remote.append(plan.send(worker)))
    cost = plan.cost(**dims)
    resident = watched.count(lambda: remote[0].fetch(*there))
    yield Way(PLAN, resident, Predicted(cost.messages, cost.result_bytes), before)
    travelling = watched.count(lambda: remote[0].fetch(*here))
    predicted = Predicted(cost.messages, cost.argument_bytes + cost.result_bytes)
    yield Way("plan a step, data travelling", travelling, predicted, before)


def _step(work: Workload) -> Iterator[Way]:
    """A training step on data at a worker, the loss fetched."""
    watched = Watched()
    bob = watched.worker("bob")
    module, optimizer, (x, y) = work.start()
    rx, ry = bob.send(x), bob.send(y)
    model = RemoteModule(module)
    remote = RemoteOptimizer(model, type(optimizer), lr=optimizer.param_groups[0]["lr"])

    def resident() -> None:
        remote.zero_grad()
        loss = work.loss(model(rx), ry)
        loss.backward()
        remote.step()
        loss.get()

    def travelling() -> None:
        model.send(bob)
        resident()
        model.get()

    travelling()
    yield Way("eager, model travelling", watched.count(travelling))
    before = watched.count(lambda: model.send(bob))
    resident()
    yield Way(RESIDENT, watched.count(resident), before=before)
    step = planc.train_step(module, work.loss, optimizer, x, y)
    yield from _called(watched, step, bob, (rx, ry), (x, y), b=len(x))
    yield _round(watched, work, step)


def _round(watched: Watched, work: Workload, step: Plan) -> Way:
    """A round of federated averaging at one worker: the model travels there and back, in one message."""
    carol = watched.worker("carol")
    x, y = work.batch(work.size)
    x, y = (t.repeat(ROUND, *(1,) * (t.dim() - 1)) for t in (x, y))
    plan = planc.epoch(step, batch_size=len(x) // ROUND, shuffle=False)
    dataset = FederatedDataset({carol: carol.send_all([x, y])})
    training = FederatedAveraging(plan, dataset)
    training.round()  # installs the plan
    cost = plan.cost(n=len(x))
    count = watched.count(training.round)
    name = f"plan a round of {ROUND} steps, model travelling"
    return Way(name, count, Predicted(cost.messages, cost.state_bytes + _returned(cost)))


def _returned(cost: Cost) -> int:
    return cost.update_bytes + cost.result_bytes


def _pointer() -> Iterator[Way]:
    watched = Watched()
    bob, alice = watched.worker("bob"), watched.worker("alice")
    yield Way(EAGER, watched.count(lambda: bob.send(torch.ones(5)).send(alice).get().get()))


def _move() -> Iterator[Way]:
    watched = Watched()
    bob, alice = watched.worker("bob"), watched.worker("alice")
    x = bob.send(torch.ones(5))
    yield Way(EAGER, watched.count(lambda: x.move(alice)))


def _averaging() -> Iterator[Way]:
    """Five steps at each of two workers, and the mean of their models."""
    watched = Watched()
    module, optimizer, (x, y) = LINEAR.start()
    workers, secure = [watched.worker("bob"), watched.worker("alice")], watched.worker("secure")
    model = RemoteModule(module)
    halves = [(w.send(x[i : i + 2]), w.send(y[i : i + 2])) for i, w in zip((0, 2), workers, strict=True)]

    def trained(recorded: bool) -> None:
        copies: list[Any] = []
        for worker, (rx, ry) in zip(workers, halves, strict=True):
            there = model.copy().send(worker)
            remote = RemoteOptimizer(there, torch.optim.SGD, lr=0.1)
            for _ in range(5):
                remote.zero_grad()
                LINEAR.loss(there(rx), ry).backward()
                remote.step()
            copies.append(there)
        with torch.no_grad():
            a, b = (there.move(secure).state for there in copies)
            if recorded:
                with record():
                    means = {path: (a[path] + b[path]) / 2 for path in a}
            else:
                means = {path: (a[path] + b[path]) / 2 for path in a}
            model.load_state_dict({path: mean.get() for path, mean in means.items()})

    trained(False)
    yield Way(EAGER, watched.count(lambda: trained(False)))
    trained(True)
    yield Way("eager, the mean recorded", watched.count(lambda: trained(True)))
    step = planc.train_step(module, LINEAR.loss, optimizer, x[:2], y[:2])
    plan = planc.epoch(step, batch_size=2, shuffle=False, epochs=5)
    dataset = FederatedDataset(dict(zip(workers, halves, strict=True)))
    training = FederatedAveraging(plan, dataset)
    training.round()
    cost = plan.cost(n=2)
    predicted = Predicted(2 * cost.messages, 2 * (cost.state_bytes + _returned(cost)))
    yield Way("plan a round, mean taken by the caller", watched.count(training.round), predicted)


def _mnist() -> Iterator[Way]:
    yield from _step(CNN)
    watched = Watched()
    workers = [watched.worker("bob"), watched.worker("alice")]
    module, optimizer, (x, y) = CNN.start()
    loader = FederatedDataLoader(
        federate(TensorDataset(x.repeat(4, 1, 1, 1), y.repeat(4)), workers), CNN.size
    )
    model = RemoteModule(module)
    remote = RemoteOptimizer(model, torch.optim.SGD, lr=0.1)

    def batch(data: Any, target: Any) -> None:
        model.send(data.location)
        remote.zero_grad()
        loss = CNN.loss(model(data), target)
        loss.backward()
        remote.step()
        model.get()
        loss.get()

    batches = iter(loader)
    batch(*next(batches))
    yield Way("eager, model travelling, with the loader", watched.count(lambda: batch(*next(batches))))
    step = planc.train_step(module, CNN.loss, optimizer, x, y)
    remotes = {worker: step.send(worker) for worker in workers}
    batches = iter(loader)

    def planned() -> None:
        data, target = next(batches)
        remotes[data.location].fetch(data, target)

    planned()  # installs the plan that takes a batch's rows
    cost = step.cost(b=CNN.size)
    # Which rows, travels along: an i64 a row.
    predicted = Predicted(cost.messages, cost.result_bytes + 8 * CNN.size)
    yield Way("plan a step, with the loader", watched.count(planned), predicted)


def _halved() -> Iterator[Way]:
    def calcu(x: Any, y: Any) -> Any:
        return (x + y) / 2

    yield from _function(calcu, torch.tensor([1.0, 2]), torch.tensor([5.0, 4]))


def _class() -> Iterator[Way]:
    class Net(planc.PlanModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(2, 3)
            self.fc2 = nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=0)

    torch.manual_seed(0)
    watched = Watched()
    bob = watched.worker("bob")
    net, x = Net(), torch.tensor([1.0, 2.0])
    net.build(x)
    there, model = bob.send(x), RemoteModule(net)
    before = watched.count(lambda: model.send(bob))

    def eager() -> None:
        with torch.no_grad():
            model(there).get()

    def recorded() -> None:
        with torch.no_grad(), record():
            result = model(there)
        result.get()

    yield Way(RESIDENT, watched.count(eager), before=before)
    yield Way(f"{RECORDED}, the first time", watched.count(recorded))
    yield Way(RECORDED, watched.count(recorded))
    yield from _called(watched, planc.trace(net, x, dynamic=False), bob, (there,), (x,))


def _operations() -> Iterator[Way]:
    def fourteen(x: Any, y: Any) -> Any:
        for _ in range(7):
            x = (x + y) * 0.5
        return x

    yield from _function(fourteen, torch.ones(8), torch.ones(8))


ALL = (
    Job("T2 send a tensor and get it back", _send_and_get),
    Job("T3 x + y, and get it", _add),
    Job(TOY, lambda: _step(LINEAR)),
    Job("T7 a pointer to a pointer, and back", _pointer),
    Job("T8 move a tensor to another worker", _move),
    Job("T9 five steps at each of two workers, and the mean", _averaging),
    Job(MNIST, _mnist),
    Job("T11 a plan from a function", _halved),
    Job("T12 a plan from a class", _class),
    Job(OPERATIONS, _operations),
    Job(MLP_STEP, lambda: _step(MLP_SGD)),
)
