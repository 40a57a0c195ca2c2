"""Approvals: what they let through, and what an attacker tries."""

from __future__ import annotations

import msgspec
import pytest
import torch

from planc.errors import InputError
from planc.ir import Graph, TensorType
from runtime.access.approvals import Approval, Approvals, Asked, Decisions
from runtime.channels import Connection
from runtime.errors import ApprovalNeeded, PermissionDenied, PlanNotFound
from runtime.identity import Role
from runtime.messages import Apply, Approve, Deny, Get, Handle, Keep, Put, Return, Run, Slot, Uninstall
from runtime.owner import owner_of
from runtime.policy import Needs, Policy, Rights
from runtime.worker import Worker
from tests.access.helpers import connect
from tests.runtime.helpers import (
    F32,
    Building,
    adding,
    constant_sum,
    get,
    handles,
    identity,
    install,
    new_id,
    put,
    stepping,
)

SECRET = 31337.5


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def bob() -> Worker:
    made = Worker("bob")
    made._site.approvals.clock = Clock()
    return made


@pytest.fixture
def patients(bob: Worker) -> int:
    return bob.add(torch.full((3,), SECRET), tags=("#patients",), private=True)


@pytest.fixture
def mask(bob: Worker) -> int:
    return bob.add(torch.ones(3), tags=("#mask",))


@pytest.fixture
def me(bob: Worker) -> Connection:
    return connect(bob)


def total(me: Connection, plan: str, *ids: int, results: int = 1) -> list[float]:
    """Run a plan and return its first result."""
    returns = (Return(),) * results
    value = me.values(Run(plan, handles(*ids), returns))[0]
    assert isinstance(value, torch.Tensor)
    return value.tolist()


def refused(me: Connection, plan: str, *ids: int, results: int = 1) -> None:
    with pytest.raises(PermissionDenied) as caught:
        total(me, plan, *ids, results=results)
    assert "31337" not in str(caught.value)


def masked_mean() -> Graph:
    b = Building("masked_mean")
    x, mask = b.input("x", TensorType(F32, (3,))), b.input("mask", TensorType(F32, (3,)))
    b.output(b.op("aten.dot", x, mask), "mean")
    return b.build()


def approve(bob: Worker, plan: str, **how: object) -> None:
    owner_of(bob).approve(plan, **how)  # type: ignore[arg-type]


def test_what_needs_an_approval_says_so_and_waits(bob: Worker, me: Connection, patients: int) -> None:
    plan = install(me, identity())
    with pytest.raises(ApprovalNeeded) as caught:
        total(me, plan, patients)
    assert caught.value.plan_id == plan
    assert f"planc worker approve {plan}" in str(caught.value)
    assert "'bob'" in str(caught.value)
    (asked,) = bob._site.approvals.of(plan).pending.values()
    assert asked == Asked("ann", {"x": str(patients)}, ("y",), 1000.0, 1000.0, 1)
    with pytest.raises(ApprovalNeeded):
        total(me, plan, patients)
    assert bob._site.approvals.of(plan).pending["ann"].count == 2
    approve(bob, plan)
    assert total(me, plan, patients) == [SECRET] * 3
    assert not bob._site.approvals.of(plan).pending


def test_results_that_stay_need_none(me: Connection, patients: int) -> None:
    kept = new_id()
    me.call(Run(install(me, identity()), handles(patients), (Keep(kept),)))
    with pytest.raises(PermissionDenied):
        me.call(Get((kept,)))


def test_an_approval_is_of_one_plan_only(bob: Worker, me: Connection, patients: int, mask: int) -> None:
    approve(bob, install(me, masked_mean()))
    refused(me, install(me, identity()), patients)
    refused(me, install(me, adding()), patients, mask, results=2)


def test_other_constants_are_another_plan(bob: Worker, me: Connection, patients: int) -> None:
    zeros, ones = torch.zeros(3), torch.ones(3)
    honest = install(me, constant_sum(zeros), zeros)
    approve(bob, honest)
    other = install(me, constant_sum(ones), ones)
    assert other != honest
    refused(me, other, patients)
    assert total(me, honest, patients) == [SECRET] * 3


def test_bytes_of_another_plan_do_not_pass_for_an_approved_one(bob: Worker, me: Connection) -> None:
    from planc.codec import encode, plan_id
    from runtime.errors import RemoteDecodeError
    from runtime.messages import Install

    approved = plan_id(masked_mean())
    approve(bob, approved)  # before it is installed
    with pytest.raises(RemoteDecodeError):
        me.call(Install(approved, encode(identity())))
    with pytest.raises(PlanNotFound):
        me.call(Run(approved, (), ()))


def test_what_is_derived_from_private_data_is_not_released(
    bob: Worker, me: Connection, patients: int, mask: int
) -> None:
    """A mean that may be told must not be fed one row many times."""
    plan, one, row = install(me, masked_mean()), new_id(), new_id()
    approve(bob, plan)
    me.call(Apply("aten.select", handles(patients), {"dim": 0, "index": 0}, (one,)))
    me.call(Apply("aten.mul", handles(mask, one), {}, (row,)))
    with pytest.raises(PermissionDenied) as caught:
        total(me, plan, row, mask)
    assert not isinstance(caught.value, ApprovalNeeded)  # no approval would help
    kept = new_id()
    me.call(Run(plan, handles(row, mask), (Keep(kept),)))
    with pytest.raises(PermissionDenied):
        me.call(Get((kept,)))
    unapproved = install(me, identity())
    with pytest.raises(PermissionDenied) as caught:
        total(me, unapproved, row)
    assert not isinstance(caught.value, ApprovalNeeded)
    assert not bob._site.approvals.of(unapproved).pending


def test_only_the_clients_of_an_approval(bob: Worker, me: Connection, patients: int) -> None:
    plan = install(me, identity())
    approve(bob, plan, clients=("ann", "cas"))
    assert total(me, plan, patients) == [SECRET] * 3
    assert total(connect(bob, "cas"), plan, patients) == [SECRET] * 3
    refused(connect(bob, "eve"), plan, patients)


def test_only_the_data_of_an_approval(bob: Worker, me: Connection, patients: int, mask: int) -> None:
    plan = install(me, masked_mean())
    approve(bob, plan, inputs={"x": ("#patients",), "mask": ("#mask",)})
    assert total(me, plan, patients, mask) == 3 * SECRET
    one_row = torch.tensor([1.0, 0.0, 0.0])
    refused(me, plan, patients, put(me, one_row))
    refused(me, plan, patients, put(me, one_row, tags=("#mask",)))  # anybody can say that
    refused(me, plan, patients, put(connect(bob, "eve"), one_row, tags=("#mask",)))
    with pytest.raises(ApprovalNeeded, match="it is approved, but not for this client, this data"):
        me.call(Run(plan, (Handle(patients), Slot(0)), (Return(),)), [one_row])
    other = bob.add(torch.full((3,), SECRET), tags=("#others",), private=True)
    refused(me, plan, other, mask)
    refused(me, plan, mask, patients)  # the right data at the wrong inputs
    copy = new_id()
    me.call(Apply("aten.neg", handles(patients), {}, (copy,)))
    refused(me, plan, copy, mask)


def test_with_inputs_named_private_data_stands_at_no_other(
    bob: Worker, me: Connection, patients: int, mask: int
) -> None:
    plan = install(me, masked_mean())
    approve(bob, plan, inputs={"x": ("#patients",)})
    other = bob.add(torch.ones(3), tags=("#others",), private=True)
    refused(me, plan, patients, other)
    assert total(me, plan, patients, mask) == 3 * SECRET


def test_data_may_be_named_by_its_id(bob: Worker, me: Connection, patients: int) -> None:
    plan = install(me, identity())
    theirs = put(connect(bob, "cas"), torch.ones(3), private=True, tags=("#c",))
    approve(bob, plan, inputs={"x": (str(theirs),)})
    assert total(me, plan, theirs) == [1.0] * 3
    refused(me, plan, patients)


def test_a_number_of_runs(bob: Worker, me: Connection, patients: int) -> None:
    plan = install(me, identity())
    approve(bob, plan, runs=2)
    mine = put(me, torch.ones(3))
    for _ in range(3):
        assert total(me, plan, mine) == [1.0] * 3  # what releases nothing uses none
    with pytest.raises(InputError):
        me.call(Run(plan, (), (Return(),)))  # nor does what does not fit
    total(me, plan, patients)
    me.call(Run(plan, handles(patients), (Keep(new_id()),)))  # can be fetched, so it counts
    refused(me, plan, patients)
    approve(bob, plan, runs=1)
    total(me, plan, patients)
    refused(me, plan, patients)


def test_a_repeated_request_uses_one_run(bob: Worker, me: Connection, patients: int) -> None:
    from runtime.messages import Request
    from runtime.wire import encode

    plan = install(me, identity())
    approve(bob, plan, runs=1)
    frame = encode(Request("ann", 77, 1, 0, (), Run(plan, handles(patients), (Return(),))))
    replies = {bytes(bob.handle_frame(bytearray(frame))) for _ in range(3)}
    assert len(replies) == 1


def test_a_run_that_fails_counts(bob: Worker, me: Connection) -> None:
    """Whether an op fails can depend on elements: to ask often must cost."""
    from tests.runtime.helpers import picking

    plan = install(me, picking())
    index = bob.add(torch.tensor([31337, 0]), tags=("#i",), private=True)
    approve(bob, plan, runs=1)
    w = put(me, torch.ones(2))
    with pytest.raises(Exception, match="index_select") as caught:
        me.call(Run(plan, handles(w, index), (Return(),)))
    assert "31337" not in str(caught.value)
    with pytest.raises(ApprovalNeeded):
        me.call(Run(plan, handles(w, index), (Return(),)))


def test_an_approval_ends(bob: Worker, me: Connection, patients: int) -> None:
    plan = install(me, identity())
    with pytest.raises(InputError, match="in the past"):
        approve(bob, plan, expires=1000.0)
    approve(bob, plan, expires=2000.0)
    bob._site.approvals.clock.now = 1999.9  # type: ignore[attr-defined]
    assert total(me, plan, patients)
    bob._site.approvals.clock.now = 2000.0  # type: ignore[attr-defined]
    refused(me, plan, patients)


def test_a_denied_plan_says_why_and_runs_on_no_data_of_others(
    bob: Worker, me: Connection, patients: int, mask: int
) -> None:
    plan = install(me, identity())
    approve(bob, plan)
    owner_of(bob).deny(plan, "it returns its input")
    for id in (patients, mask):
        with pytest.raises(PermissionDenied, match=r"denied plan .*: it returns its input") as caught:
            total(me, plan, id)
        assert not isinstance(caught.value, ApprovalNeeded)
        with pytest.raises(PermissionDenied):
            me.call(Run(plan, handles(id), (Keep(new_id()),)))
    assert total(me, plan, put(me, torch.ones(3))) == [1.0] * 3
    assert not bob._site.approvals.of(plan).pending
    approve(bob, plan)
    assert total(me, plan, patients)


def test_an_approval_taken_back(bob: Worker, me: Connection, patients: int) -> None:
    plan = install(me, identity())
    bob.approve(plan)
    assert total(me, plan, patients)
    bob.disapprove(plan)
    refused(me, plan, patients)


def test_approvals_of_one_plan_add_up(bob: Worker, me: Connection, patients: int) -> None:
    plan = install(me, identity())
    approve(bob, plan, clients=("ann",), runs=1)
    approve(bob, plan, clients=("cas",), runs=1)
    assert total(me, plan, patients)
    refused(me, plan, patients)
    assert total(connect(bob, "cas"), plan, patients)
    approve(bob, plan, clients=("ann",), runs=5)  # in place of the first
    assert len(bob._site.approvals.of(plan).approved) == 2
    assert total(me, plan, patients)


def always() -> Worker:
    return Worker("bob", policy=Policy(default=Rights(needs=Needs.ALWAYS)))


def test_where_every_run_on_data_of_others_needs_one() -> None:
    bob = always()
    me = connect(bob)
    offered, plan = bob.add(torch.ones(3), tags=("#x",)), install(me, identity())
    for wish in (Keep(new_id()), Return()):
        with pytest.raises(ApprovalNeeded):
            me.call(Run(plan, handles(offered), (wish,)))
    assert total(me, plan, put(me, torch.ones(3))) == [1.0] * 3
    approve(bob, plan, runs=1)
    assert total(me, plan, offered) == [1.0] * 3
    refused(me, plan, offered)


def test_where_none_is_asked_for_private_results_still_stay() -> None:
    bob = Worker("bob", policy=Policy(default=Rights(needs=Needs.NEVER)))
    me = connect(bob)
    secret, plan = bob.add(torch.ones(3), private=True), install(me, identity())
    with pytest.raises(PermissionDenied) as caught:
        total(me, plan, secret)
    assert not isinstance(caught.value, ApprovalNeeded)
    assert not bob._site.approvals.all()
    approve(bob, plan)
    assert total(me, plan, secret) == [1.0] * 3


def test_gradients_of_an_approved_plan_do_not_leave(bob: Worker, me: Connection, patients: int) -> None:
    plan = install(me, identity())
    approve(bob, plan)
    with pytest.raises(PermissionDenied, match="gradients"):
        me.call(Run(plan, handles(patients), (Keep(new_id()),), grad=True))


def test_an_approved_training_step_leaves_its_state_fetchable(bob: Worker, me: Connection) -> None:
    x = bob.add(torch.ones(3), tags=("#x",), private=True)
    plan, w, c = install(me, stepping()), put(me, torch.ones(3)), put(me, torch.ones(3))
    with pytest.raises(ApprovalNeeded):
        me.call(Run(plan, handles(w, c, x), (Return(),)))
    approve(bob, plan, clients=("ann",), inputs={"x": ("#x",)}, runs=2)
    for _ in range(2):
        me.call(Run(plan, handles(w, c, x), (Return(),)))
    assert get(me, w)[0].tolist() == [3.0] * 3


def test_what_waits_is_bounded_for_each_client(bob: Worker, me: Connection, patients: int) -> None:
    plans: list[str] = []
    for i in range(17):
        constant = torch.full((3,), float(i))
        plans.append(install(me, constant_sum(constant), constant))
    for plan in plans[:16]:
        with pytest.raises(ApprovalNeeded, match="it waits for them"):
            total(me, plan, patients)
    with pytest.raises(ApprovalNeeded, match="too many wait"):
        total(me, plans[16], patients)
    assert len(bob._site.approvals.all()) == 16
    with pytest.raises(ApprovalNeeded, match="it waits for them"):
        total(connect(bob, "cas"), plans[16], patients)
    me.call(Uninstall((plans[0],)))  # nobody can read it any more
    assert plans[0] not in bob._site.approvals.all()


def test_what_waits_is_bounded_in_all() -> None:
    approvals = Approvals("bob")
    for i in range(300):
        approvals.ask(f"{i}", "p", f"client{i}", {}, ())
    assert sum(len(each.pending) for each in approvals.all().values()) == 256


def test_only_the_owner_decides(bob: Worker, me: Connection, patients: int) -> None:
    plan = install(me, identity())
    for who in (me, connect(bob, "alice", Role.WORKER), Connection(me._channel, "ann")):
        for body in (Approve(plan), Deny(plan)):
            with pytest.raises(PermissionDenied, match="only the owner of worker 'bob'"):
                who.call(body)
    refused(me, plan, patients)


def test_an_approval_names_inputs_that_are_there(bob: Worker, me: Connection) -> None:
    plan = install(me, identity())
    with pytest.raises(InputError, match="has no input 'z'; it has 'x'"):
        approve(bob, plan, inputs={"z": ("#x",)})
    with pytest.raises(InputError, match="without data"):
        approve(bob, plan, inputs={"x": ()})


def test_decisions_are_kept_and_taken_back_whole() -> None:
    kept: dict[str, Decisions | None] = {}
    approvals = Approvals("bob", keep=kept.__setitem__)
    approvals.approve("a", Approval(("ann",), {"x": ("#x",)}, 3, 5.0))
    approvals.deny("b", "no")
    approvals.ask("c", "p", "ann", {"x": "7"}, ("y",))
    again = Approvals("bob")
    saved = {plan: each for plan, each in kept.items() if each is not None}
    data = msgspec.json.encode(saved)
    again.restore(msgspec.json.decode(data, type=dict[str, Decisions]))
    assert again.all() == approvals.all()
    approvals.settle()
    before = dict(approvals.all())
    approvals.approve("c")
    approvals.disapprove("a")
    approvals.deny("d")
    approvals.undo()
    assert approvals.all() == before
    assert kept["a"] == before["a"]
    assert kept["d"] is None


def test_decisions_outlive_a_durable_worker(tmp_path: object) -> None:
    from pathlib import Path

    from runtime.durable import DurableStore

    folder = Path(str(tmp_path)) / "store"
    bob = Worker("bob", durable=DurableStore(folder))
    x = bob.add(torch.ones(3), tags=("#x",), private=True, name="x")
    plan = install(connect(bob), identity())
    approve(bob, plan, clients=("ann",), runs=2)
    total(connect(bob), plan, x)
    other = install(connect(bob), constant_sum(torch.ones(3)), torch.ones(3))
    with pytest.raises(ApprovalNeeded):
        total(connect(bob), other, x)
    bob.close()
    again = Worker("bob", durable=DurableStore(folder))
    x = again.add(torch.ones(3), tags=("#x",), private=True, name="x")
    total(connect(again), plan, x)
    refused(connect(again), plan, x)
    (waiting,) = [each for each in owner_of(again).pending() if each.plan.id == other]
    assert waiting.asked[0].client == "ann"
    again.close()


def test_nothing_but_decisions_reaches_a_refused_request(bob: Worker, me: Connection, patients: int) -> None:
    plan, before = install(me, identity()), len(bob)
    refused(me, plan, patients)
    me.call(Put(()))
    assert len(bob) == before
