"""A fixture that lets whole suites run over every channel. Import it in their conftest."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.network.serving import CHANNELS, over


@pytest.fixture(autouse=True, params=CHANNELS)
def channel(request: pytest.FixtureRequest) -> Generator[str]:
    """Each test three times: with workers in this process, behind gRPC, and behind mutual TLS."""
    with over(request.param):
        yield request.param
