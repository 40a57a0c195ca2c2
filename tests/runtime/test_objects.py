"""Objects at a worker: keep, fetch, copy, find, free, transfer, release; who may; failures change nothing."""

import pytest
import torch

from planc.errors import DecodeError, InputError
from runtime.channels import Connection, InProcessChannel
from runtime.errors import (
    ConnectionLost,
    ObjectExists,
    ObjectNotFound,
    PermissionDenied,
    StoreFull,
)
from runtime.limits import WorkerLimits
from runtime.messages import (
    Clear,
    Copy,
    Done,
    Found,
    Free,
    Get,
    List,
    ObjectInfo,
    Pointer,
    Put,
    PutItem,
    Request,
    Search,
    Slot,
    Transfer,
)
from runtime.policy import Policy
from runtime.wire import encode
from runtime.worker import Worker
from tests.network.fixtures import channel, over_every_channel  # noqa: F401
from tests.runtime.helpers import connect, get, new_id, put, state_of


def found(connection: Connection, *tags: str) -> list[int]:
    answer, _ = connection.call(Search(tags) if tags else List())
    assert isinstance(answer, Found)
    return [info.id for info in answer.items]


def test_put_and_get_many_at_once_and_delete() -> None:
    bob = Worker("bob")
    me = connect(bob)
    me.call(Put((PutItem(1, Slot(1)), PutItem(2, Slot(0)))), [torch.zeros(2), torch.ones(3)])
    assert [t.tolist() for t in get(me, 2, 1)] == [[0.0, 0.0], [1.0, 1.0, 1.0]]
    me.values(Get((1, 2), delete=True))
    assert len(bob) == 0
    assert bob.nbytes == 0
    with pytest.raises(ObjectNotFound) as caught:
        me.values(Get((1,)))
    assert caught.value.worker == "bob"
    assert "bob" in str(caught.value)


def test_what_is_stored_is_neither_the_callers_tensor_nor_the_fetched_one() -> None:
    me = connect(Worker("bob"))
    mine = torch.ones(3)
    id = put(me, mine)
    mine[0] = 5
    (fetched,) = get(me, id)
    fetched[1] = 7
    assert get(me, id)[0].tolist() == [1.0, 1.0, 1.0]


def test_a_put_that_fails_keeps_nothing() -> None:
    bob = Worker("bob")
    me = connect(bob)
    id = put(me, torch.ones(2))
    before = state_of(bob)
    for items, error in [
        ((PutItem(1, Slot(0)), PutItem(id, Slot(0))), ObjectExists),
        ((PutItem(1, Slot(0)), PutItem(1, Slot(0))), InputError),
        ((PutItem(1, Slot(0)), PutItem(2, Slot(1))), DecodeError),
        ((PutItem(1, Slot(0)), PutItem(2, Slot(0), requires_grad=True)), InputError),
    ]:
        with pytest.raises(error):
            me.call(Put(items), [torch.ones(2, dtype=torch.int64)])
    assert state_of(bob) == before


def test_the_limit_of_bytes_holds_and_shared_memory_counts_once() -> None:
    bob = Worker("bob", limits=WorkerLimits(store_bytes=100))
    me = connect(bob)
    id = put(me, torch.zeros(20))
    assert bob.nbytes == 80
    before = state_of(bob)
    with pytest.raises(StoreFull, match="80 of at most 100"):
        me.call(Put((PutItem(1, Slot(0)), PutItem(2, Slot(1)))), [torch.zeros(1), torch.zeros(6)])
    with pytest.raises(StoreFull):
        me.call(Copy((id,), (3,)))
    assert state_of(bob) == before
    me.call(Free((id,)))
    assert bob.nbytes == 0


def test_copy_is_independent_and_has_no_tags() -> None:
    me = connect(Worker("bob"))
    id, other = put(me, torch.ones(2), tags=("#x",), requires_grad=True), new_id()
    me.call(Copy((id,), (other,)))
    me.call(Free((id,)))
    assert get(me, other)[0].tolist() == [1.0, 1.0]
    assert found(me, "#x") == []
    answer, _ = me.call(List())
    assert isinstance(answer, Found)
    assert answer.items[0].requires_grad
    with pytest.raises(InputError, match="a new id for each of 1"):
        me.call(Copy((other,), ()))


def test_search_ands_tags_and_freed_objects_leave_the_index() -> None:
    bob = Worker("bob")
    me = connect(bob)
    a = put(me, torch.ones(2), tags=("#x", "#train"), description="a thing")
    b = put(me, torch.ones(2), tags=("#x",))
    assert found(me, "#x") == [a, b]
    assert found(me, "#x", "#train") == [a]
    assert found(me, "#none") == []
    assert found(me) == [a, b]
    me.call(Free((a,)))
    assert found(me, "#train") == []
    assert found(me, "#x") == [b]
    assert list(bob._site.store._tags) == ["#x"]


def test_a_listing_says_what_there_is_and_shows_small_public_tensors_only() -> None:
    me = connect(Worker("bob"))
    put(me, torch.tensor([1.5, 2.0]), description="small")
    put(me, torch.zeros(100, dtype=torch.int64))
    answer, tensors = me.call(List())
    assert isinstance(answer, Found)
    assert tensors == []
    small, large = answer.items
    assert small.preview == "tensor([1.5000, 2.0000])"
    assert small.description == "small"
    assert (large.preview, large.shape, str(large.dtype)) == ("", (100,), "i64")


def test_objects_of_others_do_not_exist_unless_offered() -> None:
    bob = Worker("bob")
    me, eve = connect(bob), connect(bob, "eve")
    secret, tagged = put(me, torch.ones(2)), put(me, torch.ones(2), tags=("#x",))
    texts = set()
    for id in (secret, 999_999):
        for body in (Get((id,)), Free((id,)), Copy((id,), (5,)), Transfer((id,), "alice", (5,))):
            with pytest.raises(ObjectNotFound) as caught:
                eve.call(body)
            texts.add(caught.value.message.replace(str(id), "ID"))
    assert texts == {"there is no object ID, or it is not yours"}
    assert found(eve) == [tagged]
    assert get(eve, tagged)[0].tolist() == [1.0, 1.0]
    before = state_of(bob)
    for body in (Free((tagged,)), Get((tagged,), delete=True), Transfer((tagged,), "alice", (5,))):
        with pytest.raises(PermissionDenied):
            eve.call(body)
    eve.call(Clear())
    eve.release(secret)
    eve.call(List())
    assert state_of(bob) == before
    me.call(Clear())
    assert len(bob) == 0


def test_data_of_the_workers_owner_is_found_by_all_and_changed_by_none() -> None:
    bob = Worker("bob")
    data = torch.ones(3)
    id = bob.add(data, tags=("#mnist",), description="digits")
    data[0] = 9
    me = connect(bob)
    assert found(me, "#mnist") == [id]
    assert get(me, id)[0].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(PermissionDenied):
        me.call(Free((id,)))
    me.call(Clear())
    assert len(bob) == 1
    with pytest.raises(InputError, match="no message can carry"):
        bob.add(torch.ones(1), description="x" * 5000)
    with pytest.raises(InputError, match="complex"):
        bob.add(torch.ones(1, dtype=torch.complex64))


def test_pointers_are_values() -> None:
    me = connect(Worker("alice"))
    me.call(Put((PutItem(1, Pointer("bob", 77), ("#p",)),)))
    assert me.values(Get((1,))) == [Pointer("bob", 77)]
    answer, _ = me.call(List())
    assert answer == Found((ObjectInfo(1, None, (), ("#p",), "", False, False, Pointer("bob", 77), ""),))


def pair(**options: object) -> tuple[Worker, Worker, Connection, Connection]:
    workers: dict[str, Worker] = {}
    for name in ("bob", "alice"):
        workers[name] = Worker(name, peers=lambda to: InProcessChannel(workers[to]), **options)  # type: ignore[arg-type]
    return workers["bob"], workers["alice"], connect(workers["bob"]), connect(workers["alice"])


def test_transfer_goes_directly_and_keeps_everything() -> None:
    bob, alice, at_bob, at_alice = pair()
    a = put(at_bob, torch.ones(2), tags=("#x",), description="d", requires_grad=True)
    at_bob.call(Put((PutItem(5, Pointer("carol", 6)),)))
    at_bob.call(Transfer((a, 5), "alice", (a, 6)))
    assert len(bob) == 0
    assert get(at_alice, a)[0].tolist() == [1.0, 1.0]
    assert at_alice.values(Get((6,))) == [Pointer("carol", 6)]
    answer, _ = at_alice.call(Search(("#x",)))
    assert isinstance(answer, Found)
    assert (answer.items[0].description, answer.items[0].requires_grad) == ("d", True)
    at_alice.call(Transfer((a,), "bob", (a,), keep=True))
    assert get(at_bob, a)[0].tolist() == get(at_alice, a)[0].tolist()
    at_alice.call(Clear())  # it is still the client's own
    assert len(alice) == 0


def test_a_transfer_that_the_peer_refuses_changes_neither() -> None:
    bob, alice, at_bob, at_alice = pair()
    a, b = put(at_bob, torch.ones(2)), put(at_bob, torch.ones(3))
    put_there = put(at_alice, torch.zeros(1))
    before = state_of(bob), state_of(alice)
    with pytest.raises(ObjectExists) as caught:
        at_bob.call(Transfer((a, b), "alice", (a, put_there)))
    assert caught.value.worker == "alice"
    assert (state_of(bob), state_of(alice)) == before


def test_a_transfer_to_itself_renames() -> None:
    bob, _, me, _ = pair()
    a = put(me, torch.ones(2))
    me.call(Transfer((a,), "bob", (a,)))
    me.call(Transfer((a,), "bob", (3,)))
    assert get(me, 3)[0].tolist() == [1.0, 1.0]
    assert len(bob) == 1


def test_no_peers_or_a_dead_peer_is_an_error_and_loses_nothing() -> None:
    bob = Worker("bob")
    me = connect(bob)
    id = put(me, torch.ones(2))
    with pytest.raises(ConnectionLost, match="alice"):
        me.call(Transfer((id,), "alice", (1,)))
    assert get(me, id)[0].tolist() == [1.0, 1.0]


def test_only_peers_may_put_for_others_where_the_policy_names_them() -> None:
    bob = Worker("bob", policy=Policy(peers=frozenset({"alice"})))
    item = PutItem(1, Slot(0), owner="me")
    with pytest.raises(PermissionDenied):
        connect(bob, "eve").call(Put((item,)), [torch.ones(1)])
    Connection(InProcessChannel(bob), "alice").call(Put((item,)), [torch.ones(1)])
    assert found(connect(bob, "me")) == [1]


def test_releases_ride_on_the_next_request_and_are_applied_first() -> None:
    bob = Worker("bob", limits=WorkerLimits(store_bytes=80))
    me = connect(bob)
    id = put(me, torch.zeros(20))
    me.release(id)
    me.release(424242)
    assert len(bob) == 1
    again = put(me, torch.zeros(20))  # fits only if the first is gone
    assert found(me) == [again]
    assert me.pending_releases == 0


def test_releases_are_not_lost_with_a_lost_connection() -> None:
    bob = Worker("bob")
    way = InProcessChannel(bob)
    me = Connection(way, "me")
    id = put(me, torch.zeros(2))
    way.close()
    me.release(id)
    with pytest.raises(ConnectionLost):
        me.call(List())
    assert me.pending_releases == 1


@pytest.mark.parametrize(("sizes", "shares"), [((1000, 1), False), ((1,), False), ((2**19,), True)])
def test_only_a_large_tensor_alone_in_its_frame_holds_the_frame(sizes: tuple[int, ...], shares: bool) -> None:
    """Freeing an object frees its memory: what is small must not keep the bytes that it came with."""
    bob = Worker("bob")
    items = tuple(PutItem(i + 1, Slot(i)) for i in range(len(sizes)))
    frame = encode(Request("me", 1, 1, 0, (), Put(items)), [torch.zeros(size) for size in sizes])
    start = torch.frombuffer(frame, dtype=torch.uint8).data_ptr()
    bob.handle_frame(frame)
    for item in items:
        stored = bob._site.store.get(item.id)
        assert stored is not None
        assert isinstance(stored.value, torch.Tensor)
        assert (start <= stored.value.data_ptr() < start + len(frame)) == shares


def test_done_is_done() -> None:
    assert connect(Worker("bob")).call(Clear()) == (Done(), [])
