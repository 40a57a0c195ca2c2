"""A request that comes again is applied once, in any order; what a worker remembers of them is bounded."""

import threading
import time

import pytest
import torch

from runtime.channels import Connection, InProcessChannel
from runtime.errors import ConnectionLost, ReplayError, to_error
from runtime.limits import WorkerLimits
from runtime.messages import (
    Apply,
    Body,
    Done,
    Failure,
    Free,
    Get,
    Handle,
    Put,
    PutItem,
    Reply,
    Request,
    Slot,
    Transfer,
    Values,
)
from runtime.replay import PENDING
from runtime.wire import decode, encode
from runtime.worker import Worker
from tests.runtime.helpers import connect, get, put


def request(number: int, body: Body, session: int = 1, settled: int = 0, client: str = "me") -> Request:
    return Request(client, session, number, settled, (), body)


ADD_ONE = Apply("aten.add", (Handle(1), 1), {}, (1,))
PUT = Put((PutItem(1, Slot(0)),))


def value(worker: Worker) -> float:
    return get(connect(worker), 1)[0].item()


def failure(reply: Reply) -> Exception:
    assert isinstance(reply.body, Failure)
    return to_error(reply.body)


def test_a_repeated_request_gets_the_same_reply_and_is_applied_once() -> None:
    bob = Worker("bob")
    bob.handle(request(1, PUT), [torch.zeros(())])
    frame = bytes(encode(request(2, ADD_ONE)))
    assert bob.handle_frame(frame) == bob.handle_frame(frame)
    assert value(bob) == 1.0
    failing = request(3, Free((99,)))
    first, again = bob.handle(failing)[0], bob.handle(failing)[0]
    assert isinstance(first.body, Failure)
    assert first == again


def test_a_repeated_delete_brings_the_tensor_again() -> None:
    bob = Worker("bob", limits=WorkerLimits(replay_bytes=0))  # the newest reply is kept all the same
    bob.handle(request(1, PUT), [torch.full((1000,), 3.0)])
    frame = bytes(encode(request(2, Get((1,), delete=True))))
    for _ in range(2):
        message, tensors = decode(bob.handle_frame(frame))
        assert message == Reply(2, Values((Slot(0),)))
        assert tensors[0].tolist() == [3.0] * 1000
    assert len(bob) == 0


def test_sessions_and_clients_are_apart() -> None:
    bob = Worker("bob")
    bob.handle(request(1, PUT), [torch.zeros(())])
    for session in (2, 3):
        assert isinstance(bob.handle(request(1, ADD_ONE, session))[0].body, Done)
    assert value(bob) == 2.0
    assert isinstance(bob.handle(request(1, Free((1,)), 1, client="eve"))[0].body, Failure)


def test_requests_may_come_out_of_order_within_the_window() -> None:
    bob = Worker("bob", limits=WorkerLimits(replay_window=4))
    bob.handle(request(1, PUT), [torch.zeros(())])
    for number in (5, 3, 4, 2, 3, 5):
        assert isinstance(bob.handle(request(number, ADD_ONE))[0].body, Done)
    assert value(bob) == 4.0


def test_what_is_older_than_the_window_or_settled_is_refused() -> None:
    bob = Worker("bob", limits=WorkerLimits(replay_window=4))
    bob.handle(request(1, PUT), [torch.zeros(())])
    for number in range(10, 20):
        bob.handle(request(number, ADD_ONE))
    for number in (1, 5, 15):
        error = failure(bob.handle(request(number, ADD_ONE))[0])
        assert isinstance(error, ReplayError)
        assert "too old" in str(error)
    bob.handle(request(20, ADD_ONE, settled=19))
    assert isinstance(failure(bob.handle(request(19, ADD_ONE))[0]), ReplayError)
    assert value(bob) == 11.0


def test_what_is_remembered_is_bounded() -> None:
    limits = WorkerLimits(replay_window=8, replay_bytes=1000, sessions=3, clients=5)
    bob = Worker("bob", limits=limits)
    bob.handle(request(1, PUT), [torch.zeros(100)])
    for number in range(2, 50):
        bob.handle(request(number, Get((1,))))
    session = bob._replays._clients["me"][1]
    assert len(session.replies) <= 8
    assert session.nbytes <= 1000
    kept = [r for r in session.replies.values() if isinstance(r, tuple)]
    assert session.nbytes == len(kept) * (400 + 512 + 64)  # elements, the tensor itself, an entry
    error = failure(bob.handle(request(45, Get((1,))))[0])
    assert isinstance(error, ReplayError)
    assert "no longer kept" in str(error)
    for name in range(100):
        bob.handle(request(1, Free(()), client=f"c{name}"))
        bob.handle(request(1, Free(()), client="c", session=name))
    assert len(bob._replays._clients) <= 5
    assert len(bob._replays._clients["c"]) <= 3


def test_a_connection_settles_what_arrived() -> None:
    bob = Worker("bob")
    me = connect(bob)
    id = put(me, torch.zeros(1000))
    for _ in range(10):
        get(me, id)
    (session,) = bob._replays._clients["me"].values()
    assert len(session.replies) == 1
    assert session.settled == 10


class LosingChannel(InProcessChannel):
    """Loses the reply to every call, then sends again, as a network channel does."""

    def call(self, frame: bytearray) -> bytearray:
        super().call(bytearray(frame))
        return super().call(frame)


def test_a_channel_may_send_again() -> None:
    bob = Worker("bob")
    me = Connection(LosingChannel(bob), "me")
    me.call(PUT, [torch.zeros(())])
    for _ in range(5):
        me.call(ADD_ONE)
    assert value(bob) == 5.0


def test_a_repeat_waits_for_the_first_that_is_still_on_its_way() -> None:
    """A transfer opens the worker while its peer works: its own repeat must not start it again."""
    alice = Worker("alice")
    arrived, go_on = threading.Event(), threading.Event()

    class SlowChannel(InProcessChannel):
        def call(self, frame: bytearray) -> bytearray:
            arrived.set()
            assert go_on.wait(10)
            return super().call(frame)

    bob = Worker("bob", peers=lambda _: SlowChannel(alice))
    bob.handle(request(1, PUT), [torch.ones(())])
    moving = request(2, Transfer((1,), "alice", (1,)))
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(bob.handle(moving)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert arrived.wait(10)
    other = bob.handle(request(3, Put((PutItem(2, Slot(0)),))), [torch.ones(())])[0]
    assert isinstance(other.body, Done)  # others go on meanwhile
    time.sleep(0.05)
    assert replies == []
    assert bob._replays._clients["me"][1].replies[2] is PENDING
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert replies == [Reply(2, Done())] * 3
    assert len(alice) == 1


def test_two_workers_can_send_to_each_other_at_once() -> None:
    workers: dict[str, Worker] = {}
    both = threading.Barrier(2)

    class MeetingChannel(InProcessChannel):
        def call(self, frame: bytearray) -> bytearray:
            both.wait(10)  # each is inside its own transfer now
            return super().call(frame)

    for name in ("bob", "alice"):
        workers[name] = Worker(name, peers=lambda to: MeetingChannel(workers[to]))
    ids = {name: put(connect(worker), torch.ones(1)) for name, worker in workers.items()}
    errors: list[BaseException] = []

    def move(name: str, to: str) -> None:
        try:
            connect(workers[name]).call(Transfer((ids[name],), to, (ids[name],)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=move, args=pair) for pair in (("bob", "alice"), ("alice", "bob"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    assert get(connect(workers["alice"]), ids["bob"])
    assert get(connect(workers["bob"]), ids["alice"])


def test_a_peer_that_is_lost_leaves_the_object() -> None:
    class DeadChannel(InProcessChannel):
        def call(self, frame: bytearray) -> bytearray:
            raise ConnectionLost("cut", worker="alice")

    bob = Worker("bob", peers=lambda _: DeadChannel(Worker("alice")))
    me = connect(bob)
    id = put(me, torch.ones(1))
    with pytest.raises(ConnectionLost):
        me.call(Transfer((id,), "alice", (id,)))
    assert get(me, id)
