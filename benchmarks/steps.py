"""Suite "steps": one training step by a plan, against the same step in local eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import planc
from benchmarks.harness import Result, compare
from benchmarks.workloads import LARGE, LINEAR, STEPS, Workload
from runtime import VirtualWorker

EPOCH_STEPS = 1000


def run(quick: bool = False) -> Iterator[Result]:
    for work in (work for work in STEPS if not (quick and work in LARGE)):
        yield _step(work, quick)
    yield _epoch(LINEAR, quick)


def eager(work: Workload) -> Callable[[], Any]:
    module, optimizer, (x, y) = work.start()

    def step() -> None:
        optimizer.zero_grad()
        loss = work.loss(module(x), y)
        loss.backward()
        optimizer.step()

    return step


def _step(work: Workload, quick: bool) -> Result:
    module, optimizer, (x, y) = work.start()
    plan = planc.train_step(module, work.loss, optimizer, x, y)
    worker = VirtualWorker("bench")
    remote = plan.send(worker)
    rx, ry = worker.send(x), worker.send(y)
    return compare(
        "steps",
        work.name,
        {
            "local eager PyTorch": eager(work),
            "plan, run here": lambda: plan(x, y),
            "plan, in-process worker (message included)": lambda: remote(rx, ry),
        },
        rounds=5 if quick else 15,
        note="one thread",
        target=work.target,
    )


def _epoch(work: Workload, quick: bool) -> Result:
    steps = 100 if quick else EPOCH_STEPS
    module, optimizer, (x, y) = work.start()
    plan = planc.epoch(planc.train_step(module, work.loss, optimizer, x, y), batch_size=4, shuffle=False)
    worker = VirtualWorker("bench")
    remote = plan.send(worker)
    rx, ry = worker.send(x.repeat(steps, 1)), worker.send(y.repeat(steps, 1))
    one = eager(work)

    def many() -> None:
        for _ in range(steps):
            one()

    return compare(
        "steps",
        f"{work.name}: {steps} steps in one epoch plan",
        {"local eager PyTorch": many, "epoch plan, in-process worker": lambda: remote(rx, ry)},
        rounds=3 if quick else 9,
        warmup=1,
        note="one thread; times are of all steps",
        target="<= 0.15x",
    )
