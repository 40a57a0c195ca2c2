"""Quotas: exact at the boundary, for each client apart, and with runs at the same time."""

from __future__ import annotations

import threading

import pytest
import torch

from planc.codec import encode, plan_id
from planc.ir.program import Program
from runtime.errors import PermissionDenied, QuotaExceeded, RemoteInputError, RemoteLimitError
from runtime.identity import Identity
from runtime.limits import WorkerLimits
from runtime.messages import (
    Apply,
    Failure,
    Handle,
    Install,
    Items,
    Keep,
    Numbers,
    Plans,
    Put,
    PutItem,
    Reply,
    Request,
    Return,
    Run,
    Slot,
    Uninstall,
)
from runtime.owner import owner_of
from runtime.policy import Policy, Quota, Rights
from runtime.wire import WireLimits, decode
from runtime.wire import encode as encode_frame
from runtime.worker import Worker
from tests.access.helpers import connect
from tests.runtime.helpers import adding, constant_sum, get, handles, identity, install, new_id, put, stepping


def worker(**quota: object) -> Worker:
    return Worker("bob", policy=Policy(default=Rights(quota=Quota(**quota))))  # type: ignore[arg-type]


def held(bob: Worker, client: str = "ann") -> int:
    return bob._site.store.accounts.held(client)


def test_bytes_to_the_last_one() -> None:
    bob = worker(bytes=80)
    me = connect(bob)
    first = put(me, torch.zeros(10))
    put(me, torch.zeros(10))
    assert held(bob) == 80
    with pytest.raises(QuotaExceeded, match="1 more bytes do not fit: 'ann' holds 80 of at most 80"):
        put(me, torch.zeros(1, dtype=torch.bool))
    assert (held(bob), len(bob)) == (80, 2)
    put(connect(bob, "cas"), torch.zeros(20))  # others have a quota of their own
    me.release(first)
    put(me, torch.zeros(10))
    assert held(bob) == 80


def test_a_put_of_several_is_refused_whole() -> None:
    bob = worker(bytes=80)
    me = connect(bob)
    with pytest.raises(QuotaExceeded):
        me.call(Put((PutItem(1, Slot(0)), PutItem(2, Slot(1)))), [torch.zeros(10), torch.zeros(11)])
    assert (len(bob), held(bob)) == (0, 0)


def test_views_cost_who_had_the_memory_first_and_then_who_keeps_it() -> None:
    bob = worker(bytes=80)
    me, cas = connect(bob), connect(bob, "cas")
    offered = bob.add(torch.zeros(1000), tags=("#x",))
    view = new_id()
    me.call(Apply("aten.select", handles(offered), {"dim": 0, "index": 3}, (view,)))
    assert held(bob) == 0  # a view of what is offered
    mine, other = put(me, torch.zeros(20), tags=("#y",)), new_id()
    cas.call(Apply("aten.select", handles(mine), {"dim": 0, "index": 3}, (other,)))
    assert (held(bob), held(bob, "cas")) == (80, 0)
    me.release(mine)
    put(me, torch.zeros(1))
    assert (held(bob), held(bob, "cas")) == (4, 80)  # cas holds on to all of that memory
    with pytest.raises(QuotaExceeded, match="'cas' holds 80"):
        put(cas, torch.zeros(1))
    cas.release(other)
    put(cas, torch.zeros(20))


def test_an_expanded_tensor_costs_what_it_takes() -> None:
    bob = worker(bytes=80)
    me = connect(bob)
    one, wide = put(me, torch.zeros(1)), new_id()
    me.call(Apply("aten.expand", handles(one), {"size": Numbers((19,))}, (wide,)))
    assert held(bob) == 4
    with pytest.raises(QuotaExceeded):
        me.call(Apply("aten.cat", (Items((Handle(wide), Handle(wide))),), {}, (new_id(),)))
    with pytest.raises(QuotaExceeded):  # nor may a view have more elements than its client could hold
        me.call(Apply("aten.expand", handles(one), {"size": Numbers((1_000_000,))}, (new_id(),)))


def test_accounts_agree_with_the_store_after_anything() -> None:
    bob = worker(bytes=10_000)
    me, cas = connect(bob), connect(bob, "cas")
    ids = [put(connection, torch.zeros(n + 1)) for n, connection in enumerate([me, cas] * 4)]
    me.call(Apply("aten.neg", handles(ids[0]), {}, (ids[2],)))  # in place of another
    me.call(Apply("aten.t", handles(ids[4]), {}, (ids[4],)))
    for id in ids[:5]:
        (me if ids.index(id) % 2 == 0 else cas).release(id)
    me.call(Put(()))
    cas.call(Put(()))
    assert held(bob) + held(bob, "cas") == bob.nbytes
    for id in ids[5:]:
        (me if ids.index(id) % 2 == 0 else cas).release(id)
    me.call(Put(()))
    cas.call(Put(()))
    assert (bob.nbytes, held(bob), held(bob, "cas")) == (0, 0, 0)
    assert not bob._site.store.accounts._pieces


def test_plans_count_among_the_bytes() -> None:
    constant = torch.arange(100, dtype=torch.float32)
    size = len(encode(constant_sum(constant))) + constant.nbytes
    bob = worker(bytes=size)
    me = connect(bob)
    install(me, constant_sum(constant), constant)
    with pytest.raises(QuotaExceeded):
        put(me, torch.zeros(1))
    with pytest.raises(QuotaExceeded):
        install(me, identity())
    tight = worker(bytes=size - 1)
    with pytest.raises(QuotaExceeded):
        install(connect(tight), constant_sum(constant), constant)
    assert len(tight._site.shelf) == 0


def test_plans_and_their_nodes() -> None:
    bob = worker(plans=2, plan_nodes=2)
    me = connect(bob)
    install(me, adding())  # of two nodes
    with pytest.raises(QuotaExceeded, match="'stepping' has 3 nodes, 'ann' may install plans of at most 2"):
        install(me, stepping())
    first = install(me, identity())
    install(me, identity())  # again: it is there
    with pytest.raises(QuotaExceeded, match="2 plans of at most 2"):
        install(me, constant_sum(torch.ones(2)), torch.ones(2))
    me.call(Uninstall((first,)))
    install(me, constant_sum(torch.ones(2)), torch.ones(2))
    install(connect(bob, "cas"), identity())
    # A plan that another installed is a plan all the same.
    big = stepping()
    worker_ = Worker("bob", policy=Policy(clients={"ann": Rights(quota=Quota(plan_nodes=2))}))
    install(connect(worker_, "cas"), big)
    with pytest.raises(QuotaExceeded):
        connect(worker_).call(Install(plan_id(big), encode(big)))


def test_the_size_of_a_message() -> None:
    body = Put((PutItem(1, Slot(0)),))
    frame = encode_frame(Request("ann", 1, 1, 0, (), body), [torch.zeros(100)])
    for vouched in (Identity("ann"), None):
        reply, _ = decode(
            worker(message_bytes=len(frame)).handle_frame(bytearray(frame), vouched), WireLimits()
        )
        assert isinstance(reply, Reply)
        assert not isinstance(reply.body, Failure)
        bob = worker(message_bytes=len(frame) - 1)
        reply, _ = decode(bob.handle_frame(bytearray(frame), vouched), WireLimits())
        assert isinstance(reply, Reply)
        assert isinstance(reply.body, Failure)
        assert reply.body.kind == "quota-exceeded"
        assert len(bob) == 0
    assert worker(message_bytes=7).message_bytes(Identity("ann")) == 7


def test_seconds_end_with_the_last_and_count_operations_and_runs() -> None:
    bob = worker(seconds=100.0)
    me = connect(bob)
    x, plan = put(me, torch.zeros(3)), install(me, identity())
    taken = bob._site.usage.of("ann")
    me.call(Apply("aten.neg", handles(x), {}, (new_id(),)))
    after_operation = taken.seconds
    assert after_operation > 0
    me.call(Run(plan, handles(x), (Return(),)))
    assert taken.seconds > after_operation
    taken.seconds = 99.999
    me.call(Apply("aten.neg", handles(x), {}, (new_id(),)))
    taken.seconds = 100.0
    for body in (Apply("aten.neg", handles(x), {}, (new_id(),)), Run(plan, handles(x), (Return(),))):
        with pytest.raises(QuotaExceeded, match=r"100\.0 of at most 100 seconds"):
            me.call(body)
    assert get(me, x)  # what is there may still be fetched
    me.call(Plans())
    connect(bob, "cas").call(Put(()))


class Slow:
    """Runs plans as long as it is told to, and notes how long each may take."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Semaphore(0)
        self.seconds: list[float | None] = []
        self.at_once = self.most = 0
        self.lock = threading.Lock()

    def run(
        self,
        plan_id: str,
        program: Program,
        inputs: list[torch.Tensor],
        device: torch.device,
        /,
        *,
        seconds: float | None = None,
    ) -> list[torch.Tensor]:
        with self.lock:
            self.seconds.append(seconds)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.started.release()
        self.go.wait(10)
        with self.lock:
            self.at_once -= 1
        return [tensor.clone() for tensor in inputs]


def test_runs_at_a_time_are_counted_exactly_with_many_threads() -> None:
    slow = Slow()
    quota = Quota(concurrent_runs=2)
    bob = Worker("bob", policy=Policy(default=Rights(quota=quota)), runner=slow)
    me = connect(bob)
    plan, x = install(me, identity()), put(me, torch.ones(3))
    results: list[str] = []

    def run() -> None:
        try:
            me.call(Run(plan, handles(x), (Keep(new_id()),)))
            results.append("ran")
        except QuotaExceeded as error:
            results.append("refused" if "2 plans of at most 2 at a time" in str(error) else str(error))

    two = [threading.Thread(target=run) for _ in range(2)]
    for thread in two:
        thread.start()
        assert slow.started.acquire(timeout=10)
    many = [threading.Thread(target=run) for _ in range(8)]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join(10)
    assert results == ["refused"] * 8
    other = connect(bob, "cas")
    theirs = put(other, torch.ones(3))
    third = threading.Thread(target=lambda: other.call(Run(plan, handles(theirs), (Keep(new_id()),))))
    third.start()
    assert slow.started.acquire(timeout=10)  # another client runs beside them
    slow.go.set()
    for thread in (*two, third):
        thread.join(10)
    assert sorted(results) == ["ran"] * 2 + ["refused"] * 8
    run()
    assert results[-1] == "ran"
    assert slow.most == 3
    assert bob._site.usage.of("ann").running == 0


def test_a_number_of_approved_runs_is_exact_with_many_threads() -> None:
    slow = Slow()
    bob = Worker("bob", limits=WorkerLimits(concurrent_runs=100), runner=slow)
    me = connect(bob)
    plan, x = install(me, identity()), bob.add(torch.ones(3), tags=("#x",), private=True)
    owner_of(bob).approve(plan, runs=3)
    results: list[str] = []

    def run() -> None:
        try:
            me.call(Run(plan, handles(x), (Return(),)))
            results.append("ran")
        except PermissionDenied:
            results.append("refused")

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert slow.started.acquire(timeout=10)
    slow.go.set()
    for thread in threads:
        thread.join(10)
    assert sorted(results) == ["ran"] * 3 + ["refused"] * 5


def test_a_failed_run_is_not_counted_as_running() -> None:
    bob = worker(concurrent_runs=1)
    me = connect(bob)
    plan = install(me, adding())
    for _ in range(3):
        with pytest.raises(RemoteInputError):
            me.call(Run(plan, (Slot(0), Slot(1)), (Return(), Return())), [torch.ones(2), torch.ones(3)])
    assert bob._site.usage.of("ann").running == 0


def test_a_run_is_given_the_shorter_of_its_time_and_what_is_left() -> None:
    slow = Slow()
    slow.go.set()
    quota = Quota(seconds=100.0, run_seconds=5.0)
    bob = Worker("bob", policy=Policy(default=Rights(quota=quota)), runner=slow)
    me = connect(bob)
    plan, x = install(me, identity()), put(me, torch.ones(3))
    me.call(Run(plan, handles(x), (Return(),)))
    bob._site.usage.of("ann").seconds = 98.0
    me.call(Run(plan, handles(x), (Return(),)))
    assert slow.seconds[0] == 5.0
    assert slow.seconds[1] == pytest.approx(2.0)


def test_a_run_ends_when_its_time_is_over() -> None:
    bob = worker(run_seconds=0.0)
    me = connect(bob)
    plan = install(me, adding())
    x = put(me, torch.ones(3))
    with pytest.raises(RemoteLimitError):
        me.call(Run(plan, handles(x, x), (Return(), Return())))
