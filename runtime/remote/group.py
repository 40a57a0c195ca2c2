"""`WorkerGroup`: several workers that are sent one plan, and run it at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from planc.errors import InputError
from planc.plans import Plan
from runtime.remote.background import background
from runtime.remote.handle import WorkerHandle
from runtime.remote.plan import RemotePlan


class WorkerGroup:
    """Workers as one receiver of plans.

    >>> remote = plan.send(WorkerGroup([bob, alice]))
    >>> remote({bob: (x, y), alice: (u, v)})        # both at once: {bob: ..., alice: ...}

    Raises:
        InputError: no workers, or one twice.
    """

    def __init__(self, workers: Iterable[WorkerHandle]) -> None:
        self.workers = tuple(workers)
        if not self.workers or len({id(worker) for worker in self.workers}) != len(self.workers):
            raise InputError(
                f"a group has at least one worker, each once; got {[w.id for w in self.workers]}"
            )

    def receive_plan(self, plan: Plan) -> RemotePlanGroup:
        """Install a plan, and put its state, at all workers at once. The messages of each as for one."""
        made = _at_once({worker: background().submit(worker.receive_plan, plan) for worker in self.workers})
        return RemotePlanGroup(made)

    def __iter__(self) -> Iterator[WorkerHandle]:
        return iter(self.workers)

    def __len__(self) -> int:
        return len(self.workers)


class RemotePlanGroup:
    """One plan at several workers, its state apart at each.

    Attributes:
        plans: the handle of each, by worker.
    """

    def __init__(self, plans: Mapping[WorkerHandle, RemotePlan]) -> None:
        self.plans = dict(plans)

    def __call__(self, arguments: Mapping[WorkerHandle, tuple[Any, ...]]) -> dict[WorkerHandle, Any]:
        """Run at all the workers that have arguments, at once; one message a worker.

        Returns:
            The results by worker, as `RemotePlan` returns them.

        Raises:
            InputError: a worker that the plan was not sent to.
            WorkerError: the first failure, after all are done.
        """
        return _at_once(self.submit(arguments))

    def submit(self, arguments: Mapping[WorkerHandle, tuple[Any, ...]]) -> dict[WorkerHandle, Future[Any]]:
        """As a call, in the background: futures by worker."""
        unknown = [worker.id for worker in arguments if worker not in self.plans]
        if unknown:
            raise InputError(
                f"the plan was not sent to {unknown[0]!r}; it is at {[w.id for w in self.plans]}"
            )
        return {worker: self.plans[worker].submit(*args) for worker, args in arguments.items()}

    def __getitem__(self, worker: WorkerHandle) -> RemotePlan:
        return self.plans[worker]


def _at_once(futures: Mapping[WorkerHandle, Future[Any]]) -> dict[WorkerHandle, Any]:
    """The results of all, after all are done, whether or not one failed."""
    for future in futures.values():
        future.exception()
    return {worker: future.result() for worker, future in futures.items()}


__all__ = ["RemotePlanGroup", "WorkerGroup"]
