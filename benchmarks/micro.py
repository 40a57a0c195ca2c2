"""Suite "micro": what one node of a plan costs beside the bare call of torch, and what a first run costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import profiler

import planc
from benchmarks.harness import Result, compare, seconds
from benchmarks.steps import eager
from benchmarks.workloads import CNN
from planc.lower import Executable, bind_tensors

NODES = 200


def run(quick: bool = False) -> Iterator[Result]:
    yield _overhead(quick)
    yield _first(quick)


def peak(quick: bool = False) -> Iterator[dict[str, object]]:
    """Tensor bytes at the peak of one step of the convolutional network, and what is held between steps."""
    del quick
    module, optimizer, (x, y) = CNN.start()
    plan = planc.train_step(module, CNN.loss, optimizer, x, y)
    step = eager(CNN)
    parameters = sum(tensor.nbytes for tensor in plan.state.values())
    given = iter((x, y))
    values = [plan.state[p.path] if p.role.is_state else next(given) for p in plan.inputs]
    executable = Executable(plan.program, bind_tensors(plan.graph, values), x.device)
    # Gradients stay between steps of eager PyTorch, which frees them first: they are not there at its peak.
    for way, run, kept in (
        ("local eager PyTorch", step, lambda: 0),
        ("plan", lambda: executable(values), lambda: executable.nbytes),
    ):
        for _ in range(3):
            run()
        yield {"work": CNN.name, "way": way, "peak KiB": (parameters + kept() + _peak(run)) // 1024}


def _peak(run: Callable[[], object]) -> int:
    """The most bytes that a call has allocated and not freed, by torch's own count."""
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    inner: Any = found.profiler  # its public list leaves out most allocations
    events = [e for e in inner.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def chain() -> planc.Plan:
    """So many small additions, one after the other."""
    lines = "\n".join(f"  v{i + 1} = v{i} + c" for i in range(NODES))
    return planc.parse(f"plan chain(v0: f32[8], c: f32[8]) -> f32[8] {{\n{lines}\n  return v{NODES}\n}}")


def _overhead(quick: bool) -> Result:
    x, c, buffer = torch.randn(8), torch.randn(8), torch.empty(8)
    plan = chain()
    executable = Executable(plan.program, bind_tensors(plan.graph, [x, c]), x.device)

    def by_hand() -> torch.Tensor:
        add = torch.add
        with torch.inference_mode():
            add(x, c, out=buffer)
            for _ in range(NODES - 2):
                add(buffer, c, out=buffer)
            return add(buffer, c)

    result = compare(
        "micro",
        f"{NODES} additions of 8 numbers",
        {
            "a loop over torch.add(..., out=) by hand": by_hand,
            "executable": lambda: executable([x, c]),
            "plan, run here": lambda: plan(x, c),
        },
        rounds=7 if quick else 25,
        seconds=0.02,
        target="<= 0.3 us a node more than the loop",
    )
    hand, ours, whole = (figure.minimum / NODES for figure in result.figures)
    more = (
        f"{seconds(max(ours - hand, 0))} more by the executable, {seconds(max(whole - hand, 0))} by the plan"
    )
    return replace(result, note=f"by minimums, {seconds(hand)} a node by hand, {more}")


def _first(quick: bool) -> Result:
    """The first run goes node by node and generates nothing; the second generates code."""
    x, c = torch.randn(8), torch.randn(8)
    plan = chain()
    bindings = bind_tensors(plan.graph, [x, c])

    def made(runs: int) -> None:
        executable = Executable(plan.program, bindings, x.device)
        for _ in range(runs):
            executable([x, c])
        executable.close()

    return compare(
        "micro",
        f"compiling a plan of {NODES} nodes",
        {
            "nothing, node by node": lambda: made(1),
            "the second run, which compiles": lambda: made(2),
            "a third run": lambda: made(3),
        },
        rounds=5 if quick else 15,
        note="each line contains the one above",
    )
