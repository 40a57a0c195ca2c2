"""What is said on a unix socket: greetings, frames, and nothing else, however the bytes arrive."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planc.errors import DecodeError, InputError, LimitError, VersionError
from runtime.channels.unix import framing
from runtime.channels.unix.framing import BUFFER, HEAD, Greeting, GreetingIntake, Reader, Welcome
from runtime.messages import Failure
from runtime.wire import Pieces

_AT_ONCE = 2**17
"""Bytes that a socket takes before it is read."""


class Anything:
    """Lets everything in up to a size."""

    def __init__(self, limit: int = 2**40) -> None:
        self.limit = limit
        self.asked: list[int] = []

    def admit(self, key: bytes, length: int) -> None:
        if length > self.limit:
            raise LimitError("too large")

    def allocate(self, key: bytes, length: int) -> bytearray:
        self.asked.append(length)
        return bytearray(length)


def read(parts: Sequence[bytes], intake: framing.Intake | None = None) -> list[tuple[bytes, bytes]]:
    """The messages that come out when the parts arrive one after another."""
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        reader, found = Reader(there), list[tuple[bytes, bytes]]()
        for part in parts:
            while part:
                part = part[here.send(part[:_AT_ONCE]) :]
                with suppress(BlockingIOError):
                    while True:
                        reader.receive()
                        found += taken(reader, intake or Anything())
        return found


def taken(reader: Reader, intake: framing.Intake) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    while (message := reader.take(intake)) is not None:
        found.append((message[0], bytes(message[1])))
    return found


def message(number: int, body: bytes) -> tuple[bytes, bytes]:
    return number.to_bytes(8, "little"), body


_SIZES = st.one_of(
    st.integers(1, 60),
    st.sampled_from([BUFFER - 17, BUFFER - 16, BUFFER - 15, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER]),
)


@given(st.lists(_SIZES, min_size=1, max_size=6), st.lists(st.integers(1, 2 * BUFFER), max_size=6))
def test_frames_come_out_whole_wherever_their_bytes_are_cut(sizes: list[int], cuts: list[int]) -> None:
    sent = [message(i, bytes([i + 1]) * size) for i, size in enumerate(sizes)]
    stream = b"".join(HEAD.pack(key, len(body)) + body for key, body in sent)
    parts, at = [], 0
    for cut in cuts:
        parts.append(stream[at : at + cut])
        at += cut
    parts.append(stream[at:])
    assert read([part for part in parts if part]) == sent


def test_byte_by_byte() -> None:
    sent = [message(1, b"abc"), message(2, b"d")]
    stream = b"".join(HEAD.pack(key, len(body)) + body for key, body in sent)
    assert read([stream[i : i + 1] for i in range(len(stream))]) == sent


def test_memory_is_asked_for_only_after_a_frame_was_let_in() -> None:
    intake = Anything(limit=10 * BUFFER)
    head = HEAD.pack(b"k" * 8, 10 * BUFFER)
    assert read([head], intake) == []
    assert intake.asked == [10 * BUFFER]
    with pytest.raises(LimitError):
        read([HEAD.pack(b"k" * 8, 2**63)], intake)
    assert intake.asked == [10 * BUFFER]


def test_the_end_of_the_stream_is_an_error() -> None:
    here, there = socket.socketpair()
    with there:
        reader = Reader(there)
        assert not reader.midway
        here.sendall(b"abc")
        reader.receive()
        assert reader.midway
        here.close()
        with pytest.raises(ConnectionError, match="hung up"):
            reader.receive()


def test_a_frame_in_parts_is_sent_as_a_whole() -> None:
    here, there = socket.socketpair()
    with here, there:
        parts = [memoryview(bytes([i % 256]) * (i % 3)) for i in range(2000)]
        frame = Pieces(parts)
        framing.send(here, b"k" * 8, frame, 0, pytest.fail)
        reader, found = Reader(there), list[tuple[bytes, bytes]]()
        while not found:
            reader.receive()
            found = taken(reader, Anything())
        assert found == [(b"k" * 8, bytes(frame.join()))]


# -- greetings -----------------------------------------------------------------------------------------------


def heard(data: bytes) -> bytes:
    return read([data], GreetingIntake())[0][1]


@pytest.mark.parametrize("said", [Welcome("bob", "ann"), Failure("limit", "too many", "bob")])
def test_answers_are_read_as_they_were_written(said: Welcome | Failure) -> None:
    assert framing.read_answer(bytearray(heard(framing.write_greeting(said)))) == said


def test_greetings_are_read_as_they_were_written() -> None:
    said = Greeting("ann", "client")
    assert framing.read_greeting(bytearray(heard(framing.write_greeting(said)))) == said


@pytest.mark.parametrize("name", ["x" * 5000, "\ud800"])
def test_names_that_cannot_be_sent(name: str) -> None:
    with pytest.raises(InputError, match="name"):
        framing.write_greeting(Greeting(name, "client"))


@pytest.mark.parametrize(
    "head",
    [
        HEAD.pack(b"\0" * 8, 10),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",  # what gRPC begins with
        HEAD.pack(b"plancu\1\0", 0),
        HEAD.pack(b"plancu\1\0", 4097),
        HEAD.pack(b"plancu\1\0", 2**64 - 1),
    ],
)
def test_what_is_no_greeting(head: bytes) -> None:
    with pytest.raises(DecodeError, match="greeting"):
        heard(head)


def test_another_version_is_told_apart() -> None:
    with pytest.raises(VersionError, match="speaks version 513, this one version 1"):
        heard(HEAD.pack(b"plancu\1\2", 10))


@given(st.binary(max_size=60))
def test_anything_else_in_a_greeting_is_a_decode_error(body: bytes) -> None:
    for read_it in (framing.read_greeting, framing.read_answer):
        with suppress(DecodeError):
            assert isinstance(read_it(bytearray(body)), Greeting | Welcome | Failure)


@pytest.mark.parametrize("said", [["ann", "client", 1], ["ann"], {"client": "ann"}, ["ann", 1], None, []])
def test_greetings_have_a_closed_form(said: object) -> None:
    with pytest.raises(DecodeError, match="not a greeting"):
        framing.read_greeting(bytearray(msgspec.msgpack.encode(said)))
