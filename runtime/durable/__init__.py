"""What a worker keeps on the disk: see `runtime.durable.store` and docs/network.md."""

from __future__ import annotations

from runtime.durable.files import Files
from runtime.durable.records import Records
from runtime.durable.store import DurableStore

__all__ = ["DurableStore", "Files", "Records"]
