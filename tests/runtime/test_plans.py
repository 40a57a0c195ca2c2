"""Plans at a worker: install, fetch, find, run; state changes wholly or not at all; misfits say so."""

import pytest
import torch

from planc.codec import decode, encode, plan_id
from planc.errors import DecodeError, ExecutionError, InputError, LimitError, PlancError, PlanError
from planc.ir.constants import digest
from planc.text import parse
from runtime.channels import Connection
from runtime.errors import (
    ObjectExists,
    ObjectNotFound,
    PermissionDenied,
    PlanNotFound,
    RemoteExecutionError,
    StoreFull,
    WorkerError,
    WrongWorker,
)
from runtime.executor import Interpreting, RunBounds, Runner
from runtime.limits import WorkerLimits
from runtime.messages import (
    Drop,
    FetchPlan,
    Handle,
    Install,
    Keep,
    PlanBytes,
    Plans,
    PlansFound,
    Pointer,
    Put,
    PutItem,
    Return,
    Run,
    Slot,
    Uninstall,
    Update,
)
from runtime.worker import Worker
from tests.network.fixtures import channel, over_every_channel  # noqa: F401
from tests.runtime.helpers import (
    adding,
    connect,
    constant_sum,
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

RETURN, DROP = Return(), Drop()


@pytest.fixture(params=[None, Interpreting()], ids=["compiled", "interpreted"])
def bob(request: pytest.FixtureRequest) -> Worker:
    runner: Runner | None = request.param
    return Worker("bob", runner=runner)


@pytest.fixture
def me(bob: Worker) -> Connection:
    return connect(bob)


def test_a_run_takes_handles_and_local_tensors_and_keeps_or_returns(bob: Worker, me: Connection) -> None:
    plan, x, kept = install(me, adding()), put(me, torch.tensor([1.0, 2.0])), new_id()
    run = Run(plan, (Handle(x), Slot(0)), (Keep(kept), RETURN))
    (product,) = me.values(run, [torch.tensor([3.0, 4.0])])
    assert isinstance(product, torch.Tensor)
    assert product.tolist() == [3.0, 8.0]
    assert get(me, kept)[0].tolist() == [4.0, 6.0]
    assert me.values(Run(plan, handles(x, x), (DROP, DROP))) == []
    assert len(bob) == 2
    total, product = me.values(Run(plan, handles(x, x), (RETURN, RETURN)))
    assert [total.tolist(), product.tolist()] == [[2.0, 4.0], [1.0, 4.0]]  # type: ignore[union-attr]


def test_state_is_replaced_under_its_id(bob: Worker, me: Connection) -> None:
    plan = install(me, stepping())
    w, c = put(me, torch.ones(3), tags=("#w",), requires_grad=True), put(me, torch.zeros(3))
    for step in range(1, 4):
        (total,) = me.values(Run(plan, (*handles(w, c), Slot(0)), (RETURN,)), [torch.ones(3)])
        assert total.tolist() == [1.0] * 3  # type: ignore[union-attr]
        assert [t.tolist() for t in get(me, w, c)] == [[1.0 + step] * 3, [-1.0 * step] * 3]
    stored = bob._site.store.get(w)
    assert stored is not None
    assert isinstance(stored.value, torch.Tensor)
    assert (stored.tags, stored.value.requires_grad, stored.value.is_leaf) == (("#w",), True, True)
    assert not stored.value.is_inference()


def test_updates_can_be_kept_beside_or_returned_or_dropped(bob: Worker, me: Connection) -> None:
    plan, w, kept = install(me, stepping()), put(me, torch.ones(3)), new_id()
    before = state_of(bob)
    run = Run(plan, (Handle(w), Slot(0), Slot(0)), (DROP,), (DROP, RETURN))
    (c,) = me.values(run, [torch.ones(3)])
    assert c.tolist() == [0.0] * 3  # type: ignore[union-attr]
    assert state_of(bob) == before
    me.call(Run(plan, (Handle(w), Slot(0), Slot(0)), (DROP,), (Keep(kept), DROP)), [torch.ones(3)])
    assert get(me, w, kept)[1].tolist() == [2.0] * 3
    with pytest.raises(InputError, match="updates 2 state tensors, got 1"):
        me.call(Run(plan, (Handle(w), Slot(0), Slot(0)), (DROP,), (Update(),)), [torch.ones(3)])


def test_a_run_that_fails_half_way_changes_nothing(bob: Worker, me: Connection) -> None:
    plan = install(me, picking())
    w, kept = put(me, torch.ones(2)), new_id()
    before = state_of(bob)
    with pytest.raises(RemoteExecutionError) as caught:
        me.call(Run(plan, (Handle(w), Slot(0)), (Keep(kept),)), [torch.tensor([0, 77])])
    assert isinstance(caught.value, ExecutionError)
    assert (caught.value.worker, caught.value.plan_id, caught.value.op) == ("bob", plan, "aten.index_select")
    assert "77" not in str(caught.value)
    assert caught.value.node == 1
    assert "IndexError" in str(caught.value) or "RuntimeError" in str(caught.value)
    assert state_of(bob) == before
    me.call(Run(plan, (Handle(w), Slot(0)), (Keep(kept),)), [torch.tensor([0, 1])])
    assert get(me, w)[0].tolist() == [2.0, 2.0]


def test_no_room_for_the_results_changes_nothing() -> None:
    bob = Worker("bob", limits=WorkerLimits(store_bytes=30))
    me = connect(bob)
    plan, w, c = install(me, stepping()), put(me, torch.ones(3)), put(me, torch.ones(3))
    before = state_of(bob)
    with pytest.raises(StoreFull):
        me.call(Run(plan, (*handles(w, c), Slot(0)), (Keep(5),)), [torch.ones(3)])
    assert state_of(bob) == before
    me.call(Run(plan, (*handles(w, c), Slot(0)), (DROP,)), [torch.ones(3)])


def test_a_run_that_would_take_too_much_memory_does_not_start() -> None:
    bob = Worker("bob", limits=WorkerLimits(run=RunBounds(bytes=100)))
    me = connect(bob)
    plan = install(me, adding())
    me.call(Run(plan, (Slot(0), Slot(0)), (DROP, DROP)), [torch.ones(3)])
    with pytest.raises(StoreFull, match="100 are allowed"):
        me.call(Run(plan, (Slot(0), Slot(0)), (DROP, DROP)), [torch.ones(50)])


def test_a_run_that_would_compute_too_long_does_not_start() -> None:
    endless = parse(
        """
        plan endless(x: f32[n]) -> f32[n] {
          plan double(x: f32[n]) -> f32[n] { return x + x }
          y = scan([x], [], [], body=double, trips=4611686018427387904)
          return y
        }
        """
    ).main
    for bounds in (RunBounds(), RunBounds(nodes=10**30)):  # too many nodes; then too many FLOPs
        bob = Worker("bob", limits=WorkerLimits(run=bounds))
        me = connect(bob)
        plan = install(me, endless)
        with pytest.raises(LimitError, match=r"would take \d+ (FLOPs|node runs), \d+ are allowed"):
            me.call(Run(plan, (Slot(0),), (DROP,)), [torch.ones(3)])


@pytest.mark.parametrize(
    ("inputs", "results", "error", "text"),
    [
        ((Slot(0),), (RETURN, RETURN), InputError, "takes 2 inputs, got 1"),
        ((Slot(0), Slot(0)), (RETURN,), InputError, "has 2 results, got 1"),
        ((Slot(0), Slot(1)), (RETURN, RETURN), InputError, "dtype is i64, not f32"),
        ((Slot(0), Slot(2)), (RETURN, RETURN), InputError, "rank is 2, not 1"),
        ((Slot(0), Slot(3)), (RETURN, RETURN), InputError, "n"),
        ((Slot(0), Slot(4)), (RETURN, RETURN), DecodeError, "slot 4: 4 tensors"),
        ((Slot(0), Handle(999)), (RETURN, RETURN), ObjectNotFound, "object 999"),
        ((Slot(0), Slot(0)), (Keep(5), Keep(5)), InputError, "object 5 is given twice"),
    ],
)
def test_what_does_not_fit_is_said(
    bob: Worker, me: Connection, inputs: tuple, results: tuple, error: type[Exception], text: str
) -> None:
    plan = install(me, adding())
    tensors = [torch.ones(2), torch.ones(2, dtype=torch.int64), torch.ones(2, 1), torch.ones(3)]
    before = state_of(bob)
    with pytest.raises(error, match=text) as caught:
        me.call(Run(plan, inputs, results), tensors)
    assert isinstance(caught.value, WorkerError)
    assert caught.value.worker == "bob"
    assert state_of(bob) == before


def test_state_is_the_clients_own_and_each_object_once(bob: Worker, me: Connection) -> None:
    plan, w = install(me, stepping()), put(me, torch.ones(3), tags=("#w",))
    x = [torch.ones(3)]
    with pytest.raises(InputError, match=r"'w' \(fc\.weight\) is state"):
        me.call(Run(plan, (Slot(0), Slot(0), Slot(0)), (DROP,)), x)
    with pytest.raises(InputError, match="twice"):
        me.call(Run(plan, (*handles(w, w), Slot(0)), (DROP,)), x)
    eve = connect(bob, "eve")
    own = put(eve, torch.ones(3))
    with pytest.raises(PermissionDenied):
        eve.call(Run(plan, (*handles(w, own), Slot(0)), (DROP,)), x)
    with pytest.raises(ObjectExists):
        eve.call(Run(install(eve, adding()), (Slot(0), Slot(0)), (Keep(w), DROP)), x)
    assert get(me, w)[0].tolist() == [1.0] * 3


def test_a_pointer_is_no_input(me: Connection) -> None:
    me.call(Put((PutItem(1, Pointer("alice", 5)),)))
    with pytest.raises(WrongWorker, match="'bob' is a pointer to object 5 at 'alice'"):
        me.call(Run(install(me, adding()), handles(1, 1), (DROP, DROP)))


def test_what_a_plan_passes_through_is_a_value_of_its_own(bob: Worker, me: Connection) -> None:
    plan, x, y = install(me, identity()), put(me, torch.ones(2), requires_grad=True), new_id()
    me.call(Run(plan, handles(x), (Keep(y),)))
    store = bob._site.store
    a, b = store.get(x), store.get(y)
    assert a is not None
    assert b is not None
    assert a.value is not b.value
    assert isinstance(b.value, torch.Tensor)
    assert not b.value.requires_grad
    assert isinstance(a.value, torch.Tensor)
    assert a.value.requires_grad


def test_constants_travel_with_the_plan(me: Connection) -> None:
    constant = torch.tensor([1.0, 2.0])
    plan = install(me, constant_sum(constant), constant)
    (y,) = me.values(Run(plan, (Slot(0),), (RETURN,)), [torch.ones(2)])
    assert y.tolist() == [2.0, 3.0]  # type: ignore[union-attr]
    answer, tensors = me.call(FetchPlan(plan))
    assert isinstance(answer, PlanBytes)
    assert plan_id(decode(answer.plan)) == plan
    assert tensors[answer.constants[digest(constant)].index].tolist() == [1.0, 2.0]


def test_a_plan_is_checked_before_it_is_kept(bob: Worker, me: Connection) -> None:
    constant = torch.ones(2)
    graph = constant_sum(constant)
    id, data, name = plan_id(graph), encode(graph), digest(constant)
    for body, tensors, error in [
        (Install("0" * 64, data, {name: Slot(0)}), [constant], DecodeError),
        (Install(id, data[:-1], {name: Slot(0)}), [constant], DecodeError),
        (Install(id, data, {}), [], DecodeError),
        (Install(id, data, {name: Slot(0), "1" * 64: Slot(0)}), [constant], DecodeError),
        (Install(id, data, {name: Slot(0)}), [torch.zeros(2)], DecodeError),
        (Install(id, data, {name: Slot(0)}), [torch.ones(3)], PlanError),
        (Install(id, b"", {}), [], DecodeError),
    ]:
        with pytest.raises(error):
            me.call(body, tensors)
    with pytest.raises(PlanNotFound):
        me.call(FetchPlan(id))
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 1
        with pytest.raises(PlancError):
            me.call(Install(id, bytes(bad), {name: Slot(0)}), [constant])
    assert bob._site.shelf.nbytes == 0


def test_installing_again_is_harmless_and_plans_are_found_by_tags(bob: Worker, me: Connection) -> None:
    plan = install(me, adding(), tags=("#a",), description="adds")
    install(me, adding(), tags=("#b",))
    install(me, identity())
    answer, _ = me.call(Plans(("#a", "#b")))
    assert isinstance(answer, PlansFound)
    assert [(p.plan_id, p.name, p.tags, p.description) for p in answer.items] == [
        (plan, "adding", ("#a", "#b"), "adds")
    ]
    eve = connect(bob, "eve")
    assert len(me.call(Plans())[0].items) == 2  # type: ignore[union-attr]
    assert len(eve.call(Plans())[0].items) == 1  # type: ignore[union-attr]
    install(eve, adding())
    me.call(Uninstall((plan, "unknown")))
    eve.call(FetchPlan(plan))
    eve.call(Uninstall((plan,)))
    with pytest.raises(PlanNotFound):
        me.call(Run(plan, (Slot(0), Slot(0)), (DROP, DROP)), [torch.ones(2)])


def test_the_shelf_has_limits() -> None:
    me = connect(Worker("bob", limits=WorkerLimits(plans=1)))
    install(me, adding())
    with pytest.raises(StoreFull):
        install(me, identity())
    tags = [tuple(f"#{i}-{k}" for k in range(30)) for i in range(3)]
    install(me, adding(), tags=tags[0])
    install(me, adding(), tags=tags[1])
    with pytest.raises(StoreFull, match="64 tags"):
        install(me, adding(), tags=tags[2])
    assert len(me.call(Plans())[0].items[0].tags) == 60  # type: ignore[union-attr]
    constant = torch.ones(1000)
    me = connect(Worker("bob", limits=WorkerLimits(plan_bytes=2000)))
    with pytest.raises(StoreFull):
        install(me, constant_sum(constant), constant)
