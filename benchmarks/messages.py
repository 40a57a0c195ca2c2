"""Suite "messages": what each job of the tutorial sends: eager, recorded, a plan a step, a plan a round.

All is deterministic: tests hold the counts, and that `plan.cost` predicts them. What the predecessor and
another tool send was measured there and is quoted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from benchmarks import jobs
from benchmarks.counting import Count
from benchmarks.jobs import Job, Way

QUOTED: dict[str, tuple[tuple[str, float], ...]] = {
    jobs.TOY: (("PySyft 0.1, eager, model travelling (quoted)", 36),),
    jobs.MNIST: (
        ("PySyft 0.1, eager, model travelling (quoted)", 130),
        ("PySyft 0.1, the same with its loader (quoted)", 394),
    ),
    jobs.OPERATIONS: (
        ("Monarch, eager (quoted)", 21.01),
        ("Monarch, coalesced (quoted)", 2.01),
        ("Monarch, compiled (quoted)", 1.01),
    ),
}


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    for job in jobs.ALL:
        for name, messages in QUOTED.get(job.name, ()):
            yield _line(job.name, name, messages)
        for way in job.ways:
            yield _row(job, way)


def break_even(quick: bool = False) -> Iterator[dict[str, Any]]:
    """From which step on a plan, its installation included, has cost less than eager code.

    The model is resident in both, and sending it there is counted in both.
    """
    for job in jobs.ALL:
        eager, plan = job.way(jobs.RESIDENT), job.way(jobs.PLAN)
        if eager is None or plan is None or eager.before is None or plan.before is None:
            continue
        yield {
            "work": job.name,
            "eager, a step": _figures(eager.count),
            "plan, a step": _figures(plan.count),
            "sending the model": _figures(eager.before),
            "installing the plan and its state": _figures(plan.before),
            "cheaper in messages from step": steps_until(
                plan.before.messages - eager.before.messages, eager.count.messages - plan.count.messages
            ),
            "cheaper in bytes from step": steps_until(
                plan.before.bytes - eager.before.bytes, eager.count.bytes - plan.count.bytes
            ),
        }


def steps_until(more: int, saved: int) -> int | None:
    """The first step after which ``more`` spent once is made good by ``saved`` a step; None for never."""
    if more <= 0:
        return 1
    return math.ceil(more / saved) if saved > 0 else None


def _figures(count: Count) -> str:
    return f"{count.messages:,} / {count.bytes:,} B"


def _row(job: Job, way: Way) -> dict[str, Any]:
    count = way.count
    found = _line(job.name, way.name, count.messages)
    found |= {
        "bytes out": count.out,
        "bytes in": count.back,
        "tensor bytes": count.tensors,
        "between workers": count.peers or None,
    }
    if way.predicted is not None:
        found |= {
            "predicted messages": way.predicted.messages,
            "predicted tensor bytes": way.predicted.tensors,
        }
    return found


def _line(job: str, way: str, messages: float) -> dict[str, Any]:
    return {
        "work": job,
        "way": way,
        "messages": messages,
        "predicted messages": None,
        "bytes out": None,
        "bytes in": None,
        "tensor bytes": None,
        "predicted tensor bytes": None,
        "between workers": None,
    }
