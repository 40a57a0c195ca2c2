"""Plans at workers: what a call costs, whose state is used, futures, groups, autograd, and recorded code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import planc
import runtime
from planc.errors import InputError
from runtime import RemoteModule, RemotePlan, RemoteTensor, VirtualWorker, WorkerGroup, count_messages
from runtime.errors import PlanNotFound, WorkerError, WrongWorker

X, Y = torch.tensor([1.0, 2, 3]), torch.tensor([5.0, 4, 3])


@pytest.fixture(scope="module")
def calcu() -> Any:
    @planc.plan(args_shape=[(-1,), (-1,)])
    def calcu(x: Any, y: Any) -> Any:
        return (x + y) / 2, x * y

    return calcu


@pytest.fixture(scope="module")
def step() -> planc.Plan:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return planc.train_step(net, F.cross_entropy, opt, torch.randn(7, 3), torch.randint(0, 2, (7,)))


def test_a_call_is_one_message_whatever_it_takes(calcu: Any, bob: VirtualWorker) -> None:
    with count_messages() as sent:
        remote = calcu.send(bob)
        again = calcu.send(bob)
    assert sent.by_kind == {"Install": 1}
    x = bob.send(X)
    with count_messages() as sent:
        mean, product = remote(x, Y)
    assert sent.by_kind == {"Run": 1}
    assert isinstance(mean, RemoteTensor)
    assert mean.shape == (3,)
    assert torch.equal(mean.get(), (X + Y) / 2)
    assert torch.equal(product.get(), X * Y)
    with count_messages() as sent:
        mean, _ = again.fetch(x, x)
    assert sent.by_kind == {"Run": 1}
    assert torch.equal(mean, X)
    assert "calcu at bob" in repr(remote)


def test_a_value_of_another_worker_is_refused_by_name(
    calcu: Any, bob: VirtualWorker, alice: VirtualWorker
) -> None:
    remote, x = calcu.send(bob), alice.send(X)
    with count_messages() as sent, pytest.raises(WrongWorker, match=r"'bob'.*'alice'.*move"):
        remote(x, Y)
    assert sent.messages == 0


def test_arguments_that_do_not_fit_are_refused_here(calcu: Any, bob: VirtualWorker) -> None:
    remote = calcu.send(bob)
    with count_messages() as sent:
        for args in ((X,), (X, Y, Y), (X, 3.0), (X, Y.int()), (X, torch.ones(2, 2))):
            with pytest.raises(InputError):
                remote(*args)
    assert sent.messages == 0


def test_state_lives_at_the_worker(step: planc.Plan, bob: VirtualWorker) -> None:
    x, y = torch.randn(5, 3), torch.randint(0, 2, (5,))
    local = planc.Plan(step.program, step.state)
    remote = step.send(bob)
    rx, ry = bob.send(x), bob.send(y)
    for _ in range(3):
        with count_messages() as sent:
            loss = remote(rx, ry)
        assert sent.by_kind == {"Run": 1}
        torch.testing.assert_close(loss.get(), local(x, y))
    with count_messages() as sent:
        first, second = remote.evaluate(x, y), remote.evaluate(x, y)
    assert sent.messages == 2
    assert torch.equal(first, second)
    torch.testing.assert_close(remote.copy_here().state_dict(), local.state_dict())
    with count_messages() as sent:
        trained = remote.get()
    assert sent.by_kind == {"Get": 1}
    torch.testing.assert_close(trained(x, y), local(x, y))
    with pytest.raises(InputError, match="needs the state"):
        remote(rx, ry)


def test_plans_share_state(bob: VirtualWorker) -> None:
    net = nn.Linear(3, 2)
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    train = planc.train_step(net, F.cross_entropy, torch.optim.SGD(net.parameters(), lr=0.5), x, y).send(bob)
    forward = planc.trace(net, x).send(bob).with_state(train.state)
    before = forward.fetch(x)
    train(x, y)
    after = forward.fetch(x)
    assert F.cross_entropy(after, y) < F.cross_entropy(before, y)
    model = RemoteModule(net).send(bob)
    train.with_state(model.state)(x, y)  # a plan over the parameters of a module
    torch.testing.assert_close(model(bob.send(x)).get(), after)


def test_a_round_takes_state_along_and_brings_it_back(step: planc.Plan, bob: VirtualWorker) -> None:
    x, y = torch.randn(5, 3), torch.randint(0, 2, (5,))
    local = planc.Plan(step.program, step.state)
    bob.install(step)
    remote = RemotePlan(step, bob, {})
    model = step.state_dict()
    momenta = {path: tensor for path, tensor in step.state.items() if path not in model}
    for _ in range(2):
        with count_messages() as sent:
            loss, model = remote.round(model, x, y, keep=momenta)
        assert sent.by_kind == {"Run": 1}
        momenta = {}
        torch.testing.assert_close(loss, local(x, y))
    torch.testing.assert_close(model, local.state_dict())
    with pytest.raises(InputError, match="no state 'nope'"):
        remote.round({"nope": X}, x, y)


def test_a_plan_is_found_by_tag_fetched_and_run_without_its_source(calcu: Any, bob: VirtualWorker) -> None:
    bob.receive_plan(calcu.plan, tags=("#mean", "#demo"), description="of two")
    other = bob.as_client("other")
    assert other.search_plans("#mean", "#demo") == {calcu.id: "calcu"}
    assert other.search_plans("#nope") == {}
    plan = other.fetch_plan(calcu.id)
    assert plan.text == calcu.text
    assert torch.equal(plan(X, Y)[0], (X + Y) / 2)
    assert torch.equal(other.plan(calcu.id).fetch(X, Y)[1], X * Y)
    with pytest.raises(PlanNotFound):
        other.plan("0" * 64)


def test_futures(calcu: Any, bob: VirtualWorker) -> None:
    remote = calcu.send(bob)
    futures = [remote.submit(X * i, Y) for i in range(10)]
    for i, future in enumerate(futures):
        assert torch.equal(future.result()[1].get(), X * i * Y)
    with pytest.raises(InputError):
        remote.submit(X).result()


def test_one_plan_at_many_workers_at_once(calcu: Any, bob: VirtualWorker, alice: VirtualWorker) -> None:
    with count_messages() as sent:
        remote = calcu.send(WorkerGroup([bob, alice]))
        results = remote({bob: (bob.send(X), Y), alice: (alice.send(Y), Y)})
    assert sent.by_kind == {"Install": 2, "Put": 2, "Run": 2}
    assert results[bob][0].location is bob
    assert torch.equal(results[alice][1].get(), Y * Y)
    with pytest.raises(WorkerError, match="alice"):
        remote({bob: (X, Y), alice: (bob.send(X), Y)})
    with pytest.raises(InputError, match="carol"):
        remote({VirtualWorker("carol"): (X, Y)})
    with pytest.raises(InputError, match="once"):
        WorkerGroup([bob, bob])


def test_a_plan_under_autograd(bob: VirtualWorker) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
    x = torch.randn(6, 3, requires_grad=True)
    model = RemoteModule(net).send(bob)
    forward = planc.trace(net, x.detach()).send(bob).with_state(model.state)
    rx = bob.send(x)
    with count_messages() as sent:
        out = forward(rx)
    assert sent.by_kind == {"Run": 1}
    assert out.requires_grad
    assert not out.is_leaf
    (out**2).sum().backward()
    (net(x) ** 2).sum().backward()
    torch.testing.assert_close(rx.grad.get(), x.grad)
    for there, here in zip(model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(there.grad.get(), here.grad)
    torch.testing.assert_close(model.state_dict(), net.state_dict())
    with torch.no_grad():
        assert not forward(rx).requires_grad
    assert not forward(bob.send(x.detach())).grad


# -- recorded code -------------------------------------------------------------------------------------------


def test_recorded_code_is_one_plan_sent_when_a_value_is_needed(bob: VirtualWorker) -> None:
    x, y = bob.send(X), bob.send(Y)
    plans = set()
    for turn in range(2):
        with count_messages() as sent:
            with runtime.record() as recording:
                z = ((x + y) * 2 + torch.ones(3)).sum()
                top = z.max() + (x + y).max()
            assert sent.messages == 0
            assert z.shape == ()
            assert torch.equal(z.get(), ((X + Y) * 2 + 1).sum())
            assert torch.equal(top.get(), ((X + Y) * 2 + 1).sum() + 6)
        assert sent.by_kind == {"Run": 1, "Get": 2} | ({} if turn else {"Install": 1})
        assert recording.plan.text.count("aten.add(x0, x1)") == 1  # what is computed twice is computed once
        plans.add(recording.plan.id)
    assert len(plans) == 1


def test_what_was_dropped_is_not_computed(bob: VirtualWorker) -> None:
    x = bob.send(X)
    with runtime.record() as recording:
        y = x + 1
        z = y * 2
        del y
    z.get()
    assert len(recording.plan.outputs) == 1
    bob.search("#none")
    assert len(bob.worker) == 1
    with count_messages() as sent:
        with runtime.record() as recording:
            x * 3
        recording.send()
    assert sent.messages == 0


def test_recorded_code_may_write_and_drop_its_operands(bob: VirtualWorker) -> None:
    x = bob.send(X)
    with runtime.record():
        x += 1
        w = x * 2
        x[0] = 9.0
        v = bob.send(Y)  # another message: sends what is recorded first
        u = v + w
        del v
    assert torch.equal(u.get(), Y + (X + 1) * 2)
    assert torch.equal(x.get(), torch.tensor([9.0, 3, 4]))
    del w
    bob.search("#none")
    assert len(bob.worker) == 0


def test_eager_code_sees_what_was_recorded_before_it(bob: VirtualWorker) -> None:
    x = bob.send(X)
    with runtime.record():
        y = x + 1
    with count_messages() as sent:
        z = y * 2
    assert sent.by_kind == {"Install": 1, "Run": 1, "Apply": 1}
    assert torch.equal(z.get(), (X + 1) * 2)


def test_recordings_span_workers_and_refuse_autograd(bob: VirtualWorker, alice: VirtualWorker) -> None:
    x, y, w = bob.send(X), alice.send(Y), bob.send(torch.ones(3, requires_grad=True))
    with runtime.record() as recording:
        u, v = x + 1, y + 1
        with pytest.raises(InputError, match="no_grad"):
            w * 2
        with torch.no_grad():
            z = w * 2
    with count_messages() as sent:
        recording.send()
    assert sent.by_kind == {"Install": 2, "Run": 2}
    assert set(recording.plans) == {"bob", "alice"}
    with pytest.raises(InputError, match="one worker"):
        _ = recording.plan
    assert torch.equal(u.get() + v.get() + z.get(), X + Y + 4)


def test_a_recording_that_fails_leaves_its_worker_usable(bob: VirtualWorker) -> None:
    x, index = bob.send(X), bob.send(torch.tensor([7]))
    with runtime.record():
        bad = x.index_select(0, index)
    with pytest.raises(WorkerError, match="index_select"):
        bad.get()
    assert torch.equal((x + 1).get(), X + 1)
