"""What a worker logs: every message that reads, runs or moves data, before its reply; never an element."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from planc.errors import PlancError
from runtime.audit.chain import segments, verify
from runtime.audit.entries import COUNTED, LOGGED, UNLOGGED
from runtime.audit.log import AuditLog
from runtime.channels import Connection, InProcessChannel
from runtime.cohorts import CohortMember, KeptOwn, Own
from runtime.errors import AuditFailed, ObjectNotFound, PermissionDenied, QuotaExceeded, RemoteInputError
from runtime.identity import Role
from runtime.messages import (
    Apply,
    Backward,
    Body,
    Cohort,
    Copy,
    Free,
    Get,
    Keep,
    List,
    Plans,
    Put,
    PutItem,
    Return,
    Run,
    Slot,
    Status,
    Transfer,
)
from runtime.owner import owner_of
from runtime.policy import Policy, Quota, Rights
from runtime.worker import Worker
from tests.access.helpers import connect
from tests.runtime.helpers import adding, get, handles, identity, install, new_id, picking, put, state_of

SECRET = 31337.5


class Kept:
    """A worker with an audit log, and the entries that are in it."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.worker = Worker("bob", audit=AuditLog(path), **options)

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for file in segments(self.path) for line in file.read_bytes().splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        return self.entries[-1]


@pytest.fixture
def bob(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "audit.jsonl")


@pytest.fixture
def me(bob: Kept) -> Connection:
    return connect(bob.worker)


def test_every_message_is_logged_or_counted_or_has_a_reason_not_to_be() -> None:
    groups = (LOGGED, COUNTED, UNLOGGED)
    assert frozenset().union(*groups) == set(get_args(Body))
    assert sum(map(len, groups)) == len(get_args(Body))


def test_a_get(bob: Kept, me: Connection) -> None:
    id = put(me, torch.ones(3), tags=("#x",))
    get(me, id)
    entry = bob.last
    assert (entry["who"], entry["role"], entry["kind"], entry["result"]) == ("ann", "client", "get", "ok")
    assert entry["left"] == [{"name": f"object {id}", "type": "f32[3]", "bytes": 12}]
    assert (entry["bytes"], entry["own"], entry["request"][1]) == (12, 1, 2)
    assert entry["seconds"] > 0
    assert entry["n"] == 2


def test_a_run_with_its_plan_its_data_and_what_left(bob: Kept, me: Connection) -> None:
    data = bob.worker.add(torch.full((3,), SECRET), tags=("#patients",), private=True)
    plan = install(me, adding())
    with pytest.raises(PermissionDenied):
        me.call(Run(plan, handles(data, data), (Return(), Return())))
    entry = bob.last
    private = {"id": data, "owner": "bob", "private": True, "tags": ["#patients"]}
    assert (entry["kind"], entry["plan"], entry["result"]) == ("run", plan, "approval-needed")
    assert entry["data"] == [private]
    assert "left" not in entry
    owner_of(bob.worker).approve(plan)
    assert (bob.last["kind"], bob.last["who"], bob.last["role"]) == ("approve", "owner", "owner")
    assert bob.last["plan"] == plan
    assert bob.last["approval"] == {"clients": [], "inputs": {}, "runs": None, "expires": None}
    me.call(Run(plan, handles(data, data), (Return(), Keep(new_id()))))
    entry = bob.last
    assert entry["left"] == [{"name": "sum", "type": "f32[3]", "bytes": 12}]
    assert (entry["approved"], entry["data"], entry["result"]) == (True, [private], "ok")


def test_decisions_in_the_workers_own_process(bob: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    bob.worker.approve("a" * 64)
    assert (bob.last["kind"], bob.last["role"], bob.last["plan"]) == ("approve", "owner", "a" * 64)
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", no_room)
        for decide in (lambda: bob.worker.approve("b" * 64), lambda: bob.worker.disapprove("a" * 64)):
            with pytest.raises(AuditFailed):
                decide()
    assert bob.worker._site.approvals.all().keys() == {"a" * 64}
    bob.worker.disapprove("a" * 64)
    assert bob.last["kind"] == "disapprove"


def test_private_data_that_comes_is_named(bob: Kept, me: Connection) -> None:
    id = put(me, torch.ones(3), private=True, tags=("#mine",))
    assert bob.last["data"] == [{"id": id, "owner": "ann", "private": True, "tags": ["#mine"]}]


def test_a_listing_says_how_much_it_showed(bob: Kept, me: Connection) -> None:
    bob.worker.add(torch.ones(2), tags=("#x",))
    bob.worker.add(torch.ones(2), tags=("#x",), private=True)
    me.call(List())
    assert (bob.last["kind"], bob.last["previews"]) == ("list", 1)


def test_operations_are_counted_and_written_before_anything_else(bob: Kept, me: Connection) -> None:
    secret = bob.worker.add(torch.full((3,), SECRET), tags=("#patients",), private=True)
    x, out = put(me, torch.ones(3)), new_id()
    before = len(bob.entries)
    for _ in range(20):
        me.call(Apply("aten.add", handles(secret, x), {}, (out,)))
    me.call(Copy((x,), (new_id(),)))
    with pytest.raises(RemoteInputError):
        me.call(Backward(x))
    other = connect(bob.worker, "cas")
    put(other, torch.ones(1))
    assert len(bob.entries) == before + 1  # another's request does not write them
    get(me, x)
    counted, got = bob.entries[before + 1 :]
    assert counted["kind"] == "operations"
    assert counted["counts"] == {"apply": 20, "copy": 1, "backward": 1}
    assert (counted["failed"], counted["who"]) == (1, "ann")
    assert [each["id"] for each in counted["data"]] == [secret]
    assert got["kind"] == "get"


def test_what_is_counted_is_written_at_the_end_and_when_it_is_much(bob: Kept, me: Connection) -> None:
    x, out = put(me, torch.ones(3)), new_id()
    for _ in range(1001):
        me.call(Apply("aten.neg", handles(x), {}, (out,)))
    assert bob.last["counts"] == {"apply": 1000}
    bob.worker.close()
    assert bob.last["counts"] == {"apply": 1}
    assert verify(bob.path).good


def test_refusals_are_logged_one_by_one_and_counted_for_the_owner(tmp_path: Path) -> None:
    bob = Kept(
        tmp_path / "a.jsonl", policy=Policy(default=Rights(quota=Quota(bytes=8)), denied=frozenset({"eve"}))
    )
    me = connect(bob.worker)
    with pytest.raises(QuotaExceeded):
        put(me, torch.ones(3))
    assert (bob.last["kind"], bob.last["result"]) == ("put", "quota-exceeded")
    with pytest.raises(PermissionDenied):
        connect(bob.worker, "eve").call(Plans())
    assert (bob.last["who"], bob.last["kind"], bob.last["result"]) == ("eve", "plans", "permission-denied")
    with pytest.raises(PermissionDenied):
        me.call(Status())
    assert (bob.last["kind"], bob.last["result"]) == ("status", "permission-denied")
    liar = connect(bob.worker, "cas")
    liar.client = "ann"
    with pytest.raises(PermissionDenied):
        liar.call(List())
    assert (bob.last["who"], bob.last["result"]) == ("cas", "permission-denied")
    (ann,) = [c for c in owner_of(bob.worker).status().clients if c.name == "ann"]
    assert ann.refused == 2


def test_a_transfer_is_logged_before_it_leaves(tmp_path: Path) -> None:
    seen: list[str] = []
    alice = Worker("alice")

    class Watching(InProcessChannel):
        def call(self, frame: Any) -> bytearray:
            seen.append(bob.last["result"])
            return super().call(frame)

    bob = Kept(tmp_path / "a.jsonl", peers=lambda _to: Watching(alice))
    me = connect(bob.worker)
    id = put(me, torch.ones(3))
    me.call(Transfer((id,), "alice", (5,)))
    assert seen == ["started"]
    started, ended = bob.entries[-2:]
    assert started["left"] == ended["left"]
    assert started["left"][0]["to"] == "alice"
    assert (ended["kind"], ended["result"]) == ("transfer", "ok")


def test_what_was_asked_for_in_vain_is_named(bob: Kept, me: Connection) -> None:
    hidden = put(connect(bob.worker, "cas"), torch.ones(3))
    with pytest.raises(ObjectNotFound):
        get(me, hidden)
    assert bob.last["result"] == "object-not-found"
    assert bob.last["data"] == [{"id": hidden, "owner": "cas", "private": False}]
    assert "left" not in bob.last


def test_names_and_figures_only_are_not_logged(bob: Kept, me: Connection) -> None:
    put(me, torch.ones(1))
    me.call(Plans())
    owner_of(bob.worker).status()
    owner_of(bob.worker).objects()
    assert len(bob.entries) == 1


def test_what_cannot_be_logged_is_refused_and_taken_back(
    bob: Kept, me: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, plan = put(me, torch.ones(3)), install(me, identity())
    before, size = state_of(bob.worker), bob.path.stat().st_size
    attempts = (
        Get((x,)),
        Get((x,), delete=True),
        Put((PutItem(77, Slot(0)),)),
        Free((x,)),
        List(),
        Run(plan, handles(x), (Keep(78),)),
        Cohort(plan, (Own(),), (KeptOwn(),), (CohortMember(1.0, handles(x), (), (80,)),)),
        Transfer((x,), "bob", (79,)),
    )
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", no_room)
        for body in attempts:
            with pytest.raises(AuditFailed, match="No space left"):
                me.call(body, [torch.ones(1)])
            assert state_of(bob.worker) == before
            assert bob.path.stat().st_size == size
    me.call(Transfer((x,), "bob", (79,)))
    assert get(me, 79)[0].tolist() == [1.0] * 3
    assert len(bob.worker) == 1
    assert verify(bob.path).good


def test_a_retry_of_what_could_not_be_logged_is_applied(
    bob: Kept, me: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.messages import Request
    from runtime.wire import encode

    frame = encode(Request("ann", 9, 1, 0, (), Put((PutItem(5, Slot(0)),))), [torch.ones(1)])
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", no_room)
        bob.worker.handle_frame(bytearray(frame))
    assert len(bob.worker) == 0
    bob.worker.handle_frame(bytearray(frame))
    assert len(bob.worker) == 1
    bob.worker.handle_frame(bytearray(frame))
    assert len([entry for entry in bob.entries if entry["kind"] == "put"]) == 1


def no_room(_descriptor: int, _data: object) -> int:
    raise OSError(28, "No space left on device")


def test_no_element_of_anything_is_in_any_line(bob: Kept, me: Connection) -> None:
    x = bob.worker.add(torch.full((3,), SECRET), tags=("#x",), private=True)
    index = put(me, torch.tensor([31337, 0]), private=True, tags=("#i",))
    public = put(me, torch.full((3,), SECRET))
    plan, other, w = install(me, identity()), install(me, picking()), put(me, torch.ones(2))
    owner_of(bob.worker).approve(plan)
    for body in (
        Get((x,)),
        Get((public,)),
        List(),
        Copy((x,), (new_id(),)),
        Apply("aten.neg", handles(x), {}, (new_id(),)),
        Apply("aten.index_select", handles(w, index), {"dim": 0}, (new_id(),)),
        Run(plan, handles(x), (Return(),)),
        Run(other, handles(w, index), (Keep(new_id()),)),
        Transfer((x,), "eve", (x,)),
        Transfer((public,), "eve", (x,)),
    ):
        with contextlib.suppress(PlancError):
            me.call(body)
    bob.worker.close()
    text = bob.path.read_bytes()
    assert b"31337" not in text
    assert text.count(b"\n") > 10


def test_lines_are_bounded_whatever_a_client_sends(bob: Kept, me: Connection) -> None:
    tags = tuple("#" + chr(0x1F600) * 250 + str(i) for i in range(64))
    other = connect(bob.worker, "cas")
    ids = [put(other, torch.ones(1), tags=tags) for _ in range(100)]
    get(me, *ids)
    entry = bob.last
    assert (len(entry["data"]), entry["more"], len(entry["left"]), entry["left_more"]) == (32, 68, 64, 36)
    assert max(map(len, bob.path.read_bytes().splitlines())) < 400_000


def test_the_owner_sees_the_head_to_note_it_elsewhere(bob: Kept, me: Connection) -> None:
    put(me, torch.ones(1))
    status = owner_of(bob.worker).status()
    assert status.audit == (1, verify(bob.path).head.hash)


def test_a_peer_is_logged_with_its_role(tmp_path: Path) -> None:
    bob = Kept(tmp_path / "a.jsonl", policy=Policy(peers=frozenset({"alice"})))
    connect(bob.worker, "alice", Role.WORKER).call(Put((PutItem(1, Slot(0), owner="ann"),)), [torch.ones(1)])
    assert (bob.last["who"], bob.last["role"]) == ("alice", "worker")
