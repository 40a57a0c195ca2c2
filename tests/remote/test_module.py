"""Modules that travel: forward, gradients, buffers, optimizers, and what each costs in messages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from planc.errors import CaptureError, InputError
from runtime import RemoteModule, RemoteOptimizer, VirtualWorker, count_messages


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Any) -> Any:
        return self.b(torch.tanh(self.a(x)))


class Counting(nn.Module):
    """Puts a new tensor in the place of its buffer, and makes one on the input's device."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Any) -> Any:
        self.calls = self.calls + 1
        return x * self.scale * self.calls + torch.ones(2, device=x.device)


NETS: dict[str, tuple[Any, torch.Tensor]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        ),
        torch.randn(5, 1, 8, 8),
    ),
    "embedding": (lambda: nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4)), torch.randint(0, 10, (3, 5))),
    "gelu": (lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.0)), torch.randn(3, 4)),
    "tied": (Tied, torch.randn(3, 4)),
    "counting": (Counting, torch.randn(3, 2)),
}


class Recurrent(nn.Module):
    """The outputs of a recurrent layer and its last state, side by side."""

    def __init__(self, cls: Any, **options: Any) -> None:
        super().__init__()
        self.layer = cls(4, 3, **options)

    def forward(self, x: Any) -> Any:
        out, last = self.layer(x)
        states = last if isinstance(last, tuple) else (last,)
        return torch.cat([out.flatten(), *(state.flatten() for state in states)])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        out, weights = self.attention(x, x, x)
        return torch.cat([out.flatten(), weights.flatten()])


NETS |= {
    "lstm": (lambda: Recurrent(nn.LSTM), torch.randn(3, 2, 4)),
    "gru": (lambda: Recurrent(nn.GRU, batch_first=True), torch.randn(2, 3, 4)),
    "rnn": (lambda: Recurrent(nn.RNN, bidirectional=True, num_layers=2), torch.randn(2, 2, 4)),
    "attention": (Attending, torch.randn(2, 3, 4)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
        torch.randn(2, 3, 4),
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("train", [True, False])
def test_a_module_computes_and_differentiates_as_the_local_one(
    name: str, train: bool, bob: VirtualWorker
) -> None:
    make, x = NETS[name]
    local = make().train(train)
    model = RemoteModule(local).send(bob)
    assert model.training == train
    for _ in range(2):
        remote_out, out = model(bob.send(x)), local(x)
        torch.testing.assert_close(remote_out.copy_here(), out.detach())
        remote_out.square().sum().backward()
        out.square().sum().backward()
    for (path, there), here in zip(model.named_parameters(), local.parameters(), strict=True):
        grad = there.grad
        assert grad is not None, path
        torch.testing.assert_close(grad.get(), here.grad)
    torch.testing.assert_close(model.state_dict(), local.state_dict())
    assert not any(
        b.requires_grad for path, b in model.state.items() if path not in dict(local.named_parameters())
    )


def test_sending_and_fetching_is_a_message_each_and_takes_no_gradient(bob: VirtualWorker) -> None:
    net = nn.Sequential(*(nn.Linear(50, 50) for _ in range(10)))
    net(torch.ones(1, 50)).sum().backward()
    size = sum(p.numel() * 4 for p in net.parameters())
    model = RemoteModule(net)
    with count_messages() as sent:
        model.send(bob).send(bob)
    assert sent.by_kind == {"Put": 1}
    assert size < sent.bytes_out < 1.2 * size
    model(bob.send(torch.ones(1, 50))).sum().backward()
    with count_messages() as sent:
        model.get().get()
    assert sent.by_kind == {"Get": 1}
    assert sent.bytes_in < 1.2 * size
    assert all(p.grad is None for p in model.parameters())
    assert net[0].weight.grad is not None  # the original is left alone
    assert len(bob.worker) == 0


def test_where_it_is(bob: VirtualWorker, alice: VirtualWorker) -> None:
    model = RemoteModule(nn.Linear(2, 1))
    assert model.location is None
    before = model.state_dict()
    model.send(bob)
    assert model.location is bob
    assert "at bob" in repr(model)
    with pytest.raises(InputError, match="move"):
        model.send(alice)
    with pytest.raises(InputError, match="get"):
        _ = model.module
    ids = {path: t.id for path, t in model.state.items()}
    with count_messages() as sent:
        model.move(alice).move(alice)
    assert (sent.messages, sent.peer_messages) == (1, 1)
    assert {path: t.id for path, t in model.state.items()} == ids
    assert model.weight.location is alice
    assert len(bob.worker) == 0
    torch.testing.assert_close(model.get().state_dict(), before)
    assert isinstance(model.module, nn.Linear)


def test_a_copy_has_values_of_its_own(bob: VirtualWorker) -> None:
    model = RemoteModule(nn.Linear(2, 1)).send(bob)
    with count_messages() as sent:
        twin = model.copy()
    assert sent.by_kind == {"Copy": 1}
    with torch.no_grad():
        twin.weight.zero_()
    assert not torch.equal(model.state_dict()["weight"], twin.state_dict()["weight"])
    twin(bob.send(torch.ones(1, 2))).sum().backward()
    assert twin.weight.grad is not None
    assert model.weight.grad is None


def test_tied_weights_stay_tied(bob: VirtualWorker) -> None:
    model = RemoteModule(Tied()).send(bob)
    assert model.a.weight is model.b.weight
    assert len(bob.worker) == 3
    assert set(model.state_dict()) == set(Tied().state_dict())
    module = model.get().module
    assert module.a.weight is module.b.weight


def test_load_state_dict(bob: VirtualWorker) -> None:
    model, other = RemoteModule(nn.Linear(2, 1)).send(bob), nn.Linear(2, 1)
    with count_messages() as sent:
        model.load_state_dict(other.state_dict())
    assert sent.messages == 1
    torch.testing.assert_close(model.state_dict(), other.state_dict())


OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    (torch.optim.Adam, {"lr": 0.05}),
    (torch.optim.AdamW, {"lr": 0.05, "betas": (0.8, 0.9)}),
]


@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
def test_an_optimizer_steps_as_torchs(
    cls: type[torch.optim.Optimizer], options: Any, bob: VirtualWorker
) -> None:
    local = nn.Linear(4, 3)
    model = RemoteModule(local).send(bob)
    opt = RemoteOptimizer(model, cls, **options)
    reference = cls(local.parameters(), **options)  # pyright: ignore[reportCallIssue]
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    rx, ry = bob.send(x), bob.send(y)
    for _ in range(4):
        with count_messages() as sent:
            opt.zero_grad()
        assert sent.messages == 1
        reference.zero_grad()
        F.cross_entropy(model(rx), ry).backward()
        F.cross_entropy(local(x), y).backward()
        with count_messages() as sent:
            opt.step()
        assert sent.by_kind == {"Step": 1}
        reference.step()
    for there, here in zip(model.state_dict().values(), local.state_dict().values(), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-7)


def test_state_is_kept_apart_for_each_worker(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """One Adam for a model that travels is one Adam a worker, as the tutorial's ``Optims``."""
    torch.manual_seed(0)
    local = nn.Linear(2, 1)
    model = RemoteModule(local)
    opt = RemoteOptimizer(model, torch.optim.Adam, lr=0.1)
    references = {w: torch.optim.Adam(local.parameters(), lr=0.1) for w in (bob, alice)}
    data = {bob: torch.randn(3, 2), alice: torch.randn(3, 2)}
    for _ in range(3):
        for worker, x in data.items():
            model.send(worker)
            opt.zero_grad()
            (model(worker.send(x)) ** 2).sum().backward()
            opt.step()
            model.get()
            references[worker].zero_grad()
            (local(x) ** 2).sum().backward()
            references[worker].step()
    torch.testing.assert_close(model.state_dict(), local.state_dict(), rtol=1e-6, atol=1e-7)
    opt.forget()
    for worker in data:
        worker.search("#none")
        assert len(worker.worker) == 0


def test_an_optimizer_needs_its_model_at_a_worker() -> None:
    opt = RemoteOptimizer(RemoteModule(nn.Linear(2, 1)), torch.optim.SGD, lr=0.1)
    with pytest.raises(InputError, match="send it first"):
        opt.step()
    with pytest.raises(CaptureError):
        RemoteOptimizer(RemoteModule(nn.Linear(2, 1)), torch.optim.LBFGS)
    opt.lr = 0.2
    assert opt.lr == 0.2


def test_the_original_module_is_left_alone(bob: VirtualWorker) -> None:
    net = nn.Linear(2, 1)
    before = copy.deepcopy(net.state_dict())
    model = RemoteModule(net).send(bob)
    with torch.no_grad():
        model.weight.zero_()
    model.get()
    torch.testing.assert_close(net.state_dict(), before)
    assert type(net.weight) is nn.Parameter
