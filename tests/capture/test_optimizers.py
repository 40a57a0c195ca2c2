"""Optimizers without an op: their own step, traced, equals torch.optim's; others say why they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import planc
from planc import capture
from planc.errors import CaptureError
from planc.ir import DType, TensorType, sym
from planc.plans import Plan
from tests.capture.training import classified, close, pair

CLOSE = 1e-6
vectors = classified((6,))


class Scaled(nn.Module):
    """Parameters of rank 0, 1 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x * self.scale)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "nadam": (optim.NAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "radam": (optim.RAdam, {"lr": 0.01, "betas": (0.8, 0.9)}),  # these betas pass rho_t > 5 within the steps
    "adamax": (optim.Adamax, {"weight_decay": 0.1, "maximize": True}),
    "adadelta": (optim.Adadelta, {"lr": 0.5}),
    "asgd": (optim.ASGD, {"lr": 0.1, "t0": 2, "lambd": 0.1}),
    "rprop": (optim.Rprop, {}),
    "adafactor": (optim.Adafactor, {"lr": 0.1, "weight_decay": 0.1}),
    "muon": (optim.Muon, {"nesterov": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_updates_equal_eager(name: str) -> None:
    torch.manual_seed(2)
    cls, options = CASES[name]
    net = nn.Linear(6, 3, bias=False) if cls is optim.Muon else Scaled()
    both = pair(net, F.cross_entropy, lambda p: cls(p, **options), *vectors(5))
    both.train((vectors(rows) for rows in (2, 3, 64, 1, 8, 8, 8, 8)), CLOSE)
    for path, parameter in net.named_parameters():
        for key, tensor in both.optimizer.state[parameter].items():
            close(both.plan.state[f"{path}.{key}"], tensor, CLOSE, f"{path}.{key}")


def test_nadam_is_equal_bit_for_bit() -> None:
    torch.manual_seed(2)
    both = pair(nn.Linear(6, 3), F.cross_entropy, lambda p: optim.NAdam(p, weight_decay=0.1), *vectors(5))
    both.train((vectors(rows) for rows in (2, 3, 64, 8, 8, 8, 8, 8)), 0.0)


def test_groups_and_an_optimizer_that_has_stepped() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    groups = [
        {"params": net[0].parameters(), "lr": 0.1},
        {"params": net[2].parameters(), "weight_decay": 0.1},
    ]
    optimizer = optim.RAdam(groups, lr=0.02, betas=(0.8, 0.9))
    inputs, labels = vectors(4)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    both = pair(net, F.cross_entropy, optimizer, *vectors(5))
    assert both.plan.state["0.weight.step"].item() == 2
    both.train((vectors(rows) for rows in (2, 3, 64, 8)), CLOSE)


@pytest.mark.parametrize("cls", [optim.SGD, optim.AdamW, optim.NAdam, optim.Adafactor])
def test_an_update_as_a_plan_of_its_own(cls: Any) -> None:
    torch.manual_seed(4)
    shapes = {"fc.weight": (4, 3), "fc.bias": (4,)}
    types = {path: TensorType(DType.F32, shape) for path, shape in shapes.items()}
    plan = Plan.from_captured(capture.optimizer_update(cls, {"lr": 0.1}, types, lr_input=True), True)
    assert [p.path for p in plan.graph.arguments()] == ["grad.fc.weight", "grad.fc.bias", "lr"]
    parameters = {path: nn.Parameter(torch.randn(shape)) for path, shape in shapes.items()}
    plan = plan.with_state({path: p.detach().clone() for path, p in parameters.items()})
    optimizer = cls(list(parameters.values()), lr=0.1)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = lr = 0.1 * 0.5**step
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        assert plan(*(p.grad for p in parameters.values()), lr) == ()
        for path, parameter in parameters.items():
            close(plan.state[path], parameter, CLOSE, path)


class Mine(optim.Adam):
    pass


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            optim.LBFGS,
            "plans cannot have LBFGS: it evaluates the loss several times in one step.*Use another",
        ),
        (optim.SparseAdam, "plans cannot have SparseAdam: it takes sparse gradients.*Adam with dense ones"),
        (Mine, "plans cannot have Mine: it is no optimizer of torch.optim"),
    ],
)
def test_optimizers_that_no_plan_can_have(cls: Any, message: str) -> None:
    net = nn.Linear(6, 3)
    with pytest.raises(CaptureError, match=message):
        planc.train_step(net, F.cross_entropy, cls(net.parameters()), *vectors(5))


def test_a_rate_that_the_optimizer_needs_as_a_number() -> None:
    net = nn.Linear(6, 3, bias=False)
    with pytest.raises(CaptureError, match=r"cannot have Muon: .*it may do with a fixed learning rate"):
        planc.train_step(net, F.cross_entropy, optim.Muon(net.parameters()), *vectors(5), lr_input=True)


def test_the_dims_of_parameters_are_fixed() -> None:
    types = {"w": TensorType(DType.F32, (sym("n"), 3))}
    with pytest.raises(CaptureError, match=r"the dims of the parameter 'w' must be fixed, got f32\[n, 3\]"):
        capture.optimizer_update(optim.SGD, {"lr": 0.1}, types)
