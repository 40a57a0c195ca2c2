"""One channel over real gRPC: order, pipelining, deadlines, breaks, many callers, and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from planc.errors import InputError
from runtime import WorkerHandle, connect, count_messages
from runtime.channels.grpc import callers, chunks
from runtime.channels.grpc.address import Address, parse, parse_listen
from runtime.channels.grpc.server import Listening, ServerLimits
from runtime.errors import ConnectionLost, DeadlineExceeded, PermissionDenied, RequestSkipped, WorkerError
from runtime.identity import Identity, Role
from runtime.security.credentials import server_credentials
from runtime.security.tls import grpc
from runtime.wire import Frame
from runtime.worker import Worker
from tests.network.serving import certificate, tls


@contextmanager
def serving(worker: Any, path: Path, **options: Any) -> Generator[str]:
    listening = Listening(worker, Address(path=str(path / "s")), callers.by_their_word, **options)
    try:
        yield str(listening.address)
    finally:
        listening.close()


@pytest.fixture
def bob(tmp_path: Path) -> Generator[WorkerHandle]:
    with serving(Worker("bob"), tmp_path) as address:
        handle = connect(address, client="ann")
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


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grpc://localhost:70", Address("localhost", 70)),
        ("grpcs://bob.example:7000/", Address("bob.example", 7000, secure=True)),
        ("grpc://[::1]:5", Address("::1", 5)),
        ("unix:/tmp/x", Address(path="/tmp/x")),
        ("unix:///tmp/x", Address(path="/tmp/x")),
    ],
)
def test_addresses_are_read_and_written(text: str, expected: Address) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["bob:70", "grpc://bob", "grpc://bob:0", "grpc://:70", "grpc://b:70000", "grpc://::1:5", "unix:", ""],
)
def test_what_is_no_address_says_what_one_is(text: str) -> None:
    with pytest.raises(InputError, match=r"expected|write"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "local"),
    [("127.0.0.1:0", True), ("localhost:1", True), ("[::1]:1", True), ("0.0.0.0:1", False), ("h:1", False)],
)
def test_whether_others_can_reach_it(text: str, local: bool) -> None:
    assert parse_listen(text, secure=False).local is local


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


def test_a_long_call_does_not_hold_up_others(tmp_path: Path) -> None:
    slow = Slow(0.0)
    with serving(slow, tmp_path) as address:
        bob = connect(address)
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


def test_many_clients_at_once(tmp_path: Path) -> None:
    worker = Worker("bob")
    with serving(worker, tmp_path) as address:
        handles = [connect(address, client=f"c{i}") for i in range(20)]
        mine = [h.send(torch.full((2,), float(i))) for i, h in enumerate(handles)]
        assert [x.get().tolist() for x in mine] == [[float(i)] * 2 for i in range(20)]
        for handle in handles:
            handle.close()


# -- deadlines, breaks, the end ------------------------------------------------------------------------------


def test_a_call_without_a_reply_is_given_up(tmp_path: Path) -> None:
    slow = Slow(0.0)
    with serving(slow, tmp_path) as address:
        bob = connect(address, timeout=0.3)
        x = bob.send(torch.ones(2))
        slow.seconds = 1.5
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"'bob'.*0.3 s"):
            bob.search("#none")
        assert time.monotonic() - start < 1.4
        slow.seconds = 0.0
        assert x.get().tolist() == [1.0, 1.0]  # the handle goes on
        bob.close()


def test_nobody_there_is_said_soon(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match="no worker answers at unix:"):
        connect(f"unix:{tmp_path}/none", patience=0.2)


def test_a_worker_that_comes_back_is_gone_on_with(tmp_path: Path) -> None:
    worker = Worker("bob")
    with serving(worker, tmp_path) as address:
        bob = connect(address)
        x = bob.send(torch.ones(2))
    with serving(worker, tmp_path):
        y = x + 1
        assert y.get().tolist() == [2.0, 2.0]
    bob.close()
    with pytest.raises(ConnectionLost):
        x.get()


def test_another_worker_at_the_same_address_is_not_taken_for_it(tmp_path: Path) -> None:
    with serving(Worker("bob"), tmp_path) as address:
        bob = connect(address, patience=0.5)
        x = bob.send(torch.ones(2))
    with serving(Worker("mallory"), tmp_path), pytest.raises(ConnectionLost, match="mallory"):
        x.get()
    bob.close()


class Cutting(Listening):
    """A server that breaks a stream in the middle of a frame or of a reply, a number of times."""

    def __init__(self, worker: Worker, path: Path) -> None:
        self.cuts = 0
        self.seen: list[tuple[str, int]] = []
        super().__init__(worker, Address(path=str(path)), callers.by_their_word)

    def _session(self, messages: Iterator[bytes], context: Any) -> Generator[bytes]:
        for sent, reply in enumerate(super()._session(self._cut(messages, context), context), 1):
            if sent == 4 and len(reply) > 1000 and self.cuts > 0:
                self.cuts -= 1
                self.seen.append(("reply", next(iter(chunks.read(reply))).offset))
                context.cancel()
                return
            yield reply

    def _cut(self, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for number, message in enumerate(messages):
            yield message
            if number == 3 and len(message) > 1000 and self.cuts > 0:
                self.cuts -= 1
                self.seen.append(("frame", next(iter(chunks.read(message))).offset))
                context.cancel()
                return


def test_a_large_transfer_goes_on_where_it_broke(tmp_path: Path) -> None:
    worker = Worker("bob")
    server = Cutting(worker, tmp_path / "s")
    bob = connect(str(server.address))
    x = torch.randn(10 * chunks.CHUNK // 4)
    server.cuts = 3
    remote = bob.send(x)
    assert server.cuts == 0
    server.cuts = 3
    assert torch.equal(remote.get(), x)
    kinds = [kind for kind, _ in server.seen]
    assert kinds == ["frame"] * 3 + ["reply"] * 3
    for kind in ("frame", "reply"):
        offsets = [offset for k, offset in server.seen if k == kind]
        assert offsets == sorted(set(offsets))  # each time further on
    bob.close()
    server.close()


def test_a_server_that_closes_lets_what_runs_end(tmp_path: Path) -> None:
    slow = Slow(0.0)
    listening = Listening(slow, Address(path=str(tmp_path / "s")), callers.by_their_word)
    bob = connect(str(listening.address), patience=0.2)
    bob.send(torch.ones(1))
    slow.seconds = 0.5
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(bob.search("#none")))
    thread.start()
    while slow.asked < 2:  # the second request runs
        time.sleep(0.005)
    assert listening.close(grace=10)
    thread.join()
    assert found == [[]]
    with pytest.raises(ConnectionLost):
        bob.search("#none")
    bob.close()


def test_a_taken_address_is_an_error(tmp_path: Path) -> None:
    with serving(Worker("bob"), tmp_path), pytest.raises(InputError, match="another worker does"):
        Listening(Worker("eve"), Address(path=str(tmp_path / "s")), callers.by_their_word)
    tcp = Listening(Worker("bob"), Address("127.0.0.1", 0), callers.by_their_word)
    with pytest.raises(InputError, match="is it taken"):
        Listening(Worker("eve"), tcp.address, callers.by_their_word)
    tcp.close()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="no socket"):
        Listening(Worker("eve"), Address(path=str(tmp_path / "file")), callers.by_their_word)
    assert (tmp_path / "file").read_text() == "precious"


# -- who is there --------------------------------------------------------------------------------------------


def test_a_caller_cannot_send_in_another_name(tmp_path: Path) -> None:
    with serving(Worker("bob"), tmp_path) as address:
        ann = connect(address, client="ann")
        x = ann.send(torch.ones(2))
        eve = connect(address, client="eve")
        eve.connection.client = "ann"
        with pytest.raises(PermissionDenied, match="'eve' may not send requests as 'ann'"):
            eve.fetch([x.id], delete=False)
        ann.close()
        eve.close()


def test_the_certificate_says_who_calls(tmp_path: Path) -> None:
    worker = Worker("bob")
    credentials = server_credentials(*certificate(Role.WORKER, "bob"), tls(Role.CLIENT, "ann").ca)
    server = Listening(worker, Address("127.0.0.1", 0), callers.by_certificate, credentials)
    ann = connect(str(server.address), tls=tls(Role.CLIENT, "ann"), worker="bob")
    assert ann.connection.client == "ann"
    assert ann.send(torch.ones(1)).get().tolist() == [1.0]
    with pytest.raises((ConnectionLost, InputError)):
        connect(str(server.address), tls=tls(Role.CLIENT, "ann"), worker="alice", patience=0.2)
    ann.close()
    server.close()


def test_streams_of_one_client_are_bounded_and_others_get_in(tmp_path: Path) -> None:
    with serving(Worker("bob"), tmp_path, limits=ServerLimits(client_streams=2)) as address:
        first = [connect(address, client="ann") for _ in range(2)]
        with pytest.raises(ConnectionLost, match="2 streams"):
            connect(address, client="ann", patience=0.1)
        ben = connect(address, client="ben")
        assert ben.send(torch.ones(1)).get().tolist() == [1.0]
        for handle in (*first, ben):
            handle.close()


def test_another_version_is_refused(tmp_path: Path) -> None:
    with serving(Worker("bob"), tmp_path) as address, grpc.insecure_channel(address) as raw:
        call = raw.stream_stream(f"/{chunks.SERVICE}/{chunks.METHOD}")(
            iter(()), metadata=((chunks.VERSION_KEY, "99"), (chunks.CLIENT_KEY, "ann"))
        )
        with pytest.raises(grpc.RpcError, match="99"):
            list(call)
