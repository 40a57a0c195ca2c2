"""Federated training of the demo's network: what it learns, what it sends, and that it is what torch does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import planc
from planc.errors import DataError
from planc.ops import lookup
from runtime import VirtualWorker, count_messages
from runtime.demo.mnist import MnistSplit
from runtime.demo.network import Net, capture_step, make_network, sgd
from runtime.demo.training import Settings, set_up, train
from runtime.demo.training import test as score_of

MakeOptimizer = Callable[[nn.Module], optim.Optimizer]


def adam(network: nn.Module) -> optim.Adam:
    return optim.Adam(network.parameters(), lr=1e-3)


def order_of(key: Tensor, rows: int) -> Tensor:
    """The order in which an epoch with this key takes its rows."""
    _, drawn, _ = lookup("random.split").run(key, count=3)
    return lookup("random.randperm").run(drawn, n=rows)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for path, tensor in a.items():
        torch.testing.assert_close(tensor, b[path], rtol=0, atol=1e-5, msg=lambda m, p=path: f"{p}: {m}")


def test_defaults_reach_95_percent(step: planc.Plan, images: MnistSplit) -> None:
    settings = Settings()
    *_, last = train(set_up(settings, images, step), images, settings.rounds)
    assert last.held_out.accuracy >= 0.95


def test_a_round_is_exactly_one_message_a_worker(step: planc.Plan, few: MnistSplit) -> None:
    setup = set_up(Settings(workers=3, batch_size=16), few, step)
    assert setup.sending.messages == 3
    assert setup.installing.messages == 3
    assert setup.installing.bytes >= 3 * len(setup.plan.bytes)
    rounds = train(setup, few, 3)
    for number in (1, 2, 3):
        with count_messages() as sent:
            trained = next(rounds)
        assert dict(sent.by_kind) == {"Run": 3}
        assert (trained.number, trained.figures.messages) == (number, 3)
        assert trained.figures.bytes == sent.bytes_out + sent.bytes_in


def test_a_plan_that_is_there_never_travels_again(step: planc.Plan, few: MnistSplit) -> None:
    setup = set_up(Settings(workers=1, batch_size=64), few, step)
    worker = setup.dataset.workers[0]
    with count_messages() as sent:
        worker.install(setup.plan)
    assert (sent.messages, sent.bytes_out) == (0, 0)
    state = sum(t.nbytes for t in setup.averaging.state.values())
    _, second = train(setup, few, 2)
    losses = 3 * 4
    # What is left beside model and losses are names of objects and shapes: too little to hold a plan.
    assert second.figures.bytes - 2 * state - losses < len(setup.plan.bytes)


def test_same_seed_same_model_bit_by_bit(step: planc.Plan, few: MnistSplit) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        settings = Settings(workers=2, seed=seed, batch_size=32)
        *_, last = train(set_up(settings, few, step), few, 2)
        return last.model

    one, same, other = run(5), run(5), run(6)
    assert all(torch.equal(tensor, same[path]) for path, tensor in one.items())
    assert not torch.equal(one["fc2.weight"], other["fc2.weight"])


def test_the_network_follows_from_the_seed_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (make_network(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, same[path]) for path, tensor in one.items())
    assert not torch.equal(one["fc1.weight"], other["fc1.weight"])


@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])
def test_one_worker_trains_as_a_local_loop_does(
    make: MakeOptimizer, step: planc.Plan, few: MnistSplit
) -> None:
    network = make_network(0)
    plan = step if make is sgd else capture_step(network, make(network))
    setup = set_up(Settings(workers=1, batch_size=64), few, plan)
    (trained,) = train(setup, few, 1)

    optimizer = make(network)
    losses: list[float] = []
    for rows in order_of(planc.key(0), len(few.train_y)).split(64):
        optimizer.zero_grad()
        loss = F.nll_loss(network(few.train_x[rows]), few.train_y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == 3  # 64, 64, and the odd 22
    close(trained.model, {path: t.detach() for path, t in network.state_dict().items()})
    assert trained.loss == pytest.approx(sum(losses) / 3, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 64, 23])
def test_one_plan_takes_every_batch_size(rows: int, step: planc.Plan, few: MnistSplit) -> None:
    x, y = few.train_x[:rows], few.train_y[:rows]
    remote = step.send(VirtualWorker("sizes"))
    remote_loss = remote.fetch(x, y)
    network = make_network(0)
    optimizer = sgd(network)
    loss = F.nll_loss(network(x), y)
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(remote_loss, loss.detach(), rtol=0, atol=1e-5)
    close(remote.get().state_dict(), {path: t.detach() for path, t in network.state_dict().items()})


def test_the_test_is_that_of_an_ordinary_loop(few: MnistSplit) -> None:
    network = Net()
    score = score_of(network, few)
    scores = network(few.test_x)
    assert score.loss == pytest.approx(F.nll_loss(scores, few.test_y).item(), abs=1e-5)
    assert score.accuracy == int((scores.argmax(1) == few.test_y).sum()) / 40


def test_more_workers_than_images_is_an_error(step: planc.Plan, few: MnistSplit) -> None:
    with pytest.raises(DataError, match="150 rows cannot be spread over 151 workers"):
        set_up(Settings(workers=151), few, step)
