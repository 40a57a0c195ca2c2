"""A captured step of the demo's network (capture takes seconds: once a run) and a few of its real images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import planc
from runtime.demo.metering import one_thread
from runtime.demo.mnist import MnistSplit, load_embedded
from runtime.demo.network import capture_step, make_network


@pytest.fixture(scope="session")
def step() -> planc.Plan:
    with one_thread():
        return capture_step(make_network(0))


@pytest.fixture(scope="session")
def images() -> MnistSplit:
    return load_embedded()


@pytest.fixture(scope="session")
def few(images: MnistSplit) -> MnistSplit:
    return MnistSplit(images.train_x[:150], images.train_y[:150], images.test_x[:40], images.test_y[:40])


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield
