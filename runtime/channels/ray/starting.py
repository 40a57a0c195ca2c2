"""Starting actors: what is asked of Ray for each worker, and what is said where it does not come to be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions as failures
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from planc.errors import InputError
from runtime.channels.ray import session
from runtime.channels.ray.actor import Spec, Started, make
from runtime.channels.ray.channel import why
from runtime.errors import ConnectionLost, DeadlineExceeded

_OWN_OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
_STEP = 10_000
"""Ray counts resources in ten-thousandths."""


@dataclass(frozen=True, slots=True)
class Running:
    """An actor whose worker is there."""

    actor: Any
    at: Started


class Starter:
    """Starts the actors of one cluster, and ends them.

    Args:
        count: how many there are going to be at a time.
        resources: what each takes; None for the default.
        placement: how they lie on machines.
        gpu: whether their device is one.
        patience: seconds for them to start in.

    Raises:
        InputError: a local Ray has not got as much.
    """

    def __init__(
        self,
        count: int,
        resources: Mapping[str, float] | None,
        placement: str | None,
        *,
        gpu: bool,
        patience: float,
    ) -> None:
        self._count = count
        self._patience = patience
        self.resources = dict(resources) if resources is not None else _default(count, gpu)
        if session.is_local():  # nothing will be added to it: waiting is in vain
            self._check()
        self._group: PlacementGroup | None = None
        if placement is not None:
            self._group = placement_group([self.resources] * count, strategy=placement)

    @property
    def threads(self) -> int:
        """How many threads a worker gives to an operation."""
        return max(1, int(self.resources.get("CPU", 1)))

    def start(self, specs: Mapping[int, Spec]) -> dict[int, Running]:
        """Start workers, all at once, by their place among all.

        Raises:
            InputError: one cannot be made, or its data cannot be loaded.
            ConnectionLost: one did not start.
        """
        actors: dict[int, Any] = {}
        try:
            for place in specs:
                actors[place] = make(self._options(place))
            jobs = [actors[place].start.remote(spec) for place, spec in specs.items()]
            self._wait(jobs)
            return {
                place: Running(actors[place], self._started(spec, job))
                for (place, spec), job in zip(specs.items(), jobs, strict=True)
            }
        except BaseException:
            kill(actors.values())
            raise

    def close(self) -> None:
        """Give up the place that is kept for the actors."""
        if self._group is not None:
            remove_placement_group(self._group)

    def _wait(self, jobs: Sequence[Any]) -> None:
        _, late = ray.wait(list(jobs), num_returns=len(jobs), timeout=self._patience, fetch_local=False)
        if late:
            raise DeadlineExceeded(
                f"{len(late)} of {len(jobs)} workers on Ray did not start within {self._patience:g} s: each "
                f"takes {_listed(self.resources)}, and the cluster has "
                f"{_listed(ray.available_resources(), self.resources)} free"
            )

    def _started(self, spec: Spec, job: Any) -> Started:
        try:
            started: Started = ray.get(job)
        except failures.RayTaskError as error:
            raise InputError(
                f"worker {spec.id!r} could not start ({why(error)}): the same planc has to be installed on "
                "every machine of the cluster"
            ) from error
        except failures.RayError as error:
            raise ConnectionLost(f"it did not start: {why(error)}", worker=spec.id) from error
        if started.failed:
            raise InputError(f"worker {spec.id!r} could not start: {started.failed}")
        return started

    def _options(self, place: int) -> dict[str, Any]:
        own = {_OWN_OPTIONS[name]: amount for name, amount in self.resources.items() if name in _OWN_OPTIONS}
        others = {name: amount for name, amount in self.resources.items() if name not in _OWN_OPTIONS}
        options: dict[str, Any] = {"num_cpus": 0, **own, "resources": others}
        if self._group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group, place)
        return options

    def _check(self) -> None:
        there = ray.cluster_resources()
        for name, amount in self.resources.items():
            if amount * self._count > there.get(name, 0):
                raise InputError(
                    f"{self._count} workers with {name} {amount:g} each do not fit this machine, which has "
                    f"{name} {there.get(name, 0):g}: ask for less in resources=, or for fewer workers"
                )


def introduce(actors: Mapping[str, Any], to: Mapping[str, Any]) -> None:
    """Tell some actors how others are reached. One that is dead is passed over: its callers hear of it."""
    for job in [one.introduce.remote({id: actors[id] for id in actors}) for one in to.values()]:
        with suppress(failures.RayActorError):
            ray.get(job)


def kill(actors: Any) -> None:
    """End actors at once."""
    for actor in actors:
        ray.kill(actor, no_restart=True)


def _default(count: int, gpu: bool) -> dict[str, float]:
    names = ("CPU", "GPU") if gpu else ("CPU",)
    if not session.is_local():
        return dict.fromkeys(names, 1.0)
    free, there = ray.available_resources(), ray.cluster_resources()
    return {n: _share(free.get(n, 0), count) or _share(there.get(n, 0), count) or 1.0 for n in names}


def _share(all: float, count: int) -> float:
    return min(1.0, math.floor(all / count * _STEP) / _STEP)


def _listed(amounts: Mapping[str, float], names: Mapping[str, float] | None = None) -> str:
    return ", ".join(f"{name} {amounts.get(name, 0):g}" for name in names or amounts) or "nothing"


__all__ = ["Running", "Starter", "introduce", "kill"]
