"""What loops compute: the same as the Python loops that they look like."""

import pytest
import torch

import planc
from planc.ir import DimVar
from planc.ops.structured import trip_count
from planc.text import parse


def rows(count: int, width: int = 3) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


BATCHES = """
plan f(x: f32[n, 3], y: f32[n], w: f32[3]) {{
  for xb, yb in batches(x, y, size=4{option}) {{
    e = xb @ w - yb
    w = w - 0.1 * (t(xb) @ e)
    collect e
    collect loss = sum(e * e)
  }}
  return w, e, loss
}}
"""


@pytest.mark.parametrize("option", ["", ", drop_last=true", ", drop_last=false"])
@pytest.mark.parametrize("count", [4, 10, 13])
def test_batches(option: str, count: int) -> None:
    x, y, w = rows(count), rows(count, 1)[:, 0], rows(1)[0]
    got = planc.parse(BATCHES.format(option=option))(x, y, w)
    errors: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    stop = count // 4 * 4 if "true" in option else count
    for start in range(0, stop, 4):
        end = min(start + 4, stop)
        xb, yb = x[start:end], y[start:end]
        e = xb @ w - yb
        w = w - 0.1 * (xb.t() @ e)
        errors.append(e)
        losses.append((e * e).sum())
    for ours, theirs in zip(got, (w, torch.cat(errors), torch.stack(losses)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_trips_are_counted_and_nest() -> None:
    plan = planc.parse("""
    plan f(x: f32[3]) {
      for i in range(4) {
        for j in range(3) {
          x = x * 2 + i - j
          collect seen = x
        }
        x = x / 3
        collect all = seen
      }
      return x, all
    }""")
    x = rows(1)[0]
    got = plan(x)
    outer: list[torch.Tensor] = []
    for i in range(4):
        inner: list[torch.Tensor] = []
        for j in range(3):
            x = x * 2 + i - j
            inner.append(x)
        x = x / 3
        outer.append(torch.stack(inner))
    torch.testing.assert_close(got, (x, torch.stack(outer)))


def test_a_shuffled_epoch_is_written_out() -> None:
    plan = planc.parse("""
    plan f(x: f32[n, 3], k: i64[]) {
      order = random.randperm(k, n=n)
      for r in batches(order, size=4) {
        xb = index_select(x, r, dim=0)
        collect xb
        collect r
      }
      return xb, r
    }""")
    x = rows(10)
    shuffled, order = plan(x, planc.key(3))
    assert sorted(order.tolist()) == list(range(10))
    assert order.tolist() != list(range(10))
    assert torch.equal(shuffled, x[order])


def test_trips_of_a_dim() -> None:
    plan = planc.parse("plan f(x: f32[n]) { s = x for _ in range(n) { s = s + x } return s }")
    assert torch.equal(plan(torch.ones(5)), torch.full((5,), 6.0))
    (scan,) = plan.graph.nodes
    assert str(trip_count(scan)) == "n"


def test_no_trip_at_all() -> None:
    plan = planc.parse("plan f(x: f32[n]) { for _ in range(0) { x = x * 2 } return x }")
    assert torch.equal(plan(torch.ones(5)), torch.ones(5))


def test_a_batch_has_a_dim_with_its_range() -> None:
    def body(option: str, target: str = "xb") -> tuple[DimVar, ...]:
        loop = f"for {target} in batches(x, size=4{option}) {{ collect s = xb }}"
        return parse(f"plan f(x: f32[batch, 3]) {{ {loop} return s }}").main.subplans[0].dims

    assert body("") == (DimVar("batch_", 1, 4),)
    assert body(", drop_last=true") == (DimVar("batch_", 4, 4),)
    assert body("", "xb: f32[few, 3]") == (DimVar("few", 1, 4),)


def test_a_body_gets_the_inputs_that_tell_its_dims() -> None:
    graph = parse("""
    plan f(x: f32[n, c], y: f32[m]) {
      z = full([2], 1.0, f32)
      for _ in range(3) { z = z + m + n * c }
      return z
    }""").main
    (body,) = graph.subplans
    assert [port.name for port in body.inputs] == ["z", "x", "y"]
    x, y = torch.ones(5, 2), torch.ones(7)
    plan = planc.Plan(planc.ir.program.Program(graph))
    assert plan(x, y).tolist() == [1.0 + 3 * 17] * 2


def test_plans_are_called_from_loops() -> None:
    plan = planc.parse("""
    plan double(x: f32[n]) { return x * 2 }
    plan f(x: f32[n]) {
      plan half(x: f32[n]) { return x / 2 }
      for _ in range(3) { x = double(double(half(x))) }
      return x
    }""")
    assert torch.equal(plan(torch.ones(2)), torch.full((2,), 8.0))
