"""Adds up the workers' sums between the workers, two by two, so that one comes here and not one a worker.

Each worker holds its own sum until the end. Where the tree breaks, every worker's sum is fetched instead, so
what a lost worker takes along is its own part and nobody else's; that part is done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Generic, TypeVar

import torch

from planc.ir import DType, TensorType
from planc.ir.builder import GraphBuilder
from planc.ir.program import Program
from planc.ops import node
from planc.plans import Plan
from runtime.federated.collecting import Collector
from runtime.federated.dispatch import Dispatch, Outcome
from runtime.federated.events import Callback, WorkerRefused
from runtime.federated.faults import in_words
from runtime.federated.members import CohortResult
from runtime.federated.settings import Settings
from runtime.federated.work import Collected, Work
from runtime.messages import Transfer
from runtime.remote.handle import WorkerHandle
from runtime.remote.plan import RemotePlan
from runtime.remote.tensor import RemoteTensor
from runtime.sums import add_sums

Tag = TypeVar("Tag")
_Sums = Mapping[str, RemoteTensor]
_Node = tuple[WorkerHandle, _Sums]


class Tree(Generic[Tag]):
    """Has work done as a `Collector` does, and its sums added up between the workers.

    Beyond the cohorts' messages a round takes two for each worker but the first, and one that brings the sum.
    Workers have to be able to send to each other; where two cannot, the sums come here one by one.

    Args:
        collector: has the work done.
        settings: what to do about time and faults.
        tell: takes events.
    """

    def __init__(self, collector: Collector[Tag], settings: Settings, tell: Callback) -> None:
        self._collector = collector
        self._settings = settings
        self._tell = tell

    def collect(self, work: Work[Tag]) -> Collected[Tag]:
        """As `Collector.collect`. Waits as long again for the sums, and for what is done once more.

        Raises:
            RoundFailed, PlancError: as that.
        """
        collected = self._collector.collect(replace(work, send=partial(work.send, hold=True)))
        lost = self._gather(work.number, collected)
        if not lost:
            return collected
        if self._settings.on_failure == "drop":
            collected.dropped += lost
            return collected
        collected.merge(self._collector.collect(replace(work, clients=tuple(lost))))
        return collected

    def _gather(self, number: int, collected: Collected[Tag]) -> list[int]:
        """Bring the sums here. Returns the clients whose part did not come; they are done no more."""
        # In an order that does not depend on who answered first: so are the messages.
        parts = sorted((result for result in collected.results if result.held), key=lambda part: part.done)
        if not parts:
            return []
        until = time.monotonic() + (self._settings.patience or self._settings.deadline)
        nodes: list[_Node] = [(next(iter(part.held.values())).location, part.held) for part in parts]
        try:
            collected.sums = add_sums(collected.sums, self._up(nodes, until, collected))
            gone: list[CohortResult] = []
        except _Broken as broken:
            told = f"{broken}; sums were fetched from each worker instead"
            self._tell(WorkerRefused(number, broken.worker.id, told, ()))
            gone = self._each(parts, nodes, collected)
        # Handles to what is not needed any more are let go of: it is freed with the next message.
        collected.results = [
            replace(result, held={}) for result in collected.results if not any(result is g for g in gone)
        ]
        return sorted(client for result in gone for client in result.done)

    def _up(self, nodes: Sequence[_Node], until: float, collected: Collected[Tag]) -> dict[str, torch.Tensor]:
        """The sum of all, by way of a tree.

        Raises:
            _Broken: a worker did not do its part in time.
        """
        level = list(nodes)
        while len(level) > 1:
            pairs = list(zip(level[0::2], level[1::2], strict=False))
            jobs = [(a[0], partial(_join, a, b)) for a, b in pairs]
            joined = _all(jobs, until, collected)
            level = [_value(outcome, a[0]) for outcome, (a, _) in zip(joined, pairs, strict=True)] + (
                level[-1:] if len(level) % 2 else []
            )
        root, sums = level[0]
        (outcome,) = _all([(root, partial(_fetch, root, sums))], until, collected)
        return _value(outcome, root)

    def _each(
        self, parts: Sequence[CohortResult], nodes: Sequence[_Node], collected: Collected[Tag]
    ) -> list[CohortResult]:
        """Add up what each worker gives; the parts of those that give nothing."""
        until = time.monotonic() + (self._settings.patience or self._settings.deadline)
        jobs = [(worker, partial(_fetch, worker, sums)) for worker, sums in nodes]
        gone: list[CohortResult] = []
        for part, outcome in zip(parts, _all(jobs, until, collected), strict=True):
            if outcome is None or outcome.value is None:
                gone.append(part)
            else:
                collected.sums = add_sums(collected.sums, outcome.value)
        return gone


class _Broken(Exception):
    """A worker did not do its part of a tree."""

    def __init__(self, worker: WorkerHandle, why: str) -> None:
        super().__init__(why)
        self.worker = worker


T = TypeVar("T")


def _all(
    jobs: Sequence[tuple[WorkerHandle, Callable[[], T]]], until: float, collected: Collected[Tag]
) -> list[Outcome[T] | None]:
    """What came of jobs at workers that differ, in order; None where nothing came in time."""
    dispatch: Dispatch[T] = Dispatch()
    try:
        places = {dispatch.submit(worker, job): i for i, (worker, job) in enumerate(jobs)}
        out: list[Outcome[T] | None] = [None] * len(jobs)
        while (outcome := dispatch.wait(until)) is not None:
            collected.count(outcome.sent)
            out[places[outcome.attempt]] = outcome
        return out
    finally:
        dispatch.close()


def _value(outcome: Outcome[T] | None, worker: WorkerHandle) -> T:
    if outcome is None:
        raise _Broken(worker, "it did not add up sums in time")
    if outcome.value is None:
        assert outcome.error is not None
        if not isinstance(outcome.error, Exception):
            raise outcome.error
        raise _Broken(worker, f"sums were not added up there ({in_words(outcome.error)})") from outcome.error
    return outcome.value


def _join(to: _Node, other: _Node) -> _Node:
    """The sum of two workers' sums, at the first; they keep their own.

    Two messages, once the plan is there.
    """
    (worker, own), (giver, given) = to, other
    if giver is worker:
        moved = list(given.values())
    else:
        ids = tuple(worker.new_id() for _ in given)
        giver.request(Transfer(tuple(t.id for t in given.values()), worker.id, ids, keep=True))
        moved = [RemoteTensor(worker, i, t.tensor_type) for i, t in zip(ids, given.values(), strict=True)]
    plan = _adding(tuple(tensor.tensor_type for tensor in own.values()))
    worker.install(plan)
    made = RemotePlan(plan, worker, {})(*own.values(), *moved)
    return worker, dict(zip(own, made if isinstance(made, tuple) else (made,), strict=True))


def _fetch(worker: WorkerHandle, sums: _Sums) -> dict[str, torch.Tensor]:
    """What a worker holds. One message."""
    return dict(zip(sums, worker.fetch([tensor.id for tensor in sums.values()], delete=False), strict=True))


@cache
def _adding(types: tuple[TensorType, ...]) -> Plan:
    """The plan that adds up two lists of tensors of these types."""
    assert all(type.dtype is DType.I64 for type in types)
    builder = GraphBuilder("add_sums", [])
    own = [builder.input(f"a{i}", type) for i, type in enumerate(types)]
    others = [builder.input(f"b{i}", type) for i, type in enumerate(types)]
    for i, (a, b) in enumerate(zip(own, others, strict=True)):
        (total,) = builder.add(node("aten.add", (a, b), {}, builder.next_index))
        builder.output(total, f"r{i}")
    return Plan(Program(builder.build(), {}))


__all__ = ["Tree"]
