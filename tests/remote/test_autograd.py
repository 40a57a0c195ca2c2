"""Autograd at a worker: gradients and hand-written updates are torch's own, bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from planc.errors import InputError
from runtime import VirtualWorker, count_messages
from tests.network.fixtures import settled


def test_gradients_are_torchs(bob: VirtualWorker) -> None:
    x, w, c = torch.randn(5, 4), torch.randn(4, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    rx, rw, rc = bob.send(x), bob.send(w), bob.send(c)
    F.cross_entropy(torch.tanh(x @ w) + c, torch.tensor([0, 1, 2, 0, 1])).backward()
    loss = F.cross_entropy(torch.tanh(rx @ rw) + rc, bob.send(torch.tensor([0, 1, 2, 0, 1])))
    with count_messages() as sent:
        loss.backward()
    assert sent.by_kind == {"Backward": 1}
    assert (loss.requires_grad, loss.is_leaf, rw.is_leaf, rx.grad, loss.grad) == (
        True,
        False,
        True,
        None,
        None,
    )
    for remote, local in ((rw, w), (rc, c)):
        with count_messages() as sent:
            grad = remote.grad
        assert sent.messages == 1
        assert grad is not None
        assert local.grad is not None
        assert torch.equal(grad.get(), local.grad)


def test_gradients_add_up_until_they_are_forgotten(bob: VirtualWorker) -> None:
    w = bob.send(torch.ones(3, requires_grad=True))
    assert w.grad is None
    for times in (1, 2):
        (w * 3).sum().backward()
        grad = w.grad
        assert grad is not None
        assert grad.get().tolist() == [3.0 * times] * 3
    w.grad = None
    assert w.grad is None
    with pytest.raises(InputError, match="None"):
        w.grad = torch.ones(3)


@pytest.mark.parametrize("momentum", [False, True])
def test_an_update_by_hand(bob: VirtualWorker, momentum: bool) -> None:
    torch.manual_seed(0)
    x, y, w = torch.randn(6, 3), torch.randn(6, 1), torch.randn(3, 1, requires_grad=True)
    rx, ry, rw = bob.send(x), bob.send(y), bob.send(w)
    v, rv = torch.zeros(3, 1), bob.send(torch.zeros(3, 1))
    for _ in range(4):
        for p, state, a, b in ((w, v, x, y), (rw, rv, rx, ry)):
            ((a @ p - b) ** 2).mean().backward()
            with torch.no_grad():
                if momentum:
                    state.mul_(0.9).add_(p.grad)
                    p -= 0.1 * state
                else:
                    p.sub_(0.1 * p.grad)
                assert p.requires_grad
                assert p.grad is not None  # the update leaves it, as torch does
                p.grad = None
    assert torch.equal(rw.get(), w)
    assert torch.equal(rv.get(), v)


def test_data_reaches_the_parameter(bob: VirtualWorker) -> None:
    w = torch.ones(3, requires_grad=True)
    rw = bob.send(w)
    for p in (w, rw):
        (p * p).sum().backward()
        p.data.sub_(p.grad.data * 0.25)
    assert torch.equal(rw.copy_here(), w.detach())
    assert rw.requires_grad


def test_a_gradient_cannot_be_cleared_in_place(bob: VirtualWorker) -> None:
    w = bob.send(torch.ones(3, requires_grad=True))
    w.sum().backward()
    with pytest.raises(InputError, match="zero_grad"):
        w.grad.zero_()


def test_no_grad_and_detach(bob: VirtualWorker) -> None:
    w = bob.send(torch.ones(3, requires_grad=True))
    with torch.no_grad():
        assert not (w * 2).requires_grad
    assert not w.detach().requires_grad
    assert not (w > 0).requires_grad
    assert not w.argmax().requires_grad
    assert (w * 2).requires_grad
    with pytest.raises(InputError):
        w.detach().sum().backward()


def test_backward_of_many_elements_takes_a_gradient(bob: VirtualWorker) -> None:
    w = bob.send(torch.ones(3, requires_grad=True))
    with pytest.raises(InputError):
        (w * 2).backward()
    (w * 2).backward(torch.tensor([1.0, 2, 3]))
    (w * 2).backward(bob.send(torch.ones(3)))
    grad = w.grad
    assert grad is not None
    assert grad.get().tolist() == [4, 6, 8]


def test_retain_graph(bob: VirtualWorker) -> None:
    w = bob.send(torch.ones(3, requires_grad=True))
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    grad = w.grad
    assert grad is not None
    assert grad.get().tolist() == [4.0] * 3
    with pytest.raises(Exception, match="retain"):
        settled(bob, loss.backward)


def test_requires_grad_is_known_and_settable(bob: VirtualWorker) -> None:
    w = bob.send(torch.ones(3))
    with count_messages() as sent:
        assert w.requires_grad_() is w
        w.requires_grad_()
    assert sent.messages == 1
    (w * 2).sum().backward()
    w.requires_grad = False
    assert not (w * 2).requires_grad
    got = bob.send(torch.ones(3, requires_grad=True)).get()
    assert got.requires_grad
    assert got.is_leaf
    assert got.grad is None


def test_gradients_do_not_cross_workers(bob: VirtualWorker) -> None:
    w = torch.ones(3, requires_grad=True)
    x = bob.send(torch.ones(3))
    with pytest.raises(InputError, match="gradients do not cross workers"):
        x * w
    assert torch.equal((x * w.detach()).get(), torch.ones(3))


def test_in_place_on_a_value_with_a_history(bob: VirtualWorker) -> None:
    w = torch.ones(3, requires_grad=True)
    rw = bob.send(w)
    for p in (w, rw):
        y = p * 2
        y.add_(p).mul_(3)
        y[0] = 0.0
        y.sum().backward()
    assert rw.grad is not None
    assert torch.equal(rw.grad.get(), w.grad)
