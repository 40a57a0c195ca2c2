"""Any torch.optim class at a worker: groups, schedules, state that is saved, and what a step costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.lr_scheduler import StepLR

from planc.errors import CaptureError, InputError
from runtime import RemoteModule, RemoteOptimizer, VirtualWorker, count_messages
from runtime.errors import PermissionDenied
from runtime.messages import Gradient, Handle, Keep, Return, Run, Step, Steps
from tests.runtime.helpers import adding, connect, get, install, new_id, put, stepping

X, Y = torch.randn(6, 4), torch.randint(0, 3, (6,))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))


def train(model: Any, optimizer: Any, x: Any, y: Any, schedule: Any = None, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def same(model: RemoteModule, local: nn.Module) -> bool:
    here = local.state_dict()
    return all(torch.equal(x, here[path]) for path, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
        (optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.3}),
        (optim.RMSprop, {"lr": 0.01, "momentum": 0.9}),
        (optim.NAdam, {"lr": 0.05}),
        (optim.Adadelta, {"lr": 0.5}),
    ],
)
def test_a_schedule_with_any_class(cls: Any, options: Any) -> None:
    """Bit for bit as local PyTorch, one message a step after the first."""
    bob, local = VirtualWorker("bob"), net()
    model = RemoteModule(local).send(bob)
    opt, reference = RemoteOptimizer(model, cls, **options), cls(local.parameters(), **options)
    x, y = bob.send(X), bob.send(Y)
    steps = 4 if cls is not optim.Adadelta else 2  # PyTorch traces it for one learning rate at a time
    train(model, opt, x, y, StepLR(opt.local, 3, gamma=0.5), steps)
    train(local, reference, X, Y, StepLR(reference, 3, gamma=0.5), steps)
    assert same(model, local)
    assert opt.lr == reference.param_groups[0]["lr"]
    with count_messages() as sent:
        opt.step()
    assert sent.messages == 1


@pytest.mark.parametrize("cls", [optim.Adam, optim.NAdam])
def test_groups_with_options_of_their_own(cls: Any, bob: VirtualWorker) -> None:
    local = net()
    model = RemoteModule(local).send(bob)
    opt = RemoteOptimizer(model, cls, [{"params": ["0"], "lr": 0.1}, {"params": ["2.weight"]}], lr=0.01)
    reference = cls(
        [{"params": local[0].parameters(), "lr": 0.1}, {"params": local[2].parameters()}],  # type: ignore[index]
        lr=0.01,
    )
    train(model, opt, bob.send(X), bob.send(Y))
    train(local, reference, X, Y)
    assert same(model, local)
    opt.zero_grad()
    with count_messages() as sent:
        opt.step()
    assert sent.by_kind == {"Steps": 1}
    opt.lr = 0.5
    assert [group["lr"] for group in opt.local.param_groups] == [0.5, 0.5]
    for wrong in ([{"params": ["3"]}], [{"params": ["0"]}, {"params": ["0.weight"]}]):
        with pytest.raises(InputError):
            RemoteOptimizer(model, cls, wrong)


@pytest.mark.parametrize("cls", [optim.Adam, optim.NAdam])
def test_state_is_saved_as_torchs_and_loaded_again(
    cls: Any, bob: VirtualWorker, alice: VirtualWorker
) -> None:
    local = net()
    model = RemoteModule(local).send(bob)
    opt, reference = RemoteOptimizer(model, cls, lr=0.05), cls(local.parameters(), lr=0.05)
    train(model, opt, bob.send(X), bob.send(Y))
    train(local, reference, X, Y)
    saved, expected = opt.state_dict(), reference.state_dict()
    assert saved["state"].keys() == expected["state"].keys()
    for i, state in expected["state"].items():
        for name, value in state.items():
            assert torch.equal(saved["state"][i][name], torch.as_tensor(value)), name
    assert saved["param_groups"][0]["lr"] == 0.05
    model.move(alice)
    other = RemoteOptimizer(model, cls, lr=1.0)
    with count_messages() as sent:
        other.load_state_dict(saved)
    assert sent.by_kind == {"Put": 1}
    train(model, other, alice.send(X), alice.send(Y))
    train(local, reference, X, Y)
    assert same(model, local)
    reference.load_state_dict(saved)  # PyTorch takes it as its own
    wrong = {**saved, "state": {0: {"exp_avg": torch.ones(2)}}}
    for state in (wrong, {**saved, "param_groups": []}, {**saved, "state": {0: {"none": torch.ones(2)}}}):
        with pytest.raises(InputError):
            other.load_state_dict(state)


class Parts(nn.Module):
    """Uses one of its layers at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))
        self.layers[2].requires_grad_(False)

    def forward(self, x: Any, part: int) -> Any:
        return self.layers[part](x)


@pytest.mark.parametrize("cls", [optim.SGD, optim.NAdam])
def test_parameters_without_gradient_are_left_alone(cls: Any, bob: VirtualWorker) -> None:
    """A part of the model that a loss does not reach, and one that is frozen."""
    torch.manual_seed(0)
    local = Parts()
    model = RemoteModule(local).send(bob)
    opt = RemoteOptimizer(model, cls, lr=0.1, weight_decay=0.1)
    reference = cls(local.parameters(), lr=0.1, weight_decay=0.1)
    x, y = bob.send(X), bob.send(Y)
    for part in (0, 1, 0):
        opt.zero_grad()
        reference.zero_grad()
        F.cross_entropy(model(x, part), y).backward()
        F.cross_entropy(local(X, part), Y).backward()
        opt.step()
        reference.step()
    assert same(model, local)


def test_what_cannot_be_a_plan_is_refused_with_its_reason() -> None:
    model = RemoteModule(net())
    for cls, reason in ((optim.LBFGS, "evaluates the loss"), (optim.SparseAdam, "sparse gradients")):
        with pytest.raises(CaptureError, match=reason):
            RemoteOptimizer(model, cls)
    with pytest.raises(InputError, match="send it first"):
        RemoteOptimizer(model, optim.Adam).state_dict()


def test_private_values_stay_so(bob: VirtualWorker) -> None:
    model = RemoteModule(net()).send(bob)
    opt = RemoteOptimizer(model, optim.NAdam, lr=0.1)
    train(model, opt, bob.send(X, private=True), bob.send(Y), steps=1)
    for fetch in (model.get, opt.state_dict):
        with pytest.raises(PermissionDenied):
            fetch()


def test_the_parts_of_an_update_are_done_wholly_or_not_at_all(bob: VirtualWorker) -> None:
    me = connect(bob.worker)
    w, c = put(me, torch.ones(3), requires_grad=True), put(me, torch.ones(3))
    x, out = put(me, torch.ones(3)), new_id()
    plan, both = install(me, stepping()), install(me, adding())
    good = Run(plan, (Handle(w), Handle(c), Handle(x)), (Keep(out),))
    for bad in (
        Run(both, (Handle(x), Handle(999_999)), (Keep(new_id()), Keep(new_id()))),
        Run(plan, (Handle(w), Handle(c), Handle(x)), (Keep(new_id()),)),  # writes to w too
        Run(both, (Handle(x), Handle(x)), (Return(), Return())),
        Step("opt.none", {}, 0.1, (w,)),
    ):
        with pytest.raises(Exception, match=r"999999|twice|return|opt\.none"):
            me.call(Steps((good, bad)))
        assert get(me, w)[0].tolist() == [1.0] * 3
    left_out = Run(both, (Handle(x), Gradient(w)), (Keep(new_id()), Keep(new_id())))
    me.call(Steps((good, left_out)))
    assert get(me, w)[0].tolist() == [2.0] * 3
    assert get(me, out)[0].tolist() == [2.0] * 3
