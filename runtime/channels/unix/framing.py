"""What client and server say on a unix socket: a greeting each, then frames, whole and in order.

    greeting   "plancu" (6 bytes), version (u16), length (u64), then a msgpack struct of as many bytes
    frame      key (8 bytes: the number of the exchange), length (u64), then as many bytes

All numbers are little-endian. A frame and its reply share a key, which the client chose. Whether a message
may come is asked (`Intake`) when its head is there, before anything is allocated for it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from planc.errors import DecodeError, InputError, VersionError
from runtime.forms import Form, Tagged
from runtime.messages import Failure
from runtime.wire import Frame, Pieces

VERSION = 1
"""Of all that is said on the socket."""
HEAD = struct.Struct("<8sQ")
"""Of every message: key and length."""
BUFFER = 2**16
"""Bytes that are read at once at most, of frames that are not larger."""
SEND_BUFFER = 2**19
"""Bytes on their way to the other end that are asked of the system: fewer turns of both for large frames."""
MAX_GREETING = 4096
"""Bytes of a greeting."""
QUIET = getattr(socket, "MSG_NOSIGNAL", 0)
"""For sending to an end that is gone: an error, and no signal for the whole process."""
_MAGIC = b"plancu"
_GREETING = _MAGIC + VERSION.to_bytes(2, "little")
_PARTS = 512
"""Pieces of memory that one system call is given; systems take 1024."""


class Greeting(Form, frozen=True):
    """What a client says first. What it means is the server's to decide."""

    client: str
    role: str


class Welcome(Tagged, frozen=True, tag="welcome"):
    """What a server answers: who it is, and what it calls the client. A refusal is a `Failure`."""

    worker: str
    client: str


_Said = TypeVar("_Said")
_GREETINGS = msgspec.msgpack.Decoder(Greeting)
_ANSWERS: msgspec.msgpack.Decoder[Welcome | Failure] = msgspec.msgpack.Decoder(Welcome | Failure)


def write_greeting(said: Greeting | Welcome | Failure) -> bytes:
    """A greeting or the answer to one, as bytes.

    Raises:
        InputError: a name in it cannot be sent.
    """
    try:
        body = msgspec.msgpack.encode(said)
    except UnicodeEncodeError as error:
        raise InputError(f"a name cannot be sent: {error}") from None
    if len(body) > MAX_GREETING:
        raise InputError(
            f"a greeting has at most {MAX_GREETING} bytes, this has {len(body)}: shorten the name"
        )
    return HEAD.pack(_GREETING, len(body)) + body


def read_greeting(body: bytearray | memoryview) -> Greeting:
    """What a client said first.

    Raises:
        DecodeError: the bytes are no greeting.
    """
    return _decoded(_GREETINGS, body)


def read_answer(body: bytearray | memoryview) -> Welcome | Failure:
    """What a server answered.

    Raises:
        DecodeError: the bytes are no answer.
    """
    return _decoded(_ANSWERS, body)


def _decoded(decoder: msgspec.msgpack.Decoder[_Said], body: bytearray | memoryview) -> _Said:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a greeting: {error}") from None


class Intake(Protocol):
    """Decides what may come, and where it goes."""

    def admit(self, key: bytes, length: int) -> None:
        """A message of so many bytes is about to come. Raises where it may not."""
        ...

    def allocate(self, key: bytes, length: int) -> bytearray | memoryview:
        """Memory for a message that is larger than what is read at once."""
        ...


class GreetingIntake:
    """Lets in one thing: the other end's greeting, of the version that is spoken here."""

    def admit(self, key: bytes, length: int) -> None:
        """As `Intake.admit`.

        Raises:
            DecodeError: it is no greeting.
            VersionError: it is that of another version.
        """
        if not key.startswith(_MAGIC):
            raise DecodeError(f"expected a greeting, which begins with {_MAGIC!r}, got {key!r}")
        if key != _GREETING:
            version = int.from_bytes(key[len(_MAGIC) :], "little")
            raise VersionError(f"the other end speaks version {version}, this one version {VERSION}")
        if not 0 < length <= MAX_GREETING:
            raise DecodeError(f"a greeting has 1 to {MAX_GREETING} bytes, got {length}")

    def allocate(self, key: bytes, length: int) -> bytearray | memoryview:
        """Never called: a greeting is small."""
        raise DecodeError(f"a greeting of {length} bytes")


class Reader:
    """Takes messages out of what a socket gives, in few reads: one for a small message, head and all.

    Small ones come through a buffer, several at once if they are there; what is larger than the buffer is
    read to where it stays.

    Args:
        sock: what is read.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # of what is in the buffer and was not taken
        self._key, self._length = b"", 0  # of the message whose head was taken last; 0: its body was, too
        self._large: memoryview | None = None  # where a message goes that is larger than the buffer
        self._have = 0

    @property
    def midway(self) -> bool:
        """Whether a part of a message is there."""
        return self._length > 0 or self._end > self._start

    def receive(self, flags: int = 0) -> None:
        """Read once. Waits for bytes, unless the flags say otherwise.

        Raises:
            ConnectionError: the other end sends no more.
            OSError: of the socket.
        """
        if self._large is not None:
            count = self._sock.recv_into(self._large[self._have :], 0, flags)
            self._have += count
        else:
            self._make_room()
            count = self._sock.recv_into(self._view[self._end :], 0, flags)
            self._end += count
        if not count:
            raise ConnectionError("the other end hung up")

    def take(self, intake: Intake) -> tuple[bytes, bytearray | memoryview] | None:
        """The next message that is whole, key and body, in memory of its own; None where more has to come.

        Raises:
            Whatever the intake does; nothing that comes after that can be made out.
        """
        if not self._length:
            if self._end - self._start < HEAD.size:
                return None
            key, length = HEAD.unpack_from(self._buffer, self._start)
            intake.admit(key, length)
            self._start += HEAD.size
            self._key, self._length = key, length
            if length > BUFFER:
                self._begin_large(intake.allocate(key, length))
        if self._large is not None:
            return self._take_large()
        end = self._start + self._length
        if end > self._end:
            return None
        body = self._buffer[self._start : end]
        self._start, self._length = end, 0
        return self._key, body

    def _begin_large(self, memory: bytearray | memoryview) -> None:
        self._large = memoryview(memory)
        self._have = self._end - self._start
        self._large[: self._have] = self._view[self._start : self._end]
        self._start = self._end = 0

    def _take_large(self) -> tuple[bytes, bytearray | memoryview] | None:
        large = self._large
        if large is None or self._have < self._length:
            return None
        self._large, self._length = None, 0
        return self._key, large

    def _make_room(self) -> None:
        """See to it that the message that is next fits behind what is there."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + (self._length or HEAD.size) > BUFFER:
            rest = self._buffer[self._start : self._end]
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)


def send(sock: socket.socket, key: bytes, frame: Frame, flags: int, full: Callable[[], None]) -> None:
    """Send a frame from where it lies, head and all in one system call if the socket takes so much.

    Args:
        sock: where to.
        key: of the frame.
        frame: what to send.
        flags: of every call.
        full: called where the socket takes nothing; it is tried again after that.

    Raises:
        OSError: of the socket.
    """
    parts: list[bytes | bytearray | memoryview] = [HEAD.pack(key, len(frame))]
    parts += frame.parts if isinstance(frame, Pieces) else (frame,)
    at = 0
    while at < len(parts):
        try:
            sent = sock.sendmsg(parts[at : at + _PARTS], (), flags | QUIET)
        except BlockingIOError:
            full()
            continue
        while at < len(parts) and sent >= len(parts[at]):
            sent -= len(parts[at])
            at += 1
        if sent:
            parts[at] = memoryview(parts[at])[sent:]
