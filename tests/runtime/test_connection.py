"""Connections and the worker's edge: exact counts, threads that do not cross, typed errors, garbage."""

import threading
from types import UnionType
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planc import errors as planc_errors
from planc.errors import DecodeError, InputError, PlancError
from runtime import errors
from runtime.channels import Connection, InProcessChannel
from runtime.counting import count_messages
from runtime.errors import ConnectionLost, InternalError, WorkerError, to_error, to_failure
from runtime.handlers import HANDLERS
from runtime.messages import (
    Apply,
    Body,
    Done,
    Failure,
    Get,
    Handle,
    List,
    Put,
    PutItem,
    Reply,
    Request,
    Slot,
    Transfer,
    Values,
)
from runtime.wire import decode, encode
from runtime.worker import Worker
from tests.runtime.helpers import connect, get, new_id, put

BODIES: tuple[type, ...] = get_args(Body)


def test_every_message_has_its_handler_and_its_name() -> None:
    assert isinstance(Body, UnionType)
    assert set(HANDLERS) == set(BODIES)
    assert len(BODIES) > 15


def test_messages_and_bytes_are_counted_exactly() -> None:
    class Measuring(InProcessChannel):
        def __init__(self, worker: Worker) -> None:
            super().__init__(worker)
            self.sizes: list[tuple[int, int]] = []

        def call(self, frame: bytearray) -> bytearray:
            reply = super().call(frame)
            self.sizes.append((len(frame), len(reply)))
            return reply

    channel = Measuring(Worker("bob"))
    me = Connection(channel, "me")
    put(me, torch.ones(1))
    with count_messages() as sent:
        id = put(me, torch.ones(1000))
        with count_messages() as inner:
            get(me, id)
            with pytest.raises(WorkerError):
                get(me, 404)
        me.release(id)
    put(me, torch.ones(1))
    assert (sent.messages, sent.by_kind) == (3, {"Put": 1, "Get": 2})
    assert (inner.messages, inner.by_kind) == (2, {"Get": 2})
    _, putting, getting, failing, _ = channel.sizes
    assert (sent.bytes_out, sent.bytes_in) == (
        putting[0] + getting[0] + failing[0],
        putting[1] + getting[1] + failing[1],
    )
    assert (inner.bytes_out, inner.bytes_in) == (getting[0] + failing[0], getting[1] + failing[1])
    assert 4000 < putting[0] < 4300
    assert 4000 < getting[1] < 4300
    assert putting[1] < 100


def test_what_workers_send_to_each_other_is_counted_apart() -> None:
    alice = Worker("alice")
    bob = Worker("bob", peers=lambda _: InProcessChannel(alice))
    me = connect(bob)
    id = put(me, torch.ones(1000))
    with count_messages() as sent:
        me.call(Transfer((id,), "alice", (id,)))
    assert (sent.messages, sent.peer_messages) == (1, 1)
    assert sent.by_kind == {"Transfer": 1, "Put": 1}
    assert sent.bytes_out + sent.bytes_in < 500
    assert sent.peer_bytes > 4000


def test_threads_share_a_worker_and_a_connection_without_crossing() -> None:
    bob = Worker("bob")
    shared = connect(bob)
    failures: list[object] = []
    rounds, width = 40, 16

    def work(number: int) -> None:
        try:
            me = shared if number % 2 else connect(bob, f"client{number}")
            for i in range(rounds):
                tag = float(number * 1000 + i)
                id, out = new_id() * width + number, new_id() * width + number
                me.call(Put((PutItem(id, Slot(0)),)), [torch.full((7,), tag)])
                me.call(Apply("aten.add", (Handle(id), 0.5), {}, (out,)))
                (value,) = get(me, out)
                if value.tolist() != [tag + 0.5] * 7:
                    failures.append((number, i, value))
                me.release(id)
                me.release(out)
            me.call(List())
        except BaseException as error:
            failures.append(error)

    with count_messages() as sent:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(width)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        shared.call(List())
    assert failures == []
    assert sent.messages == width * (3 * rounds + 1) + 1
    assert len(bob) == 0
    assert bob.nbytes == 0


def concrete(root: type[Exception]) -> list[type[Exception]]:
    return [root, *(cls for sub in root.__subclasses__() for cls in concrete(sub))]


@pytest.mark.parametrize("cls", concrete(WorkerError), ids=lambda cls: cls.__name__)
def test_every_worker_error_comes_back_as_itself(cls: type[WorkerError]) -> None:
    failure = to_failure(cls("it went wrong", plan_id="p", node=3, op="aten.add"), "bob")
    error = to_error(failure)
    assert type(error) is cls
    assert (error.message, error.worker, error.plan_id, error.node, error.op) == (
        "it went wrong",
        "bob",
        "p",
        3,
        "aten.add",
    )
    assert str(error) == "worker 'bob': it went wrong"


@pytest.mark.parametrize(
    "name",
    ["PlanError", "TypeCheckError", "VerifyError", "LimitError", "DecodeError", "VersionError", "InputError"],
)
def test_errors_of_planc_come_back_as_such_and_as_worker_errors(name: str) -> None:
    cls = getattr(planc_errors, name)
    error = to_error(to_failure(cls("expected this, got that"), "bob"))
    assert type(error) is getattr(errors, f"Remote{name}")
    assert isinstance(error, cls)
    assert isinstance(error, WorkerError)
    assert error.worker == "bob"
    assert "expected this, got that" in str(error)


def test_unexpected_errors_and_unknown_kinds_say_nothing_they_should_not() -> None:
    for error in (ValueError("/home/bob/secret 42"), planc_errors.ExecutionError("index 42")):
        failure = to_failure(error, "bob")
        assert failure.kind == "internal"
        assert "42" not in failure.message
        assert type(error).__name__ in failure.message
    assert type(to_error(Failure("from-the-future", "new", "bob"))) is WorkerError


def test_a_fault_of_the_worker_is_an_internal_error_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret 42")

    monkeypatch.setitem(HANDLERS, List, broken)
    with pytest.raises(InternalError) as caught:
        connect(Worker("bob")).call(List())
    assert "42" not in str(caught.value)
    assert "ZeroDivisionError" in caplog.text


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_answered_with_a_failure(data: bytes) -> None:
    message, _ = decode(Worker("bob").handle_frame(data))
    assert isinstance(message, Reply)
    assert isinstance(message.body, Failure)
    assert message.body.kind in ("decode", "limit", "version")
    assert message.body.worker == "bob"


def test_a_damaged_request_is_answered_and_harms_nobody() -> None:
    bob = Worker("bob")
    me = connect(bob)
    id = put(me, torch.ones(3))
    frame = encode(Request("eve", 1, 1, 0, (), Get((1, 2, 3))), [torch.ones(2)])
    for position in range(len(frame)):
        for bit in (1, 128):
            bad = bytearray(frame)
            bad[position] ^= bit
            message, _ = decode(bob.handle_frame(bad))
            assert isinstance(message, Reply)
    assert get(me, id)[0].tolist() == [1.0] * 3


def test_a_reply_sent_as_a_request_and_the_other_way_round_are_refused() -> None:
    message, _ = decode(Worker("bob").handle_frame(encode(Reply(1, Done()))))
    assert isinstance(message, Reply)
    assert isinstance(message.body, Failure)
    assert "expected a request" in message.body.message

    class Mirror(InProcessChannel):
        def call(self, frame: bytearray) -> bytearray:
            return frame

    with pytest.raises(DecodeError, match="expected a reply"):
        Connection(Mirror(Worker("bob")), "me").call(List())


def test_a_reply_to_another_request_is_refused() -> None:
    class Crossing(InProcessChannel):
        def call(self, frame: bytearray) -> bytearray:
            return encode(Reply(77, Done()))

    with pytest.raises(ConnectionLost, match="request 77"):
        Connection(Crossing(Worker("bob")), "me").call(List())


def test_a_reply_that_means_more_tensors_than_came_is_refused() -> None:
    class Lying(InProcessChannel):
        def call(self, frame: bytearray) -> bytearray:
            return encode(Reply(1, Values((Slot(3),))))

    with pytest.raises(DecodeError, match="more than the 0 tensors"):
        Connection(Lying(Worker("bob")), "me").values(Get((1,)))


def test_what_cannot_be_sent_is_said_and_spoils_nothing() -> None:
    me = connect(Worker("bob"))
    me.release(5)
    with pytest.raises(InputError, match="complex"):
        put(me, torch.ones(1, dtype=torch.complex64))
    assert me.pending_releases == 1
    with pytest.raises(PlancError):
        put(me, torch.ones(1), description="\ud800")
    assert get(me, put(me, torch.ones(1)))


def test_a_closed_channel_is_lost() -> None:
    me = connect(Worker("bob"))
    me.close()
    with pytest.raises(ConnectionLost) as caught:
        me.call(List())
    assert caught.value.worker == "bob"


def test_memory_is_flat_over_many_operations() -> None:
    bob = Worker("bob")
    me = connect(bob)
    x = put(me, torch.ones(10))
    for _ in range(300):
        id = new_id()
        me.call(Apply("aten.add", (Handle(x), 1), {}, (id,)))
        me.release(id)
    assert len(bob) == 2
    assert bob.nbytes == 80
    (session,) = bob._replays._clients["me"].values()
    assert len(session.replies) == 1
