"""The rounds of federated averaging that are measured: which clients, which data, which model; seeded.

Knows torch and nothing of planc: the programs that run the same rounds with other tools read it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.workloads import CNN, MLP_SGD, Workload

Data = list[tuple[torch.Tensor, torch.Tensor]]
LR = 0.1


@dataclass(frozen=True)
class Scenario:
    """Rounds of federated averaging.

    Attributes:
        name: as readers see it.
        work: model, loss, optimizer and data.
        clients: how many there are.
        cohort: how many of them take part in a round: the next ones in line, over and over.
        batches: steps of each a round, once over its data.
        size: rows a batch.
        target: what planc is to reach against the plain loop.
    """

    name: str
    work: Workload
    clients: int
    cohort: int
    batches: int
    size: int
    target: str = ""

    def data(self) -> Data:
        """Each client's rows, by its number."""
        out: Data = []
        for client in range(self.clients):
            torch.manual_seed(1000 + client)
            out.append(self.work.batch(self.batches * self.size))
        return out

    def module(self) -> torch.nn.Module:
        """The model, as round 1 finds it."""
        torch.manual_seed(0)
        return self.work.module()

    def members(self, round: int) -> range:
        """The clients of a round, counted from 0."""
        blocks = self.clients // self.cohort
        start = round % blocks * self.cohort
        return range(start, start + self.cohort)


def scenarios(quick: bool) -> Mapping[str, Scenario]:
    """All of them; with fewer clients where it is quick."""
    many, few, crowd, cohort = (20, 2, 100, 10) if quick else (100, 10, 1000, 50)
    return {
        "mlp": Scenario(f"{many} clients x 2 batches of the MLP", MLP_SGD, many, many, 2, 32, "<= 0.7x"),
        "cnn": Scenario(f"{few} clients x 2 batches of the CNN", CNN, few, few, 2, 64),
        "cohort": Scenario(
            f"{crowd:,} clients, cohort {cohort}, 5 batches of 10 of the MLP",
            MLP_SGD,
            crowd,
            cohort,
            5,
            10,
            "<= 0.8x",
        ),
    }
