"""`RayCluster`: workers in Ray actors, started, replaced and ended. Where they run is up to Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import cloudpickle

from planc.errors import InputError
from runtime.channels.base import Connection
from runtime.errors import ConnectionLost
from runtime.limits import WorkerLimits
from runtime.policy import Policy
from runtime.remote.handle import WorkerHandle
from runtime.remote.virtual import ME

if TYPE_CHECKING:
    from runtime.channels.ray.actor import Data
    from runtime.channels.ray.channel import RayChannel
    from runtime.channels.ray.starting import Running, Starter

_MISSING = "workers on Ray need the extra 'ray' ({} is missing): pip install 'planc[ray]'"

_TOLD_BY_US = "^A worker died or was killed while executing a task"
"""What Ray would print on standard output: whoever uses the worker gets an error that says it."""

Placement = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
_PLACEMENTS = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class RayWorker(WorkerHandle):
    """A worker in an actor of a `RayCluster`.

    Attributes:
        pid: its process.
        host: the address of the machine that it runs on.
        actor: Ray's own handle.
    """

    def __init__(self, id: str, running: Running, client: str, timeout: float | None) -> None:
        self.pid = running.at.pid
        self.host = running.at.host
        self.actor = running.actor
        self._timeout = timeout
        self._channels: list[RayChannel] = []
        super().__init__(id, self._connect(id, client))

    @property
    def lost(self) -> str:
        """Why the worker is gone, with all that it held; "" where nobody has noticed that it is."""
        return next((channel.lost for channel in self._channels if channel.lost), "")

    def as_client(self, client: str) -> WorkerHandle:
        """The same worker as another client sees it."""
        return WorkerHandle(self.id, self._connect(self.id, client))

    def give_up(self, why: str) -> None:
        """Let every later call raise ConnectionLost."""
        for channel in self._channels:
            channel.give_up(why)

    def close(self) -> None:
        """Close the ways to the worker."""
        super().close()
        for channel in self._channels:
            channel.close()

    def _connect(self, id: str, client: str) -> Connection:
        from runtime.channels.ray.channel import RayChannel

        actor = self.actor
        channel = RayChannel(lambda: actor, id, timeout=self._timeout, lost=self._forget)
        self._channels.append(channel)
        return Connection(channel, client, pipeline=channel)

    def _forget(self) -> None:
        # Nobody shall think that a plan is there still.
        self._installed.clear()


class RayCluster:
    """Workers in actors of a Ray: one on this machine, started for the purpose, or a cluster.

    All of a Ray is one trust domain: whoever can reach it can run any code in it. Owners who do not trust
    each other run `planc worker` instead. A worker that dies is not started again by itself: it would have
    nothing that it held, and nobody would know. Its handle raises ConnectionLost from then on, and `replace`
    starts another under its id.

    >>> with RayCluster(workers=2) as cluster:
    ...     bob, alice = cluster.workers

    Args:
        address: "auto" or "host:port" of a Ray cluster that this machine is part of. Without one, the Ray
            that this process is connected to is used, or else a local one is started, which ends with the
            last RayCluster that uses it.
        workers: how many, called worker1, worker2 and so on; or their ids.
        resources: what each worker takes: ``CPU``, ``GPU``, ``memory`` (bytes), and a cluster's own. By
            default a CPU, and a GPU where the device is one; on a local Ray their share where that is less.
        placement: how workers lie on machines, as Ray's placement groups have it: PACK for together, SPREAD
            for apart, STRICT_ for an error where that cannot be. None leaves it to Ray.
        device: where their tensors live and their plans run.
        limits: what each accepts and keeps.
        policy: who may do what.
        data: called in each worker's process with its id; returns the tensors that it offers to all, public,
            by name: each a tensor, or (tensor, tags). It is found by the tag ``#name``. It travels by
            cloudpickle.
        client: whose name the messages of the handles carry.
        timeout: seconds after which a call without a reply raises DeadlineExceeded; None for never.
        patience: seconds for workers to start in.
        store_bytes: of the object store of a local Ray.
        logs: whether to show what the processes of a Ray that is started or joined here print.

    Attributes:
        workers: their handles.

    Raises:
        InputError: an argument does not fit, Ray is not installed, or a local Ray has not got the resources.
        ConnectionLost: no Ray, or a worker that did not start.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | Sequence[str] = 2,
        *,
        resources: Mapping[str, float] | None = None,
        placement: Placement | None = None,
        device: str = "cpu",
        limits: WorkerLimits | None = None,
        policy: Policy | None = None,
        data: Data | None = None,
        client: str = ME,
        timeout: float | None = None,
        patience: float = 120.0,
        store_bytes: int | None = None,
        logs: bool = False,
    ) -> None:
        ids = _ids(workers)
        _check(placement, resources, device)
        _load()
        from runtime.channels.ray import session, starting
        from runtime.channels.ray.actor import Spec

        self._client = client
        self._timeout = timeout
        self._workers: list[RayWorker] = []
        self._starter: Starter | None = None
        self._closed = False
        session.enter(address, store_bytes=store_bytes, logs=logs)
        try:
            gpu = device.startswith("cuda")
            self._starter = starting.Starter(len(ids), resources, placement, gpu=gpu, patience=patience)
            threads = self._starter.threads
            pickled = _pickled(data)
            self._specs = [Spec(id, device, limits, policy, threads, pickled) for id in ids]
            running = self._starter.start(dict(enumerate(self._specs)))
            self._workers += [
                RayWorker(spec.id, running[i], client, timeout) for i, spec in enumerate(self._specs)
            ]
            actors = self._actors()
            starting.introduce(actors, to=actors)
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> tuple[RayWorker, ...]:
        """The handles, in order; of a worker that was replaced the new one."""
        return tuple(self._workers)

    def __getitem__(self, id: str) -> RayWorker:
        return self._workers[self._place(id)]

    def __iter__(self) -> Iterator[RayWorker]:
        return iter(self.workers)

    def __len__(self) -> int:
        return len(self._workers)

    def kill(self, worker: RayWorker | str) -> None:
        """End a worker's process at once, as a crash would. All that it held is gone."""
        from runtime.channels.ray import starting

        found = self._workers[self._place(worker)]
        starting.kill([found.actor])
        found.give_up("RayCluster.kill ended it")

    def replace(self, worker: RayWorker | str) -> RayWorker:
        """Start another worker under the id of one, which is ended if it lives still.

        The new one has the cluster's ``data``, and nothing else: plans and state have to be sent again.

        Args:
            worker: its id, or a handle of it, also one from before an earlier replacement.

        Returns:
            The handle of the new one; those of the old one raise ConnectionLost.

        Raises:
            InputError: there is none of this id.
            ConnectionLost: it did not start; the old one is gone all the same.
        """
        from runtime.channels.ray import starting

        place = self._place(worker)
        old = self._workers[place]
        starting.kill([old.actor])
        old.give_up("it was replaced")
        assert self._starter is not None
        running = self._starter.start({place: self._specs[place]})[place]
        new = self._workers[place] = RayWorker(old.id, running, self._client, self._timeout)
        actors = self._actors()
        starting.introduce(actors, to={new.id: new.actor})
        starting.introduce({new.id: new.actor}, to=actors)
        return new

    def close(self) -> None:
        """End the workers, and a local Ray that nobody else uses. More than once does no harm."""
        if self._closed:
            return
        from runtime.channels.ray import session, starting

        self._closed = True
        for worker in self._workers:
            worker.close()
        if session.is_connected():
            starting.kill(worker.actor for worker in self._workers)
            if self._starter is not None:
                self._starter.close()
        session.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RayCluster {'closed' if self._closed else [worker.id for worker in self._workers]}>"

    def _place(self, worker: RayWorker | str) -> int:
        if self._closed:
            raise ConnectionLost("the Ray cluster is closed")
        id = worker if isinstance(worker, str) else worker.id
        for place, found in enumerate(self._workers):
            if found.id == id:
                return place
        raise InputError(f"there is no worker {id!r} in the cluster; it has {[w.id for w in self._workers]}")

    def _actors(self) -> dict[str, Any]:
        return {worker.id: worker.actor for worker in self._workers}


def _pickled(data: Callable[..., Any] | None) -> bytes | None:
    if data is None:
        return None
    try:
        return cloudpickle.dumps(data)
    except Exception as error:  # of whatever the function holds on to
        raise InputError(
            f"data= cannot be sent to the workers ({type(error).__name__}: {error}): let it open what it "
            "needs there, instead of taking it along"
        ) from None


def _load() -> None:
    """Import Ray, which reads what it shall not print from the environment meanwhile.

    Raises:
        InputError: it is not installed.
    """
    name = "RAY_DEDUP_LOGS_SKIP_REGEX"
    ours = name not in os.environ
    if ours:
        os.environ[name] = _TOLD_BY_US
    try:
        import_module("ray")
    except ModuleNotFoundError as error:
        raise InputError(_MISSING.format(error.name)) from None
    finally:
        if ours:
            del os.environ[name]


def _ids(workers: int | Sequence[str]) -> list[str]:
    if isinstance(workers, int):
        ids = [f"worker{i + 1}" for i in range(workers)]
    else:
        ids = [workers] if isinstance(workers, str) else list(workers)
    if not ids or "" in ids or len(set(ids)) != len(ids):
        raise InputError(f"expected at least one worker, or ids that differ, got {workers!r}")
    return ids


def _check(placement: str | None, resources: Mapping[str, float] | None, device: str) -> None:
    if placement is not None and placement not in _PLACEMENTS:
        raise InputError(f"placement is one of {', '.join(_PLACEMENTS)}, or None, got {placement!r}")
    for name, amount in (resources or {}).items():
        if not amount > 0:
            raise InputError(f"resources: expected more than 0 of {name!r}, got {amount!r}")
    if device.startswith("cuda") and resources is not None and "GPU" not in resources:
        raise InputError(
            f"device {device!r} needs resources with a 'GPU' (0.5 for two workers on one): Ray hides the "
            f"others from a worker; got {dict(resources)!r}"
        )


__all__ = ["Placement", "RayCluster", "RayWorker"]
