"""Where the demo's workers run: in this process, or on Ray. What they compute is the same, bit for bit."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from enum import StrEnum

from runtime.remote import VirtualWorker, WorkerHandle


class Engine(StrEnum):
    """The places that `workers_on` knows; their values are what the command line takes."""

    IN_PROCESS = "in-process"
    RAY = "ray"

    @property
    def note(self) -> str:
        """What the seconds of a run have in them."""
        if self is Engine.IN_PROCESS:
            return "The workers are in this process: the seconds have no network in them."
        return (
            "The workers are processes of their own, actors on Ray on this machine: the seconds have Ray's "
            "calls in them, and no network."
        )


@contextmanager
def workers_on(engine: Engine, count: int) -> Generator[Sequence[WorkerHandle]]:
    """Fresh workers, ``worker1`` and so on, for as long as the block runs.

    Raises:
        InputError: what the engine needs is not installed.
        ConnectionLost: they did not start.
    """
    if engine is Engine.IN_PROCESS:
        yield [VirtualWorker(f"worker{i + 1}") for i in range(count)]
        return
    from runtime.channels.ray import RayCluster

    with RayCluster(workers=count) as cluster:
        yield cluster.workers


__all__ = ["Engine", "workers_on"]
