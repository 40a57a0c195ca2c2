"""The behaviours that users of the predecessor relied on, one test each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import planc
from planc.errors import InputError, NotBuiltError
from runtime import RemoteTensor, VirtualWorker, count_messages
from runtime.errors import ObjectNotFound
from tests.network.fixtures import settled


@pytest.fixture
def bob() -> VirtualWorker:
    torch.set_num_threads(1)
    return VirtualWorker("bob")


def fetch(value: Any) -> Any:
    if isinstance(value, RemoteTensor):
        return value.get()
    if isinstance(value, dict):
        return {key: fetch(item) for key, item in value.items()}
    return type(value)(fetch(item) for item in value)


ONES = torch.ones(3)


def test_plans_are_built_by_the_decorator_or_by_build(bob: VirtualWorker) -> None:
    @planc.plan
    def double(x: Any) -> Any:
        return x * 2

    with pytest.raises(NotBuiltError, match="build"):
        double.send(bob)
    double.build(ONES)
    assert double.send(bob)(ONES).get().tolist() == [2, 2, 2]

    class Net(planc.PlanModule):
        def forward(self, x: Any) -> Any:
            return x * 2

    with pytest.raises(NotBuiltError):
        Net().send(bob)


def test_a_dim_below_minus_one_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="-2"):
        planc.plan(args_shape=[(-2,)])(lambda x: x)


def test_outputs_in_order_and_temporaries_not_returned(bob: VirtualWorker) -> None:
    def several(x: Any) -> Any:
        unused = torch.exp(x)  # noqa: F841
        values, indices = x.max(0)
        return x - 1, values, indices, x

    remote = planc.trace(several, ONES).send(bob)
    with count_messages() as sent:
        out = remote(torch.tensor([1.0, 5, 2]))
    assert sent.messages == 1
    assert [t.get().tolist() for t in out] == [[0, 4, 1], 5, 1, [1, 5, 2]]


def test_pass_through_and_unused_inputs_bind_right(bob: VirtualWorker) -> None:
    remote = planc.trace(lambda x, unused, y: (y, x), ONES, ONES, ONES).send(bob)
    first, second = remote(bob.send(ONES), ONES * 2, ONES * 3)
    assert (first.get().tolist(), second.get().tolist()) == ([3, 3, 3], [1, 1, 1])


def test_fixed_loops_unroll() -> None:
    def power(x: Any) -> Any:
        for _ in range(3):
            x = x * x
        return x

    plan = planc.trace(power, ONES, optimize=False)
    assert plan.text.count("aten.mul") == 3
    assert plan(ONES * 2).tolist() == [256.0] * 3


def test_nested_inputs_remote_and_local_mixed(bob: VirtualWorker) -> None:
    def nested(batch: Any, pair: Any) -> Any:
        return {"sum": batch["x"] + batch["y"][0], "list": [pair[0] * 2, pair[1]]}

    plan = planc.trace(nested, {"x": ONES, "y": [ONES]}, (ONES, ONES))
    remote = plan.send(bob)
    args = ({"x": bob.send(ONES), "y": [ONES * 2]}, (ONES * 3, bob.send(ONES * 4)))
    with count_messages() as sent:
        out = remote(*args)
    assert sent.messages == 1
    got = fetch(out)
    assert got["sum"].tolist() == [3, 3, 3]
    assert [t.tolist() for t in got["list"]] == [[6, 6, 6], [4, 4, 4]]
    for bad in (
        ({"x": ONES, "z": [ONES]}, (ONES, ONES)),
        ({"x": ONES, "y": [ONES, ONES]}, (ONES, ONES)),
        ({"x": ONES, "y": [ONES]}, [ONES, ONES]),
        ({"x": ONES, "y": [ONES]},),
        ({"x": ONES, "y": [3.0]}, (ONES, ONES)),
        ({"x": ONES.int(), "y": [ONES]}, (ONES, ONES)),
    ):
        for call in (plan, remote):
            with pytest.raises(InputError):
                call(*bad)


def test_save_and_load_compute_the_same(tmp_path: Path, bob: VirtualWorker) -> None:
    plan = planc.trace(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), torch.ones(5, 3))
    plan.save(tmp_path / "net.planc")
    loaded = planc.load(tmp_path / "net.planc")
    assert loaded.id == plan.id
    assert torch.equal(loaded.send(bob)(torch.ones(2, 3)).get(), plan(torch.ones(2, 3)))


def test_one_plan_on_several_workers_and_again_at_no_message(bob: VirtualWorker) -> None:
    plan, alice = planc.trace(lambda x: x * 2, ONES), VirtualWorker("alice")
    with count_messages() as sent:
        plan.send(bob), plan.send(alice), plan.send(bob)
    assert sent.by_kind == {"Install": 2}


def test_nested_plans_three_deep_with_state(bob: VirtualWorker) -> None:
    class Scale(nn.Module):
        def __init__(self, inner: nn.Module | None = None) -> None:
            super().__init__()
            self.inner = inner
            self.w = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Any) -> Any:
            return self.w * (x if self.inner is None else self.inner(x))

    remote = planc.trace(Scale(Scale(Scale())), ONES).send(bob)
    assert remote(ONES).get().tolist() == [8.0] * 3
    assert set(remote.get().state_dict()) == {"w", "inner.w", "inner.inner.w"}


def test_a_plan_trained_here_and_sent_gives_the_same_answers_there(bob: VirtualWorker) -> None:
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    net = nn.Linear(3, 2)
    step = planc.train_step(net, F.mse_loss, torch.optim.Adam(net.parameters(), lr=0.1), x, y)
    for _ in range(3):
        step(x, y)
    forward = planc.trace(net, x).with_state(step.state_dict())
    assert torch.equal(forward.send(bob).fetch(x), forward(x))


def test_a_whole_training_step_in_a_plan_equals_pytorch(bob: VirtualWorker) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(6, 1, 4, 4), torch.randint(0, 3, (6,))
    remote = planc.train_step(net, F.cross_entropy, opt, x, y).send(bob)
    for _ in range(3):
        opt.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        torch.testing.assert_close(remote(x, y).get(), loss.detach())
    trained = remote.get().state_dict()
    for path, tensor in net.state_dict().items():
        torch.testing.assert_close(trained[path], tensor)


MODULES: dict[str, tuple[Any, torch.Tensor]] = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), torch.randn(3, 1, 8, 8)),
    "embedding": (lambda: nn.Embedding(10, 4), torch.randint(0, 10, (3, 5))),
    "attention": (lambda: Attention(), torch.randn(3, 5, 4)),
    "dropout in eval": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), torch.randn(3, 4)),
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.inner(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("name", MODULES)
def test_modules_as_plans(name: str, bob: VirtualWorker) -> None:
    make, x = MODULES[name]
    net = make().eval()
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(planc.trace(net, x).send(bob)(bob.send(x)).get(), expected)


def test_multi_output_operations(bob: VirtualWorker) -> None:
    values, indices = bob.send(torch.tensor([[1.0, 3, 2]])).max(dim=1)
    assert (values.get().tolist(), indices.get().tolist()) == ([3], [1])
    first, second = torch.split(bob.send(torch.arange(4)), 2)
    assert (first.get().tolist(), second.get().tolist()) == ([0, 1], [2, 3])


def test_a_missing_object_is_a_clear_error(bob: VirtualWorker) -> None:
    x = bob.send(ONES)
    x.get()
    for use in (x.get, x.copy_here, lambda: x + 1, x.copy):
        with pytest.raises(ObjectNotFound, match=f"'bob'.*{x.id}"):
            settled(bob, use)
