"""Every right of a policy, allowed and refused: by the kind of message, and on single objects."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from runtime.access.admission import RIGHTS
from runtime.channels import Connection, InProcessChannel
from runtime.errors import ObjectNotFound, PermissionDenied, WorkerError
from runtime.identity import Role
from runtime.messages import (
    Apply,
    Approve,
    Backward,
    Body,
    Clear,
    Cohort,
    Copy,
    Deny,
    FetchPlan,
    Found,
    Free,
    Get,
    Grad,
    Handle,
    Install,
    Keep,
    List,
    OwnerObjects,
    OwnerPlans,
    Pending,
    Plans,
    Put,
    PutItem,
    RequireGrad,
    Return,
    Run,
    Search,
    Slot,
    Status,
    Step,
    Steps,
    Transfer,
    Uninstall,
    ZeroGrad,
)
from runtime.policy import NOTHING, Needs, Policy, Right, Rights, Selection, network_policy
from runtime.worker import Worker
from tests.access.helpers import connect
from tests.runtime.helpers import get, handles, identity, install, new_id, put

BODIES: dict[type, Body] = {
    Put: Put(()),
    Get: Get((1,)),
    Copy: Copy((1,), (2,)),
    Free: Free((1,)),
    Search: Search(()),
    List: List(),
    Clear: Clear(),
    Transfer: Transfer((1,), "alice", (2,)),
    Apply: Apply("aten.neg", handles(1), {}, (2,)),
    Backward: Backward(1),
    Grad: Grad(1, 2),
    ZeroGrad: ZeroGrad((1,)),
    RequireGrad: RequireGrad((1,), True),
    Step: Step("opt.sgd", {}, 0.1, (1,)),
    Steps: Steps(()),
    Install: Install("0" * 64, b""),
    Run: Run("0" * 64, (), ()),
    Cohort: Cohort("0" * 64, (), (), ()),
    FetchPlan: FetchPlan("0" * 64),
    Plans: Plans(),
    Uninstall: Uninstall(()),
    Status: Status(),
    OwnerObjects: OwnerObjects(),
    OwnerPlans: OwnerPlans(),
    Pending: Pending(),
    Approve: Approve("0" * 64),
    Deny: Deny("0" * 64),
}
NO_RIGHTS = Rights(search=NOTHING, use=NOTHING, run=NOTHING, fetch=NOTHING, send=False, move=frozenset())
GIVEN = {
    Right.SEARCH: {"search": Selection()},
    Right.USE: {"use": Selection()},
    Right.RUN: {"run": Selection()},
    Right.FETCH: {"fetch": Selection()},
    Right.SEND: {"send": True},
    Right.MOVE: {"move": frozenset({"alice"})},
}


def worker(**rights: object) -> Worker:
    return Worker("bob", policy=Policy(default=replace(NO_RIGHTS, **rights)))  # type: ignore[arg-type]


def refused(me: Connection, body: Body) -> bool:
    try:
        me.call(body)
    except PermissionDenied:
        return True
    except WorkerError:  # let in, and wrong in another way
        return False
    return False


def test_every_message_asks_for_a_right() -> None:
    """A message without its line in the table is refused to all; here it is a failure at once."""
    assert set(RIGHTS) == set(get_args(Body)) == set(BODIES)


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
def test_each_message_needs_exactly_its_right(kind: type) -> None:
    body, right = BODIES[kind], RIGHTS[kind]
    nothing = connect(worker())
    if right is Right.OWN:
        assert not refused(nothing, body)
        return
    assert refused(nothing, body)
    if right is Right.ADMINISTER:
        assert refused(connect(Worker("bob")), body)
        assert refused(connect(Worker("bob"), "alice", Role.WORKER), body)
        assert not refused(connect(worker(), "owner", Role.OWNER), body)
        return
    assert not refused(connect(worker(**GIVEN[right])), body)
    others = {
        key: value for each, given in GIVEN.items() if each is not right for key, value in given.items()
    }
    assert refused(connect(worker(**others)), body)


def test_a_run_among_the_parts_of_a_step_needs_the_right_to_run() -> None:
    body = Steps((Run("0" * 64, (), ()),))
    assert refused(connect(worker(use=Selection())), body)
    assert not refused(connect(worker(use=Selection(), run=Selection())), body)


def test_the_error_says_what_is_allowed_and_whom_to_ask() -> None:
    me = connect(worker(search=Selection(), send=True))
    with pytest.raises(PermissionDenied, match=r"may not fetch elements.*allows search, send; ask the owner"):
        me.call(Get((1,)))


@pytest.mark.parametrize("right", ["search", "use", "run", "fetch"])
def test_a_right_on_some_tags_only(right: str) -> None:
    """Data of others that the right does not cover does not exist, or may be seen and no more."""
    bob = Worker("bob", policy=Policy(default=replace(Rights(), **{right: Selection(tags=("#a*",))})))
    yes, no = (bob.add(torch.ones(3), tags=(tag,)) for tag in ("#a1", "#b"))
    me = connect(bob)
    plan = install(me, identity())
    bodies = {
        "use": lambda id: Apply("aten.neg", handles(id), {}, (new_id(),)),
        "run": lambda id: Run(plan, handles(id), (Keep(new_id()),)),
        "fetch": lambda id: Get((id,)),
    }
    if right == "search":
        assert ids_found(me) == [yes]
        assert get(me, no)  # known by its id all the same
        return
    me.call(bodies[right](yes))
    with pytest.raises(PermissionDenied, match="may find object"):
        me.call(bodies[right](no))
    mine = put(me, torch.ones(3), tags=("#b",))
    me.call(bodies[right](mine))  # one's own is never in question


def test_only_the_star_is_special_in_a_pattern() -> None:
    selection = Selection(tags=("#a[0]?", "b*c"))
    assert selection.covers(["#a[0]?"])
    assert selection.covers(["x", "b--c"])
    assert not selection.covers(["#a0x", "bc ", "B-c"])
    assert not selection.covers([])


def test_what_may_neither_be_found_nor_used_does_not_exist() -> None:
    nothing_of_others = Selection(tags=())
    rights = Rights(search=nothing_of_others, use=nothing_of_others, run=nothing_of_others)
    bob = Worker("bob", policy=Policy(default=rights))
    id = bob.add(torch.ones(3), tags=("#a",))
    me = connect(bob)
    missing = id - 1
    errors: list[str] = []
    for each in (id, missing):
        with pytest.raises(ObjectNotFound) as caught:
            me.call(Apply("aten.neg", handles(each), {}, (new_id(),)))
        errors.append(str(caught.value).replace(str(each), "ID"))
    assert errors[0] == errors[1]
    assert ids_found(me) == []


def test_what_may_be_used_but_not_fetched_is_private_and_so_is_what_comes_of_it() -> None:
    bob = Worker("bob", policy=Policy(default=Rights(fetch=Selection(tags=("#open",)))))
    closed, open_ = bob.add(torch.ones(3), tags=("#x",)), bob.add(torch.ones(3), tags=("#open",))
    me = connect(bob)
    copy, negated, kept, plan = new_id(), new_id(), new_id(), install(me, identity())
    me.call(Copy((closed,), (copy,)))
    me.call(Apply("aten.neg", handles(closed), {}, (negated,)))
    me.call(Run(plan, handles(closed), (Keep(kept),)))
    for id in (closed, copy, negated, kept):
        with pytest.raises(PermissionDenied):
            me.call(Get((id,)))
    with pytest.raises(PermissionDenied):
        me.call(Run(plan, handles(closed), (Return(),)))
    answer, _ = me.call(List())
    assert isinstance(answer, Found)
    assert {info.id for info in answer.items if info.preview} == {open_}
    assert get(me, open_)[0].tolist() == [1.0] * 3
    bob.approve(plan)
    assert me.values(Run(plan, handles(closed), (Return(),)))[0].tolist() == [1.0] * 3  # type: ignore[union-attr]


def test_who_may_fetch_nothing_gets_no_results_either() -> None:
    me = connect(worker(send=True, run=Selection(), search=Selection()))
    plan = install(me, identity())
    with pytest.raises(PermissionDenied, match="may not fetch elements"):
        me.call(Run(plan, (Slot(0),), (Return(),)), [torch.ones(3)])
    me.call(Run(plan, (Slot(0),), (Keep(new_id()),)), [torch.ones(3)])
    answer, _ = me.call(List())
    assert isinstance(answer, Found)
    assert [info.preview for info in answer.items] == [""]


def test_single_operations_on_data_of_others_where_every_plan_needs_an_approval() -> None:
    bob = Worker("bob", policy=Policy(default=Rights(needs=Needs.ALWAYS)))
    id = bob.add(torch.ones(3), tags=("#x",))
    me = connect(bob)
    with pytest.raises(PermissionDenied):
        me.call(Apply("aten.neg", handles(id), {}, (new_id(),)))
    with pytest.raises(PermissionDenied):
        me.call(Copy((id,), (new_id(),)))
    me.call(Apply("aten.neg", handles(put(me, torch.ones(3))), {}, (new_id(),)))


def transferring(policy: Policy) -> tuple[dict[str, Worker], Connection]:
    workers: dict[str, Worker] = {}
    for name in ("bob", "alice", "eve"):
        workers[name] = Worker(
            name, peers=lambda to: InProcessChannel(workers[to]), policy=policy if name == "bob" else None
        )
    return workers, connect(workers["bob"])


def test_objects_move_only_to_peers_that_the_client_may_use() -> None:
    rights = Rights(move=frozenset({"alice"}))
    workers, me = transferring(Policy(peers=frozenset({"alice", "eve"}), default=rights))
    id = put(me, torch.ones(3))
    with pytest.raises(PermissionDenied, match="sent to 'eve': the policy allows 'alice'"):
        me.call(Transfer((id,), "eve", (5,), keep=True))
    me.call(Transfer((id,), "alice", (5,), keep=True))
    me.call(Transfer((id,), "bob", (6,)))  # to rename is not to move
    assert [len(workers[name]) for name in ("alice", "eve")] == [1, 0]
    _, me = transferring(Policy(peers=frozenset(), default=Rights()))
    with pytest.raises(PermissionDenied, match="the policy allows nobody"):
        me.call(Transfer((put(me, torch.ones(3)),), "alice", (5,)))


@pytest.mark.parametrize("rights", [Rights(use=Selection(tags=())), Rights(needs=Needs.ALWAYS)])
def test_to_send_data_to_where_it_is_makes_it_nobodys_own(rights: Rights) -> None:
    bob = Worker("bob", policy=Policy(default=rights))
    id = bob.add(torch.ones(3), tags=("#x",))
    me = connect(bob)
    with pytest.raises(PermissionDenied):
        me.call(Transfer((id,), "bob", (5,), keep=True))
    with pytest.raises(PermissionDenied):
        me.call(Copy((id,), (5,)))
    assert len(bob) == 1
    still = Worker("bob", policy=network_policy())  # nothing may be moved
    me = connect(still)
    me.call(Transfer((put(me, torch.ones(3)),), "bob", (5,)))
    assert get(me, 5)


def test_what_may_not_be_fetched_is_not_moved_either() -> None:
    workers, me = transferring(Policy(default=Rights(fetch=Selection(tags=()))))
    id = workers["bob"].add(torch.ones(3), tags=("#x",))
    with pytest.raises(PermissionDenied):
        me.call(Transfer((id,), "alice", (5,), keep=True))
    assert len(workers["alice"]) == 0


def test_names_that_are_refused() -> None:
    bob = Worker("bob", policy=Policy(denied=frozenset({"mallory"})))
    with pytest.raises(PermissionDenied, match="'mallory' is refused here"):
        connect(bob, "mallory").call(List())
    connect(bob, "ann").call(List())
    with pytest.raises(PermissionDenied):
        connect(bob, "mallory", Role.WORKER).call(Put(()))
    connect(bob, "mallory", Role.OWNER).call(Status())


def test_nobody_else_is_called_like_the_worker() -> None:
    """What a worker offers belongs to its name: a client of that name could replace it."""
    bob = Worker("bob")
    id = bob.add(torch.ones(3))
    with pytest.raises(PermissionDenied, match="name of the worker itself"):
        connect(bob, "bob").call(Free((id,)))
    assert len(bob) == 1


def test_only_a_peer_by_role_brings_objects_of_others_and_does_nothing_else() -> None:
    bob = Worker("bob", policy=replace(network_policy(), peers=frozenset({"alice"})))
    body = Put((PutItem(1, Slot(0), owner="ann"),))
    with pytest.raises(PermissionDenied, match="in the name of 'ann'"):
        connect(bob, "alice").call(body, [torch.ones(1)])  # a client that is called like a peer
    with pytest.raises(PermissionDenied, match="is no peer here: peers are 'alice'"):
        connect(bob, "eve", Role.WORKER).call(body, [torch.ones(1)])
    alice = connect(bob, "alice", Role.WORKER)
    with pytest.raises(PermissionDenied, match="in the name of 'bob'"):  # would pass for offered data
        alice.call(Put((PutItem(1, Slot(0), owner="bob"),)), [torch.ones(1)])
    alice.call(body, [torch.ones(1)])
    assert get(connect(bob), 1)
    for other in (Get((1,)), List(), Apply("aten.neg", (Handle(1),), {}, (2,)), Plans()):
        with pytest.raises(PermissionDenied):
            alice.call(other)


def test_nobody_speaks_in_the_name_of_another() -> None:
    bob = Worker("bob")
    liar = connect(bob, "eve")
    liar.client = "ann"
    with pytest.raises(PermissionDenied, match="'eve' may not send requests as 'ann'"):
        liar.call(List())


def test_a_refused_request_changes_nothing_but_its_releases() -> None:
    bob = worker(send=True)
    me = connect(bob)
    kept, gone = put(me, torch.ones(1)), put(me, torch.ones(1))
    me.release(gone)
    with pytest.raises(PermissionDenied):
        me.call(Get((kept,), delete=True))
    assert len(bob) == 1


def ids_found(me: Connection) -> list[int]:
    answer, _ = me.call(List())
    assert isinstance(answer, Found)
    return [info.id for info in answer.items]
