"""Suite "compiling": what comes once, before a training step runs: capture, passes, bytes, first run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

import planc
from benchmarks.harness import seconds
from benchmarks.workloads import CNN, LARGE, LINEAR, MLP_SGD, RESNET, TRANSFORMER, Workload
from planc import codec
from planc.lower import ExecutableCache
from planc.verifier import verify

T = TypeVar("T")


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    for work in (LINEAR, MLP_SGD, CNN, TRANSFORMER, RESNET):
        if not (quick and work in LARGE):
            yield _row(work, 1 if quick or work in (TRANSFORMER, *LARGE) else 3)


def _row(work: Workload, times: int) -> dict[str, Any]:
    module, optimizer, (x, y) = work.start()

    def capture() -> planc.Plan:
        return planc.train_step(module, work.loss, optimizer, x, y, optimize=False)

    captured, capturing = _timed(capture, times)
    plan, passing = _timed(captured.optimized, times)
    data, encoding = _timed(lambda: codec.encode(plan.graph), times)
    graph, decoding = _timed(lambda: codec.decode(data), times)
    _, verifying = _timed(lambda: verify(graph), times)
    arguments = iter(plan.flatten_arguments((x, y)))
    values = [plan.state[p.path] if p.role.is_state else next(arguments) for p in plan.graph.inputs]
    taken = [_runs(plan, values) for _ in range(times)]
    first, second, later = (statistics.median(column) for column in zip(*taken, strict=True))
    steps = {
        "capture": capturing,
        "passes": passing,
        "encode": encoding,
        "decode": decoding,
        "verify": verifying,
        "first run": first,
        "second run": second,
        "later runs": later,
    }
    return {
        "work": work.name,
        "nodes": captured.graph.count_nodes(),
        "after passes": plan.graph.count_nodes(),
        "bytes": len(data),
        **{name: seconds(value) for name, value in steps.items()},
    }


def _runs(plan: planc.Plan, values: list[torch.Tensor]) -> tuple[float, float, float]:
    """The first run of a new executable, which goes node by node; the second, which compiles; a later one."""
    cache, device = ExecutableCache(), torch.device("cpu")
    took: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        cache.run(plan.id, plan.program, values, device)
        took.append(time.perf_counter() - start)
    return took[0], took[1], min(took[2:])


def _timed(make: Callable[[], T], times: int) -> tuple[T, float]:
    """What it makes, and the median of its time."""
    took: list[float] = []
    while True:
        start = time.perf_counter()
        made = make()
        took.append(time.perf_counter() - start)
        if len(took) == times:
            return made, statistics.median(took)
