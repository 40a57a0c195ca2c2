"""What is attacked: a worker's frames, the chunks of a stream, a server; and what must hold of a case."""

from __future__ import annotations

import logging
import random
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from planc.errors import DecodeError, LimitError
from runtime import messages as m
from runtime.channels.grpc import chunks
from runtime.channels.grpc.address import Address
from runtime.channels.grpc.chunks import Kind
from runtime.channels.grpc.inbox import Inbox
from runtime.channels.grpc.server import Listening, ServerLimits
from runtime.errors import _BY_KIND as KNOWN_KINDS
from runtime.identity import Identity, Role
from runtime.security.tls import grpc
from runtime.wire import decode
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutate import Case, Mutator
from tests.fuzz.scene import EVE, Escaped, Honest, leaks, scene

_RESTORE = 25
"""Cases after which objects that an attacker deleted are put again: requests need something to work on."""
_HONEST = 200
"""Cases between looks at how honest clients fare."""


class Target(Protocol):
    """Something that is attacked, in a state that depends on the cases before."""

    def next(self) -> Case:
        """The next case."""
        ...

    def run(self, case: Case) -> None:
        """Try a case.

        Raises:
            Escaped: what must hold does not.
        """
        ...

    def close(self) -> None:
        """Give up what it holds."""
        ...


class _Faults(logging.Handler):
    """Keeps the last exception that a worker logged as a fault of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.levelno >= logging.ERROR:
            self.last = record.exc_info[1]


FAULTS = _Faults()


def listen_to_faults() -> None:
    """Hear of workers' faults, and print none of what they log."""
    log = logging.getLogger("runtime")
    log.propagate = False
    log.setLevel(logging.ERROR)
    if FAULTS not in log.handlers:
        log.addHandler(FAULTS)


def check_reply(reply: bytes | bytearray | memoryview) -> m.Reply:
    """A reply that came for a case.

    Raises:
        Escaped: it is not in good form, admits a fault, or has private elements in it.
    """
    if leaks(reply):
        raise Escaped("private elements are in a reply")
    message, tensors = decode(bytearray(reply))
    if not isinstance(message, m.Reply):
        raise Escaped(f"the reply is a {type(message).__name__}")
    body = message.body
    if isinstance(body, m.Failure):
        if body.kind == "internal":
            fault, FAULTS.last = FAULTS.last, None
            raise Escaped(f"a fault of the worker: {body.message}") from fault
        if body.kind not in KNOWN_KINDS:
            raise Escaped(f"an unknown kind of failure: {body.kind}")
        if len(reply) > 64 * 1024:
            raise Escaped(f"a failure of {len(reply)} bytes")
    if isinstance(body, m.Values):
        slots = [item.index for item in body.items if isinstance(item, m.Slot)]
        if any(index >= len(tensors) for index in slots):
            raise Escaped("a slot means no tensor")
    return message


class Frames:
    """`Worker.handle_frame`, all of a worker's messages."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        self._corpus = corpus
        self._mutator = Mutator(rng, corpus)
        self._scene = scene(corpus.approved)
        self._honest = Honest(self._scene)
        self._cases = 0
        for frame in corpus.setup:
            self._ask(frame, EVE)

    def next(self) -> Case:
        return self._mutator.case()

    def run(self, case: Case) -> None:
        self._cases += 1
        for frame in case.frames:
            self._ask(frame, case.identity)
        if self._cases % _RESTORE == 0:
            self._restore()
        if self._cases % _HONEST == 0:
            self._honest.check()

    def close(self) -> None:
        self._scene.worker.close()

    def _ask(self, frame: bytes, identity: Identity) -> None:
        check_reply(self._scene.worker.handle_frame(bytearray(frame), identity))

    def _restore(self) -> None:
        """Give the attacker back what a mutated request made it delete."""
        store = self._scene.worker._site.store
        if all(store.get(id) is not None for id in (1, 2, 5, 1000)):
            return
        for identity in (EVE,):
            clear = m.Request(identity.name, 9, self._cases, 0, (), m.Clear())
            self._scene.worker.handle(clear, (), identity)
        for frame in self._corpus.setup:
            message, tensors = decode(bytearray(frame))
            assert isinstance(message, m.Request)
            again = m.Request(message.client, 10 + self._cases, message.request_id, 0, (), message.body)
            self._scene.worker.handle(again, tensors, EVE)


class Chunks:
    """`chunks.read` and `Inbox`: frames that arrive in pieces, in any order, with anything announced."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        self._rng = rng
        self._corpus = corpus
        self._now = 0.0
        self._inbox = Inbox(2**20, 2**22, client_frames=16, patience=100.0, clock=lambda: self._now)
        self._cases = 0

    def next(self) -> Case:
        rng = self._rng
        frame = self._corpus.frames[rng.randrange(len(self._corpus.frames))]
        messages = list(stream_of(rng, frame))
        return Case("chunks", EVE, tuple(messages))

    def run(self, case: Case) -> None:
        self._cases += 1
        self._now += 1.0
        for message in case.frames:
            try:
                for chunk in chunks.read(message):
                    self._take(chunk)
            except (DecodeError, LimitError):
                continue
        if self._cases % 50 == 0:
            self._inbox.sweep()
            self._honest()

    def close(self) -> None:
        """Nothing is held."""

    def _take(self, chunk: chunks.Chunk) -> None:
        if chunk.kind is not Kind.DATA:
            self._inbox.have("eve", chunk.key)
            return
        whole = self._inbox.take("eve", chunk)
        if whole is not None and len(whole) != chunk.total:
            raise Escaped(f"a frame of {chunk.total} bytes came out with {len(whole)}")

    def _honest(self) -> None:
        frame, key = self._corpus.frames[0] * 3, b"honest" + struct.pack("<IHI", self._cases, 0, 1)
        out: bytearray | memoryview | None = None
        for offset, data in pieces(frame, 100):
            for chunk in chunks.read(chunks.write(Kind.DATA, key, len(frame), offset, 0, data)):
                out = self._inbox.take("ann", chunk)
        if out is None or bytes(out) != frame:
            raise Escaped("an honest client's frame was not put together")


def pieces(frame: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """A frame in chunks, with their offsets."""
    for offset in range(0, len(frame), size):
        yield offset, frame[offset : offset + size]


def stream_of(rng: random.Random, frame: bytes) -> Iterator[bytes]:
    """Messages of a stream that carry a frame, with something wrong in most of them."""
    key = rng.choice([rng.randbytes(16), b"k" * 16, b"j" * 16])
    size = rng.choice([10, 60, 300, 5000])
    total = rng.choice([len(frame)] * 6 + [0, 1, 2**20, 2**20 + 1, 2**33, 2**63, 2**64 - 1])
    parts = [
        chunks.write(
            Kind.DATA, key, max(total, offset + len(data)), offset, rng.choice([0, 0, 0, 5, 2**40]), data
        )
        for offset, data in list(pieces(frame, size))[:20]
    ]
    match rng.randrange(9):
        case 0:
            rng.shuffle(parts)
        case 1:
            del parts[rng.randrange(len(parts))]
        case 2:
            parts.insert(rng.randrange(len(parts)), rng.choice(parts))
        case 3:
            at = rng.randrange(len(parts))
            flipped = bytearray(parts[at])
            flipped[rng.randrange(min(len(flipped), 45))] ^= 1 << rng.randrange(8)
            parts[at] = bytes(flipped)
        case 4:
            parts[-1] = parts[-1][: rng.randrange(len(parts[-1]))]
        case 5:
            parts = [b"".join(parts)]
        case 6:
            parts.append(chunks.write(Kind.RESUME, key, total, 0))
            parts.append(chunks.write(rng.choice(list(Kind)), key, 2**62, rng.choice([0, 2**61])))
        case 7:
            parts = [rng.randbytes(rng.choice([0, 1, 44, 45, 46, 200]))]
        case _:
            pass
    yield from parts


class Streams:
    """A real server: cases of the other two, over streams that are opened and left."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        self._rng = rng
        self._mutator = Mutator(rng, corpus)
        self._corpus = corpus
        self._scene = scene(corpus.approved)
        self._folder = tempfile.TemporaryDirectory(prefix="planc-fuzz-")
        limits = ServerLimits(
            streams=32, client_streams=16, frame_bytes=2**21, client_bytes=2**22, patience=1.0
        )
        address = Address(path=str(Path(self._folder.name) / "s"))
        self._server = Listening(self._scene.worker, address, _anybody, limits=limits)
        self._raw = grpc.insecure_channel(str(address), [("grpc.use_local_subchannel_pool", 1)])
        self._honest = Honest(self._scene)
        self._cases = 0
        for frame in corpus.setup:
            self._scene.worker.handle_frame(bytearray(frame), EVE)

    def next(self) -> Case:
        if self._rng.random() < 0.3:
            frame = self._corpus.frames[self._rng.randrange(len(self._corpus.frames))]
            return Case("stream", EVE, tuple(stream_of(self._rng, frame)))
        case = self._mutator.case()
        messages = [
            chunks.write(Kind.DATA, self._rng.randbytes(16), len(frame), 0, 0, frame) for frame in case.frames
        ]
        return Case(case.kind, case.identity, tuple(messages))

    def run(self, case: Case) -> None:
        self._cases += 1
        whole = all(len(message) > 45 for message in case.frames) and case.kind not in ("stream",)
        self._exchange(case.frames, case.identity, len(case.frames) if whole else 0)
        if self._cases % 50 == 0:
            self._honest.check()

    def close(self) -> None:
        self._raw.close()
        self._server.close(grace=1.0)
        self._folder.cleanup()

    def _exchange(self, sent: Sequence[bytes], identity: Identity, expected: int) -> None:
        """Send, and read what comes until the server ends the stream; so many replies there must be."""
        start = self._raw.stream_stream(f"/{chunks.SERVICE}/{chunks.METHOD}")
        said = (
            (chunks.VERSION_KEY, chunks.VERSION),
            (chunks.CLIENT_KEY, identity.name),
            (chunks.ROLE_KEY, identity.role.value),
        )
        call = start(iter(sent), metadata=said, timeout=30.0)
        replies: dict[bytes, bytearray] = {}
        try:
            for message in call:
                for chunk in chunks.read(message):
                    replies.setdefault(chunk.key, bytearray()).extend(chunk.data)
        except grpc.RpcError as error:
            if error.code() not in _ENDS:  # type: ignore[attr-defined]
                raise Escaped(f"the stream ended with {error}") from error
        if len(replies) < expected:
            raise Escaped(f"{len(replies)} replies came for {expected} frames")
        if expected:
            for reply in replies.values():
                check_reply(reply)


def _anybody(context: Any) -> Identity:
    said = dict(context.invocation_metadata())
    return Identity(said[chunks.CLIENT_KEY], Role(said[chunks.ROLE_KEY]))


_ENDS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
TARGETS: dict[str, type[Frames] | type[Chunks] | type[Streams]] = {
    "frames": Frames,
    "chunks": Chunks,
    "streams": Streams,
}
__all__ = ["FAULTS", "TARGETS", "Target", "check_reply", "listen_to_faults"]
