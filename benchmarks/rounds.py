"""Suite "rounds": rounds of federated averaging over many clients, against a plain loop over them.

Same data, same model, same batches; the models that come out are compared too. Other tools run the same
rounds in environments of their own, if ``make bench-peers`` made them: `benchmarks.peers.runs`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

import planc
from benchmarks.harness import Figure, Result, compare
from benchmarks.peers import runs
from benchmarks.scenarios import Data, Scenario, scenarios
from planc.errors import InputError
from runtime import FederatedAveraging, FederatedDataset, RayCluster, VirtualWorker
from runtime.errors import ConnectionLost
from runtime.federated import Federation, Population
from runtime.remote.handle import WorkerHandle
from runtime.remote.tensor import RemoteTensor

State = dict[str, torch.Tensor]
COMPARED = 2
"""Rounds after which the models are compared."""
PLAIN = "plain PyTorch loop"
EACH = "FederatedAveraging, a worker a client"
ONE, TWO = "Federation, one worker in this process", "Federation, two workers in this process"
RAY = "Federation, two workers on Ray"
RAY_TARGET = "<= 1.3x"


def run(quick: bool = False, peers: bool = False) -> Iterator[Result]:
    for key, scenario in scenarios(quick).items():
        result = _measured(key, scenario, quick, peers)
        if key != "mlp":
            yield result
            continue
        found = _on_ray(scenario, quick)
        if isinstance(found, Result):
            yield from (result, found)
        else:
            yield replace(result, note=f"{result.note}; Ray: not measured: {found}")


def _measured(key: str, scenario: Scenario, quick: bool, peers: bool) -> Result:
    data, plan = scenario.data(), client_plan(scenario)
    plain = Plain(scenario, data)
    ours: dict[str, Each | Ours] = {EACH: Each(scenario, data, plan)} if key == "mlp" else {}
    ours |= {name: Ours(scenario, data, plan, here(count)) for name, count in ((TWO, 2), (ONE, 1))}
    for _ in range(COMPARED):
        plain.round()
        for way in ours.values():
            way.round()
    compared = plain.state
    found = max(difference(plain.state, way.state) for way in ours.values())
    result = compare(
        "rounds",
        scenario.name,
        {PLAIN: plain.round, **{name: way.round for name, way in ours.items()}},
        rounds=3 if quick else 7,
        warmup=0,  # the rounds above were
        note="clients live at workers, and a round is one message to each of these. One worker has one "
        "client at a time, as the loop has, and pfl; two have two, in two threads. After "
        f"{COMPARED} rounds parameters differ from the loop's by at most {found:.1e}",
        target=scenario.target,
    )
    if not peers:
        return result
    return _with_peers(result, key, scenario, compared, quick)


def _on_ray(scenario: Scenario, quick: bool) -> Result | str:
    """The same rounds by workers in processes of a local Ray; or why there is no figure."""
    data, plan = scenario.data(), client_plan(scenario)
    try:
        cluster = RayCluster(workers=2)
    except (InputError, ConnectionLost) as error:
        return str(error)
    with cluster:
        there = Ours(scenario, data, plan, cluster.workers)
        ours = {
            TWO: Ours(scenario, data, plan, here(2)),
            ONE: Ours(scenario, data, plan, here(1)),
            RAY: there,
        }
        for _ in range(COMPARED):
            for way in ours.values():
                way.round()
        found = max(difference(there.state, way.state) for way in ours.values())
        return compare(
            "rounds",
            f"Ray: {scenario.name}",
            {name: way.round for name, way in ours.items()},
            rounds=3 if quick else 7,
            warmup=0,
            note="once warm: two workers in processes of a local Ray, beside as many in threads of this one. "
            f"After {COMPARED} rounds parameters differ by {found:.1e}",
            target=RAY_TARGET,
        )


def _with_peers(result: Result, key: str, scenario: Scenario, compared: State, quick: bool) -> Result:
    """The figures of other tools behind ours, or why there are none."""
    figures, notes = list(result.figures), [result.note]
    for peer in runs.PEERS:
        ran = runs.run(peer, key, scenario, quick, COMPARED)
        if isinstance(ran, str):
            notes.append(f"{peer}: {ran}")
            continue
        ratio = ran.median / result.figures[0].median
        figures.append(Figure(f"{peer} {ran.version}", ran.median, min(ran.times), ratio, 1))
        notes.append(
            f"{peer} differs from the loop by at most {difference(compared, ran.state):.1e} after "
            f"{COMPARED} rounds; it ran in a process of its own, a round at a time after its first"
        )
    return replace(result, figures=tuple(figures), note="; ".join(notes))


class Plain:
    """The loop that anyone would write: for each client the model, its batches, then the mean."""

    def __init__(self, scenario: Scenario, data: Data) -> None:
        self._scenario, self._data = scenario, data
        self._module = scenario.module()
        self.state: State = copy.deepcopy(self._module.state_dict())
        self._rounds = 0

    def round(self) -> None:
        scenario, work = self._scenario, self._scenario.work
        members = scenario.members(self._rounds)
        self._rounds += 1
        total = {k: torch.zeros_like(v) for k, v in self.state.items()}
        for client in members:
            x, y = self._data[client]
            self._module.load_state_dict(self.state)
            optimizer = work.optimizer(self._module.parameters())
            for start in range(0, len(x), scenario.size):
                optimizer.zero_grad()
                rows = slice(start, start + scenario.size)
                work.loss(self._module(x[rows]), y[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                for k, v in self._module.state_dict().items():
                    total[k] += v / len(members)
        self.state = total


class Each:
    """The same by `FederatedAveraging`: a worker a client, a message a client."""

    def __init__(self, scenario: Scenario, data: Data, plan: planc.Plan) -> None:
        if scenario.cohort != scenario.clients:
            raise ValueError("FederatedAveraging has all of its workers in every round")
        workers = here(scenario.clients)
        shards: dict[WorkerHandle, list[RemoteTensor]] = {
            w: w.send_all(list(pair)) for w, pair in zip(workers, data, strict=True)
        }
        self._rounds = FederatedAveraging(plan, FederatedDataset(shards))

    @property
    def state(self) -> State:
        return self._rounds.state_dict()

    def round(self) -> None:
        self._rounds.round()


@dataclass(frozen=True)
class NextInLine:
    """The cohorts of a scenario: nothing is drawn, so that all tools have the same ones."""

    scenario: Scenario

    def sample(
        self,
        round: int,
        population_size: int,
        weights: Sequence[float],
        seed: int,
        available: Collection[int] | None = None,
    ) -> tuple[int, ...]:
        return tuple(self.scenario.members(round - 1))

    def expected_size(self, population_size: int) -> float:
        return float(self.scenario.cohort)


class Ours:
    """The same by a `Federation`: clients at few workers, a message a worker."""

    def __init__(
        self, scenario: Scenario, data: Data, plan: planc.Plan, workers: Sequence[WorkerHandle]
    ) -> None:
        rows = scenario.batches * scenario.size
        population = Population.split(
            tuple(torch.cat(column) for column in zip(*data, strict=True)),
            parts=[range(client * rows, (client + 1) * rows) for client in range(scenario.clients)],
            workers=workers,
        )
        self._federation = Federation(plan, population, sampling=NextInLine(scenario))

    @property
    def state(self) -> State:
        return self._federation.state_dict()

    def round(self) -> None:
        self._federation.round()


@functools.cache
def client_plan(scenario: Scenario) -> planc.Plan:
    """What a client does in a round: once over its data, in order."""
    module, work = scenario.module(), scenario.work
    torch.manual_seed(0)
    example = work.batch(scenario.size)
    step = planc.train_step(module, work.loss, work.optimizer(module.parameters()), *example)
    return planc.epoch(step, batch_size=scenario.size, shuffle=False)


def here(count: int) -> list[VirtualWorker]:
    """Workers in this process."""
    return [VirtualWorker(f"worker{i}") for i in range(count)]


def difference(a: State, b: State) -> float:
    """The largest difference of any two parameters."""
    return max(float((a[path].double() - b[path].double()).abs().max()) for path in a)
