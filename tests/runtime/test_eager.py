"""Eager operations at a worker: the op table, gradients and optimizer steps, each against torch itself."""

from typing import Any

import pytest
import torch

from planc.errors import InputError, TypeCheckError
from planc.ir import DType
from runtime.channels import Connection
from runtime.errors import (
    ObjectNotFound,
    PermissionDenied,
    RemoteExecutionError,
    StoreFull,
    WorkerError,
    WrongWorker,
)
from runtime.handlers import eager
from runtime.limits import WorkerLimits
from runtime.messages import (
    Apply,
    Argument,
    Attr,
    Backward,
    ElementType,
    Free,
    Grad,
    Handle,
    Items,
    Numbers,
    Pointer,
    Put,
    PutItem,
    RequireGrad,
    Slot,
    Step,
    ZeroGrad,
)
from runtime.worker import Worker
from tests.network.fixtures import channel, over_every_channel  # noqa: F401
from tests.runtime.helpers import connect, get, handles, new_id, put, state_of


@pytest.fixture
def bob() -> Worker:
    return Worker("bob")


@pytest.fixture
def me(bob: Worker) -> Connection:
    return connect(bob)


def do(
    me: Connection, op: str, *operands: Argument, local: tuple[torch.Tensor, ...] = (), **attrs: Attr
) -> int:
    id = new_id()
    me.call(Apply(op, operands, attrs, (id,)), local)
    return id


def value(me: Connection, id: int) -> torch.Tensor:
    return get(me, id)[0]


def test_ops_take_handles_local_tensors_numbers_and_lists(me: Connection) -> None:
    x = put(me, torch.ones(5))
    y = do(me, "aten.add", Handle(x), Slot(0), local=(torch.full((5,), 5.0),))
    assert value(me, y).tolist() == [6.0] * 5
    assert value(me, do(me, "aten.mul", Handle(x), 2)).dtype is torch.float32
    ints = put(me, torch.tensor([1, 2]))
    assert value(me, do(me, "aten.mul", Handle(ints), 2)).dtype is torch.int64
    assert value(me, do(me, "aten.mul", Handle(ints), 2.0)).dtype is torch.float32
    assert value(me, do(me, "aten.cat", Items(handles(x, x)), dim=0)).shape == (10,)
    assert value(me, do(me, "aten.permute", Handle(x), dims=Numbers((0,)))).shape == (5,)
    full = do(me, "aten.full", size=Numbers((2, 3)), fill_value=1, dtype=ElementType(DType.BF16))
    assert (value(me, full).dtype, value(me, full).shape) == (torch.bfloat16, (2, 3))


def test_ops_with_several_results_keep_those_that_are_wanted(bob: Worker, me: Connection) -> None:
    x, values = put(me, torch.tensor([[1.0, 5.0], [7.0, 2.0]])), new_id()
    before = len(bob)
    me.call(Apply("aten.max_dim", handles(x), {"dim": 1}, (values, None)))
    assert value(me, values).tolist() == [5.0, 7.0]
    assert len(bob) == before + 1
    with pytest.raises(InputError, match="has 2 results, got 1 ids"):
        me.call(Apply("aten.max_dim", handles(x), {"dim": 1}, (new_id(),)))


def test_an_id_of_ones_own_can_be_replaced(me: Connection) -> None:
    x = put(me, torch.ones(2))
    me.call(Apply("aten.add", (Handle(x), 1), {}, (x,)))
    assert value(me, x).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        (Apply("aten.nope", (Slot(0),), {}, (1,)), TypeCheckError, "no op 'aten.nope'"),
        (Apply("os.system", (Slot(0),), {}, (1,)), TypeCheckError, "no op"),
        (Apply("call", (Items(()),), {"plan": 0}, (1,)), TypeCheckError, "stands in a plan"),
        (Apply("aten.add", (Slot(0),), {}, (1,)), TypeCheckError, "takes 2 operands, got 1"),
        (Apply("aten.mm", (Slot(0), Slot(0)), {}, (1,)), TypeCheckError, "aten.mm"),
        (Apply("aten.add", (Slot(0), Slot(0)), {"nope": 1}, (1,)), TypeCheckError, "no attribute 'nope'"),
        (Apply("aten.add", (Slot(0), Items(())), {}, (1,)), TypeCheckError, "wants"),
        (Apply("aten.t", (Slot(5),), {}, (1,)), Exception, "slot 5"),
        (Apply("aten.t", (Handle(404),), {}, (1,)), ObjectNotFound, "object 404"),
    ],
)
def test_what_is_wrong_with_an_op_is_said(
    bob: Worker, me: Connection, body: Apply, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        me.call(body, [torch.ones(3)])
    assert isinstance(caught.value, WorkerError)
    assert len(bob) == 0


def test_a_failing_op_names_itself_and_no_elements(bob: Worker, me: Connection) -> None:
    x, index = put(me, torch.ones(3)), put(me, torch.tensor([1, 987654]))
    before = state_of(bob)
    with pytest.raises(
        RemoteExecutionError, match=r"aten\.index_select failed .* f32\[3\], i64\[2\]"
    ) as caught:
        do(me, "aten.index_select", *handles(x, index), dim=0)
    assert "987654" not in str(caught.value)
    assert caught.value.op == "aten.index_select"
    assert state_of(bob) == before


def test_results_that_do_not_fit_are_not_even_made() -> None:
    me = connect(Worker("bob", limits=WorkerLimits(store_bytes=1000)))
    with pytest.raises(StoreFull):
        do(me, "aten.full", size=Numbers((2**40,)), fill_value=0, dtype=ElementType(DType.F64))
    x = put(me, torch.ones(1))
    with pytest.raises(StoreFull):  # a view takes no memory, but to go over it or to send it does
        do(me, "aten.expand", Handle(x), size=Numbers((10**6,)))
    assert value(me, do(me, "aten.expand", Handle(x), size=Numbers((200,)))).shape == (200,)


def test_views_share_memory_and_count_once(bob: Worker, me: Connection) -> None:
    x = put(me, torch.arange(6.0))
    do(me, "aten.view", Handle(x), size=Numbers((2, 3)))
    assert bob.nbytes == 24
    me.call(Free((x,)))
    assert bob.nbytes == 24


def test_an_op_that_returns_its_operand_makes_a_value_of_its_own(
    bob: Worker, me: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callables may do so where nothing is to change; a shared tensor object would share requires_grad."""
    x, y = put(me, torch.ones(2), requires_grad=True), new_id()
    with monkeypatch.context() as patched:
        patched.setattr(eager, "run_node", lambda node, read, *_: (read(node.operands[0]),))
        me.call(Apply("aten.neg", handles(x), {}, (y,)))
    values = [stored.value for id in (x, y) if (stored := bob._site.store.get(id)) is not None]
    assert values[0] is not values[1]
    me.call(Backward(do(me, "aten.sum", Handle(y))))
    me.call(Grad(x, 5))
    assert value(me, 5).tolist() == [1.0, 1.0]


def test_a_pointer_is_no_operand(me: Connection) -> None:
    me.call(Put((PutItem(1, Pointer("alice", 5)),)))
    with pytest.raises(WrongWorker, match="'alice'"):
        do(me, "aten.neg", Handle(1))


def test_gradients_equal_torchs_and_add_up(me: Connection) -> None:
    torch.manual_seed(0)
    w, x = torch.randn(3, 4, requires_grad=True), torch.randn(5, 3)
    rw, rx = put(me, w.detach(), requires_grad=True), put(me, x)
    for _ in range(2):
        (x @ w).relu().sum().backward()
        me.call(
            Backward(
                do(me, "aten.sum", Handle(do(me, "aten.relu", Handle(do(me, "aten.mm", *handles(rx, rw))))))
            )
        )
    gradient = new_id()
    me.call(Grad(rw, gradient))
    assert w.grad is not None
    assert torch.equal(value(me, gradient), w.grad)
    me.call(ZeroGrad((rw,)))
    assert torch.equal(value(me, gradient), w.grad)  # an object of its own
    with pytest.raises(InputError, match="no gradient"):
        me.call(Grad(rw, new_id()))
    with pytest.raises(InputError, match="no gradient"):
        me.call(Grad(rx, new_id()))


def test_backward_with_a_gradient_and_twice(me: Connection) -> None:
    w = put(me, torch.tensor([1.0, 2.0]), requires_grad=True)
    y = do(me, "aten.mul", *handles(w, w))
    with pytest.raises(InputError, match="a gradient of that shape"):
        me.call(Backward(y))
    with pytest.raises(
        InputError, match=r"expected a gradient of torch.float32\[2\], got torch.float32\[3\]"
    ):
        me.call(Backward(y, Slot(0)), [torch.ones(3)])
    me.call(Backward(y, Slot(0), retain=True), [torch.tensor([1.0, 10.0])])
    me.call(Backward(y, Slot(0)), [torch.tensor([1.0, 10.0])])
    with pytest.raises(RemoteExecutionError, match="retain=True"):
        me.call(Backward(y, Slot(0)), [torch.ones(2)])
    me.call(Grad(w, 7))
    assert value(me, 7).tolist() == [4.0, 80.0]


def test_without_grad_nothing_is_recorded(me: Connection) -> None:
    w, y = put(me, torch.ones(2), requires_grad=True), new_id()
    me.call(Apply("aten.sum", handles(w), {}, (y,), grad=False))
    with pytest.raises(InputError, match="does not require grad"):
        me.call(Backward(y))


def test_requires_grad_can_be_switched_on_leaves_of_reals(bob: Worker, me: Connection) -> None:
    w, ints = put(me, torch.ones(2)), put(me, torch.tensor([1]))
    with pytest.raises(InputError, match="floating-point"):
        me.call(RequireGrad((w, ints), True))
    stored = bob._site.store.get(w)
    assert stored is not None
    assert isinstance(stored.value, torch.Tensor)
    assert not stored.value.requires_grad
    me.call(RequireGrad((w,), True))
    y = do(me, "aten.sum", Handle(w))
    with pytest.raises(InputError, match="detach"):
        me.call(RequireGrad((y,), False))
    me.call(Backward(y))


def test_nobodys_gradient_reaches_anothers_object(bob: Worker, me: Connection) -> None:
    w = put(me, torch.ones(2), requires_grad=True, tags=("#w",))
    eve = connect(bob, "eve")
    own = put(eve, torch.ones(2), requires_grad=True)
    loss = do(eve, "aten.sum", Handle(do(eve, "aten.mul", *handles(w, own))))
    eve.call(Backward(loss))
    eve.call(Grad(own, 5))
    with pytest.raises(InputError, match="no gradient"):
        me.call(Grad(w, 6))
    for body in (Backward(w, Slot(0)), Grad(w, 6), ZeroGrad((w,)), RequireGrad((w,), False)):
        with pytest.raises(PermissionDenied):
            eve.call(body, [torch.ones(2)])


def train(
    optimizer: str, attrs: dict[str, Attr], used: tuple[bool, ...], torch_optimizer: Any, **options: object
) -> None:
    """Three parameters, one of which never has a gradient, against torch.optim."""
    bob = Worker("bob")
    me = connect(bob)
    torch.manual_seed(0)
    local = [
        torch.randn(3, 2, requires_grad=True),
        torch.randn(2, requires_grad=True),
        torch.randn(4, requires_grad=True),
    ]
    params = [put(me, p.detach(), requires_grad=True) for p in local]
    state = tuple(tuple(new_id() for _ in params) if use else () for use in used)
    theirs = torch_optimizer(local, lr=0.1, **options)
    x = torch.randn(5, 3)
    remote_x = put(me, x)
    for _ in range(4):
        theirs.zero_grad()
        (x @ local[0] + local[1]).tanh().sum().backward()
        theirs.step()
        me.call(ZeroGrad(tuple(params)))
        hidden = do(me, "aten.tanh", Handle(do(me, "aten.addmm", *handles(params[1], remote_x, params[0]))))
        me.call(Backward(do(me, "aten.sum", Handle(hidden))))
        me.call(Step(optimizer, attrs, 0.1, tuple(params), state))
    for mine, id in zip(local, params, strict=True):
        torch.testing.assert_close(value(me, id), mine.detach(), rtol=1e-6, atol=1e-7)
    assert all(bob._site.store.get(group[2]) is None for group in state if group)
    gradient = new_id()
    me.call(Grad(params[0], gradient))  # a step leaves gradients as they are
    torch.testing.assert_close(value(me, gradient), local[0].grad)


def test_steps_equal_torchs() -> None:
    decay: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.01}
    damped: dict[str, Any] = {"momentum": 0.9, "dampening": 0.1}
    train("opt.sgd", decay, (True, False), torch.optim.SGD, **decay)
    train("opt.sgd", damped, (True, True), torch.optim.SGD, **damped)
    train("opt.adam", {}, (True, True, False, True), torch.optim.Adam)
    train("opt.adam", {"amsgrad": True}, (True,) * 4, torch.optim.Adam, amsgrad=True)


def test_sgd_without_momentum_has_no_state() -> None:
    me = connect(Worker("bob"))
    w = put(me, torch.ones(2), requires_grad=True)
    me.call(Step("opt.sgd", {}, 0.5, (w,), ((), ())))  # no gradient yet: nothing happens
    me.call(Backward(do(me, "aten.sum", Handle(w))))
    me.call(Step("opt.sgd", {}, 0.5, (w,), ((), ())))
    assert value(me, w).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        (Step("opt.nope", {}, 0.1, (1,), ((), ())), TypeCheckError, "no op"),
        (Step("aten.add", {}, 0.1, (1,), ((), ())), TypeCheckError, "not an optimizer"),
        (Step("opt.sgd", {}, 0.1, (1,), ()), InputError, "has the state momenta, steps, got 0"),
        (Step("opt.sgd", {}, 0.1, (1,), ((5, 6), ())), InputError, "one a parameter, got 2"),
        (Step("opt.sgd", {}, 0.1, (1,), ((1,), ())), InputError, "given twice"),
        (Step("opt.sgd", {}, 0.1, (404,), ((5,), ())), ObjectNotFound, "404"),
        (Step("opt.sgd", {"momentum": 0.9}, 0.1, (1,), ((), ())), TypeCheckError, "momenta"),
        (Step("opt.sgd", {"momentum": 0.9}, 0.1, (1,), ((2,), ())), TypeCheckError, "momenta"),
    ],
)
def test_a_step_that_fails_changes_nothing(body: Step, error: type[Exception], text: str) -> None:
    bob = Worker("bob")
    me = connect(bob)
    me.call(
        Put((PutItem(1, Slot(0), requires_grad=True), PutItem(2, Slot(1)))), [torch.ones(2), torch.ones(3)]
    )
    me.call(Backward(do(me, "aten.sum", Handle(1))))
    before = state_of(bob)
    with pytest.raises(error, match=text):
        me.call(body)
    assert state_of(bob) == before
