"""Modules as plans: parameters and buffers as state, train and eval mode, tied and frozen weights, dtypes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import planc
from planc.errors import CaptureError, ExecutionError, InputError
from planc.ir import Role
from runtime.interpreter import interpret
from tests.capture.training import close, twin

Shape = tuple[int, ...]


class Attention(nn.Module):
    """Self-attention with a residual, layer norm and dropout, as transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 4)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words)
        y, _ = self.attend(x, x, x, need_weights=False)
        return self.out(self.norm(x + y).mean(1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, stride=2, bias=False),
        nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 3),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    "convolutions": (convolutions, lambda n: torch.randn(n, 2, 9, 9)),
    "attention": (Attention, lambda n: torch.randint(0, 11, (n, 5))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_eval_mode_equals_eager(name: str) -> None:
    make, data = NETWORKS[name]
    net = make().eval()
    plan = planc.trace(net, data(5))
    assert {p.path for p in plan.graph.state()} == set(net.state_dict())
    assert plan.graph.updates() == ()  # no mask is drawn, no statistic changes
    for rows in (1, 2, 64):
        x = data(rows)
        close(plan(x), net(x), 1e-6)


def test_train_mode_updates_buffers_and_leaves_the_module_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = twin(net).state_dict()
    plan = planc.trace(net, torch.randn(5, 3))
    assert {p.path for p in plan.graph.updates()} == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    for rows in (2, 64, 3):
        x = torch.randn(rows, 3)
        for path, tensor in net.state_dict().items():
            assert rows != 2 or torch.equal(tensor, before[path])
        close(plan(x), net(x))
        close(plan.state_dict(), dict(net.state_dict()))
    assert plan.state["1.num_batches_tracked"].item() == 3
    before = dict(plan.state)
    with pytest.raises(ExecutionError, match="expected more than 1 value per channel when training, got"):
        plan(torch.randn(1, 3))  # as the module itself says; its statistics would become NaN
    assert plan.state == before


def test_dropout_in_training_is_keyed_and_replays() -> None:
    net = nn.Sequential(nn.Dropout(0.25), nn.Linear(4, 2), nn.Dropout(0.5))
    plan = planc.trace(net, torch.ones(5, 4))
    assert [p.path for p in plan.graph.updates()] == ["rng"]
    x, key = torch.ones(50, 4), planc.key(7)
    first = plan.with_state({"rng": key})
    a, b = first(x), first(x)
    assert not torch.equal(a, b)
    assert torch.equal(plan.with_state({"rng": key})(x), a)
    values = [plan.state.get(p.path, x) if p.role is not Role.KEY else key for p in plan.inputs]
    close(interpret(plan.graph, values, plan.constants)[0], a)
    assert 0.3 < (a == 0).float().mean() < 0.7


class Tied(nn.Module):
    """One table for words in and out, a part that nothing uses, one that is frozen, buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.out = nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.scale = nn.Buffer(torch.tensor(2.0))
        self.hidden = nn.Buffer(torch.ones(6), persistent=False)
        self.plain = torch.full((6,), 0.5)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words).mean(1) * self.scale + self.hidden + self.plain
        return self.out(self.frozen(x))


def test_tied_unused_and_frozen_parameters_and_plain_tensors() -> None:
    net = Tied()
    plan = planc.trace(net, torch.zeros(5, 4, dtype=torch.int64))
    assert [p.path for p in plan.graph.state() if "weight" in p.path].count("embed.weight") == 1
    assert "out.weight" not in plan.state
    assert len(plan.constants) == 1  # the tensor that is neither parameter nor buffer
    words = torch.randint(0, 9, (3, 4))
    close(plan(words), net(words))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)).to(dtype)
    plan = planc.trace(net, torch.randn(5, 4).to(dtype))
    x = torch.randn(3, 4).to(dtype)
    close(plan(x), net(x), 1e-3 if dtype.itemsize == 2 else 1e-12)


def test_the_state_loads_into_a_module_again() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    plan = planc.trace(net, torch.randn(5, 3))
    x = torch.randn(4, 3)
    plan(x)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    other.load_state_dict(plan.state_dict())
    net(x)
    close(other.eval()(x), net.eval()(x))
    loaded = Tied()
    tied = planc.trace(Tied(), torch.zeros(5, 4, dtype=torch.int64))
    tied.load_into(loaded)
    assert loaded.out.weight is loaded.embed.weight
    assert torch.equal(loaded.out.weight, tied.state["embed.weight"])
    with pytest.raises(InputError, match=r"the module has no parameter or buffer 'embed.weight'"):
        tied.load_into(nn.Linear(1, 1))
    with pytest.raises(
        InputError, match=r"'0.weight' is f32\[4, 3\] in the plan but f32\[4, 2\] in the module"
    ):
        plan.load_into(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)))


def test_a_transformer_with_a_causal_mask() -> None:
    """torch asks whether the mask is causal, to be faster; in eval mode it has kernels that no plan has."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    plan = planc.trace(net, torch.randn(5, 4, 8), mask)
    x = torch.randn(3, 4, 8)
    close(plan(x, mask), net(x, mask), 1e-5)


def test_pooling_to_one_pixel_of_channels_last_images() -> None:
    """torch restates strides of the result, which means nothing in a plan; any other layout is refused."""
    net = nn.AdaptiveAvgPool2d(1)
    plan = planc.trace(lambda x: net(x.permute(0, 3, 1, 2)) * 2, torch.randn(5, 4, 4, 3))
    x = torch.randn(2, 4, 4, 3)
    close(plan(x), net(x.permute(0, 3, 1, 2)) * 2, 1e-6)
    with pytest.raises(CaptureError, match="reads memory by its layout"):
        planc.trace(lambda x: torch.as_strided(x, (2, 2), (1, 2)), torch.randn(3, 3), dynamic=False)


def test_nested_modules_and_functional_code() -> None:
    class Inner(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.next = Inner(depth - 1) if depth else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.next(F.silu(self.layer(x)))

    net = Inner(3)
    plan = planc.trace(net, torch.randn(5, 3))
    assert "next.next.next.layer.weight" in plan.state
    x = torch.randn(2, 3)
    close(plan(x), net(x))
