"""`VirtualWorker`: a worker in this process, reached by real frames; and "me", the caller as one."""

from __future__ import annotations

import threading
import weakref

import torch

from runtime.channels.base import Channel, Connection
from runtime.channels.inprocess import InProcessChannel
from runtime.errors import ConnectionLost
from runtime.executor import Runner
from runtime.limits import WorkerLimits
from runtime.policy import Policy
from runtime.remote.handle import WorkerHandle
from runtime.wire import Frame
from runtime.worker import Worker

ME = "me"
_known: weakref.WeakValueDictionary[str, Worker] = weakref.WeakValueDictionary()
_lock = threading.Lock()
_me: VirtualWorker | None = None


def join(worker: Worker, client: str) -> Connection:
    """The connection of a client to a worker in this process."""
    return Connection(InProcessChannel(worker), client)


class _ByName:
    """A channel to the virtual worker that has a name now: a new one takes the place of an older."""

    def __init__(self, id: str) -> None:
        self._id = id

    def call(self, frame: Frame) -> bytearray:
        worker = _known.get(self._id)
        if worker is None:
            raise ConnectionLost(f"there is no worker {self._id!r} in this process", worker=self._id)
        return InProcessChannel(worker).call(frame)

    def close(self) -> None:
        """There is nothing to close."""


def peer(_own: str, id: str) -> Channel:
    """The way from one virtual worker to another."""
    return _ByName(id)


class VirtualWorker(WorkerHandle):
    """A worker in this process: for trying things out, for tests, and for many clients on one machine.

    Every message is really encoded and decoded, so counts and bytes are those of a wire. A new worker takes
    the place of an older one of the same name.

    Args:
        id: its name.
        device: where its tensors live and its plans run.
        limits: what it accepts and keeps.
        policy: who may do what.
        client: whose name its messages carry.
        runner: what runs plans; compiled executables where not given.

    Attributes:
        worker: the worker itself, for its owner: `Worker.add`, `Worker.approve`.
    """

    in_process = True

    def __init__(
        self,
        id: str,
        device: str | torch.device = "cpu",
        *,
        limits: WorkerLimits | None = None,
        policy: Policy | None = None,
        client: str = ME,
        runner: Runner | None = None,
    ) -> None:
        self.worker = Worker(
            id, device, peers=lambda to: peer(id, to), limits=limits, policy=policy, runner=runner
        )
        with _lock:
            _known[id] = self.worker
        super().__init__(id, join(self.worker, client))

    def as_client(self, client: str) -> WorkerHandle:
        """The same worker as another client sees it."""
        return WorkerHandle(self.id, join(self.worker, client))

    def __repr__(self) -> str:
        return f"<VirtualWorker id:{self.id} #objects:{len(self.worker)}>"


def me() -> VirtualWorker:
    """The caller as a worker: the owner of every handle made here."""
    global _me
    with _lock:
        known = _me
    if known is None:
        known = VirtualWorker(ME)
        with _lock:
            _me = _me or known
            known = _me
    return known
