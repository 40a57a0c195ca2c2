"""Attacks on what carries frames over gRPC: the chunks of a stream, and a server."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from planc.errors import DecodeError, LimitError
from runtime.channels.address import Address
from runtime.channels.grpc import chunks
from runtime.channels.grpc.chunks import Kind
from runtime.channels.grpc.inbox import Inbox
from runtime.channels.grpc.server import GrpcListening
from runtime.channels.streams.memory import Room
from runtime.channels.streams.server import ServerLimits
from runtime.identity import Identity, Role
from runtime.security.tls import grpc
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutate import Case, Mutator
from tests.fuzz.scene import EVE, Escaped, Honest, scene
from tests.fuzz.targets import check_reply


class Chunks:
    """`chunks.read` and `Inbox`: frames that arrive in pieces, in any order, with anything announced."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        self._rng = rng
        self._corpus = corpus
        self._now = 0.0
        self._inbox = Inbox(Room(2**20, 2**22, client_frames=16), patience=100.0, clock=lambda: self._now)
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
        limits = ServerLimits(
            streams=32, client_streams=16, frame_bytes=2**21, client_bytes=2**22, patience=1.0
        )
        self._server = GrpcListening(self._scene.worker, Address("127.0.0.1", 0), _anybody, limits=limits)
        self._raw = grpc.insecure_channel(
            self._server.address.target, [("grpc.use_local_subchannel_pool", 1)]
        )
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
