"""Hostile ends of unix sockets: clients that stall, never read, announce much; servers that talk nonsense."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import torch

from planc.errors import LimitError, VersionError
from runtime.channels.address import Address
from runtime.channels.streams.server import Listening
from runtime.channels.unix import framing
from runtime.channels.unix.client import UnixChannel
from runtime.channels.unix.framing import HEAD, Greeting, Welcome
from runtime.errors import ConnectionLost, PermissionDenied
from runtime.messages import Failure, Get, Put, PutItem, Request, Search, Slot
from runtime.wire import WireLimits, encode
from tests.fuzz.test_streams import resident, serving, works
from tests.network.serving import anywhere

GREETING = framing.write_greeting(Greeting("eve", "client"))
SEARCH = encode(Request("ann", 1, 1, 0, (), Search(("#none",))))


class Raw:
    """A connection whose client sends what it likes."""

    def __init__(self, server: Listening, sent: bytes = GREETING) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30.0)
        self.socket.connect(server.address.path)
        self.send(sent)

    def send(self, data: bytes) -> None:
        with suppress(ConnectionError):
            self.socket.sendall(data)

    def heard(self) -> bytes:
        """All that comes, to the end."""
        out = b""
        with suppress(ConnectionResetError):
            while part := self.socket.recv(2**16):
                out += part
        return out

    def close(self) -> None:
        self.socket.close()


def framed(number: int, frame: bytes | bytearray) -> bytes:
    return HEAD.pack(number.to_bytes(8, "little"), len(frame)) + frame


def exactly(sock: socket.socket, nbytes: int) -> bytes:
    """So many bytes.

    Raises:
        ConnectionError: they do not come.
    """
    out = b""
    while len(out) < nbytes:
        part = sock.recv(nbytes - len(out))
        if not part:
            raise ConnectionError("the other end hung up")
        out += part
    return out


def put(tensor: torch.Tensor) -> bytes:
    return framed(0, encode(Request("eve", 1, 1, 0, (), Put((PutItem(1, Slot(0)),))), [tensor]))


def get(number: int) -> bytes:
    return framed(number, encode(Request("eve", 1, number, 0, (), Get((1,), False))))


# -- clients -------------------------------------------------------------------------------------------------


def test_connections_that_stall_hold_up_nobody() -> None:
    with serving("unix") as server, ExitStack() as stack:
        half = framed(1, b"x" * 1000)[:500]
        starts = (b"", b"pl", GREETING[:10], GREETING, GREETING + half[:9], GREETING + half)
        for number in range(120):
            raw = Raw(server, starts[number % len(starts)])
            stack.callback(raw.close)
        works(server.address)


def test_who_does_not_greet_is_cut_off() -> None:
    with serving("unix", greeting=0.3) as server:
        silent, half = Raw(server, b""), Raw(server, GREETING[:20])
        slow = Raw(server, GREETING[:10])
        with suppress(OSError):
            for at in range(10, len(GREETING)):  # a byte now and then is no greeting either
                time.sleep(0.1)
                slow.socket.sendall(GREETING[at : at + 1])
        for raw in (silent, half, slow):
            assert raw.heard() == b""
            raw.close()
        works(server.address)


def test_a_frame_that_does_not_grow_ends_its_connection_and_gives_its_room_back() -> None:
    with serving("unix", patience=0.3, client_bytes=2**30) as server:
        raw = Raw(server, GREETING + HEAD.pack(b"k" * 8, 2**30) + b"x" * 100)
        assert raw.heard().count(b"plancu") == 1  # the welcome, and that is all
        raw.close()
        again = Raw(server, GREETING + HEAD.pack(b"k" * 8, 2**30) + b"x" * 100)
        assert b"under way" not in again.heard()
        again.close()


def test_a_connection_without_frames_stays() -> None:
    with serving("unix", patience=0.1) as server:
        channel = UnixChannel(server.address, "ann")
        time.sleep(0.5)
        assert channel.call(SEARCH)
        assert channel._lanes[0].stream.broken is None
        channel.close()


def test_a_client_that_never_reads_holds_up_neither_others_nor_the_end() -> None:
    with serving("unix") as server:
        raw = Raw(server)
        raw.send(put(torch.ones(10**5)))
        before = resident()
        for number in range(2, 100):
            raw.send(get(number))
        works(server.address)
        assert resident() - before < 64 * 2**20
        started = time.monotonic()
        server.close(grace=2.0)
        assert time.monotonic() - started < 20
        raw.close()


def test_a_client_that_never_reads_is_cut_off() -> None:
    with serving("unix", patience=0.3) as server:
        raw = Raw(server)
        raw.send(put(torch.ones(10**6)))
        raw.send(get(2))
        exactly(raw.socket, 200)  # the welcome, that it was put, and the beginning of what it gets
        until = time.monotonic() + 20
        while server.busy and time.monotonic() < until:
            time.sleep(0.02)
        assert not server.busy
        assert len(raw.heard()) < 4 * 10**6
        raw.close()


def test_frames_that_are_announced_and_never_come_take_no_memory() -> None:
    with serving("unix", client_bytes=2**40) as server, ExitStack() as stack:
        works(server.address)
        before = resident()
        for _ in range(20):
            raw = Raw(server, GREETING + HEAD.pack(b"k" * 8, 8 * 2**30) + b"x" * 100)
            stack.callback(raw.close)
        works(server.address)
        assert resident() - before < 128 * 2**20


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 30,
        HEAD.pack(GREETING[:8], 2**64 - 1) + b"x" * 100,
        HEAD.pack(GREETING[:8], 10) + b"\xc1" * 10,
        HEAD.pack(GREETING[:8], 4000) + b"\x91" * 4000,
    ],
)
def test_what_is_no_greeting_is_answered_by_the_end(data: bytes) -> None:
    with serving("unix") as server:
        raw = Raw(server, data)
        assert raw.heard() == b""
        raw.close()
        works(server.address)


def test_another_version_is_told_which_one_is_spoken() -> None:
    with serving("unix") as server:
        raw = Raw(server, HEAD.pack(b"plancu\7\0", 10) + b"x" * 10)
        answer = framing.read_answer(bytearray(raw.heard()[HEAD.size :]))
        assert isinstance(answer, Failure)
        assert (answer.kind, answer.worker) == ("version", "bob")
        assert "speaks version 7, this one version 1" in answer.message
        raw.close()


# -- servers -------------------------------------------------------------------------------------------------

WELCOME = framing.write_greeting(Welcome("bob", "ann"))


def asked(sock: socket.socket) -> bytes:
    """Let a client in, and hear what it asks: the key of its frame."""
    exactly(sock, HEAD.unpack(exactly(sock, HEAD.size))[1])
    sock.sendall(WELCOME)
    key, length = HEAD.unpack(exactly(sock, HEAD.size))
    exactly(sock, length)
    return key


@contextmanager
def hostile(say: Callable[[socket.socket, int], None]) -> Generator[Address]:
    """A server that says what it likes on each connection; these are counted from 0."""
    place = anywhere("unix")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place.path)
        door.listen()

        def serve() -> None:
            number = 0
            with suppress(OSError):
                while True:
                    sock, _ = door.accept()
                    with sock, suppress(OSError):
                        say(sock, number)
                    number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        yield place
        door.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (b"", ConnectionLost, "no worker answers"),
        (WELCOME[:10], ConnectionLost, "no worker answers"),
        (b"\0" * 100, ConnectionLost, "expected a greeting"),
        (HEAD.pack(WELCOME[:8], 2**63), ConnectionLost, "a greeting has 1 to 4096 bytes"),
        (HEAD.pack(WELCOME[:8], 3) + b"\xc1\xc1\xc1", ConnectionLost, "not a greeting"),
        (HEAD.pack(b"plancu\2\0", 3), VersionError, "speaks version 2"),
        (framing.write_greeting(Failure("permission-denied", "no", "bob")), PermissionDenied, "no"),
        (framing.write_greeting(Failure("version", "old", "bob")), VersionError, "old"),
        (framing.write_greeting(Failure("limit", "too many", "bob")), ConnectionLost, "too many"),
    ],
)
def test_greetings_of_a_server_that_is_none(answer: bytes, error: type[Exception], said: str) -> None:
    with (
        hostile(lambda sock, _: sock.sendall(answer)) as address,
        pytest.raises(error, match=said),
    ):
        UnixChannel(address, "ann", patience=0.1)


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.channels.unix.client._GREETING", 0.5)
    with (
        hostile(lambda sock, _: time.sleep(2.0)) as address,
        pytest.raises(ConnectionLost, match="no worker answers"),
    ):
        UnixChannel(address, "ann", patience=0.1)


@pytest.mark.parametrize(
    "reply",
    [
        framed(2**64 - 1, b"x" * 10),  # to nothing that was asked
        framed(7, b"x" * 10) + framed(7, b"x" * 10),
        HEAD.pack(b"\0" * 8, 0),
        HEAD.pack(b"\0" * 8, 100) + b"x" * 10,  # and no more
        b"\xff" * 1000,
        b"abc",
    ],
)
def test_replies_that_are_none_break_the_connection_and_in_the_end_the_call(reply: bytes) -> None:
    def say(sock: socket.socket, number: int) -> None:
        asked(sock)
        sock.sendall(reply)

    with hostile(say) as address:
        channel = UnixChannel(address, "ann", timeout=30.0)
        with pytest.raises(ConnectionLost, match="broke 8 times"):
            channel.call(SEARCH)
        channel.close()


@pytest.mark.parametrize("length", [2**20 + 1, 2**63, 2**64 - 1])
def test_replies_that_are_announced_too_large_are_errors_at_once(length: int) -> None:
    def say(sock: socket.socket, number: int) -> None:
        sock.sendall(HEAD.pack(asked(sock), length) + b"x")

    with hostile(say) as address:
        channel = UnixChannel(address, "ann", timeout=30.0, limits=WireLimits(frame_bytes=2**20))
        with pytest.raises(LimitError, match=f"got {length}"):
            channel.call(SEARCH)
        channel.close()


def test_memory_that_is_not_there_for_a_reply_is_an_error_of_its_own() -> None:
    def say(sock: socket.socket, number: int) -> None:
        sock.sendall(HEAD.pack(asked(sock), 2**62) + b"x")

    with hostile(say) as address:
        channel = UnixChannel(address, "ann", timeout=30.0, limits=WireLimits(frame_bytes=2**63))
        with pytest.raises(LimitError, match="no room"):
            channel.call(SEARCH)
        channel.close()
