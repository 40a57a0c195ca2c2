"""Suite "start": the most memory that the first training steps have allocated at once, beside eager PyTorch.

Told by torch's own allocations, the profiler's memory events replayed. Model, optimizer and batch count, and
so does what an executable keeps from one run to the next: both start with nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import planc
from benchmarks.steps import eager
from benchmarks.workloads import CNN, MLP_ADAM, MLP_SGD, Workload
from planc.lower import ExecutableCache

STEPS = 4
Step = Callable[[], object]


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    for work in (MLP_SGD, MLP_ADAM, CNN):
        yield row(work)


def row(work: Workload) -> dict[str, Any]:
    theirs, ours = allocated(lambda: eager(work)), allocated(planned(work))
    return {
        "work": work.name,
        "eager PyTorch, peak bytes": theirs,
        "plan, peak bytes": ours,
        "ratio": f"{ours / theirs:.2f}x",
    }


def planned(work: Workload) -> Callable[[], Step]:
    """Steps by a plan whose executable is new: what it keeps for later runs counts too."""
    module, optimizer, batch = work.start()
    plan = planc.train_step(module, work.loss, optimizer, *batch)

    def make() -> Step:
        arguments = iter([tensor.clone() for tensor in plan.flatten_arguments(batch)])
        given = [None if p.role.is_state else next(arguments) for p in plan.graph.inputs]
        state = {path: tensor.detach().clone() for path, tensor in plan.state.items()}
        cache, device = ExecutableCache(), torch.device("cpu")

        def step() -> None:
            ports = zip(plan.graph.inputs, given, strict=True)
            values = [state[p.path] if value is None else value for p, value in ports]
            _, updates = plan.split_outputs(cache.run(plan.id, plan.program, values, device))
            state.update(updates)

        return step

    return make


def allocated(make: Callable[[], Step]) -> int:
    """The most bytes that were allocated at once while a step was made and done a few times."""

    def run() -> Step:
        step = make()
        for _ in range(STEPS):
            step()
        return step

    return most_allocated(run)


def most_allocated(run: Callable[[], object]) -> int:
    """The most bytes that torch had allocated at once during a call, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = run()
    assert recorded.profiler is not None
    results = recorded.profiler.kineto_results
    assert results is not None
    events: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del kept
    return most
