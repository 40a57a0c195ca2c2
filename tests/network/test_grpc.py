"""What only a channel over gRPC does: frames that go on where they broke, certificates, its version."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch

from planc.errors import InputError
from runtime import connect
from runtime.channels.address import Address
from runtime.channels.grpc import callers, chunks
from runtime.channels.grpc.server import GrpcListening
from runtime.errors import ConnectionLost
from runtime.identity import Role
from runtime.security.credentials import server_credentials
from runtime.security.tls import grpc
from runtime.worker import Worker
from tests.network.serving import certificate, tls


class Cutting(GrpcListening):
    """A server that breaks a stream in the middle of a frame or of a reply, a number of times."""

    def __init__(self, worker: Worker) -> None:
        self.cuts = 0
        self.seen: list[tuple[str, int]] = []
        super().__init__(worker, Address("127.0.0.1", 0), callers.by_their_word)

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


def test_a_large_transfer_goes_on_where_it_broke() -> None:
    worker = Worker("bob")
    server = Cutting(worker)
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


def test_the_certificate_says_who_calls() -> None:
    worker = Worker("bob")
    credentials = server_credentials(*certificate(Role.WORKER, "bob"), tls(Role.CLIENT, "ann").ca)
    server = GrpcListening(worker, Address("127.0.0.1", 0), callers.by_certificate, credentials)
    ann = connect(str(server.address), tls=tls(Role.CLIENT, "ann"), worker="bob")
    assert ann.connection.client == "ann"
    assert ann.send(torch.ones(1)).get().tolist() == [1.0]
    with pytest.raises((ConnectionLost, InputError)):
        connect(str(server.address), tls=tls(Role.CLIENT, "ann"), worker="alice", patience=0.2)
    ann.close()
    server.close()


def test_another_version_is_refused() -> None:
    server = GrpcListening(Worker("bob"), Address("127.0.0.1", 0), callers.by_their_word)
    with grpc.insecure_channel(server.address.target) as raw:
        call = raw.stream_stream(f"/{chunks.SERVICE}/{chunks.METHOD}")(
            iter(()), metadata=((chunks.VERSION_KEY, "99"), (chunks.CLIENT_KEY, "ann"))
        )
        with pytest.raises(grpc.RpcError, match="99"):
            list(call)
    server.close()
