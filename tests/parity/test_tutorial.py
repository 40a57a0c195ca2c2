"""The tutorial's jobs, T1 to T13: each gives what the tutorial shows, and what trains equals plain PyTorch.

That the files of ``examples/`` print it is tested beside them.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import planc
from runtime import (
    FederatedDataLoader,
    RemoteModule,
    RemoteOptimizer,
    VirtualWorker,
    count_messages,
    federate,
    me,
)
from runtime.errors import PermissionDenied

ME = "<VirtualWorker id:me #objects:0>"
FIVE = torch.tensor([1, 2, 3, 4, 5])


@pytest.fixture
def bob() -> VirtualWorker:
    torch.set_num_threads(1)
    return VirtualWorker("bob")


@pytest.fixture
def alice() -> VirtualWorker:
    return VirtualWorker("alice")


def shown(thing: object) -> str:
    """What it prints, its ids replaced by N."""
    return re.sub(r"(?<![\d.])\d{15,}\b", "N", str(thing))


def test_t01_workers_by_name(bob: VirtualWorker) -> None:
    x, y = bob.send(FIVE), bob.send(torch.ones(5, dtype=torch.int64))
    assert shown(bob.objects) == "{N: tensor([1, 2, 3, 4, 5]), N: tensor([1, 1, 1, 1, 1])}"
    assert list(bob.objects) == [x.id, y.id]
    assert str(bob) == "<VirtualWorker id:bob #objects:2>"
    assert (str(x.owner), x.owner) == (ME, me())
    bob.clear_objects()
    assert bob.objects == {}


def test_t02_send_and_get(bob: VirtualWorker) -> None:
    x, y = bob.send(FIVE), bob.send(FIVE * 2)
    assert x.location is bob
    assert torch.equal(x.get(), FIVE)
    assert list(bob.objects) == [y.id]


def test_t03_compute_remotely(bob: VirtualWorker) -> None:
    x, y = bob.send(FIVE), bob.send(torch.tensor([5, 4, 3, 2, 1]))
    with count_messages() as sent:
        z = x + y
    assert sent.messages == 1
    assert str(z.get()) == "tensor([6, 6, 6, 6, 6])"


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 0.1}),  # has no op: its own step is the plan of an update
}
DATA = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1.0]])
TARGET = torch.tensor([[0], [0], [1], [1.0]])
HALVES = [(DATA[:2], TARGET[:2]), (DATA[2:], TARGET[2:])]


def make(optimizer: str, parameters: Any) -> torch.optim.Optimizer:
    cls, options = OPTIMIZERS[optimizer]
    return cls(parameters, **options)  # pyright: ignore[reportCallIssue]


def test_t04_toy_model_learns_locally() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[float] = []
    for _ in range(20):
        opt.zero_grad()
        loss = ((model(DATA) - TARGET) ** 2).sum()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.001  # the tutorial ends at 0.0004


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_t05_train_remotely_equals_local_training_bit_for_bit(optimizer: str) -> None:
    torch.manual_seed(0)
    local = nn.Linear(2, 1)
    model = RemoteModule(local)
    cls, options = OPTIMIZERS[optimizer]
    opt = RemoteOptimizer(model, cls, **options)
    workers = [VirtualWorker("bob"), VirtualWorker("alice")]
    there = [(w, w.send(x), w.send(y)) for w, (x, y) in zip(workers, HALVES, strict=True)]
    references = [make(optimizer, local.parameters()) for _ in workers]
    for _ in range(10):
        for (worker, rx, ry), (x, y), reference in zip(there, HALVES, references, strict=True):
            model.send(worker)
            opt.zero_grad()
            remote_loss = ((model(rx) - ry) ** 2).sum()
            remote_loss.backward()
            opt.step()
            model.get()
            reference.zero_grad()
            loss = ((local(x) - y) ** 2).sum()
            loss.backward()
            reference.step()
            assert torch.equal(remote_loss.get(), loss.detach())
    for path, tensor in model.state_dict().items():
        assert torch.equal(tensor, local.state_dict()[path])


def test_t06_a_fetched_model_brings_no_gradient() -> None:
    bob = VirtualWorker("bob")
    model = RemoteModule(nn.Linear(2, 1)).send(bob)
    model(bob.send(DATA)).sum().backward()
    assert model.weight.grad is not None
    assert all(p.grad is None for p in model.get().parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_t09_averaging_equals_the_local_schedule_bit_for_bit(optimizer: str) -> None:
    torch.manual_seed(0)
    local = nn.Linear(2, 1)
    model = RemoteModule(local)
    workers, secure = [VirtualWorker("bob"), VirtualWorker("alice")], VirtualWorker("secure")
    there = [(w, w.send(x), w.send(y)) for w, (x, y) in zip(workers, HALVES, strict=True)]
    cls, options = OPTIMIZERS[optimizer]
    for _ in range(10):
        copies, twins = [], []
        for (worker, rx, ry), (x, y) in zip(there, HALVES, strict=True):
            trained, twin = model.copy().send(worker), copy.deepcopy(local)
            opt, reference = RemoteOptimizer(trained, cls, **options), make(optimizer, twin.parameters())
            for _ in range(5):
                opt.zero_grad()
                remote_loss = ((trained(rx) - ry) ** 2).sum()
                remote_loss.backward()
                opt.step()
                reference.zero_grad()
                loss = ((twin(x) - y) ** 2).sum()
                loss.backward()
                reference.step()
            assert torch.equal(remote_loss.get(), loss.detach())
            copies.append(trained)
            twins.append(twin)
        with torch.no_grad(), count_messages() as sent:
            a, b = (trained.move(secure).state for trained in copies)
            model.load_state_dict({path: ((a[path] + b[path]) / 2).get() for path in a})
            a, b = (twin.state_dict() for twin in twins)
            local.load_state_dict({path: (a[path] + b[path]) / 2 for path in a})
        assert sent.by_kind == {"Transfer": 2, "Put": 2, "Apply": 4, "Get": 2}  # only the mean is fetched
    for path, tensor in model.state_dict().items():
        assert torch.equal(tensor, local.state_dict()[path])


def test_t06_a_private_model_cannot_be_fetched() -> None:
    bob = VirtualWorker("bob")
    x = bob.send(DATA, private=True)
    model = RemoteModule(nn.Linear(2, 1)).send(bob)
    opt = RemoteOptimizer(model, torch.optim.SGD, lr=0.1)
    model(x).sum().backward()
    opt.step()
    with pytest.raises(PermissionDenied):
        model.get()


def test_t07_a_pointer_to_a_pointer(bob: VirtualWorker, alice: VirtualWorker) -> None:
    x = bob.send(FIVE)
    pointer = x.send(alice)
    assert str(x.owner) == str(pointer.owner) == ME
    assert shown(bob.objects) == "{N: tensor([1, 2, 3, 4, 5])}"
    assert shown(alice.objects) == "{N: [pointer alice:N -> bob:N]}"
    assert pointer.get() is x  # takes one layer off
    assert alice.objects == {}
    assert torch.equal(x.get(), FIVE)


def test_t08_move(bob: VirtualWorker, alice: VirtualWorker) -> None:
    x = bob.send(FIVE)
    id = x.id
    assert shown(x) == "<RemoteTensor me:N -> bob i64[5]>"
    with count_messages() as sent:
        x = x.move(alice)
    assert (sent.messages, sent.peer_messages) == (1, 1)
    assert bob.objects == {}
    assert shown(alice.objects) == "{N: tensor([1, 2, 3, 4, 5])}"
    assert list(alice.objects) == [id]
    assert shown(x) == "<RemoteTensor me:N -> alice i64[5]>"


def test_t10_mnist_loops_equal_local_training(
    bob: VirtualWorker, alice: VirtualWorker, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(48, 1, 12, 12), torch.randint(0, 10, (48,))
    local = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    model = RemoteModule(local)
    opt = RemoteOptimizer(model, torch.optim.SGD, lr=0.1)
    reference = torch.optim.SGD(local.parameters(), lr=0.1)
    loader = FederatedDataLoader(federate(TensorDataset(images, labels), (bob, alice)), 16, shuffle=True)
    device = torch.device("cpu")
    for data, target in loader:
        x, y = data.copy_here(), target.copy_here()
        model.send(data.location)
        data, target = data.to(device), target.to(device)
        opt.zero_grad()
        loss = F.nll_loss(F.log_softmax(model(data), dim=1), target)
        loss.backward()
        opt.step()
        model.get()
        reference.zero_grad()
        expected = F.nll_loss(F.log_softmax(local(x), dim=1), y)
        expected.backward()
        reference.step()
        torch.testing.assert_close(loss.get(), expected.detach())
    model.eval()
    torch.testing.assert_close(model(images), local(images))  # the test loop is an ordinary one
    torch.save(model.state_dict(), tmp_path / "net.pt")
    torch.testing.assert_close(torch.load(tmp_path / "net.pt", weights_only=True), local.state_dict())


def test_t11_a_plan_from_a_function(alice: VirtualWorker) -> None:
    @planc.plan(args_shape=[(-1,), (-1,)])
    def calcu(x: Any, y: Any) -> Any:
        z = x + y
        return z / 2

    remote = calcu.send(alice)
    x, y = alice.send(torch.tensor([1.0, 2])), alice.send(torch.tensor([5.0, 4]))
    with count_messages() as sent:
        result = remote(x, y)
    assert sent.by_kind == {"Run": 1}
    assert result.get().tolist() == [3, 3]


def test_t12_a_plan_from_a_class(bob: VirtualWorker) -> None:
    class Net(planc.PlanModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(2, 3)
            self.fc2 = nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=0)

    net, x = Net(), torch.tensor([1.0, 2.0])
    net.build(x)
    torch.testing.assert_close(net.send(bob)(bob.send(x)).get(), net(x).detach())


def test_t13_fewer_messages(bob: VirtualWorker) -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 2), torch.randn(12, 4), torch.randint(0, 2, (12,))
    model = RemoteModule(net).send(bob)
    opt = RemoteOptimizer(model, torch.optim.SGD, lr=0.1)
    rx, ry = bob.send(x), bob.send(y)
    with count_messages() as eager:
        opt.zero_grad()
        F.cross_entropy(model(rx), ry).backward()
        opt.step()
    assert eager.by_kind == {"ZeroGrad": 1, "Apply": 4, "Backward": 1, "Step": 1}
    step = planc.train_step(net, F.cross_entropy, torch.optim.SGD(net.parameters(), lr=0.1), x, y)
    remote, epoch = step.send(bob), planc.epoch(step, batch_size=3).send(bob)
    for plan in (remote, epoch):  # a batch; and four of them
        with count_messages() as planned:
            plan(rx, ry)
        assert planned.by_kind == {"Run": 1}
    torch.testing.assert_close(remote.get().state_dict(), model.state_dict())
