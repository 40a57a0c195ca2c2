"""Cohorts that are meant to do harm: few bytes that ask for much, and ways around what an owner decided."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import planc
from planc.errors import LimitError
from runtime import executor as executors
from runtime.access.approvals import Approval
from runtime.channels import Connection
from runtime.cohorts import (
    Begun,
    Cohort,
    CohortDone,
    CohortMember,
    Dropped,
    Each,
    KeyOf,
    Mean,
    Own,
    RowsOf,
)
from runtime.errors import ApprovalNeeded, QuotaExceeded
from runtime.limits import WorkerLimits
from runtime.messages import Handle, Return, Run, Slot
from runtime.policy import Policy, Quota, Rights
from runtime.worker import Worker
from tests.durable.helpers import request
from tests.runtime.helpers import connect, install, put

TOTAL = planc.parse("plan total(x: f32[n], w: f32[]) -> (total: f32[]) { return w + sum(x, dim=0) }").graph


def wide(count: int) -> planc.Plan:
    ports = ", ".join(f"k{i}: i64[]" for i in range(count))
    return planc.parse(f"plan wide({ports}) -> (total: i64[]) {{ return k0 + k1 }}")


def cohort(connection: Connection, body: Cohort, *tensors: torch.Tensor) -> CohortDone:
    answer, _ = connection.call(body, tensors)
    assert isinstance(answer, CohortDone)
    return answer


def rows(plan_id: str, x: int, counts: range) -> Cohort:
    """A member for each number of rows."""
    members = tuple(CohortMember(1.0, (RowsOf(x, 0, count),)) for count in counts)
    return Cohort(plan_id, (Own(), Slot(0)), (Mean(),), members)


def test_a_small_message_cannot_ask_for_many_tensors() -> None:
    me = connect(Worker("bob"))
    plan = install(me, wide(200).graph)
    members = (CohortMember(1.0, ()),) * 4096
    keys = torch.zeros(4096, dtype=torch.int64)
    body = Cohort(plan, (KeyOf(0),) * 200, (Dropped(),), members, seconds=0.0)
    with pytest.raises(LimitError, match="4096 members with 200 inputs of their own each"):
        cohort(me, body, keys)
    stated = tuple(CohortMember(1.0, (), (0,) * 199 + (1,)) for _ in range(4096))
    with pytest.raises(LimitError, match="ask for fewer members at a time"):
        cohort(me, Cohort(plan, (Begun(Slot(0)),) * 200, (Dropped(),), stated), torch.tensor(1))
    # What all begin with alike is no member's own.
    begun = Cohort(plan, (Begun(Slot(0)),) * 200, (Dropped(),), members, seconds=0.0)
    assert len(cohort(me, begun, torch.tensor(1)).late) == 4096


def test_others_are_answered_while_the_inputs_of_many_members_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bob = Worker("bob")
    me = connect(bob)
    plan, x = install(me, TOTAL), put(me, torch.ones(20))
    prepare, locked = executors.Executor.prepare, list[bool]()

    def preparing(*args: Any, **options: Any) -> executors.Prepared:
        locked.append(bob._lock.locked())
        return prepare(*args, **options)

    monkeypatch.setattr(executors.Executor, "prepare", preparing)
    assert len(cohort(me, rows(plan, x, range(1, 20)), torch.tensor(0.0)).done) == 19
    assert locked == [False] * 19


def test_what_is_known_of_inputs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_REMEMBERED", 8)
    bob = Worker("bob")
    me = connect(bob)
    plan, x = install(me, TOTAL), put(me, torch.ones(40))
    for _ in range(2):
        assert len(cohort(me, rows(plan, x, range(1, 40)), torch.tensor(0.0)).done) == 39
    assert len(bob._site.executor._prepared) <= 8


def test_replies_about_many_members_are_not_remembered_without_bound() -> None:
    bob = Worker("bob", limits=WorkerLimits(replay_bytes=2**20))
    me = connect(bob)
    plan, x = install(me, TOTAL), put(me, torch.ones(2, 2))
    members = (CohortMember(1.0, (Handle(x),)),) * 1000
    body = Cohort(plan, (Own(), Slot(0)), (Mean(),), members)
    for number in range(1, 10):  # a client that never says which replies it got
        reply, _ = bob.handle(request(number, body, session=7), [torch.tensor(0.0)])
        assert isinstance(reply.body, CohortDone)
        assert len(reply.body.unfit) == 1000
    session = bob._replays._clients["me"][7]
    kept = [answered for answered in session.replies.values() if isinstance(answered, tuple)]
    assert session.nbytes <= 2**20
    assert 1 <= len(kept) <= 2


def test_reasons_are_short_whatever_a_plan_is_called() -> None:
    me = connect(Worker("bob"))
    name = "p" * 256
    named = planc.parse(f"plan {name}(x: f32[2]) -> (total: f32[2]) {{ return x + x }}").graph
    plan = install(me, named)
    unfit = [put(me, torch.ones(3)), put(me, torch.tensor([1.0, float("nan")]))]
    members = tuple(CohortMember(1.0, (Handle(x),)) for x in unfit)
    done = cohort(me, Cohort(plan, (Own(),), (Each(),), members))
    assert [each.kind for each in done.unfit] == ["input", "nonsense"]
    assert [len(each.reason.encode()) for each in done.unfit] == [256, 256]


def test_an_approval_for_an_object_of_the_clients_own_is_for_no_other() -> None:
    bob = Worker("bob")
    me = connect(bob)
    secret = bob.add(torch.ones(2), tags=("#x",), private=True)
    plan = install(me, TOTAL)
    named, other = put(me, torch.tensor(0.0)), put(me, torch.tensor(1.0))
    bob._site.approvals.approve(plan, Approval(inputs={"x": (str(secret),), "w": (str(named),)}))

    def ask(*ws: int) -> CohortDone:
        members = tuple(CohortMember(1.0, (Handle(secret), Handle(w))) for w in ws)
        return cohort(me, Cohort(plan, (Own(), Own()), (Mean(),), members))

    assert ask(named, named).done == (0, 1)
    with pytest.raises(ApprovalNeeded):
        ask(named, other)


def test_what_is_refused_for_a_quota_spends_no_approval() -> None:
    policy = Policy(default=Rights(quota=Quota(concurrent_runs=0)))
    bob = Worker("bob", policy=policy)
    me = connect(bob)
    secret = bob.add(torch.ones(2), tags=("#x",), private=True)
    plan = install(me, TOTAL)
    approvals = bob._site.approvals
    approvals.approve(plan, Approval(runs=3))
    members = (CohortMember(1.0, (Handle(secret),)),)
    bodies = (
        Cohort(plan, (Own(), Slot(0)), (Mean(),), members),
        Run(plan, (Handle(secret), Slot(0)), (Return(),), ()),
    )
    for body in bodies:
        with pytest.raises(QuotaExceeded, match="concurrent_runs"):
            me.call(body, [torch.tensor(0.0)])
    assert approvals.of(plan).approved[0].runs == 3
