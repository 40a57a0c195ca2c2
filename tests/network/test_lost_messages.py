"""At every message of a training run: the request is lost, or the reply, or the stream is cut."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planc
from runtime import RemoteModule, RemoteOptimizer, connect
from runtime.channels.grpc import callers
from runtime.channels.grpc.address import Address
from runtime.channels.grpc.chunks import Chunk
from runtime.channels.grpc.server import Listening
from runtime.identity import Identity
from runtime.worker import Worker

X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = torch.tensor([[0.0], [0.0], [1.0], [1.0]])


class Lossy(Listening):
    """A server that fails once, at one message.

    How: "request", it does not arrive; "reply", it is applied but nobody hears so; "cancel", the same, and
    the stream ends without a word.
    """

    def __init__(self, worker: Worker, path: Path) -> None:
        self.count, self.at, self.how = 0, -1, ""
        super().__init__(worker, Address(path=str(path)), callers.by_their_word)

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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[torch.Tensor], int]:
    server = Lossy(Worker("bob"), tmp_path_factory.mktemp("net") / "s")
    try:
        return _train(str(server.address)), server.count
    finally:
        server.close()


@pytest.mark.parametrize("how", ["request", "reply", "cancel"])
def test_a_loss_at_any_message_changes_nothing(
    how: str, undisturbed: tuple[list[torch.Tensor], int], tmp_path: Path
) -> None:
    expected, messages = undisturbed
    assert messages > 25
    for at in range(messages):
        server = Lossy(Worker("bob"), tmp_path / f"{at}")
        server.at, server.how = at, how
        try:
            results = _train(str(server.address))
        finally:
            server.close()
        assert server.count > messages  # it did fail
        assert len(results) == len(expected)
        for got, want in zip(results, expected, strict=True):
            assert torch.equal(got, want), f"{how} lost at message {at} of {messages}"
