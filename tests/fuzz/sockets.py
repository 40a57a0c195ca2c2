"""Attacks on what carries frames over a unix socket: greetings, heads, lengths and ends of connections."""

from __future__ import annotations

import random
import select
import socket
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

from runtime.channels.address import Address
from runtime.channels.streams.server import ServerLimits
from runtime.channels.unix import framing
from runtime.channels.unix.client import UnixChannel
from runtime.channels.unix.framing import HEAD, Greeting, Welcome
from runtime.channels.unix.server import UnixListening
from runtime.errors import CredentialsError
from runtime.identity import Identity, Role
from runtime.wire import decode
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutate import Case, Mutator
from tests.fuzz.scene import EVE, Escaped, Honest, scene
from tests.fuzz.targets import FAULTS, check_reply

_WHOLE = "whole "
"""Begins the kinds of cases in which every frame is sent whole, so that each has a reply."""
_LENGTHS = [0, 1, 15, 2**16, 2**16 + 1, 2**21, 2**21 + 1, 2**22 + 1, 2**33, 2**63, 2**64 - 1]


class Sockets:
    """A real server: connections that are opened, said anything on, and left."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        self._rng = rng
        self._mutator = Mutator(rng, corpus)
        self._corpus = corpus
        self._scene = scene(corpus.approved)
        self._folder = tempfile.TemporaryDirectory(prefix="planc-fuzz-")
        limits = ServerLimits(
            streams=32, client_streams=16, frame_bytes=2**21, client_bytes=2**22, patience=1.0, greeting=1.0
        )
        self._address = Address(path=str(Path(self._folder.name) / "s"))
        self._server = UnixListening(self._scene.worker, self._address, _anybody, limits)
        self._honest = Honest(self._scene)
        self._cases = 0
        for frame in corpus.setup:
            self._scene.worker.handle_frame(bytearray(frame), EVE)

    def next(self) -> Case:
        rng = self._rng
        if rng.random() < 0.5:
            case = self._mutator.case()
            greeting = framing.write_greeting(Greeting(case.identity.name, case.identity.role.value))
            sent = [_framed(rng.randbytes(8), frame) for frame in case.frames]
            return Case(_WHOLE + case.kind, case.identity, (greeting, *sent))
        frames = [rng.choice(self._corpus.frames) for _ in range(rng.choice([1, 1, 2, 5]))]
        return Case("socket", EVE, tuple(said(rng, frames)))

    def run(self, case: Case) -> None:
        self._cases += 1
        heard = _converse(self._address.path, b"".join(case.frames))
        if case.kind.startswith(_WHOLE):
            self._check_whole(case, heard)
        if FAULTS.last is not None:
            fault, FAULTS.last = FAULTS.last, None
            raise Escaped("a fault of the worker") from fault
        if self._cases % 50 == 0:
            self._check_honest()

    def close(self) -> None:
        self._server.close(grace=1.0)
        self._folder.cleanup()

    def _check_whole(self, case: Case, heard: bytes) -> None:
        """A welcome came, and a reply to every frame, in their order, up to one that may not be."""
        (_, welcome), *replies = _messages(heard)
        if not isinstance(framing.read_answer(bytearray(welcome)), Welcome):
            raise Escaped(f"the greeting was answered by {welcome!r}")
        for (key, reply), sent in zip(replies, case.frames[1:], strict=False):
            if key != sent[:8]:
                raise Escaped("a reply came to another frame")
            check_reply(reply)
        due = 0
        for sent in case.frames[1:]:
            if len(sent) == HEAD.size:  # an empty one ends the connection, and so does
                break
            due += 1
            if len(sent) > 2**21 + HEAD.size:  # one that is too large, once that is said
                break
        if len(replies) != due:
            raise Escaped(f"{len(replies)} replies came for {due} frames")

    def _check_honest(self) -> None:
        self._honest.check()
        channel = UnixChannel(self._address, "ann", timeout=30.0)
        decode(channel.call(bytearray(self._corpus.frames[0])))
        channel.close()


def said(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """What carries frames, with something wrong in it."""
    greeting = framing.write_greeting(Greeting("eve", "client"))
    sent = [_framed(struct.pack("<Q", i), frame) for i, frame in enumerate(frames)]
    at = rng.randrange(len(sent))
    match rng.randrange(10):
        case 0:  # a length that is another
            sent[at] = HEAD.pack(b"k" * 8, rng.choice(_LENGTHS)) + frames[at]
        case 1:  # a head alone, or less
            sent[at:] = [sent[at][: rng.randrange(HEAD.size + 1)]]
        case 2:  # half a frame
            sent[at:] = [sent[at][: rng.randrange(len(sent[at]))]]
        case 3:  # bits
            flipped = bytearray(greeting + sent[0])
            flipped[rng.randrange(min(len(flipped), 60))] ^= 1 << rng.randrange(8)
            greeting, sent[0] = bytes(flipped), b""
        case 4:  # no greeting
            greeting = b""
        case 5:  # half of one
            greeting, sent = greeting[: rng.randrange(len(greeting))], []
        case 6:  # one that announces anything
            greeting = HEAD.pack(greeting[:8], rng.choice(_LENGTHS)) + rng.randbytes(
                rng.choice([0, 10, 5000])
            )
        case 7:  # one of anybody
            name = rng.choice(["", "owner", "a b", "\0", "é" * 400, "eve", "peer"])
            greeting = framing.write_greeting(Greeting(name, rng.choice(["owner", "worker", "", "x"])))
        case 8:  # two
            sent.insert(at, greeting)
        case _:
            sent = [rng.randbytes(rng.choice([0, 1, 15, 16, 17, 200, 70_000]))]
    return [greeting, *sent]


def _framed(key: bytes, frame: bytes) -> bytes:
    return HEAD.pack(key, len(frame)) + frame


def _converse(path: str, data: bytes) -> bytes:
    """All that comes until the server hangs up, while the data is sent, and then no more."""
    heard = bytearray()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.setblocking(False)
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        while True:
            events = poll.poll(30_000)
            if not events:
                raise Escaped("the connection was left open")
            if data and events[0][1] & (select.POLLOUT | select.POLLERR):
                try:
                    data = data[sock.send(data) :]
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    poll.modify(sock, select.POLLIN)
                    with suppress(OSError):
                        sock.shutdown(socket.SHUT_WR)
                continue
            try:
                part = sock.recv(2**16)
            except BlockingIOError:
                continue
            except ConnectionError:  # it left something unread
                return bytes(heard)
            if not part:
                return bytes(heard)
            heard += part


def _messages(stream: bytes) -> list[tuple[bytes, bytes]]:
    out: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(stream):
        key, length = HEAD.unpack_from(stream, at)
        at += HEAD.size + length
        if at > len(stream):
            raise Escaped("a reply was not sent to its end")
        out.append((key, stream[at - length : at]))
    return out


def _anybody(said: Greeting) -> Identity:
    try:
        return Identity(said.client, Role(said.role))
    except ValueError:
        raise CredentialsError("no role") from None
