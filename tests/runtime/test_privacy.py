"""Private data: usable, never gettable, by no message; what is computed from it is private too; approval."""

import contextlib

import pytest
import torch

from planc.errors import PlancError
from runtime.channels import Connection, InProcessChannel
from runtime.errors import PermissionDenied, RemoteExecutionError
from runtime.identity import Identity
from runtime.messages import (
    Apply,
    Backward,
    Copy,
    Found,
    Get,
    Grad,
    Handle,
    Keep,
    List,
    Numbers,
    Return,
    Run,
    Slot,
    Step,
    Transfer,
    ZeroGrad,
)
from runtime.policy import PUBLIC, Secrecy, derive, derive_approved
from runtime.worker import Worker
from tests.network.fixtures import channel, over_every_channel  # noqa: F401
from tests.runtime.helpers import (
    adding,
    connect,
    get,
    handles,
    identity,
    install,
    new_id,
    picking,
    put,
    state_of,
    stepping,
)

SECRET = 31337.5


def secret(*shape: int) -> torch.Tensor:
    return torch.full(shape or (3,), SECRET)


def hidden(me: Connection, id: int) -> None:
    """Check that an object is neither fetched nor shown."""
    with pytest.raises(PermissionDenied) as caught:
        me.values(Get((id,)))
    assert "31337" not in str(caught.value)
    with pytest.raises(PermissionDenied):
        me.values(Get((id,), delete=True))
    answer, _ = me.call(List())
    assert isinstance(answer, Found)
    (info,) = [info for info in answer.items if info.id == id]
    assert info.private
    assert info.preview == ""


@pytest.fixture
def bob() -> Worker:
    return Worker("bob")


@pytest.fixture
def me(bob: Worker) -> Connection:
    return connect(bob)


def test_not_even_its_owner_fetches_a_private_object_only_whom_it_allows(bob: Worker, me: Connection) -> None:
    id = put(me, secret(), private=True, allowed=("ann",), tags=("#x",))
    hidden(me, id)
    ann = connect(bob, "ann")
    assert get(ann, id)[0].tolist() == [SECRET] * 3
    answer, _ = ann.call(List())
    assert isinstance(answer, Found)
    assert str(int(SECRET)) in answer.items[0].preview


def test_one_private_object_stops_a_whole_get(me: Connection) -> None:
    open_, closed = put(me, torch.ones(1)), put(me, secret(), private=True)
    with pytest.raises(PermissionDenied):
        me.values(Get((open_, closed), delete=True))
    assert get(me, open_)


def test_what_is_computed_from_it_is_private_and_allows_whom_all_allow(bob: Worker, me: Connection) -> None:
    a = put(me, secret(), private=True, allowed=("ann", "cas"))
    b = put(me, secret(), private=True, allowed=("ann",))
    c = put(me, secret())
    ids = [new_id() for _ in range(4)]
    me.call(Apply("aten.add", handles(a, c), {}, (ids[0],)))
    me.call(Apply("aten.add", handles(ids[0], b), {}, (ids[1],)))
    me.call(Apply("aten.gt", (Handle(a), 0), {}, (ids[2],)))
    me.call(Copy((a,), (ids[3],)))
    for id in ids:
        hidden(me, id)
    assert bob._site.store.get(ids[0]).secrecy.allowed == {"ann", "cas"}  # type: ignore[union-attr]
    assert bob._site.store.get(ids[1]).secrecy.allowed == {"ann"}  # type: ignore[union-attr]


def test_it_goes_to_no_worker_that_is_not_allowed() -> None:
    workers: dict[str, Worker] = {}
    for name in ("bob", "alice", "eve"):
        workers[name] = Worker(name, peers=lambda to: InProcessChannel(workers[to]))
    me = connect(workers["bob"])
    id = put(me, secret(), private=True, allowed=("alice",))
    with pytest.raises(PermissionDenied, match="'eve'"):
        me.call(Transfer((id,), "eve", (5,), keep=True))
    assert len(workers["eve"]) == 0
    derived = new_id()
    me.call(Apply("aten.neg", handles(id), {}, (derived,)))
    me.call(Transfer((id, derived), "alice", (5, 6)))
    at_alice = connect(workers["alice"])
    hidden(at_alice, 5)
    there = workers["alice"]._site.store
    assert [there.get(i).secrecy.derived for i in (5, 6)] == [False, True]  # type: ignore[union-attr]


def test_results_and_state_of_a_run_are_private(bob: Worker, me: Connection) -> None:
    plan, x, y = install(me, identity()), put(me, secret(), private=True), new_id()
    with pytest.raises(PermissionDenied, match="'identity'"):
        me.call(Run(plan, handles(x), (Return(),)))
    me.call(Run(plan, handles(x), (Keep(y),)))
    hidden(me, y)
    w, c, total = put(me, torch.ones(3)), put(me, torch.ones(3)), new_id()
    me.call(Run(install(me, stepping()), handles(w, c, x), (Keep(total),)))
    for id in (w, c, total):
        hidden(me, id)


def test_gradients_of_private_values_are_private_and_so_is_what_they_update(me: Connection) -> None:
    x, w = put(me, secret(), private=True), put(me, torch.ones(3), requires_grad=True)
    product, loss, gradient, public_loss, view = (new_id() for _ in range(5))
    me.call(Apply("aten.view", handles(w), {"size": _numbers(3, 1)}, (view,)))
    me.call(Apply("aten.mul", handles(w, x), {}, (product,)))
    me.call(Apply("aten.sum", handles(product), {}, (loss,)))
    me.call(Backward(loss))
    me.call(Grad(w, gradient))
    hidden(me, gradient)
    me.call(Apply("aten.sum", handles(w), {}, (public_loss,)))
    me.call(Backward(public_loss))  # adds to the same gradient: it stays private
    me.call(Grad(w, gradient))
    hidden(me, gradient)
    me.call(Step("opt.sgd", {}, 0.1, (w,), ((), ())))
    hidden(me, w)
    assert get(me, view)[0].tolist() == [[1.0]] * 3  # what was public before stays what it was


def test_a_cleared_gradient_is_public_again(me: Connection) -> None:
    x, w = put(me, secret(), private=True), put(me, torch.ones(3), requires_grad=True)
    ids = [new_id() for _ in range(4)]
    me.call(Apply("aten.dot", handles(w, x), {}, (ids[0],)))
    me.call(Backward(ids[0]))
    me.call(ZeroGrad((w,)))
    me.call(Apply("aten.sum", handles(w), {}, (ids[1],)))
    me.call(Backward(ids[1]))
    me.call(Grad(w, ids[2]))
    assert get(me, ids[2])[0].tolist() == [1.0] * 3


def test_a_private_gradient_makes_private_gradients(me: Connection) -> None:
    x, w = put(me, secret(), private=True), put(me, torch.ones(3), requires_grad=True)
    y, gradient = new_id(), new_id()
    me.call(Apply("aten.mul", (Handle(w), 2), {}, (y,)))
    me.call(Backward(y, Handle(x)))
    me.call(Grad(w, gradient))
    hidden(me, gradient)


def test_a_second_backward_pass_of_a_private_loss_is_refused(me: Connection) -> None:
    """As that of a public one: it is said before it could fail, since a failure would not be told."""
    x, w = put(me, secret(), private=True), put(me, torch.ones(3), requires_grad=True)
    loss = new_id()
    me.call(Apply("aten.dot", handles(w, x), {}, (loss,)))
    me.call(Backward(loss, retain=True))
    me.call(Backward(loss))
    with pytest.raises(RemoteExecutionError, match="retain=True"):
        me.call(Backward(loss))


def test_errors_hold_no_elements(bob: Worker, me: Connection) -> None:
    index = put(me, torch.tensor([31337, 0]))
    table, w = put(me, torch.ones(2)), put(me, torch.ones(2))
    before = state_of(bob)
    with pytest.raises(RemoteExecutionError) as eager:
        me.call(Apply("aten.index_select", handles(table, index), {"dim": 0}, (5,)))
    with pytest.raises(RemoteExecutionError) as planned:
        me.call(Run(install(me, picking()), handles(w, index), (Keep(5),)))
    for caught in (eager, planned):
        assert "31337" not in str(caught.value)
        assert "31337" not in repr(caught.value)
    assert state_of(bob) == before


def test_an_approved_plan_releases_its_results_on_originals_only(bob: Worker, me: Connection) -> None:
    plan, x, copies = install(me, adding()), put(me, secret(), private=True), new_id()
    bob.approve(plan)
    total, _ = me.values(Run(plan, handles(x, x), (Return(), Return())))
    assert total.tolist() == [2 * SECRET] * 3  # type: ignore[union-attr]
    # A plan approved to reveal a mean must not be fed many copies of one row.
    me.call(Apply("aten.select", handles(x), {"dim": 0, "index": 0}, (copies,)))
    me.call(Apply("aten.expand", handles(copies), {"size": _numbers(3)}, (copies,)))
    with pytest.raises(PermissionDenied):
        me.call(Run(plan, handles(x, copies), (Return(), Return())))
    other = install(me, identity())
    with pytest.raises(PermissionDenied):
        me.call(Run(other, handles(x), (Return(),)))
    bob.disapprove(plan)
    with pytest.raises(PermissionDenied):
        me.call(Run(plan, handles(x, x), (Return(), Return())))


def test_training_by_an_approved_plan_leaves_the_state_fetchable(bob: Worker, me: Connection) -> None:
    plan, x = install(me, stepping()), bob.add(torch.ones(3), private=True, tags=("#x",))
    bob.approve(plan)
    w, c = put(me, torch.ones(3)), put(me, torch.ones(3))
    for _ in range(2):
        me.call(Run(plan, handles(w, c, x), (Return(),)))
    assert get(me, w)[0].tolist() == [3.0] * 3


def test_a_public_result_replaces_the_privacy_of_its_id(me: Connection) -> None:
    """An id is not what is private, a value is; and the other way round."""
    x, y = put(me, secret(), private=True), put(me, torch.ones(3))
    me.call(Apply("aten.neg", handles(x), {}, (y,)))
    hidden(me, y)


def test_nothing_but_the_flags_of_private_objects_is_in_any_reply(bob: Worker, me: Connection) -> None:
    """Every frame that leaves the worker, for each kind of message: the elements are in none."""
    x = put(me, secret(), private=True, tags=("#x",))
    worker_bytes = bytearray()
    answer = bob.handle_frame

    def listening(frame: bytearray, identity: Identity | None = None) -> bytearray:
        reply = answer(frame, identity)
        worker_bytes.extend(reply)
        return reply

    bob.handle_frame = bob.handle_large_frame = listening  # type: ignore[method-assign]
    plan = install(me, identity())
    for body in (
        Get((x,)),
        Get((x,), delete=True),
        List(),
        Copy((x,), (new_id(),)),
        Apply("aten.neg", handles(x), {}, (new_id(),)),
        Apply("aten.eq", handles(x, x), {}, (new_id(),)),
        Apply("aten.view", handles(x), {"size": _numbers(31)}, (new_id(),)),
        Apply("aten.mm", handles(x, x), {}, (new_id(),)),
        Run(plan, handles(x), (Return(),)),
        Run(plan, handles(x, x), (Return(),)),
        Run(plan, (Slot(0),), (Return(),)),
        Backward(x),
        Grad(x, new_id()),
        Transfer((x,), "eve", (x,)),
        Step("opt.sgd", {}, 0.1, (x,), ((), ())),
    ):
        with contextlib.suppress(PlancError):
            me.call(body)
    pattern = bytes(secret(1).view(torch.uint8).tolist())
    assert pattern not in worker_bytes
    assert b"31337" not in worker_bytes
    assert len(worker_bytes) > 1000


def test_how_secrecy_is_derived() -> None:
    a = Secrecy(True, False, frozenset("xy"))
    b = Secrecy(True, True, frozenset("y"))
    assert derive([]) == derive([PUBLIC]) == PUBLIC
    assert derive([PUBLIC, a]) == Secrecy(True, True, frozenset("xy"))
    assert derive([a, b]) == Secrecy(True, True, frozenset("y"))
    assert derive_approved([a, PUBLIC]) == PUBLIC
    assert derive_approved([a, b]) == b


def _numbers(*items: int) -> Numbers:
    return Numbers(items)
