"""FedProx: values and gradients against plain PyTorch, and the anchor wherever a round's model may be."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import planc
from planc.errors import InputError
from planc.ir import Role
from planc.plans import Plan
from runtime import FederatedAveraging, VirtualWorker, federate
from runtime.federated.proximal import Proximal, anchored, anchors, fedprox, unwrapped

MU = 0.7


class Net(nn.Module):
    """A bias that nothing trains, two layers that share their weight, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.second(torch.tanh(self.first(features)))))


def made(rows: int = 24) -> tuple[Net, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return Net(), torch.randn(rows, 4), torch.randint(0, 3, (rows,))


def step_of(net: nn.Module, x: torch.Tensor, y: torch.Tensor, mu: float = MU, **more: Any) -> Plan:
    near, loss = fedprox(net, F.cross_entropy, mu)
    trained = [p for p in net.parameters() if p.requires_grad]
    return planc.train_step(near, loss, optim.SGD(trained, lr=0.1, momentum=0.9), x, y, **more)


@cache
def _captured() -> Plan:
    return step_of(*made())


def captured() -> tuple[Net, torch.Tensor, torch.Tensor, Plan]:
    """The net, its data, and a step of it, which is captured once for all tests."""
    return *made(), _captured().with_state({})


def by_torch(
    net: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int, mu: float = MU, epochs: int = 1
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same training in plain PyTorch, anchored where it starts: the state, and the losses."""
    net = copy.deepcopy(net)
    trained = [p for p in net.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in trained]
    optimizer, losses = optim.SGD(trained, lr=0.1, momentum=0.9), list[float]()
    for _ in range(epochs):
        for xb, yb in zip(x.split(size), y.split(size), strict=True):
            loss = F.cross_entropy(net(xb), yb)
            for p, a in zip(trained, anchor, strict=True):
                loss = loss + mu / 2 * ((p - a) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return dict(net.state_dict()), losses


def assert_trained(plan: Plan, state: dict[str, torch.Tensor]) -> None:
    have = unwrapped(plan.state_dict())
    assert len(have) == len(state) - 1  # the tied weight once
    for path, tensor in have.items():
        torch.testing.assert_close(tensor, state[path], rtol=1e-5, atol=1e-6)


# -- values and gradients ------------------------------------------------------------------------------------


class Scale(nn.Module):
    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w * x


def test_equation_2_by_hand() -> None:
    """w = 3 with the anchor 1, mu = 1/2, the loss mean(w x - y) over x = (1, 3), y = (0, 2).

    The loss is 3*2 - 1 = 5, the term 1/4 * 2^2 = 1; the gradient mean(x) = 2 and mu (w - 1) = 1. With a rate
    of 0.1, w becomes 3 - 0.3.
    """
    net = Scale(1.0)
    near, loss = fedprox(net, lambda out, y: (out - y).mean(), mu=0.5)
    x, y = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    step = planc.train_step(near, loss, optim.SGD(net.parameters(), lr=0.1), x, y)
    moved = step.with_state({"module.w": torch.tensor(3.0, dtype=torch.float64)})
    assert moved(x, y).item() == 6
    assert moved.state["module.w"].item() == pytest.approx(2.7, abs=1e-15)
    assert moved.state["proximal_anchor.w"].item() == 1


def test_gradients_are_those_of_torch() -> None:
    """Of parameters away from their anchors. After a first step the momentum is the gradient."""
    net, x, y, step = captured()
    generator = torch.Generator().manual_seed(5)
    far = {
        anchor: step.state[anchor] + torch.randn(step.state[anchor].shape, generator=generator)
        for anchor in anchors(step)
    }
    moved = step.with_state(far)
    value = moved(x, y)
    plain, term = F.cross_entropy(net(x), y), torch.zeros(())
    paths = {path: p for path, p in net.named_parameters() if p.requires_grad}
    for path, p in paths.items():
        term = term + MU / 2 * ((p - far[f"proximal_anchor.{path}"]) ** 2).sum()
    grads = torch.autograd.grad(plain + term, list(paths.values()))
    torch.testing.assert_close(value, plain + term)
    for path, grad in zip(paths, grads, strict=True):
        torch.testing.assert_close(moved.state[f"module.{path}.momentum_buffer"], grad, rtol=1e-5, atol=1e-6)
    for anchor, tensor in far.items():
        assert torch.equal(moved.state[anchor], tensor)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_round_is_that_of_torch(epochs: int) -> None:
    """Three of them: the first runs are recorded, later ones are generated code; each from a new anchor."""
    net, x, y, step = captured()
    plan = anchored(planc.epoch(step, batch_size=8, shuffle=False, epochs=epochs))
    planc.verify(plan)
    assert not anchors(plan)
    fresh = {p.path: plan.state[p.path] for p in plan.graph.state() if p.role is Role.OPTIMIZER}
    for _ in range(4):
        want, losses = by_torch(net, x, y, 8, epochs=epochs)
        plan = plan.with_state(fresh)
        results = plan(x, y)
        torch.testing.assert_close(results.flatten(), torch.tensor(losses), rtol=1e-5, atol=1e-6)
        assert_trained(plan, want)
        net.load_state_dict(want)


def test_anchors_that_are_set_and_anchors_that_are_the_parameters_are_the_same() -> None:
    _, x, y, step = captured()
    plan = planc.epoch(step, batch_size=8)
    closed = anchored(plan)
    assert set(plan.state) - set(closed.state) == set(anchors(plan))
    assert len(anchors(plan)) == 6
    for _ in range(3):
        plan = plan.with_state({anchor: plan.state[path] for anchor, path in anchors(plan).items()})
        assert torch.equal(plan(x, y), closed(x, y))
        for path, tensor in closed.state.items():
            assert torch.equal(tensor, plan.state[path]), path


def test_mu_pulls_to_the_anchor_and_zero_does_not() -> None:
    net, x, y = made()
    start = {path: p.detach().clone() for path, p in net.named_parameters()}
    moved: list[float] = []
    for step in (step_of(net, x, y, 0.0), captured()[3]):
        plan = anchored(planc.epoch(step, batch_size=8, shuffle=False, epochs=5))
        plan(x, y)
        end = unwrapped(plan.state_dict())
        moved.append(sum(float((p - end[path]).square().sum()) for path, p in start.items() if path in end))
        if len(moved) == 1:
            assert_trained(plan, by_torch(net, x, y, 8, mu=0.0, epochs=5)[0])
    assert moved[0] > 2 * moved[1]


# -- what training steps have --------------------------------------------------------------------------------


def test_state_is_that_of_the_module_and_an_anchor_for_each_trained_parameter() -> None:
    net, _, _, step = captured()
    paths = [p.path for p in step.graph.state() if p.role is Role.PARAMETER]
    assert paths == [f"module.{path}" for path, _ in net.named_parameters()]
    trained = [path for path, p in net.named_parameters() if p.requires_grad]
    assert anchors(step) == {f"proximal_anchor.{path}": f"module.{path}" for path in trained}
    assert not set(anchors(step)) & {port.path for port in step.outputs}
    for anchor, path in anchors(step).items():
        assert torch.equal(step.state[anchor], step.state[path])


def test_arguments_keep_their_names() -> None:
    _, x, y, step = captured()
    assert [p.path for p in step.graph.arguments()] == ["features", "target"]
    dims = {"input": {0: "rows"}, "target": {0: "rows"}}
    named = step_of(nn.Linear(4, 3), x, y, dynamic=dims, lr_input=True)
    assert [p.path for p in named.graph.arguments()] == ["input", "target", "lr"]
    assert [var.name for var in named.dims] == ["rows"]


def test_the_state_goes_back_into_the_module() -> None:
    _, x, y, step = captured()
    plan = anchored(planc.epoch(step, batch_size=8))
    plan(x, y)
    state = unwrapped(plan.state_dict())
    fresh = Net()
    missing, unexpected = fresh.load_state_dict(state, strict=False)
    assert missing == ["second.weight"]  # tied to the first
    assert not unexpected
    assert torch.equal(fresh.head.weight, plan.state["module.head.weight"])
    assert torch.equal(fresh.norm.running_var, plan.state["module.norm.running_var"])


@pytest.mark.parametrize("container", [tuple, list, dict])
def test_a_loss_may_come_with_more(container: type) -> None:
    """The term is added to what planc takes for the loss, and to nothing else."""

    def loss_fn(out: torch.Tensor, y: torch.Tensor) -> Any:
        first, second = (out - y).sum(), (out == y).sum()
        return {"right": second, "loss": first} if container is dict else container((first, second))

    _, loss = fedprox(nn.Linear(1, 1), loss_fn, mu=0.5)
    result = loss((torch.tensor([5.0, 2.0]), torch.tensor(12.0)), torch.tensor([1.0, 2.0]))
    value, right = (result["loss"], result["right"]) if container is dict else result
    assert value.item() == 4 + 0.5 / 2 * 12
    assert right.item() == 1


def test_modes_are_captured_as_they_are() -> None:
    """A frozen batch norm stays frozen, and dropout draws from the plan's key."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Dropout(0.5), nn.Linear(4, 3))
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    near, _ = fedprox(net, F.cross_entropy, MU)
    assert [m.training for m in net] == [True, False, True, True]
    assert near.training
    plan = step_of(net, x, y)
    before = plan.state["module.1.running_mean"]
    losses = {plan.with_state({"rng": planc.key(seed)})(x, y).item() for seed in range(4)}
    assert len(losses) == 4
    plan(x, y)
    assert torch.equal(plan.state["module.1.running_mean"], before)
    assert not fedprox(net.eval(), F.cross_entropy, MU)[0].training


def test_micro_batches_count_the_term_once() -> None:
    net = nn.Linear(4, 3)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    whole, parts = step_of(net, x, y), step_of(net, x, y, micro_batch=2)
    far = {a: whole.state[a] + 1 for a in anchors(whole)}
    whole, parts = whole.with_state(far), parts.with_state(far)
    torch.testing.assert_close(parts(x, y), whole(x, y))
    for path, tensor in whole.state.items():
        torch.testing.assert_close(parts.state[path], tensor)


def test_other_plans_have_no_anchors() -> None:
    net = nn.Linear(4, 3)
    _, x, y = made()
    step = planc.train_step(net, F.cross_entropy, optim.SGD(net.parameters(), lr=0.1), x, y)
    assert anchors(step) == {}
    assert anchored(step).id == step.id
    assert unwrapped(step.state_dict()).keys() == step.state_dict().keys()


def test_the_module_runs_by_itself() -> None:
    net, x, _ = made()
    near = Proximal(net.eval())
    out, distance = near(x)
    assert torch.equal(out, net(x))
    assert distance.item() == 0
    with torch.no_grad():
        net.head.bias += 2
    assert near(x)[1].item() == pytest.approx(12)
    clone = copy.deepcopy(near)
    with torch.no_grad():
        net.head.bias += 2
    assert clone(x)[1].item() == pytest.approx(12)


def test_rounds_at_workers_travel_without_anchors() -> None:
    """The model alone goes out and comes back; a worker's anchor is the model of its round."""
    net, x, y, step = captured()
    plan = anchored(planc.epoch(step, batch_size=8, shuffle=False))
    workers = [VirtualWorker("a"), VirtualWorker("b")]
    federation = FederatedAveraging(plan, federate((x, y), workers))
    assert not any(path.startswith("proximal_anchor") for path in federation.state)
    federation.round()
    halves = [by_torch(net, xs, ys, 8)[0] for xs, ys in zip(x.split(12), y.split(12), strict=True)]
    for path, tensor in unwrapped(federation.state_dict()).items():
        want = sum(half[path].double() for half in halves) / 2
        torch.testing.assert_close(tensor.double(), want.double(), rtol=1e-5, atol=1e-6)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf"), "1", True, None])
def test_mu_out_of_range_is_refused(mu: Any) -> None:
    with pytest.raises(InputError, match="fedprox: mu must be a finite number, not negative, got"):
        fedprox(nn.Linear(2, 2), F.mse_loss, mu)


def test_nothing_to_train_is_refused() -> None:
    for module in (nn.Linear(2, 2).requires_grad_(False), nn.ReLU()):
        with pytest.raises(InputError, match=f"none of {type(module).__name__} requires a gradient"):
            fedprox(module, F.mse_loss, 1.0)


def test_a_loss_that_is_none_is_left_for_planc_to_refuse() -> None:
    for wrong in ({"cost": 1.0}, 3, (), "loss"):
        _, loss = fedprox(nn.Linear(2, 2), lambda out, wrong=wrong: wrong, MU)
        assert loss((torch.zeros(2), torch.tensor(1.0))) is wrong
