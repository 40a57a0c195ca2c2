"""Every row of the contract holds over every channel."""

from __future__ import annotations

from tests.network.fixtures import channel, over_every_channel  # noqa: F401
