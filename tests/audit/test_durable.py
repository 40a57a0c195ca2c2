"""The audit log beside a durable store: what is in one and not in the other is said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.audit.chain import verify
from runtime.audit.log import AuditLog
from runtime.durable import DurableStore
from runtime.durable.files import Files
from runtime.errors import AuditFailed, DiskFull
from runtime.messages import Get, Put, PutItem, Slot
from runtime.owner import owner_of
from runtime.worker import Worker
from tests.access.helpers import connect
from tests.runtime.helpers import get, put, state_of


class Full(Files):
    """A disk that can be full."""

    full = False

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(descriptor, data)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_what_could_not_be_kept_is_logged_as_undone(tmp_path: Path) -> None:
    files, path = Full(), tmp_path / "audit.jsonl"
    bob = Worker("bob", durable=DurableStore(tmp_path / "store", files=files), audit=AuditLog(path))
    me = connect(bob)
    put(me, torch.ones(3))
    before = state_of(bob)
    files.full = True
    with pytest.raises(DiskFull):
        me.call(Put((PutItem(5, Slot(0)),)), [torch.ones(100_000)])
    files.full = False
    assert state_of(bob) == before
    kept, undone = entries(path)[-2:]
    assert (kept["kind"], kept["result"], undone["kind"]) == ("put", "ok", "undone")
    assert kept["request"] == undone["request"]
    bob.close()
    assert verify(path).good


def test_what_could_not_be_logged_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = tmp_path / "audit.jsonl", tmp_path / "store"
    bob = Worker("bob", durable=DurableStore(folder), audit=AuditLog(path))
    me = connect(bob)
    id = put(me, torch.ones(3))
    real = os.write

    def no_room(descriptor: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", no_room)
        with pytest.raises(AuditFailed):
            me.call(Put((PutItem(5, Slot(0)),)), [torch.ones(3)])
        with pytest.raises(AuditFailed):
            me.call(Get((id,), delete=True))
        with pytest.raises(AuditFailed):
            owner_of(bob).approve("a" * 64)
    bob.close()
    again = Worker("bob", durable=DurableStore(folder), audit=AuditLog(path))
    assert len(again) == 1
    assert not again._site.approvals.all()
    assert get(connect(again), id)[0].tolist() == [1.0] * 3
    again.close()
    assert verify(path).good
