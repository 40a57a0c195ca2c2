"""Every row of the contract holds over every channel."""

from __future__ import annotations

from tests.network.fixtures import channel  # noqa: F401
