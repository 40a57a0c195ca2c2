"""At every message of a training run: the request is lost, or the reply, or the stream is cut."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import planc
from runtime import RemoteModule, RemoteOptimizer, connect
from runtime.channels.grpc import callers as grpc_callers
from runtime.channels.grpc.chunks import Chunk
from runtime.channels.grpc.server import GrpcListening
from runtime.channels.unix import callers as unix_callers
from runtime.channels.unix.server import UnixListening
from runtime.identity import Identity
from runtime.wire import Frame
from runtime.worker import Worker
from tests.network.serving import STREAMS, anywhere

X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = torch.tensor([[0.0], [0.0], [1.0], [1.0]])


class LossyGrpc(GrpcListening):
    """A server that fails once, at one message.

    How: "request", it does not arrive; "reply", it is applied but nobody hears so; "cancel", the same, and
    the stream ends without a word.
    """

    def __init__(self) -> None:
        self.count, self.at, self.how = 0, -1, ""
        super().__init__(Worker("bob"), anywhere("grpc"), grpc_callers.by_their_word)

    def _session(self, messages: Iterator[bytes], context: Any) -> Generator[bytes]:
        self.context = context
        yield from super()._session(messages, context)

    def _take(self, identity: Identity, chunk: Chunk) -> Generator[bytes]:
        number, self.count = self.count, self.count + 1
        if number != self.at:
            yield from super()._take(identity, chunk)
            return
        if self.how != "request":
            list(super()._take(identity, chunk))
        if self.how == "cancel":
            self.context.cancel()
        raise ConnectionError("lost, as the test wants it")


class LossyUnix(UnixListening):
    """As `LossyGrpc`; a stream that is cancelled ends in the middle of a reply."""

    def __init__(self) -> None:
        self.count, self.at, self.how = 0, -1, ""
        super().__init__(Worker("bob"), anywhere("unix"), unix_callers.by_their_word)

    def _answer(self, frame: bytearray | memoryview, identity: Identity) -> Frame:
        number, self.count = self.count, self.count + 1
        if number == self.at and self.how == "request":
            raise ConnectionError("lost, as the test wants it")
        reply = super()._answer(frame, identity)
        if number == self.at and self.how == "reply":
            raise ConnectionError("lost, as the test wants it")
        return reply

    def _reply(self, sock: Any, key: bytes, reply: Frame) -> None:
        if self.count - 1 == self.at and self.how == "cancel":
            sock.sendall(key)
            raise ConnectionError("lost, as the test wants it")
        super()._reply(sock, key, reply)


def lossy(kind: str) -> LossyGrpc | LossyUnix:
    return LossyUnix() if kind == "unix" else LossyGrpc()


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 1)


@cache
def _step() -> planc.Plan:
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return planc.train_step(network, nn.functional.mse_loss, optimizer, X, Y)


def _train(address: str) -> list[torch.Tensor]:
    """Two eager steps, then three of a plan, with momentum: a step too many or too few would show."""
    bob = connect(address, patience=10)
    x, y = bob.send_all([X, Y])
    model = RemoteModule(_network()).send(bob)
    optimizer = RemoteOptimizer(model, torch.optim.Adam, lr=0.1)
    losses: list[Any] = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    planned = _step().send(bob)
    losses += [planned(x, y) for _ in range(3)]
    results = [loss.get() for loss in losses]
    results += list(model.get().state_dict().values())
    results += list(planned.get().state.values())
    bob.close()
    return results


@cache
def undisturbed(kind: str) -> tuple[list[torch.Tensor], int]:
    server = lossy(kind)
    try:
        return _train(str(server.address)), server.count
    finally:
        server.close()


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("how", ["request", "reply", "cancel"])
def test_a_loss_at_any_message_changes_nothing(how: str, kind: str) -> None:
    expected, messages = undisturbed(kind)
    assert messages > 25
    for at in range(messages):
        server = lossy(kind)
        server.at, server.how = at, how
        try:
            results = _train(str(server.address))
        finally:
            server.close()
        assert server.count > messages  # it did fail
        assert len(results) == len(expected)
        for got, want in zip(results, expected, strict=True):
            assert torch.equal(got, want), f"{how} lost at message {at} of {messages}"
