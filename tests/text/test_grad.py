"""``grad`` in the language: the values of torch's own autograd, at sizes other than the traced one."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import planc
from planc.capture import differentiate
from planc.errors import ElaborationError
from planc.ir import Graph
from planc.text import parse

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
W = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone().requires_grad_()


def ops_of(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_gradients_are_autograds() -> None:
    plan = planc.parse("""
    plan f(x: f32[b, 6], y: i64[b], w: f32[4, 6], c: f32[4], s: f32[b*2]) {
      h = tanh(linear(x, w, c))
      loss = cross_entropy(h * sum(s) + mean(s * s), y) + norm(w)
      gw, gc, gh, gs = grad(loss, [w, c, h, s])
      return loss, gw, gc, gh, gs
    }""")
    for size in (5, 2):
        x, y, s = X[:size], torch.arange(size) % 4, torch.linspace(-1, 2, 2 * size)
        got = plan(x, y, W, W[:, 0], s)
        w, c, s = leaf(W), leaf(W[:, 0]), leaf(s)
        h = torch.tanh(F.linear(x, w, c))
        loss = F.cross_entropy(h * s.sum() + (s * s).mean(), y) + torch.linalg.vector_norm(w)
        expected = torch.autograd.grad(loss, [w, c, h, s])
        for ours, theirs in zip(got, (loss, *expected), strict=True):
            assert torch.equal(ours, theirs)


MANY = """
plan f(x: f32[b, 3, 8, 8], w: f32[4, 3, 3, 3], e: f32[10, 5], i: i64[b, 6], n: f32[5], m: f32[5], y: i64[b]) {
  c = convolution(x, w, none, stride=[1, 1], padding=[1, 1], dilation=[1, 1], transposed=false,
                  output_padding=[0, 0], groups=1)
  p, _ = max_pool2d_with_indices(c, kernel_size=[2, 2], stride=[2, 2])
  q = gelu(view(p, [b, 64]))
  v = embedding(e, i)
  l, _, _ = native_layer_norm(v, n, m, normalized_shape=[5], eps=1e-5)
  a = bmm(softmax(l, dim=2), transpose(v, 1, 2))
  z = cat([gather(q, i, dim=1), sum(a, dim=2)], dim=1)
  r = where(z > 0, z * sigmoid(z), -z / (1 + exp(z)))
  u = clamp(select(r, 1, 0), -1.0, 1.0) + slice(r, dim=1, start=1, end=2)
  loss = cross_entropy(r, y) + mean(abs(u)) * b + sum(r ** 2) / (b * 12)
  gx, gw, ge, gn = grad(loss, [x, w, e, n])
  return loss, gx, gw, ge, gn
}
"""


def eager(
    x: torch.Tensor, w: torch.Tensor, e: torch.Tensor, n: torch.Tensor, *rest: torch.Tensor
) -> list[Any]:
    """`MANY` in PyTorch."""
    x, w, e, n = leaf(x), leaf(w), leaf(e), leaf(n)
    i, m, y = rest
    b = x.shape[0]
    q = F.gelu(F.max_pool2d(F.conv2d(x, w, padding=1), 2).reshape(b, 64))
    v = F.embedding(i, e)
    a = F.layer_norm(v, [5], n, m).softmax(2) @ v.transpose(1, 2)
    z = torch.cat([q.gather(1, i), a.sum(2)], 1)
    r = torch.where(z > 0, z * z.sigmoid(), -z / (1 + z.exp()))
    u = r.select(1, 0).clamp(-1, 1) + r[:, 1:2]
    loss = F.cross_entropy(r, y) + u.abs().mean() * b + (r**2).sum() / (b * 12)
    return [loss, *torch.autograd.grad(loss, [x, w, e, n])]


def test_gradients_of_many_ops() -> None:
    plan = planc.parse(MANY)
    for b in (4, 1):
        torch.manual_seed(b)
        x, w, e, n, m = (torch.randn(s) for s in ((b, 3, 8, 8), (4, 3, 3, 3), (10, 5), (5,), (5,)))
        i, y = torch.randint(0, 10, (b, 6)), torch.randint(0, 12, (b,))
        for ours, theirs in zip(plan(x, w, e, i, n, m, y), eager(x, w, e, n, i, m, y), strict=True):
            assert torch.equal(ours, theirs)


def test_several_gradients_share_one_backward_and_the_forward() -> None:
    graph = parse(
        """
    plan f(x: f32[b, 6], w: f32[4, 6], v: f32[2, 4]) {
      loss = sum(relu(relu(x @ t(w)) @ t(v)))
      gw, gv = grad(loss, [w, v])
      return gw, gv
    }""",
        differentiate=differentiate,
    ).main
    ops = ops_of(graph)
    assert ops.count("aten.relu") == 2, "nothing of the forward is computed twice"
    assert ops.count("aten.threshold_backward") == 2
    assert ops.count("aten.mm") == 2 + 3
    assert all(node.loc is not None for node in graph.nodes)


def test_a_gradient_of_gradients() -> None:
    plan = planc.parse("""
    plan f(x: f32[n]) {
      g = grad(sum(x ** 3), x)
      return grad(sum(g * g), x)
    }""")
    x = leaf(X[0])
    (g,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad((g * g).sum(), x)
    torch.testing.assert_close(plan(X[0]), expected)


def test_dropout_keeps_the_mask_that_it_drew() -> None:
    plan = planc.parse("""
    plan f(x: f32[b, 6], k: i64[]) {
      here, other = random.split(k, count=2)
      noise = random.randn(other, size=[b, 6], dtype=f32)
      y, mask = dropout(here, x * noise, p=0.5)
      return grad(sum(y * y), x), mask, noise
    }""")
    gradient, mask, noise = plan(X, planc.key(1))
    assert 0 < int(mask.sum()) < mask.numel()
    x = leaf(X)
    y = x * noise * mask * 2.0
    (expected,) = torch.autograd.grad((y * y).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_training_in_a_loop_is_training() -> None:
    plan = planc.parse("""
    plan forward(x: f32[m, 6], w: f32[k, 6]) { return sigmoid(x @ t(w)) }
    plan fit(x: f32[n, 6], y: f32[n, 4], lr: f32[], param w: f32[4, 6]) -> (losses, param w) {
      for _ in range(2) {
        for xb, yb in batches(x, y, size=2) {
          e = forward(xb, w) - yb
          loss = mean(e * e)
          w = w - lr * grad(loss, w)
          collect loss
        }
        collect losses = loss
      }
      return losses, w
    }""").with_state({"w": W})
    losses = plan(X, X[:, :4], torch.tensor(0.5))
    w, expected = W, torch.zeros(2, 3)
    for epoch in range(2):
        for trip in range(3):
            xb, w = X[2 * trip : 2 * trip + 2], leaf(w)
            loss = ((torch.sigmoid(xb @ w.t()) - xb[:, :4]) ** 2).mean()
            loss.backward()
            assert w.grad is not None
            expected[epoch, trip], w = loss.detach(), w.detach() - 0.5 * w.grad
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(plan.state["w"], w)


def test_without_a_way_to_differentiate_grad_is_an_error() -> None:
    with pytest.raises(ElaborationError, match="grad is not available here"):
        parse("plan f(x: f32[n]) { return grad(sum(x * x), x) }")


def test_a_plan_that_draws_cannot_be_called_under_grad() -> None:
    with pytest.raises(ElaborationError, match="plan 'noisy' draws random numbers"):
        planc.parse("""
        plan noisy(x: f32[n], k: i64[]) { y, _ = dropout(k, x, p=0.5) return y }
        plan f(x: f32[n], k: i64[]) { return grad(sum(noisy(x, k)), x) }""")
