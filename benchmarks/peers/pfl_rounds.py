"""Rounds of federated averaging by pfl's simulation. Run by `benchmarks.peers.runs`, where pfl is."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

from benchmarks.scenarios import LR, Scenario, scenarios


class Clock(TrainingProcessCallback):
    """Notes when each round ended, and keeps the model of one."""

    def __init__(self, module: torch.nn.Module, compared: int, kept: str) -> None:
        self._module, self._compared, self._kept = module, compared, kept
        self._last = time.perf_counter()
        self.times: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.times.append(time.perf_counter() - self._last)
        if central_iteration + 1 == self._compared:
            torch.save(self._module.state_dict(), self._kept)
        self._last = time.perf_counter()
        return False, Metrics()


def rounds(scenario: Scenario, wanted: dict[str, Any]) -> list[float]:
    data, module = scenario.data(), scenario.module()
    module.load_state_dict(torch.load(wanted["given"], weights_only=True))
    # What pfl asks of a module: its loss, and metrics, which are not measured here.
    module.loss = lambda x, y: scenario.work.loss(module(x), y)  # type: ignore[assignment]
    module.metrics = lambda x, y: {}  # type: ignore[assignment]
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    sampler = get_user_sampler("minimize_reuse", list(range(scenario.clients)))
    users = FederatedDataset(lambda user: Dataset(raw_data=data[user], user_id=str(user)), sampler)
    backend = SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByDatapoints()])
    clock = Clock(module, wanted["compared"], wanted["kept"])
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=wanted["rounds"],
            evaluation_frequency=10**9,
            train_cohort_size=scenario.cohort,
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=scenario.size),
        callbacks=[clock],
    )
    return clock.times


def main() -> None:
    wanted = json.loads(sys.argv[1])
    torch.set_num_threads(wanted["threads"])
    np.random.seed(0)
    times = rounds(scenarios(wanted["quick"])[wanted["scenario"]], wanted)
    print(json.dumps({"version": importlib.metadata.version("pfl"), "times": times}))


if __name__ == "__main__":
    main()
