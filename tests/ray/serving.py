"""Virtual workers whose work is done by workers on Ray, for whole suites. Actors are few: they take turns."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import ray

from runtime.channels.base import Channel, Connection
from runtime.channels.ray import RayCluster
from runtime.channels.ray.actor import Spec
from runtime.channels.ray.channel import RayChannel
from runtime.errors import ConnectionLost
from runtime.remote import virtual
from runtime.worker import Worker


class Serving:
    """Virtual workers, each in an actor from the first time that it is connected to."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._free = list(actors)
        self._actors: weakref.WeakKeyDictionary[Worker, Any] = weakref.WeakKeyDictionary()
        self._by_name: dict[str, Any] = {}

    def join(self, worker: Worker, client: str) -> Connection:
        channel = self._open(worker)
        return Connection(channel, client, pipeline=channel)

    def peer(self, own: str, id: str) -> Channel:
        raise ConnectionLost("workers here are reached through their actors", worker=id)

    def _open(self, worker: Worker) -> RayChannel:
        actor = self._actors.get(worker)
        if actor is None:
            actor = self._actors[worker] = self._start(worker)
        return RayChannel(lambda: actor, worker.id)

    def _start(self, worker: Worker) -> Any:
        actor = self._free.pop()
        spec = Spec(worker.id, str(worker.device), worker.limits, worker._site.policy, 1, None)
        assert not ray.get(actor.start.remote(spec)).failed
        self._by_name[worker.id] = actor
        ray.get([one.introduce.remote(self._by_name) for one in self._by_name.values()])
        return actor


@contextmanager
def over_ray(cluster: RayCluster) -> Generator[None]:
    """Let all virtual workers that are made meanwhile do their work in the actors of a cluster."""
    serving = Serving([worker.actor for worker in cluster])
    with (
        mock.patch.object(virtual, "join", serving.join),
        mock.patch.object(virtual, "peer", serving.peer),
        mock.patch.object(virtual, "_me", None),
    ):
        yield
