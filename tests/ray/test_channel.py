"""What needs no running Ray: the channel's order, deadlines and repeats; payloads, addresses, arguments."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions as failures
import torch

from planc.errors import InputError
from runtime.channels.ray import RayCluster, session
from runtime.channels.ray import channel as channels
from runtime.channels.ray.channel import RayChannel, why
from runtime.channels.ray.payload import gather, pack, spread, unpack
from runtime.errors import ConnectionLost, DeadlineExceeded
from runtime.messages import Free, Request
from runtime.wire import Pieces, decode, encode_frame


class Actor:
    """Answers in the caller's thread, by functions that the test gives: one a call, the last for ever."""

    def __init__(self, *answers: Callable[[Any], Any]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Callable[[], Any]:
            (payload,) = arguments
            self.calls.append((name, payload))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            return lambda: answer(payload)

        return type("Method", (), {"remote": staticmethod(remote)})


def echo(payload: Any) -> Any:
    return payload


def fails(error: Exception) -> Callable[[Any], Any]:
    def answer(payload: Any) -> Any:
        raise error

    return answer


DIED = failures.ActorDiedError()
AWAY = failures.ActorUnavailableError("no route", None)


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels.ray, "get", lambda ref, timeout=None: ref())
    monkeypatch.setattr(channels.ray, "is_initialized", lambda: True)


def channel(actor: Actor, **options: Any) -> RayChannel:
    return RayChannel(lambda: actor, "bob", **options)


def test_what_is_posted_keeps_its_order_and_goes_in_few_calls() -> None:
    first, blocked = threading.Event(), threading.Event()

    def slow(payload: Any) -> Any:
        first.set()
        blocked.wait()
        return payload

    actor = Actor(slow, echo)
    way = channel(actor)
    tickets = [way.post(bytearray([0]))]
    first.wait()
    tickets += [way.post(bytearray([i])) for i in range(1, 10)]
    last: list[Any] = []
    caller = threading.Thread(target=lambda: last.append(way.call(bytearray([10]))))
    caller.start()
    assert way.call(bytearray([99]), ordered=False) == bytearray([99])  # waits for nothing
    while len(way._queue) < 10:
        pass
    blocked.set()
    caller.join()
    assert [bytes(ticket.reply()) for ticket in tickets] == [bytes([i]) for i in range(10)]
    assert last == [bytearray([10])]
    posted = [call for call in actor.calls if call[0] == "exchange_all"]
    assert posted == [("exchange_all", [bytes([0])]), ("exchange_all", [bytes([i]) for i in range(1, 11)])]
    assert way.call(bytearray([7])) == bytearray([7])
    assert actor.calls[-1] == ("exchange", bytes([7]))


def test_who_cannot_be_reached_is_asked_again() -> None:
    actor = Actor(fails(AWAY), fails(AWAY), echo)
    assert channel(actor).call(bytearray(b"x")) == bytearray(b"x")
    assert len(actor.calls) == 3
    with pytest.raises(ConnectionLost, match=r"worker 'bob': it cannot be reached: .*no route"):
        channel(Actor(fails(AWAY)), patience=0.1).call(bytearray(b"x"))


def test_a_dead_actor_is_asked_no_more_unless_another_took_its_place() -> None:
    dead, lost = Actor(fails(DIED)), []
    way = channel(dead, lost=lambda: lost.append(True))
    tickets = [way.post(bytearray(b"x"))]
    with pytest.raises(ConnectionLost, match="worker 'bob': it is gone"):
        tickets[0].reply()
    for _ in range(2):
        with pytest.raises(ConnectionLost, match=r"RayCluster\.replace"):
            way.call(bytearray(b"x"))
    assert len(dead.calls) == 1
    assert lost == [True]
    assert way.lost == "ActorDiedError"

    new = Actor(echo)
    order: list[Actor] = [dead, new]
    peer = RayChannel(lambda: order.pop(0) if len(order) > 1 else new, "bob", peer=True)
    assert peer.call(bytearray(b"y")) == bytearray(b"y")
    assert [name for name, _ in new.calls] == ["exchange_peer"]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (failures.GetTimeoutError(), DeadlineExceeded, r"no reply came within 0\.1 s"),
        (failures.ObjectStoreFullError("full"), ConnectionLost, "Ray failed: full"),
        (failures.RaySystemError(ValueError("odd")), ConnectionLost, "Ray failed: .*odd"),
    ],
)
def test_failures_of_ray_are_typed(error: Exception, kind: type[ConnectionLost], said: str) -> None:
    way = channel(Actor(fails(error)), timeout=0.1)
    for ask in (way.call, lambda frame: way.post(frame).reply()):
        with pytest.raises(kind, match=said) as caught:
            ask(bytearray(b"x"))
        assert type(caught.value) is kind
        assert caught.value.worker == "bob"


def test_a_closed_channel_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Actor(echo)
    closed = channel(actor)
    closed.close()
    without = channel(actor)
    for way, there in ((closed, True), (without, False)):
        monkeypatch.setattr(channels.ray, "is_initialized", lambda there=there: there)
        with pytest.raises(ConnectionLost, match="the channel is closed"):
            way.call(bytearray(b"x"))
    assert actor.calls == []


def test_the_reason_of_a_death_is_one_line() -> None:
    class Verbose(failures.RayActorError):
        def __str__(self) -> str:
            return (
                "The actor died unexpectedly before finishing this task.\n\tpid: 17\n"
                "Its worker process has died. There are some potential root causes. (1) memory (2) ray stop"
            )

    assert why(Verbose()) == "Its worker process has died"


@pytest.mark.parametrize(
    "sizes", [[3], [20_000], [60_000], [300_000], [300_000, 3, 3, 200_000, 5], [2] * 3000, [300] * 200]
)
def test_a_frame_comes_out_as_it_went_in(sizes: Sequence[int]) -> None:
    tensors = [torch.randn(size) for size in sizes]
    frame = encode_frame(Request("me", 1, 1, 0, (), Free(())), tensors)
    payload = pack(frame)
    whole = frame.join() if isinstance(frame, Pieces) else frame
    assert isinstance(payload, bytes) == (len(frame) <= 2**16)
    if not isinstance(payload, bytes):
        assert len(payload) < 10  # what is small is put together
    arguments = spread(payload)
    assert (len(arguments) > 1) == (96 * 2**10 < len(frame) <= 2**19)
    assert all(len(part) <= 96 * 2**10 for part in arguments) or len(arguments) == 1
    out = unpack(gather(arguments))
    assert bytes(out) == bytes(whole)
    _, back = decode(out)
    for one, two in zip(back, tensors, strict=True):
        assert torch.equal(one, two)
        one.zero_()


@pytest.mark.parametrize(
    "address", ["", "nonsense", "ray://host:10001", "host:port", "host:0", ":6379", "h:٣"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"expected None .* 'auto', or 'host:port'"):
        session._check(address)


def test_an_address_where_nobody_listens_fails_at_once() -> None:
    with pytest.raises(ConnectionLost, match=r"no Ray cluster answers at '127\.0\.0\.1:1'"):
        session._check("127.0.0.1:1")


@pytest.mark.parametrize(
    ("free", "wanted", "options"),
    [
        (2**30, None, {}),
        (2**30, 2**27, {"object_store_memory": 2**27}),
        (2**26, None, {"object_store_memory": 2**30, "_plasma_directory": "folder"}),
        (2**26, 2**27, {"object_store_memory": 2**27, "_plasma_directory": "folder"}),
        (0, None, {"object_store_memory": 2**30, "_plasma_directory": "folder"}),
    ],
)
def test_little_shared_memory_is_no_trouble(
    free: int, wanted: int | None, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_shared_memory", lambda: free)
    assert session.storage(Path("folder"), wanted) == options


def test_folders_for_sockets_have_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(session.tempfile, "gettempdir", lambda: str(long))
    folder = session._new_folder()
    folder.rmdir()
    assert len(str(folder)) <= session._LONGEST + 13


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "expected at least one worker"),
        ({"workers": ["a", "a"]}, "expected at least one worker, or ids that differ"),
        ({"placement": "NEAR"}, "placement is one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD, or None"),
        ({"resources": {"CPU": 0}}, "expected more than 0 of 'CPU', got 0"),
        ({"device": "cuda", "resources": {"CPU": 1}}, "device 'cuda' needs resources with a 'GPU'"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RayCluster(**options)


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"the extra 'ray' \(ray is missing\): pip install 'planc\[ray\]'"):
        RayCluster(workers=1)
