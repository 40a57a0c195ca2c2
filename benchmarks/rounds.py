"""Suite "rounds": a round of federated averaging over many clients, against a plain loop over them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

import planc
from benchmarks.harness import Result, compare
from benchmarks.workloads import MLP_SGD, Workload
from runtime import FederatedAveraging, FederatedDataset, VirtualWorker


def run(quick: bool = False) -> Iterator[Result]:
    yield _round(MLP_SGD, clients=10 if quick else 100, batches=2, quick=quick)


def _round(work: Workload, clients: int, batches: int, quick: bool) -> Result:
    module, optimizer, _ = work.start()
    data = [work.batch(work.size * batches) for _ in range(clients)]
    step = planc.train_step(module, work.loss, optimizer, *work.batch(work.size))
    plan = planc.epoch(step, batch_size=work.size, shuffle=False)
    workers = [VirtualWorker(f"client{i}") for i in range(clients)]
    shards = {w: w.send_all(list(pair)) for w, pair in zip(workers, data, strict=True)}
    training = FederatedAveraging(plan, FederatedDataset(shards))
    return compare(
        "rounds",
        f"{clients} clients x {batches} batches of {work.name}",
        {"plain PyTorch loop": plain(work, module, data), "FederatedAveraging, in-process": training.round},
        rounds=3 if quick else 7,
        warmup=1,
        note="parameters travel to every client and back",
        target="<= 0.7x",
    )


def plain(work: Workload, module: torch.nn.Module, data: list[Any]) -> Callable[[], None]:
    """The loop that anyone would write: for each client a copy of the model, its batches, then the mean."""
    state = {"model": copy.deepcopy(module.state_dict())}
    local = copy.deepcopy(module)

    def round() -> None:
        total = {k: torch.zeros_like(v) for k, v in state["model"].items()}
        for x, y in data:
            local.load_state_dict(state["model"])
            optimizer = work.optimizer(local.parameters())
            for start in range(0, len(x), work.size):
                optimizer.zero_grad()
                loss = work.loss(local(x[start : start + work.size]), y[start : start + work.size])
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                for k, v in local.state_dict().items():
                    total[k] += v / len(data)
        state["model"] = total

    return round
