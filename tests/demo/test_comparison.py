"""The four ways: what each sends, that they do the same work, and what is extrapolated."""

from __future__ import annotations

import pytest
import torch

import planc
from runtime.demo import comparison
from runtime.demo.comparison import Comparison, Way
from runtime.demo.metering import Figures
from runtime.demo.mnist import MnistSplit
from runtime.demo.training import Settings, Setup, set_up

WORKERS, BATCHES = 2, 6


@pytest.fixture(scope="module")
def setup(step: planc.Plan, few: MnistSplit) -> Setup:
    return set_up(Settings(workers=WORKERS, batch_size=25), few, step)


def ways(setup: Setup, few: MnistSplit, step: planc.Plan) -> dict[str, Way]:
    made = Comparison(setup.dataset, few, step, setup.plan, step.state_dict(), 25)
    return {way.key: way for _, way in made.stages(1) if way is not None}


def test_messages_of_each_way(
    setup: Setup, few: MnistSplit, step: planc.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "EAGER_BATCHES", 2)
    before = {path: tensor.clone() for path, tensor in setup.averaging.state.items()}
    found = ways(setup, few, step)
    messages = {key: way.figures.messages for key, way in found.items()}
    assert list(messages) == ["local", "eager", "batch", "round"]
    assert messages["local"] == 0
    # A batch: run the step, which takes its rows. A worker: place the model before, fetch it after.
    assert messages["batch"] == BATCHES + 2 * WORKERS
    assert messages["round"] == WORKERS
    assert messages["eager"] > 15 * BATCHES
    assert messages["eager"] % BATCHES == 0
    assert {key: way.is_extrapolated for key, way in found.items()} == {
        "local": False,
        "eager": True,
        "batch": False,
        "round": False,
    }
    assert (found["eager"].measured, found["eager"].batches) == (2, BATCHES)
    assert all(way.figures.seconds > 0 for way in found.values())
    # Measuring changes nothing of the model that was trained.
    assert all(torch.equal(tensor, before[path]) for path, tensor in setup.averaging.state.items())


def test_extrapolation_scales_all_figures() -> None:
    assert Figures(42, 1000, 0.5).times(8) == Figures(336, 8000, 4.0)
