"""Federated averaging: the mean is the mean, a round is a message a worker, one worker is local training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import planc
from planc.errors import InputError
from runtime import FederatedAveraging, VirtualWorker, count_messages, federate
from runtime.errors import WorkerError
from runtime.federated.mean import weighted_mean

torch.manual_seed(0)
X = torch.randn(30, 4)
Y = X[:, :3].argmax(1)


def make_step(momentum: float = 0.9) -> planc.Plan:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    return planc.train_step(net, F.cross_entropy, opt, X[:5], Y[:5])


@pytest.fixture(scope="module")
def epoch() -> planc.Plan:
    return planc.epoch(make_step(), batch_size=5)


def test_the_mean_is_weighted_by_rows() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([4.0, 0.0]), "n": torch.tensor(6)},
    ]
    mean = weighted_mean(states, [1, 2])
    assert mean["w"].tolist() == pytest.approx([3.0, 2 / 3])
    assert mean["n"].item() == 5
    assert mean["n"].dtype is torch.int64
    assert torch.equal(weighted_mean(states[:1], [7])["w"], states[0]["w"])
    for bad in (([], []), (states, [1]), (states, [1, 0]), ([*states, {"w": torch.ones(3)}], [1, 1, 1])):
        with pytest.raises(InputError):
            weighted_mean(*bad)


def test_a_round_is_the_mean_of_local_rounds(
    epoch: planc.Plan, bob: VirtualWorker, alice: VirtualWorker
) -> None:
    shares = [2, 1]
    training = FederatedAveraging(epoch, federate((X, Y), (bob, alice), shares=shares), seed=3)
    local: list[planc.Plan] = []
    for i in range(2):
        own = {p.path: planc.key(3 * 1_000_003 + i) for p in epoch.graph.state() if p.role.value == "key"}
        local.append(planc.Plan(epoch.program, {**epoch.state, **own}))
    split = [(X[:20], Y[:20]), (X[20:], Y[20:])]
    for number in (1, 2):
        result = training.round()
        losses = [plan(*data) for plan, data in zip(local, split, strict=True)]
        mean = weighted_mean([plan.state_dict() for plan in local], [20, 10])
        for path, tensor in training.state_dict().items():
            torch.testing.assert_close(tensor, mean[path])
        for plan in local:
            plan.state |= mean
        assert (result.number, training.rounds) == (number, number)
        assert result.rows == {"bob": 20, "alice": 10}
        torch.testing.assert_close(result.results["bob"], losses[0])
        expected = float(losses[0].double().mean() * 2 + losses[1].double().mean()) / 3
        assert result.loss == pytest.approx(expected, rel=1e-5)


def test_a_round_is_one_message_a_worker(epoch: planc.Plan, bob: VirtualWorker, alice: VirtualWorker) -> None:
    training = FederatedAveraging(epoch, federate((X, Y), (bob, alice)))
    with count_messages() as sent:
        training.round()
    assert sent.by_kind == {"Install": 2, "Run": 2}
    with count_messages() as sent:
        training.round()
    assert sent.by_kind == {"Run": 2}


def test_one_worker_is_local_training(bob: VirtualWorker) -> None:
    step = make_step()
    training = FederatedAveraging(step, federate((X, Y), (bob,)))
    local = planc.Plan(step.program, step.state)
    for _ in range(5):
        training.round()
        local(X, Y)
    torch.testing.assert_close(training.state_dict(), local.state_dict())


def test_training_learns(epoch: planc.Plan, bob: VirtualWorker, alice: VirtualWorker) -> None:
    training = FederatedAveraging(epoch, federate((X, Y), (bob, alice), seed=0))
    losses = [training.round().loss for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_failed_round_changes_nothing(epoch: planc.Plan, bob: VirtualWorker, alice: VirtualWorker) -> None:
    data = federate((X, Y), (bob, alice))
    training = FederatedAveraging(epoch, data)
    training.round()
    before = training.state_dict()
    alice.clear_objects()
    with pytest.raises(WorkerError, match="alice"):
        training.round()
    torch.testing.assert_close(training.state_dict(), before)
    assert training.rounds == 1


def test_a_plan_that_does_not_fit_the_data_is_refused(epoch: planc.Plan, bob: VirtualWorker) -> None:
    with pytest.raises(InputError, match="takes 2 tensors"):
        FederatedAveraging(epoch, federate((X,), (bob,)))
