"""A run like the one before it is checked less at the caller and bound in one loop at the worker, no more.

What makes a call unlike the one before (other types, other places, other rights) is looked at as ever.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

import planc
from planc.errors import InputError
from runtime import RemoteTensor, VirtualWorker
from runtime.errors import ApprovalNeeded, ObjectNotFound, PermissionDenied, WrongWorker
from runtime.executor import Executor, RunBounds


@planc.plan(args_shape=[(-1, 2), (-1, 2)])
def total(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y).sum(dim=1)


def test_calls_on_values_of_other_types_after_one_that_is_known() -> None:
    bob = VirtualWorker("bob")
    remote = total.send(bob)
    for rows in (3, 3, 5, 3, 1, 5):
        x, y = torch.randn(rows, 2), torch.randn(rows, 2)
        assert torch.equal(remote(bob.send(x), bob.send(y)).get(), total(x, y))
        assert torch.equal(remote(bob.send(x), y).get(), total(x, y))  # one of them travels along
    with pytest.raises(InputError, match="i64"):
        remote(bob.send(torch.ones(3, 2, dtype=torch.int64)), bob.send(torch.ones(3, 2)))
    with pytest.raises(InputError):
        remote(bob.send(torch.ones(3, 2)), bob.send(torch.ones(4, 2)))
    with pytest.raises(InputError, match="arguments"):
        remote(bob.send(torch.ones(3, 2)))


def test_a_value_elsewhere_is_refused_after_a_call_that_is_known() -> None:
    bob, alice = VirtualWorker("bob"), VirtualWorker("alice")
    remote = total.send(bob)
    x = torch.ones(3, 2)
    here, there = bob.send(x), alice.send(x)
    remote(here, here)
    with pytest.raises(WrongWorker, match="alice"):
        remote(here, there)


def test_gradients_flow_after_a_call_that_is_known() -> None:
    bob = VirtualWorker("bob")
    remote = total.send(bob)
    x, y = torch.randn(3, 2), torch.randn(3, 2)
    remote(bob.send(x), bob.send(y))
    leaf = bob.send(x.clone().requires_grad_())
    out = remote(leaf, bob.send(y))
    assert out.requires_grad
    assert not out.is_leaf
    out.sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad.get(), y)
    with torch.no_grad():
        assert not remote(leaf, bob.send(y)).requires_grad


def test_state_given_anew_is_used() -> None:
    bob = VirtualWorker("bob")
    plan, module = _step()
    remote = plan.send(bob)
    x, y = torch.randn(4, 2), torch.randn(4, 1)
    rx, ry = bob.send(x), bob.send(y)
    for _ in range(3):
        remote(rx, ry)
    other = {path: torch.zeros_like(value) for path, value in module.state_dict().items()}
    again = remote.with_state({path: bob.send(value) for path, value in other.items()})
    losses = [again(rx, ry).get(), again(rx, ry).get()]
    local = plan.with_state(other)
    assert [float(loss) for loss in losses] == [float(local(x, y)), float(local(x, y))]


def test_a_state_that_is_gone_is_an_error_and_changes_nothing() -> None:
    bob = VirtualWorker("bob")
    plan, _ = _step()
    remote = plan.send(bob)
    rx, ry = bob.send(torch.randn(4, 2)), bob.send(torch.randn(4, 1))
    remote(rx, ry)
    before = remote.state["weight"].copy_here()
    bob.connection.release(remote.state["bias"].id)
    with pytest.raises(ObjectNotFound):
        remote(rx, ry)
    assert torch.equal(remote.state["weight"].copy_here(), before)


def test_a_private_value_is_looked_at_as_ever() -> None:
    bob = VirtualWorker("bob")
    remote = total.send(bob)
    public, private = bob.send(torch.ones(3, 2)), bob.send(torch.ones(3, 2), private=True)
    assert remote(public, public).get().tolist() == [2.0, 2.0, 2.0]
    hidden = remote(public, private)
    with pytest.raises(PermissionDenied):
        hidden.get()
    with pytest.raises(ApprovalNeeded):
        remote.fetch(public, private)
    bob.worker.approve(remote.id)
    assert remote.fetch(public, private).tolist() == [2.0, 2.0, 2.0]


def test_results_share_no_memory_with_state_or_each_other() -> None:
    bob = VirtualWorker("bob")

    def step(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x, x, x + 1

    remote = planc.trace(step, torch.ones(3)).send(bob)
    x = bob.send(torch.ones(3))
    for _ in range(3):
        a, b, c = remote(x)
        a.add_(1)
        b.mul_(5)
        assert [t.copy_here().tolist() for t in (x, a, b, c)] == [[1] * 3, [2] * 3, [5] * 3, [2] * 3]


def test_bytes_held_are_right_after_many_runs() -> None:
    bob = VirtualWorker("bob")
    plan, _ = _step()
    remote = plan.send(bob)
    rx, ry = bob.send(torch.randn(4, 2)), bob.send(torch.randn(4, 1))
    kept: list[RemoteTensor] = [remote(rx, ry) for _ in range(5)]
    # weight, bias, x, y, five losses
    assert bob.worker.nbytes == 4 * (2 + 1 + 8 + 4 + 5)
    kept.clear()
    remote(rx, ry)
    assert bob.worker.nbytes == 4 * (2 + 1 + 8 + 4 + 1)
    bob.clear_objects()
    assert bob.worker.nbytes == 0


class _Slow:
    """A runner that takes as long as it is told."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.began = threading.Event()

    def run(self, plan_id: str, program: Any, values: list[torch.Tensor], *rest: Any, **how: Any) -> Any:
        self.began.set()
        time.sleep(self.seconds)
        return [values[0].clone()]


def test_what_took_long_is_known_to_take_long() -> None:
    slow = _Slow()
    executor = Executor(torch.device("cpu"), RunBounds(), 2**20, slow)
    program, x = total.plan.program, torch.ones(3, 2)
    assert executor.prepare("p", program, [x, x]).took == float("inf")
    executor.run(executor.prepare("p", program, [x, x]), program, [x, x])
    assert executor.prepare("p", program, [x, x]).took < 0.1
    slow.seconds = 0.2
    executor.run(executor.prepare("p", program, [x, x]), program, [x, x])
    assert executor.prepare("p", program, [x, x]).took >= 0.2


def _loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((out - target) ** 2).sum()


def _step() -> tuple[planc.Plan, nn.Module]:
    torch.manual_seed(3)
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    plan = planc.train_step(module, _loss, optimizer, torch.randn(4, 2), torch.randn(4, 1))
    return plan, module
