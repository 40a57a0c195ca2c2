"""Plans on every type of device that there is here: the CPU, and CUDA where a machine has it.

What they compute is held against eager PyTorch on the same device. Nothing that was returned ever changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import planc
from planc.errors import ExecutionError
from planc.ir.program import Program
from planc.lower import ExecutableCache
from planc.lower.transfer import SMALL, numbered, to_device, to_host, wait
from runtime import VirtualWorker
from tests.sketch import I64, Sketch, f32, tensor

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
GRAPHS = [False, True]

Tensors = list[torch.Tensor]


class Held:
    """Results that a caller keeps, and what they were."""

    def __init__(self) -> None:
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(self, tensors: Tensors) -> None:
        self._kept += [(t, t.clone()) for t in tensors]

    def check(self) -> None:
        memory = [t.data_ptr() for t, _ in self._kept if t.numel()]
        assert len(set(memory)) == len(memory)
        assert all(torch.equal(t, was) for t, was in self._kept)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 16),
        nn.Tanh(),
        nn.Linear(16, 5),
    )


def batches(count: int, rows: int = 6) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(rows, 1, 8, 8, generator=generator)
        yield x, torch.randint(5, (rows,), generator=generator)


def trained(optimizer: str, **how: Any) -> tuple[planc.Plan, nn.Sequential, torch.optim.Optimizer]:
    """A training step as a plan, and the network and optimizer that it was made of."""
    net = network()
    made = getattr(torch.optim, optimizer)(net.parameters(), **how)
    x, y = next(batches(1))
    return planc.train_step(net, F.cross_entropy, made, x, y), net, made


def arguments(plan: planc.Plan, state: dict[str, torch.Tensor], *given: torch.Tensor) -> Tensors:
    rest = iter(given)
    return [state[p.path] if p.role.is_state else next(rest) for p in plan.inputs]


def close(got: Any, want: Any, device: str) -> None:
    exact = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(got, want, **exact)


@pytest.mark.parametrize("graphs", GRAPHS, ids=["plain", "graphs"])
@pytest.mark.parametrize(
    ("optimizer", "how"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("Adam", {"lr": 0.01}),
        ("RMSprop", {"lr": 0.01}),
    ],
    ids=["sgd", "momentum", "adam", "rmsprop"],
)
@pytest.mark.parametrize("device", DEVICES)
def test_training_is_that_of_eager_pytorch(
    device: str, optimizer: str, how: dict[str, Any], graphs: bool
) -> None:
    plan, net, _ = trained(optimizer, **how)
    net = net.to(device)
    eager = getattr(torch.optim, optimizer)(net.parameters(), **how)
    cache, held = ExecutableCache(graphs=graphs, max_bytes=2**30), Held()
    state = {path: t.to(device) for path, t in plan.state.items()}
    for x, y in batches(8):
        outputs = cache.run(plan.id, plan.program, arguments(plan, state, x, y), device)
        assert all(t.device == numbered(device) for t in outputs)
        held.keep(outputs)
        by_path = {p.path: t for p, t in zip(plan.outputs, outputs, strict=True)}
        state = {path: by_path[path] for path in state}
        eager.zero_grad()
        loss = F.cross_entropy(net(x.to(device)), y.to(device))
        loss.backward()
        eager.step()
        close(outputs[0], loss.detach(), device)
        close({path: state[path] for path, _ in net.named_parameters()}, dict(net.state_dict()), device)
    held.check()
    if graphs and device == "cuda":
        assert list(cache.refusals) == ([plan.id] if optimizer == "Adam" else [])


@pytest.mark.parametrize("graphs", GRAPHS, ids=["plain", "graphs"])
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_eager_pytorch(device: str, graphs: bool) -> None:
    """A step of size one takes them away from the parameters, as exactly as numbers of that size can say."""
    plan, net, _ = trained("SGD", lr=1.0)
    net = net.to(device)
    cache = ExecutableCache(graphs=graphs)
    before = {path: t.to(device) for path, t in plan.state.items()}
    for x, y in batches(4):
        outputs = cache.run(plan.id, plan.program, arguments(plan, before, x, y), device)
        net.zero_grad()
        F.cross_entropy(net(x.to(device)), y.to(device)).backward()
        after = {p.path: t for p, t in zip(plan.outputs, outputs, strict=True)}
        for path, parameter in net.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(before[path] - after[path], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_pinned_transfers_change_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planc.lower.transfer.PINNED", 2**21)  # which the last of these does not fit
    place = numbered(device)
    wide = torch.randn(SMALL // 2, 3)
    tensors = [
        torch.arange(5),
        wide,
        wide.t(),
        wide[::2, 1:],
        wide.to(torch.bfloat16),
        wide > 0,
        torch.empty(0, 4),
        torch.tensor(1.5),
        torch.randn(2, 8, 64, 64).to(memory_format=torch.channels_last),
        torch.arange(2**18 + 1),
    ]
    want = [t.clone() for t in tensors]
    moved = [to_device(t, place) for t in tensors]
    if device != "cpu":
        for t in tensors:  # whether or not it has arrived, what is on its way is a copy
            t.zero_()
    wait(place)
    back = to_host(moved)
    assert all(t.device == place for t in moved)
    assert all(t.is_cpu for t in back)
    assert all(map(torch.equal, back, want))


@pytest.mark.parametrize("graphs", GRAPHS, ids=["plain", "graphs"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_worker_on_a_device_gives_the_same(device: str, graphs: bool) -> None:
    plan, *_ = trained("SGD", lr=0.1, momentum=0.9)
    there = plan.send(VirtualWorker(f"on-{device}", device=device, runner=ExecutableCache(graphs=graphs)))
    here = plan.with_state(plan.state)
    got: Tensors = []
    want: Tensors = []
    for x, y in batches(6, rows=300):  # inputs that are large enough to be pinned
        got.append(there(x, y).get())
        want.append(here(x, y))
    assert all(t.is_cpu for t in got)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # MKL rounds by where a frame begins, too
    worker = VirtualWorker(f"of-{device}", device=device)
    worker.worker.add(big := torch.randn(SMALL), tags=("#big",))
    (found,) = worker.search("#big")
    assert torch.equal(found.copy().get(), big)


@pytest.mark.parametrize("device", DEVICES)
def test_keyed_draws_are_those_of_the_cpu(device: str) -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))
    x = torch.randn(8, 4)
    plan = planc.trace(net, x)
    cache = ExecutableCache(graphs=True)
    values = arguments(plan, plan.state, x)
    want = ExecutableCache().run(plan.id, plan.program, values)
    for _ in range(3):
        got = cache.run(plan.id, plan.program, values, device)
        assert torch.equal(got[0] == 0, (want[0] == 0).to(device))
        close([t.cpu() for t in got], want, device)
    assert plan.id in cache.refusals


@pytest.mark.parametrize("graphs", GRAPHS, ids=["plain", "graphs"])
@pytest.mark.parametrize("device", DEVICES)
def test_bad_data_ends_one_run_and_not_the_device(device: str, graphs: bool) -> None:
    s = Sketch("rows")
    x, rows = s.input("x", f32(3, 4)), s.input("rows", tensor(I64, 2))
    program = Program(s.give(s.op("aten.index_select", s.op("aten.exp", x), rows, dim=0)))
    cache = ExecutableCache(graphs=graphs)
    x, good, bad = torch.randn(3, 4), torch.tensor([2, 0]), torch.tensor([0, 3])
    for rows_now in (good, good, good, bad, good, bad):
        if rows_now is bad:
            with pytest.raises(ExecutionError, match=r"node 1: aten.index_select failed"):
                cache.run("rows", program, [x, bad], device)
        else:
            (got,) = cache.run("rows", program, [x, good], device)
            close(got.cpu(), x.exp()[good], device)


@pytest.mark.parametrize("graphs", GRAPHS, ids=["plain", "graphs"])
@pytest.mark.parametrize("device", DEVICES)
def test_threads_and_streams_share_a_cache_and_no_memory(device: str, graphs: bool) -> None:
    plan, *_ = trained("SGD", lr=0.1, momentum=0.9)
    cache = ExecutableCache(graphs=graphs, max_bytes=2**30)
    state = {path: t.to(device) for path, t in plan.state.items()}
    given = [(x.to(device), y.to(device)) for x, y in batches(4)]
    want = [
        ExecutableCache().run(plan.id, plan.program, arguments(plan, state, *each), device) for each in given
    ]
    wait(numbered(device))
    barrier = threading.Barrier(4)

    def work(number: int) -> bool:
        barrier.wait()
        held = Held()
        with torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext():
            for _ in range(20):
                got = cache.run(plan.id, plan.program, arguments(plan, state, *given[number]), device)
                close(got, want[number], device)
                held.keep(got)
            held.check()
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    if device == "cuda":
        assert cache.refusals == {}
