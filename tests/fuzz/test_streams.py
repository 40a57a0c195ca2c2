"""Hostile clients of a gRPC server: those that stall, never read, announce much, or show the wrong papers."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime import connect
from runtime.channels.address import Address, parse
from runtime.channels.grpc import callers, chunks
from runtime.channels.grpc.chunks import Kind
from runtime.channels.grpc.client import GrpcChannel
from runtime.channels.grpc.server import GrpcListening
from runtime.channels.streams.server import Listening, ServerLimits
from runtime.connecting import TLS
from runtime.errors import ConnectionLost, PermissionDenied
from runtime.identity import Identity, Role
from runtime.messages import Get, Put, PutItem, Request, Slot
from runtime.security.authority import Authority
from runtime.security.credentials import pinning_options, server_credentials
from runtime.security.tls import grpc
from runtime.security.tokens import TokenStore
from runtime.wire import encode
from runtime.worker import Worker
from tests.network.serving import STREAMS, anywhere, authority, certificate, listening, tls
from tests.security.helpers import expired
from tests.serving.helpers import ENVIRONMENT


class Raw:
    """A stream whose client sends what it likes."""

    def __init__(self, address: Address, name: str) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(address.target, [("grpc.use_local_subchannel_pool", 1)])
        said = ((chunks.VERSION_KEY, chunks.VERSION), (chunks.CLIENT_KEY, name), (chunks.ROLE_KEY, "client"))
        start = self._channel.stream_stream(f"/{chunks.SERVICE}/{chunks.METHOD}")
        self.call = start(iter(self._queue.get, None), metadata=said)

    def send(self, message: bytes) -> None:
        self._queue.put(message)

    def close(self) -> None:
        self._queue.put(None)
        self.call.cancel()
        self._channel.close()


@contextmanager
def serving(kind: str, **limits: Any) -> Generator[Listening]:
    server = listening(Worker("bob"), anywhere(kind), limits=ServerLimits(**limits))
    try:
        yield server
    finally:
        server.close(grace=1.0)


def works(address: object, **options: Any) -> None:
    """An honest client gets its answers in good time."""
    ann = connect(str(address), client="ann", timeout=30.0, **options)
    for _ in range(5):
        assert (ann.send(torch.ones(3)) + 1).get().tolist() == [2.0] * 3
    ann.close()


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_streams_that_stall_in_the_middle_of_a_frame_hold_up_nobody() -> None:
    with serving("grpc") as server, ExitStack() as stack:
        for number in range(200):
            raw = Raw(server.address, f"eve{number % 4}")
            stack.callback(raw.close)
            raw.send(chunks.write(Kind.DATA, key(number), 1000, 0, 0, b"x" * 500))
        works(server.address)


def test_a_client_that_never_reads_holds_up_neither_others_nor_the_end() -> None:
    with serving("grpc") as server:
        raw = Raw(server.address, "eve")
        put = encode(Request("eve", 1, 1, 0, (), Put((PutItem(1, Slot(0)),))), [torch.ones(100_000)])
        raw.send(chunks.write(Kind.DATA, key(0), len(put), 0, 0, put))
        before = resident()
        for number in range(2, 300):
            get = encode(Request("eve", 1, number, 0, (), Get((1,))))
            raw.send(chunks.write(Kind.DATA, key(number), len(get), 0, 0, get))
        works(server.address)
        assert resident() - before < 64 * 2**20
        started = time.monotonic()
        server.close(grace=2.0)
        assert time.monotonic() - started < 20
        raw.close()


def test_frames_that_are_announced_and_never_come_take_no_memory() -> None:
    with serving("grpc", client_bytes=2**40) as server:
        works(server.address)
        before, raw = resident(), Raw(server.address, "eve")
        for number in range(20):
            raw.send(chunks.write(Kind.DATA, key(number), 8 * 2**30, 0, 0, b"x" * 100))
        raw.send(chunks.write(Kind.RESUME, key(19), 8 * 2**30, 0))
        assert next(chunks.read(next(raw.call))).offset == 100  # all of them have arrived
        assert resident() - before < 128 * 2**20
        works(server.address)
        raw.close()


def test_frames_that_were_begun_are_forgotten() -> None:
    with serving("grpc", patience=0.2) as server:
        raw = Raw(server.address, "eve")
        raw.send(chunks.write(Kind.DATA, key(1), 10**6, 0, 0, b"x" * 100))
        until = time.monotonic() + 20
        have = 1
        while have and time.monotonic() < until:
            time.sleep(0.1)
            raw.send(chunks.write(Kind.RESUME, key(1), 10**6, 0))
            have = next(chunks.read(next(raw.call))).offset
        assert have == 0
        raw.close()


@pytest.mark.parametrize("kind", STREAMS)
def test_a_server_that_nobody_closes_lets_python_exit(kind: str) -> None:
    source = (
        "from runtime import connect\n"
        "from runtime.worker import Worker\n"
        "from tests.network.serving import anywhere, listening\n"
        f"server = listening(Worker('bob'), anywhere({kind!r}))\n"
        "bob = connect(str(server.address))\n"
        "print(bob.search('#x'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=ENVIRONMENT,
    )
    assert done.stdout == "[]\n"


# -- papers -------------------------------------------------------------------------------------------------


@contextmanager
def secured(authenticate: Any, *, certificates: bool) -> Generator[str]:
    own = certificate(Role.WORKER, "bob")
    ca = authority().folder / "ca.pem" if certificates else None
    credentials = server_credentials(*own, ca)
    server = GrpcListening(Worker("bob"), anywhere("tls"), authenticate, credentials)
    try:
        yield str(server.address)
    finally:
        server.close(grace=1.0)


def test_only_certificates_of_the_collaboration_get_in(tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "others", 30)
    foreign = other.issue(Identity("ann", Role.CLIENT))
    late = expired(authority(), Identity("ann", Role.CLIENT))
    root = (authority().folder / "ca.pem").read_bytes()
    with secured(callers.by_certificate, certificates=True) as address:
        for papers in ((), (foreign.key, foreign.certificate), late[::-1]):
            # Not through `connect`, which would not even show a certificate that is expired.
            made = grpc.ssl_channel_credentials(root, *(path.read_bytes() for path in papers))
            with pytest.raises(ConnectionLost):
                GrpcChannel(parse(address), made, options=pinning_options("bob"), patience=0.2)
        works(address, tls=tls(Role.CLIENT, "ann"), worker="bob")


def test_only_tokens_that_the_worker_knows_get_in(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens")
    token = store.add("ann").text
    ca = TLS(authority().folder / "ca.pem")
    with secured(callers.by_token(store), certificates=False) as address:
        for wrong in (token[:-1] + ("A" if token[-1] != "A" else "B"), f"planc_{'0' * 16}_{'A' * 43}"):
            with pytest.raises(PermissionDenied):
                connect(address, tls=ca, token=wrong, worker="bob", patience=0.2)
        works(address, tls=ca, token=token, worker="bob")
