"""The actor's end: one `Worker` in a process that Ray runs. Knows frames and peers, nothing of clusters.

Three groups of threads, so that none waits for another: ``peers`` takes what other workers send and calls
nobody, so that workers that send to each other get on; ``control`` answers while all others are at work.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cloudpickle
import ray
import torch

from planc.errors import PlancError
from runtime.channels.base import Channel
from runtime.channels.ray.channel import RayChannel
from runtime.channels.ray.payload import Payload, gather, pack, unpack
from runtime.errors import ConnectionLost
from runtime.limits import WorkerLimits
from runtime.policy import Policy
from runtime.worker import Worker

Data: TypeAlias = "Callable[[str], Mapping[str, torch.Tensor | tuple[torch.Tensor, Sequence[str]]]]"
"""Given a worker's id, what it offers: tensors by name, or with tags beside ``#name``."""

THREADS = 16
"""Requests of clients that are answered at a time. Of these, those that only wait cost a thread each."""
_PEER_THREADS = 4


@dataclass(frozen=True, slots=True)
class Spec:
    """What a worker is made from.

    Attributes:
        id, device, limits, policy: as `Worker` has them.
        threads: of torch, for one operation.
        data: a `Data`, by cloudpickle.
    """

    id: str
    device: str
    limits: WorkerLimits | None
    policy: Policy | None
    threads: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Started:
    """Where a worker runs; or, in ``failed``, why it does not."""

    pid: int
    host: str
    failed: str = ""


class PlancWorker:
    """Hosts a worker. Ray makes the actor; its methods are called by `RayChannel` and `RayCluster` alone."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._peers: dict[str, Any] = {}

    @ray.method(concurrency_group="control")
    def start(self, spec: Spec) -> Started:
        """Make the worker, an empty one in the place of any before, and offer its data."""
        torch.set_num_threads(spec.threads)
        here = (os.getpid(), ray.util.get_node_ip_address())
        try:
            worker = Worker(spec.id, spec.device, peers=self._peer, limits=spec.limits, policy=spec.policy)
            if spec.data is not None:
                _offer(worker, cloudpickle.loads(spec.data))
        except Exception as error:  # raised, it would come as a traceback of Ray's own within another
            return Started(*here, failed=_said(error))
        before, self._worker = self._worker, worker
        if before is not None:
            before.close()
        return Started(*here)

    @ray.method(concurrency_group="control")
    def introduce(self, peers: Mapping[str, Any]) -> None:
        """Say how other workers are reached: their actors, by id. A new one takes the place of an older."""
        self._peers.update(peers)

    def exchange(self, *frame: Payload) -> Payload:
        """The reply to a client's frame."""
        return self._answer(gather(frame))

    def exchange_all(self, frames: Sequence[Payload]) -> list[Payload]:
        """The replies to frames that were posted, which are handled in order."""
        return [self._answer(frame) for frame in frames]

    @ray.method(concurrency_group="peers")
    def exchange_peer(self, *frame: Payload) -> Payload:
        """The reply to a frame of another worker."""
        return self._answer(gather(frame))

    def _answer(self, frame: Payload) -> Payload:
        worker = self._worker
        assert worker is not None  # handles are given out after `start` only
        return pack(worker.handle_large_frame(frame if isinstance(frame, bytes) else unpack(frame)))

    def _peer(self, to: str) -> Channel:
        if to not in self._peers:
            raise ConnectionLost(f"there is no worker {to!r} in this Ray cluster", worker=to)
        return RayChannel(lambda: self._peers[to], to, peer=True)


def make(options: Mapping[str, Any]) -> Any:
    """A new actor, as it is asked of Ray: it need not run yet."""
    remote: Any = ray.remote  # its overloads know no options that are not written out
    made = remote(
        max_restarts=0,  # it would come back with an empty store and nobody would know
        max_task_retries=0,
        max_concurrency=THREADS,
        concurrency_groups={"peers": _PEER_THREADS, "control": 1},
        **options,
    )(PlancWorker)
    return made.remote()


def _offer(worker: Worker, data: Data) -> None:
    for name, given in data(worker.id).items():
        tensor, tags = given if isinstance(given, tuple) else (given, ())
        worker.add(tensor, tags=(f"#{name}", *tags), name=name)


def _said(error: Exception) -> str:
    if isinstance(error, PlancError):
        return str(error)
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}, line {last.lineno})"
