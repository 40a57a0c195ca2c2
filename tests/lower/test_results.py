"""What a run returns is the caller's: ordinary memory, its own for good, whatever mode the caller is in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import pytest
import torch
from torch import nn

import planc
from runtime.interpreter import interpret

RUNS = 50
Batch = tuple[torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """Words, embedded, through attention and a norm, in three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.core = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words)
        return self.out(self.norm(x + self.core(x, x, x, need_weights=False)[0]).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.LSTM(6, 5, batch_first=True)
        self.out = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(x)[0][:, -1])


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3))


def convolutions() -> nn.Module:
    first = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, nn.Conv2d(4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def reals(*shape: int) -> Callable[[], Batch]:
    return lambda: (torch.randn(4, *shape), torch.randint(3, (4,)))


def words() -> Batch:
    return torch.randint(11, (4, 5)), torch.randint(3, (4,))


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)  # type: ignore[arg-type]


def adam(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)  # type: ignore[arg-type]


NETWORKS = {
    "perceptron, Adam": (perceptron, reals(6), adam),
    "convolutions, SGD": (convolutions, reals(1, 9, 9), sgd),
    "attention, Adam": (Attention, words, adam),
    "recurrent, SGD": (Recurrent, reals(4, 6), sgd),
}


@cache
def captured(name: str) -> planc.Plan:
    torch.manual_seed(0)
    make, batch, optimizer = NETWORKS[name]
    net = make()
    return planc.train_step(net, nn.functional.cross_entropy, optimizer(net.parameters()), *batch())


def step_of(name: str) -> tuple[planc.Plan, Callable[[], Batch]]:
    return captured(name).with_state({}), NETWORKS[name][1]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("epoch", [False, True], ids=["step", "epoch"])
def test_all_that_fifty_runs_returned_is_what_computing_it_again_gives(name: str, epoch: bool) -> None:
    """Every result, state and argument is held until the end, so memory that is used twice shows."""
    plan, batch = step_of(name)
    plan = planc.epoch(plan, batch_size=2, shuffle=False) if epoch else plan
    held: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    for _ in range(RUNS if not epoch else RUNS // 5):
        given = batch()
        arguments = iter(given)
        values = [plan.state[p.path] if p.role.is_state else next(arguments) for p in plan.inputs]
        result = plan(*given)
        made = [plan.state[p.path] if p.role.is_state else result for p in plan.outputs]
        held.append((values, made))
    memory = [t.untyped_storage().data_ptr() for _, made in held for t in made if t.numel()]
    assert len(set(memory)) == len(memory)
    for values, made in held:
        again = interpret(plan.graph, values, plan.constants)
        assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "ordinary": nullcontext,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_mode_of_the_caller_gets_into_results_or_state(name: str) -> None:
    """Runs in all modes by turns, on arguments made there: the first, the first with code, and later."""
    plan, batch = step_of(name)
    for turn in range(3):
        for mode, enter in MODES.items():
            with enter():
                result = plan(*batch())
            found = [result, *plan.state.values()]
            assert not any(t.is_inference() or t.requires_grad for t in found), (mode, turn)
            for t in found:
                t.add_(0)  # which torch refuses for tensors of inference mode
    with torch.inference_mode():
        assert plan.profile(*batch())
    result.requires_grad_().square().backward()
    assert torch.equal(result.grad, 2 * result)


def test_what_passes_through_a_plan_in_inference_mode_comes_out_ordinary() -> None:
    plan = planc.parse(
        """
        plan through(x: f32[b, 2], param w: f32[2]) -> (r: f32[b, 2], s: f32[2, b], param w: f32[2]) {
          return x, t(x), w
        }
        """
    )
    with torch.inference_mode():
        plan = plan.with_state({"w": torch.ones(2)})
        for _ in range(3):
            same, turned = plan(torch.ones(3, 2))
            assert not any(t.is_inference() for t in (same, turned, plan.state["w"]))
