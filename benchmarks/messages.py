"""Suite "messages": how many messages and bytes a training step costs, each way. Deterministic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import planc
from benchmarks.workloads import CNN, LINEAR, MLP_SGD, Workload
from runtime import RemoteModule, RemoteOptimizer, VirtualWorker, count_messages

# Measured on the predecessor (PySyft 0.1) with the model travelling, for comparison.
_PREDECESSOR = {LINEAR.name: 36, CNN.name: 130}


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    for work in (LINEAR, MLP_SGD, CNN):
        yield from _rows(work)


def _rows(work: Workload) -> Iterator[dict[str, Any]]:
    if work.name in _PREDECESSOR:
        yield {
            "work": work.name,
            "way": "PySyft 0.1, eager, model travelling (measured there)",
            "messages": _PREDECESSOR[work.name],
            "bytes out": None,
            "bytes in": None,
        }
    yield _row(work, "eager, model travelling", *_eager(work))
    installed, first, again = _plan(work)
    yield _row(work, "plan: installing it and its state", *installed)
    yield _row(work, "plan a step, model resident: first", *first)
    yield _row(work, "plan a step, model resident: later", *again)


def _row(work: Workload, way: str, messages: int, out: int, back: int) -> dict[str, Any]:
    return {"work": work.name, "way": way, "messages": messages, "bytes out": out, "bytes in": back}


def _eager(work: Workload) -> tuple[int, int, int]:
    module, optimizer, (x, y) = work.start()
    worker = VirtualWorker("bench")
    rx, ry = worker.send(x), worker.send(y)
    model = RemoteModule(module)
    remote = RemoteOptimizer(model, type(optimizer), lr=optimizer.param_groups[0]["lr"])
    for _ in range(2):  # the second is the steady state
        with count_messages() as sent:
            model.send(worker)
            remote.zero_grad()
            loss = work.loss(model(rx), ry)
            loss.backward()
            remote.step()
            model.get()
            loss.get()
    return sent.messages, sent.bytes_out, sent.bytes_in


def _plan(work: Workload) -> tuple[tuple[int, int, int], ...]:
    module, optimizer, (x, y) = work.start()
    plan = planc.train_step(module, work.loss, optimizer, x, y)
    worker = VirtualWorker("bench")
    rx, ry = worker.send(x), worker.send(y)
    out: list[tuple[int, int, int]] = []
    with count_messages() as sent:
        remote = plan.send(worker)
    out.append((sent.messages, sent.bytes_out, sent.bytes_in))
    for _ in range(2):
        with count_messages() as sent:
            loss: torch.Tensor = remote.fetch(rx, ry)
        assert loss.shape == ()
        out.append((sent.messages, sent.bytes_out, sent.bytes_in))
    return tuple(out)
