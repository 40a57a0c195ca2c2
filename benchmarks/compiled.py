"""Suite "steps", with ``torch.compile``: not of ResNet-18, which takes it minutes, and not in quick runs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch._dynamo.exc import TorchDynamoException

import planc
from benchmarks.harness import Result, compare
from benchmarks.steps import eager
from benchmarks.workloads import CNN, LINEAR, MLP_SGD, TRANSFORMER, Workload


def run(quick: bool = False) -> Iterator[Result]:
    if not quick:
        yield from map(_beside, (LINEAR, MLP_SGD, CNN, TRANSFORMER))


def _beside(work: Workload) -> Result:
    module, optimizer, (x, y) = work.start()
    loss = torch.compile(lambda x, y: work.loss(module(x), y))

    def compiled() -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    fresh, its, _ = work.start()
    plan = planc.train_step(fresh, work.loss, its, x, y)
    ways = {
        "local eager PyTorch": eager(work),
        "torch.compile": compiled,
        "plan, run here": lambda: plan(x, y),
    }
    start = time.perf_counter()
    try:
        compiled()
        note = f"torch.compile took {time.perf_counter() - start:.0f} s before its first step"
    except TorchDynamoException as error:  # no C compiler, most often
        del ways["torch.compile"]
        note = f"torch.compile does not work here: {type(error).__name__}"
    return compare("steps", f"{work.name}, beside torch.compile", ways, rounds=15, note=note)
