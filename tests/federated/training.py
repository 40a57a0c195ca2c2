"""What tests of federated runs share: a small model, its plan and data, and workers that fail as asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

import planc
from runtime import VirtualWorker, WorkerHandle
from runtime.channels.base import Connection
from runtime.channels.inprocess import InProcessChannel
from runtime.errors import ConnectionLost
from runtime.federated import Federation
from runtime.federated.events import Event
from runtime.wire import Frame
from runtime.worker import Worker

ROWS, CLIENTS = 60, 12
State = dict[str, torch.Tensor]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, 4, generator=generator)
    return x, x[:, :3].argmax(1)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


@cache
def plan(*, shuffle: bool = True, momentum: float = 0.9, lr_input: bool = False) -> planc.Plan:
    """An epoch of small batches: its losses, and the trained model."""
    net = network()
    x, y = data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    step = planc.train_step(net, F.cross_entropy, optimizer, x[:3], y[:3], lr_input=lr_input)
    return planc.epoch(step, batch_size=3, shuffle=shuffle)


class Judge(nn.Sequential):
    """The network, asked how good it is on some rows."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        out = super().forward(x)
        return {"accuracy": (out.argmax(1) == y).float().mean(), "error": F.cross_entropy(out, y)}


@cache
def judge() -> planc.Plan:
    """How good a model is on some rows."""
    x, y = data()
    return planc.trace(Judge(*network()), x[:3], y[:3])


class Faults:
    """What happens at one message to one worker: "request" and "reply" are lost, "kill" ends the worker.

    "nonsense": the reply is no reply; "hang": none comes until `release`; "stuck": as that, and nothing else
    reaches it any more.
    """

    def __init__(self, at: int = -1, how: str = "") -> None:
        self.at, self.how = at, how
        self.count = 0
        self.dead = False
        self.released = threading.Event()

    def release(self) -> None:
        self.released.set()


class FaultyChannel(InProcessChannel):
    """A channel that fails as asked."""

    def __init__(self, worker: Worker, faults: Faults) -> None:
        super().__init__(worker)
        self._faults = faults

    def call(self, frame: Frame) -> bytearray:
        faults = self._faults
        number, faults.count = faults.count, faults.count + 1
        if faults.dead or (number == faults.at and faults.how == "request"):
            raise ConnectionLost("the request is lost, as the test wants it", worker=self._id)
        reply = super().call(frame)
        if number != faults.at:
            return reply
        if faults.how == "nonsense":
            return bytearray(b"no reply")
        if faults.how in ("hang", "stuck"):
            faults.dead = faults.how == "stuck"
            faults.released.wait(60)
            return reply
        faults.dead = faults.how == "kill"
        raise ConnectionLost("the reply is lost, as the test wants it", worker=self._id)


class FaultyWorker(WorkerHandle):
    """A virtual worker whose channel fails as asked."""

    in_process = True

    def __init__(self, id: str, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.worker = Worker(id)
        super().__init__(id, Connection(FaultyChannel(self.worker, self.faults), "me"))


def workers(count: int) -> list[VirtualWorker]:
    return [VirtualWorker(f"w{i}") for i in range(count)]


def watched() -> tuple[list[Event], Callable[[Event], None]]:
    """A list, and the callback that fills it."""
    seen: list[Event] = []
    return seen, seen.append


def of(kind: type, events: Sequence[Event]) -> list:
    return [event for event in events if isinstance(event, kind)]


def same(a: State, b: State) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[path], b[path]) for path in a)


def unchanged(federation: Federation, before: State, number: int) -> bool:
    return federation.number == number and same(federation.state_dict(), before)
