"""A captured training step of the demo's network: capture takes seconds, so once a run."""

from __future__ import annotations

import pytest

import planc
from runtime.demo.metering import one_thread
from runtime.demo.network import capture_step, make_network


@pytest.fixture(scope="session")
def step() -> planc.Plan:
    with one_thread():
        return capture_step(make_network(0))
