"""Rounds of federated averaging by Flower's simulation. Run by `benchmarks.peers.runs`, where Flower is.

Nodes have random ids, so a message says which client its node is to be: the cohorts are then the same ones.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.scenarios import Data, Scenario, scenarios

WANTED = "PLANC_BENCH_WANTED"
"""The environment variable that tells Flower's processes what was asked for."""
client_app = ClientApp()


@functools.cache
def _here() -> tuple[Scenario, Data, torch.nn.Module]:
    """What a process of the simulation keeps between its messages."""
    wanted = json.loads(os.environ[WANTED])
    torch.set_num_threads(wanted["threads"])
    scenario = scenarios(wanted["quick"])[wanted["scenario"]]
    return scenario, torch.load(wanted["data"], mmap=True, weights_only=True), scenario.module()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    scenario, data, module = _here()
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = data[int(message.content["config"]["client"])]
    optimizer = scenario.work.optimizer(module.parameters())
    for start in range(0, len(x), scenario.size):
        optimizer.zero_grad()
        rows = slice(start, start + scenario.size)
        scenario.work.loss(module(x[rows]), y[rows]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(x)})
    content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


class Cohorts(FedAvg):
    """Federated averaging whose cohorts are the scenario's, and which notes when a round ended."""

    def __init__(self, scenario: Scenario, wanted: dict[str, Any]) -> None:
        super().__init__(fraction_evaluate=0.0)
        self._scenario, self._wanted = scenario, wanted
        self._last = 0.0
        self.times: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        nodes = sorted(grid.get_node_ids())
        while len(nodes) < self._scenario.clients:  # they register one after the other
            time.sleep(0.05)
            nodes = sorted(grid.get_node_ids())
        self._last = time.perf_counter()
        return [
            Message(
                content=RecordDict({"arrays": arrays, "config": ConfigRecord({"client": client})}),
                message_type=MessageType.TRAIN,
                dst_node_id=nodes[client],
            )
            for client in self._scenario.members(server_round - 1)
        ]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.times.append(time.perf_counter() - self._last)
        if arrays is None:
            raise RuntimeError(f"no client answered in round {server_round}")
        if server_round == self._wanted["compared"]:
            torch.save(arrays.to_torch_state_dict(), self._wanted["kept"])
        return arrays, metrics


def main() -> None:
    wanted = json.loads(sys.argv[1])
    torch.set_num_threads(wanted["threads"])
    scenario = scenarios(wanted["quick"])[wanted["scenario"]]
    server_app, strategy = ServerApp(), Cohorts(scenario, wanted)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        first = ArrayRecord(torch.load(wanted["given"], weights_only=True))
        strategy.start(grid=grid, initial_arrays=first, num_rounds=wanted["rounds"])

    with tempfile.TemporaryDirectory() as folder:
        wanted["data"] = str(Path(folder, "data.pt"))
        torch.save(scenario.data(), wanted["data"])
        os.environ[WANTED] = json.dumps(wanted)
        backend = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        run_simulation(server_app, client_app, num_supernodes=scenario.clients, backend_config=backend)
    print(json.dumps({"version": importlib.metadata.version("flwr"), "times": strategy.times}))


if __name__ == "__main__":
    # By its name: Flower's processes import what they unpickle, and there is no __main__ of ours in them.
    from benchmarks.peers import flower_rounds

    flower_rounds.main()
