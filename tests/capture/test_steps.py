"""Whole training steps equal eager PyTorch, at batch sizes that were not traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import planc
from planc import codec
from runtime.interpreter import interpret
from tests.capture.test_modules import Attention, Tied
from tests.capture.training import SIZES, classified, close, mlp, pair

vectors = classified((6,))
images = classified((1, 8, 8))


def words(rows: int) -> tuple[torch.Tensor, ...]:
    return torch.randint(0, 9, (rows, 5)), torch.randint(0, 4, (rows,))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


@pytest.mark.parametrize(
    ("make", "data", "optimizer", "tolerance"),
    [
        (mlp, vectors, lambda p: optim.SGD(p, lr=0.1), 0.0),
        (mlp, vectors, lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True), 0.0),
        (
            small_cnn,
            images,
            lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
            0.0,
        ),
        (Attention, words, lambda p: optim.Adam(p, lr=0.01), 1e-5),
    ],
    ids=["mlp-sgd", "mlp-adamw", "cnn-sgd", "attention-adam"],
)
def test_three_and_more_steps_equal_eager(make: Any, data: Any, optimizer: Any, tolerance: float) -> None:
    torch.manual_seed(1)
    both = pair(make(), F.cross_entropy, optimizer, *data(5))
    both.train((data(rows) for rows in SIZES), tolerance)
    assert planc.parse(both.plan.text).id == both.plan.id
    assert codec.decode(both.plan.bytes) == both.plan.graph


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    data = classified((6,), dtype=dtype)
    both = pair(mlp().to(dtype), F.cross_entropy, lambda p: optim.SGD(p, lr=0.1), *data(5))
    both.train(data(rows) for rows in SIZES)


def test_an_optimizer_that_has_stepped_goes_on_where_it_is() -> None:
    """Parameter groups too: each with its own options, one with parameters that get no gradient."""
    net = Tied()
    groups = [
        {"params": net.embed.parameters(), "lr": 0.3},
        {"params": [*net.unused.parameters(), *net.frozen.parameters()]},
    ]
    optimizer = optim.Adam(groups, lr=0.05)

    def data(rows: int) -> tuple[torch.Tensor, ...]:
        return torch.randint(0, 9, (rows, 4)), torch.randint(0, 9, (rows,))

    for _ in range(2):
        inputs, labels = data(4)
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    both = pair(net, F.cross_entropy, optimizer, *data(5))
    assert both.plan.state["embed.weight.step"].item() == 2
    assert {p.path for p in both.plan.graph.updates() if p.path.endswith("weight")} == {"embed.weight"}
    both.train((data(rows) for rows in SIZES), 1e-6)


def test_several_losses_and_metrics_and_inputs() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, x: torch.Tensor, others: dict[str, torch.Tensor]) -> Any:
            return self.a(x), self.b(others["y"])

    def loss_fn(out: Any, target: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
        first, second = F.mse_loss(out[0], target), F.l1_loss(out[1], target)
        return {"metrics": [first, second], "loss": first + weight * second, "rows": target.shape[0]}

    def data(rows: int) -> tuple[Any, ...]:
        return torch.randn(rows, 3), {"y": torch.randn(rows, 2)}, torch.randn(rows, 4), torch.tensor(0.3)

    both = pair(TwoInputs(), loss_fn, lambda p: optim.SGD(p, lr=0.1), *data(5), targets=2)
    for rows in (2, 3, 1):
        batch = data(rows)
        want = both.eager(batch)
        got = both.plan(*batch)
        assert got.pop("rows").item() == want.pop("rows") == rows
        close(got, want)
        both.compare_state()


def test_a_loss_without_targets() -> None:
    both = pair(
        nn.Linear(3, 2),
        lambda out: out.square().mean(),
        lambda p: optim.SGD(p, lr=0.1),
        torch.ones(5, 3),
        targets=0,
    )
    both.train([(torch.randn(2, 3),), (torch.randn(3, 3),)])


def test_dropout_has_one_mask_forward_and_backward() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Dropout(0.5))
    nn.init.eye_(net[0].weight)
    plan = planc.train_step(
        net, lambda out: (out.sum(), out), optim.SGD(net.parameters(), lr=1.0), torch.ones(5, 4), targets=0
    )
    x = torch.ones(64, 4)
    _, out = plan(x)
    grad = torch.eye(4) - plan.state["0.weight"]
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(grad, out.t() @ x)  # the mask times 2, in both directions
    values = [plan.state[p.path] if p.role.is_state else x for p in plan.inputs]
    close(plan(x)[1], interpret(plan.graph, values, plan.constants)[1])


# -- options -----------------------------------


def test_the_learning_rate_as_an_input() -> None:
    both = pair(
        mlp(), F.cross_entropy, lambda p: optim.SGD(p, lr=9.0, momentum=0.9), *vectors(5), lr_input=True
    )
    assert [str(p.value.type) for p in both.plan.graph.arguments()] == ["f32[b, 6]", "i64[b]", "f64[]"]
    schedule = optim.lr_scheduler.ExponentialLR(both.optimizer, 0.5)
    for rows in SIZES:
        batch = vectors(rows)
        rate = both.optimizer.param_groups[0]["lr"]
        close(both.plan(*batch, rate), both.eager(batch))
        both.compare_state()
        schedule.step()
    epoch = planc.epoch(both.plan, batch_size=4, shuffle=False)
    assert epoch(*vectors(10), 0.1).shape == (3,)


def test_learning_rates_of_several_groups_are_a_list() -> None:
    net = mlp()
    optimizer = optim.Adam([{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.1}])
    both = pair(net, F.cross_entropy, optimizer, *vectors(5), lr_input=True)
    for rates in ([0.3, 0.2], [0.0, 1e-3]):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        batch = vectors(4)
        close(both.plan(*batch, rates), both.eager(batch))
        both.compare_state()
    with pytest.raises(planc.errors.InputError, match="input lr must have 2 entries, got 1"):
        both.plan(*batch, [0.1])


@pytest.mark.parametrize("limit", [0.01, 100.0])
def test_clipping_by_norm(limit: float) -> None:
    net, clip = mlp(), planc.clip_grad_norm(limit)
    both = pair(net, F.cross_entropy, lambda p: optim.SGD(p, lr=0.5), *vectors(5), grad_transform=clip)
    for rows in SIZES:
        batch = vectors(rows)
        want = both.eager(batch, lambda: nn.utils.clip_grad_norm_(net.parameters(), limit))
        close(both.plan(*batch), want)
        both.compare_state()


def test_clipping_by_value_and_transforms_of_ones_own() -> None:
    net, clip = mlp(), planc.clip_grad_value(0.02)

    def halved(grads: Any) -> Any:
        return {path: grad * 0.5 for path, grad in clip(grads).items()}

    both = pair(net, F.cross_entropy, lambda p: optim.SGD(p, lr=0.5), *vectors(5), grad_transform=halved)

    def same() -> None:
        nn.utils.clip_grad_value_(net.parameters(), 0.02)
        for parameter in net.parameters():
            assert parameter.grad is not None
            parameter.grad *= 0.5

    batch = vectors(4)
    close(both.plan(*batch), both.eager(batch, same))
    both.compare_state()


def test_gradient_accumulation_over_micro_batches() -> None:
    def loss_fn(out: torch.Tensor, y: torch.Tensor) -> Any:
        right = out.argmax(1) == y
        return F.cross_entropy(out, y), right, right.sum()

    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    both = pair(
        net,
        loss_fn,
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
        *vectors(5),
        micro_batch=4,
        lr_input=True,
        grad_transform=planc.clip_grad_norm(0.5),
    )
    for rows in (4, 8, 12, 7):
        x, y = vectors(rows)
        parts = list(zip(x.split(4), y.split(4), strict=True))
        both.optimizer.zero_grad()
        results = [loss_fn(net(a), b) for a, b in parts]
        (sum(r[0] for r in results) / len(parts)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        both.optimizer.step()
        loss, right, count = both.plan(x, y, 0.1)
        close(loss, torch.stack([r[0] for r in results]).mean(), 1e-6)
        close(right, torch.cat([r[1] for r in results]))
        assert count.item() == right.sum().item()
        both.compare_state(1e-5)
    losses, _, counts = planc.epoch(both.plan, batch_size=8, shuffle=False)(*vectors(20), 0.1)
    assert losses.shape == counts.shape == (3,)


def test_accumulation_draws_other_numbers_for_every_micro_batch() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    plan = planc.train_step(
        net, lambda out: (out.sum(), out != 0), optimizer, torch.ones(5, 3), targets=0, micro_batch=2
    )
    kept = plan(torch.ones(4, 3))[1]
    assert not torch.equal(kept[:2], kept[2:])


def test_capture_leaves_no_trace_and_works_in_any_mode() -> None:
    net = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    before = {path: tensor.clone() for path, tensor in net.state_dict().items()}
    numbers, flags = torch.get_rng_state(), torch.backends.mkldnn.enabled
    with torch.no_grad():
        plan = planc.train_step(net, F.cross_entropy, optimizer, *vectors(5))
        loss = plan(*vectors(4))
    assert torch.isfinite(loss)
    assert not torch.equal(plan.state["0.weight"], before["0.weight"])
    close(dict(net.state_dict()), before)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert net.training
    assert not optimizer.state
    assert torch.backends.mkldnn.enabled == flags
    torch.set_rng_state(numbers)
    with torch.no_grad():
        planc.trace(net, torch.ones(5, 6))
    assert torch.equal(torch.get_rng_state(), numbers)


def test_capture_in_inference_mode() -> None:
    net = mlp()
    with torch.inference_mode():
        both = pair(net, F.cross_entropy, lambda p: optim.NAdam(p, lr=0.1), *vectors(5))
    assert not any(x.is_inference() for x in both.plan.state.values())
    both.train([vectors(4)], 1e-6)


def test_progress_is_told() -> None:
    told: list[tuple[str, int]] = []
    net = mlp()
    step = optim.SGD(net.parameters(), lr=0.1)
    planc.train_step(
        net, F.cross_entropy, step, *vectors(5), progress=lambda stage, calls: told.append((stage, calls))
    )
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == ["tracing", "exporting", "decomposing"]
    assert [calls for _, calls in told] == sorted(calls for _, calls in told)
    assert told[-1][1] > 100
