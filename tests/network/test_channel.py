"""One channel of each kind over real sockets: order, pipelining, deadlines, breaks, many callers, its end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from planc.errors import InputError, LimitError
from runtime import WorkerHandle, connect, count_messages
from runtime.channels.address import Address
from runtime.channels.grpc.client import GrpcChannel, words
from runtime.channels.streams.channel import StreamChannel
from runtime.channels.streams.server import ServerLimits
from runtime.channels.unix.client import UnixChannel
from runtime.connecting import open_channel
from runtime.errors import ConnectionLost, DeadlineExceeded, PermissionDenied, RequestSkipped, WorkerError
from runtime.identity import Identity, Role
from runtime.messages import Get, Put, PutItem, Reply, Request, Search, Slot, Values
from runtime.wire import Frame, WireLimits, decode, encode, encode_pieces
from runtime.worker import Worker
from tests.network.serving import STREAMS, anywhere, listening


@pytest.fixture(params=STREAMS)
def place(request: pytest.FixtureRequest) -> Address:
    """Where a server of each kind may listen."""
    return anywhere(request.param)


@contextmanager
def serving(worker: Any, place: Address, **options: Any) -> Generator[Address]:
    server = listening(worker, place, **options)
    try:
        yield server.address
    finally:
        server.close()


@contextmanager
def channel_to(address: Address, **options: Any) -> Generator[StreamChannel[Any]]:
    channel = open_channel(str(address), client="ann", **options)
    try:
        yield channel
    finally:
        channel.close()


@pytest.fixture
def bob(place: Address) -> Generator[WorkerHandle]:
    with serving(Worker("bob"), place) as address:
        handle = connect(str(address), client="ann")
        yield handle
        handle.close()


class Slow:
    """A worker that takes its time with what is asked for by one client."""

    def __init__(self, seconds: float) -> None:
        self.id = "bob"
        self.worker = Worker("bob")
        self.seconds = seconds
        self.asked = 0

    def handle_large_frame(self, frame: Any, identity: Identity) -> Frame:
        self.asked += 1
        time.sleep(self.seconds)
        return self.worker.handle_large_frame(frame, identity)


# -- calls ---------------------------------------------------------------------------------------------------


def test_large_tensors_travel_both_ways_and_are_their_own(bob: WorkerHandle) -> None:
    x = torch.randn(1500, 1200)  # 7 chunks
    remote = bob.send(x)
    there = remote.get()
    assert torch.equal(there, x)
    there.add_(1)  # ordinary, writable memory
    a, b = bob.send_all([x, x.t()])
    assert torch.equal(b.get(), x.t())
    assert torch.equal(a.get(), x)


def test_eager_operations_are_not_waited_for_and_arrive_in_order(bob: WorkerHandle) -> None:
    x = bob.send(torch.zeros(3))
    with count_messages() as sent:
        for _ in range(200):
            x += 1
    assert sent.by_kind == {"Apply": 200}
    assert x.get().tolist() == [200.0] * 3


def test_what_follows_an_operation_that_failed_is_not_applied(bob: WorkerHandle) -> None:
    x, index = bob.send(torch.zeros(3)), bob.send(torch.tensor([7]))
    y = bob.send(torch.zeros(3))
    x.index_select(0, index)  # fails there
    y += 1  # sent behind it
    with pytest.raises(WorkerError, match="index_select") as caught:
        y.copy()
    assert not isinstance(caught.value, RequestSkipped)
    assert y.get().tolist() == [0.0] * 3  # the error was told; one goes on from before it
    bob.settle()


def test_settling_raises_what_went_wrong_once(bob: WorkerHandle) -> None:
    x, index = bob.send(torch.zeros(3)), bob.send(torch.tensor([7]))
    x.index_select(0, index)
    with pytest.raises(WorkerError, match="index_select"):
        bob.settle()
    bob.settle()
    assert (x + 1).get().tolist() == [1.0] * 3


def test_sixteen_threads_get_their_own_replies(bob: WorkerHandle) -> None:
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            for i in range(20):
                value = float(number * 1000 + i)
                x = bob.send(torch.full((number + 1,), value))
                y = x + 1
                if not torch.equal(y.get(), torch.full((number + 1,), value + 1)):
                    wrong.append((number, i))
                if i % 7 == 0:
                    big = torch.full((400_000,), value)
                    if not torch.equal(bob.send(big).get(), big):
                        wrong.append((number, "big"))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_long_call_does_not_hold_up_others(place: Address) -> None:
    slow = Slow(0.0)
    with serving(slow, place) as address:
        bob = connect(str(address))
        x = bob.send(torch.ones(2))
        slow.seconds = 1.0
        thread = threading.Thread(target=lambda: bob.search("#none"))
        thread.start()
        while not slow.asked > 1:
            time.sleep(0.005)
        slow.seconds = 0.0
        start = time.monotonic()
        assert x.copy().get().tolist() == [1.0, 1.0]
        assert time.monotonic() - start < 0.9
        thread.join()
        bob.close()


def test_many_clients_at_once(place: Address) -> None:
    worker = Worker("bob")
    with serving(worker, place) as address:
        handles = [connect(str(address), client=f"c{i}") for i in range(20)]
        mine = [h.send(torch.full((2,), float(i))) for i, h in enumerate(handles)]
        assert [x.get().tolist() for x in mine] == [[float(i)] * 2 for i in range(20)]
        for handle in handles:
            handle.close()


# -- what is posted ------------------------------------------------------------------------------------------


def search(number: int, session: int = 1) -> bytearray:
    return encode(Request("ann", session, number, 0, (), Search(("#none",))))


def get(number: int, id: int) -> bytearray:
    return encode(Request("ann", 1, number, 0, (), Get((id,), False)))


def put(number: int, id: int, tensor: torch.Tensor) -> Frame:
    return encode_pieces(Request("ann", 1, number, 0, (), Put((PutItem(id, Slot(0)),))), [tensor])


def values(reply: bytearray | memoryview) -> list[torch.Tensor]:
    message, tensors = decode(reply)
    assert isinstance(message, Reply)
    assert isinstance(message.body, Values)
    return tensors


def test_replies_that_nobody_reads_hold_up_no_frames_that_are_sent(place: Address) -> None:
    """Neither end can send before the other reads: large frames one way, large replies the other."""
    x = torch.randn(700_000)
    with serving(Worker("bob"), place) as address, channel_to(address, timeout=60.0) as channel:
        channel.call(put(1, 1, x))
        tickets = []
        for number in range(2, 22, 2):
            tickets.append(channel.post(get(number, 1)))
            channel.post(put(number + 1, number, x))
        assert [ticket.reply()[:8] for ticket in tickets]
        for ticket in tickets[::-1]:
            assert torch.equal(values(ticket.reply())[0], x)


def test_frames_of_many_sizes_come_back_as_they_went(place: Address) -> None:
    edges = (2**10, 2**14, 2**16, 2**18, 2**20)
    sizes = [size + more for size in edges for more in (-40, -34, -33, -32, 0, 1)]
    with serving(Worker("bob"), place) as address, channel_to(address) as channel:
        for number, size in enumerate(sizes):
            x = torch.randint(0, 255, (size,), dtype=torch.uint8)
            sent = channel.post(put(2 * number + 1, number + 1, x))
            back = channel.post(get(2 * number + 2, number + 1))
            assert torch.equal(values(back.reply())[0], x)
            assert sent.reply()


def test_a_frame_of_very_many_parts(place: Address) -> None:
    tensors = [torch.full((3,), float(i)) for i in range(3000)]
    items = tuple(PutItem(i + 1, Slot(i)) for i in range(len(tensors)))
    with serving(Worker("bob"), place) as address, channel_to(address) as channel:
        channel.call(encode_pieces(Request("ann", 1, 1, 0, (), Put(items)), tensors))
        for i in (0, 511, 512, 1023, 2999):
            assert torch.equal(values(channel.call(get(i + 2, i + 1)))[0], tensors[i])


# -- deadlines, breaks, the end ------------------------------------------------------------------------------


def test_a_call_without_a_reply_is_given_up(place: Address) -> None:
    slow = Slow(0.0)
    with serving(slow, place) as address:
        bob = connect(str(address), timeout=0.3)
        x = bob.send(torch.ones(2))
        slow.seconds = 1.5
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"'bob'.*0.3 s"):
            bob.search("#none")
        assert time.monotonic() - start < 1.4
        slow.seconds = 0.0
        assert x.get().tolist() == [1.0, 1.0]  # the handle goes on
        bob.close()


@pytest.mark.parametrize("kind", STREAMS)
def test_nobody_there_is_said_soon(kind: str) -> None:
    nowhere = anywhere(kind)
    if not nowhere.path:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            nowhere = Address("127.0.0.1", gone.getsockname()[1])
    with pytest.raises(ConnectionLost, match=f"no worker answers at {nowhere}"):
        connect(str(nowhere), patience=0.2)


def test_a_worker_that_comes_back_is_gone_on_with(place: Address) -> None:
    worker = Worker("bob")
    with serving(worker, place) as address:
        bob = connect(str(address))
        x = bob.send(torch.ones(2))
    with serving(worker, address):
        y = x + 1
        assert y.get().tolist() == [2.0, 2.0]
    bob.close()
    with pytest.raises(ConnectionLost):
        x.get()


def test_another_worker_at_the_same_address_is_not_taken_for_it(place: Address) -> None:
    with serving(Worker("bob"), place) as address:
        bob = connect(str(address), patience=0.5)
        x = bob.send(torch.ones(2))
    with serving(Worker("mallory"), address), pytest.raises(ConnectionLost, match="mallory"):
        x.get()
    bob.close()


def test_a_server_that_closes_lets_what_runs_end(place: Address) -> None:
    slow = Slow(0.0)
    server = listening(slow, place)
    bob = connect(str(server.address), patience=0.2)
    bob.send(torch.ones(1))
    slow.seconds = 0.5
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(bob.search("#none")))
    thread.start()
    while slow.asked < 2:  # the second request runs
        time.sleep(0.005)
    assert server.close(grace=10)
    thread.join()
    assert found == [[]]
    with pytest.raises(ConnectionLost):
        bob.search("#none")
    bob.close()


def test_a_server_that_closes_gives_up_what_runs_too_long(place: Address) -> None:
    slow = Slow(0.0)
    server = listening(slow, place)
    with channel_to(server.address, patience=0.2) as channel:
        slow.seconds = 1.0
        ticket = channel.post(search(1))
        while not server.busy:
            time.sleep(0.005)
        assert not server.close(grace=0.1)
        with pytest.raises(ConnectionLost):
            ticket.reply()
    assert server.close()  # again: nothing is left to end


def test_a_taken_address_is_an_error(place: Address, tmp_path: Path) -> None:
    said = "another worker does" if place.path else "is it taken"
    with serving(Worker("bob"), place) as address, pytest.raises(InputError, match=said):
        listening(Worker("eve"), address)
    with serving(Worker("bob"), address):  # it is free again
        pass


def test_to_close_a_channel_wakes_who_waits(place: Address) -> None:
    slow = Slow(0.0)
    with serving(slow, place) as address, channel_to(address) as channel:
        found: list[Any] = []

        def wait(number: int) -> None:
            try:
                found.append(channel.call(search(number), ordered=False))
            except ConnectionLost as error:
                found.append(error)

        slow.seconds = 2.0
        threads = [threading.Thread(target=wait, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        while slow.asked < 2:
            time.sleep(0.005)
        start = time.monotonic()
        channel.close()
        for thread in threads:
            thread.join()
        assert time.monotonic() - start < 1.5
        assert all(isinstance(each, ConnectionLost) and "closed" in str(each) for each in found)
        with pytest.raises(ConnectionLost, match="closed"):
            channel.call(search(3))


# -- what is too large ---------------------------------------------------------------------------------------


def test_a_frame_that_is_too_large_is_refused_and_the_next_is_not(place: Address) -> None:
    limits = ServerLimits(frame_bytes=2**22)
    with serving(Worker("bob"), place, limits=limits) as address:
        bob = connect(str(address))
        small = bob.send(torch.ones(2))
        for _ in range(3):
            with pytest.raises(LimitError, match=f"at most {2**22} bytes"):
                bob.send(torch.ones(2**22))
        assert small.copy().get().tolist() == [1.0, 1.0]
        bob.close()


def test_frames_of_one_client_are_bounded_together(place: Address) -> None:
    with serving(Worker("bob"), place, limits=ServerLimits(client_bytes=2**22)) as address:
        bob = connect(str(address))
        with pytest.raises(LimitError, match=f"at most {2**22} bytes may be under way at once"):
            bob.send(torch.ones(2**21))
        assert bob.send(torch.ones(2**19)).get().sum() == 2**19
        bob.close()


def bounded(address: Address, limits: WireLimits) -> StreamChannel[Any]:
    """A channel that accepts replies up to a size."""
    if address.path:
        return UnixChannel(address, "ann", limits=limits)
    return GrpcChannel(address, None, words("ann", Role.CLIENT), limits=limits)


def test_a_reply_that_is_too_large_is_an_error_of_its_own(place: Address) -> None:
    with (
        serving(Worker("bob"), place) as address,
        closing(bounded(address, WireLimits(frame_bytes=2**20))) as channel,
    ):
        channel.call(put(1, 1, torch.ones(2**19)))
        before, large, after = (channel.post(frame) for frame in (search(2), get(3, 1), search(4)))
        assert before.reply()
        with pytest.raises(LimitError, match=f"a reply of at most {2**20} bytes"):
            large.reply()
        assert after.reply()


# -- who is there --------------------------------------------------------------------------------------------


def test_a_caller_cannot_send_in_another_name(place: Address) -> None:
    with serving(Worker("bob"), place) as address:
        ann = connect(str(address), client="ann")
        x = ann.send(torch.ones(2))
        eve = connect(str(address), client="eve")
        eve.connection.client = "ann"
        with pytest.raises(PermissionDenied, match="'eve' may not send requests as 'ann'"):
            eve.fetch([x.id], delete=False)
        ann.close()
        eve.close()


def test_streams_of_one_client_are_bounded_and_others_get_in(place: Address) -> None:
    with serving(Worker("bob"), place, limits=ServerLimits(client_streams=2)) as address:
        first = [connect(str(address), client="ann") for _ in range(2)]
        with pytest.raises(ConnectionLost, match="2 streams"):
            connect(str(address), client="ann", patience=0.1)
        ben = connect(str(address), client="ben")
        assert ben.send(torch.ones(1)).get().tolist() == [1.0]
        for handle in (*first, ben):
            handle.close()
