"""Epochs: a step scanned over batches equals the explicit loop over the same batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import planc
from planc.errors import InputError, PlanError
from planc.ops import lookup
from planc.ops.randomness import generator
from runtime.interpreter import interpret
from tests.capture.training import Pair, classified, close, mlp, pair

data = classified((6,))


@pytest.fixture(scope="module")
def step() -> planc.Plan:
    net = mlp()
    optimizer = optim.Adam(net.parameters(), lr=0.01)
    return planc.train_step(net, F.cross_entropy, optimizer, *data(5))


@pytest.fixture(scope="module")
def dropping() -> planc.Plan:
    """A step that draws numbers itself."""
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    return planc.train_step(
        net, lambda out, y: (F.cross_entropy(out, y), y), optim.SGD(net.parameters(), lr=0.1), *data(5)
    )


def fresh(plan: planc.Plan) -> planc.Plan:
    return plan.with_state({})


def order_of(key: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The key that an epoch leaves, and the order of rows that it draws."""
    carry, order_key, _ = lookup("random.split").run(key, count=3)
    return carry, torch.randperm(rows, generator=generator(order_key))


@pytest.mark.parametrize(("rows", "drop_last"), [(10, False), (12, False), (3, False), (10, True)])
def test_without_shuffling_it_is_the_loop(step: planc.Plan, rows: int, drop_last: bool) -> None:
    x, y = data(rows)
    epoch, loop = planc.epoch(step, 4, shuffle=False, drop_last=drop_last), fresh(step)
    losses = epoch(x, y)
    batches = [(a, b) for a, b in zip(x.split(4), y.split(4), strict=True) if not drop_last or len(a) == 4]
    close(losses, torch.stack([loop(a, b) for a, b in batches]))
    close(epoch.state, loop.state)


def test_shuffling_draws_one_order_an_epoch_from_the_key(step: planc.Plan) -> None:
    x, y = data(10)
    epoch = planc.epoch(step, 4, epochs=3).with_state({"rng": planc.key(5)})
    losses = epoch(x, y)
    assert losses.shape == (3, 3)
    loop, key, orders = fresh(step), planc.key(5), []
    for row in losses:
        key, order = order_of(key, 10)
        orders.append(order)
        close(row, torch.stack([loop(x[part], y[part]) for part in order.split(4)]))
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(epoch.state.pop("rng"), key)
    close(epoch.state, loop.state)


def test_it_equals_a_loop_in_eager_pytorch() -> None:
    both = pair(mlp(), F.cross_entropy, lambda p: optim.SGD(p, lr=0.1, momentum=0.9), *data(5))
    x, y = data(11)
    epoch = planc.epoch(both.plan, 4).with_state({"rng": planc.key(2)})
    losses = epoch(x, y)
    _, order = order_of(planc.key(2), 11)
    want = [both.eager((x[part], y[part])) for part in order.split(4)]
    close(losses, torch.stack(want), 1e-6)
    Pair(both.module, both.loss_fn, both.optimizer, epoch).compare_state(1e-6)


def test_a_step_with_dropout_draws_anew_every_step_and_replays(dropping: planc.Plan) -> None:
    x, y = data(10)
    runs = [planc.epoch(dropping, 4).with_state({"rng": planc.key(seed)}) for seed in (1, 1, 2)]
    (a, labels), (b, _), (c, _) = (run(x, y) for run in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(labels.sort().values, y.sort().values)  # a row for each row of data, in drawn order
    still = planc.epoch(dropping, 5, shuffle=False).with_state({"rng": planc.key(1)})
    same = x[:5].repeat(2, 1), y[:5].repeat(2)
    assert len(set(still(*same)[0].tolist())) == 2


def test_the_fast_path_equals_the_interpreter(dropping: planc.Plan) -> None:
    x, y = data(7)
    epoch = planc.epoch(dropping, 3, epochs=2)
    arguments = iter((x, y))
    values = [epoch.state[p.path] if p.role.is_state else next(arguments) for p in epoch.inputs]
    want = interpret(epoch.graph, values, epoch.constants)
    results = epoch(x, y)
    updates = [p.path for p in epoch.outputs if p.role.is_state]
    close([*results, *(epoch.state[path] for path in updates)], want)


def test_other_arguments_go_to_every_step_as_they_are() -> None:
    net = mlp()
    plan = planc.train_step(
        net,
        lambda out, y, weight: F.cross_entropy(out, y, weight),
        optim.SGD(net.parameters(), lr=0.1),
        *data(5),
        torch.ones(3),
        targets=2,
    )
    x, y = data(6)
    weight = torch.tensor([1.0, 0.0, 3.0])
    epoch, loop = planc.epoch(plan, 3, shuffle=False), fresh(plan)
    close(epoch(x, y, weight), torch.stack([loop(x[:3], y[:3], weight), loop(x[3:], y[3:], weight)]))


def test_what_does_not_fit_says_so(step: planc.Plan) -> None:
    with pytest.raises(PlanError, match="at least 1, got 0 and 1"):
        planc.epoch(step, 0)
    with pytest.raises(PlanError, match="no argument with a named leading dim"):
        planc.epoch(planc.trace(lambda x: x + 1, torch.ones(3), dynamic=False))
    few = planc.trace(lambda x: x.sum(), torch.ones(3), ranges={"b": (1, 16)})
    with pytest.raises(PlanError, match=r"batches of 17 rows are outside the step's range b in 1\.\.16"):
        planc.epoch(few, 17)
    x, y = data(3)
    with pytest.raises(InputError, match=r"dim n is 3.* outside its range 4"):
        planc.epoch(step, 4, drop_last=True)(x, y)
    with pytest.raises(InputError, match=r"dimension 0 is 2, not n = 3 \(n = 3 from input 'input'\)"):
        planc.epoch(step, 4)(x, y[:2])
