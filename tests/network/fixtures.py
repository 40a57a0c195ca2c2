"""Fixtures that let whole suites run over every channel: import them, in a conftest or in a module."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from runtime import WorkerHandle
from tests.network.serving import CHANNELS, over


@pytest.fixture(params=CHANNELS)
def channel(request: pytest.FixtureRequest) -> Generator[str]:
    """Each test four times: workers in this process, behind a unix socket, gRPC, and mutual TLS."""
    with over(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def over_every_channel(channel: str) -> str:
    """For all tests of a folder or module."""
    return channel


def settled(worker: WorkerHandle, operation: Callable[[], Any]) -> Any:
    """What an operation comes to, when it is done there: over a network an error of it comes later."""
    result = operation()
    worker.settle()
    return result
