"""Layers, activations and losses trained by a plan and by PyTorch: three steps, at two sizes not traced."""

from __future__ import annotations

import pytest
import torch

import planc
from tests.ops.layers import FAMILIES, RANDOM, SLOW
from tests.ops.training import bundle, total, worst

TOLERANCE = 1e-5
IN_PARTS = {
    "lstm",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "linear1d",
    "bilinear_up",
    "bilinear_aligned",
    "pad_circular",
}
"""What PyTorch runs as one kernel but traces in parts, so that rounding differs. All else is exact."""


@pytest.mark.parametrize("family", FAMILIES)
def test_training_by_a_plan_is_training_by_pytorch(family: str) -> None:
    differences = worst(bundle({name: make for name, make in FAMILIES[family].items() if name not in SLOW}))
    assert {name: x for name, x in differences.items() if not x <= TOLERANCE} == {}
    assert {name for name, x in differences.items() if x} <= IN_PARTS


@pytest.mark.parametrize("name", RANDOM)
def test_random_layers_train_and_replay(name: str) -> None:
    net = bundle({name: RANDOM[name]})
    step = planc.train_step(net, total, torch.optim.SGD(net.parameters(), lr=0.1), net.batch(7, 0), targets=0)
    start = dict(step.state)
    batch = net.batch(5, 1)
    first, second = step(batch), step(batch)
    assert torch.isfinite(first["loss"])
    assert not torch.equal(first["loss"], second["loss"])
    step.state = start
    assert torch.equal(step(batch)["loss"], first["loss"])
