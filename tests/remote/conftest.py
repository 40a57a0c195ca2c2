"""Two fresh virtual workers for each test."""

from __future__ import annotations

import pytest
import torch

from runtime import VirtualWorker
from tests.network.fixtures import channel, over_every_channel  # noqa: F401


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def bob() -> VirtualWorker:
    return VirtualWorker("bob")


@pytest.fixture
def alice() -> VirtualWorker:
    return VirtualWorker("alice")
