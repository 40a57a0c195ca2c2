"""Suite "rounds": rounds of federated averaging over many clients, against a plain loop over them.

Same data, same model, same batches; the models that come out are compared too. Other tools run the same
rounds in environments of their own, if ``make bench-peers`` made them: `benchmarks.peers.runs`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch

import planc
from benchmarks.harness import Figure, Result, compare
from benchmarks.peers import runs
from benchmarks.scenarios import Data, Scenario, scenarios
from runtime import FederatedAveraging, FederatedDataset, VirtualWorker

State = dict[str, torch.Tensor]
COMPARED = 2
"""Rounds after which the models are compared."""
PLAIN, OURS = "plain PyTorch loop", "FederatedAveraging, in-process"
SEEN = "FederatedAveraging, clients seen before"


def run(quick: bool = False, peers: bool = False) -> Iterator[Result]:
    for key, scenario in scenarios(quick).items():
        yield _measured(key, scenario, quick, peers)


def _measured(key: str, scenario: Scenario, quick: bool, peers: bool) -> Result:
    data = scenario.data()
    plain, ours = Plain(scenario, data), Ours(scenario, data)
    for _ in range(COMPARED):
        plain.round()
        ours.round()
    compared = plain.state
    found = difference(plain.state, ours.state)
    ways = {PLAIN: plain.round}
    if scenario.cohort < scenario.clients:  # a client that is new decodes, verifies and compiles the plan
        seen = Ours(scenario, data)
        for _ in range(2 * scenario.clients // scenario.cohort):
            seen.round()
        ways[SEEN] = seen.round
    result = compare(
        "rounds",
        scenario.name,
        {**ways, OURS: ours.round},
        rounds=3 if quick else 7,
        warmup=0,  # the rounds above were
        note="parameters travel to every client and back, and as many clients train at once as there are "
        f"cores (the loop has one at a time, and so has pfl); after {COMPARED} rounds they differ from the "
        f"loop's by at most {found:.1e}",
        target=scenario.target,
    )
    if not peers:
        return result
    return _with_peers(result, key, scenario, compared, quick)


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


class Ours:
    """The same by plans: a worker a client, a message a worker a round."""

    def __init__(self, scenario: Scenario, data: Data) -> None:
        module, work = scenario.module(), scenario.work
        torch.manual_seed(0)
        example = work.batch(scenario.size)
        step = planc.train_step(module, work.loss, work.optimizer(module.parameters()), *example)
        plan = planc.epoch(step, batch_size=scenario.size, shuffle=False)
        workers = [VirtualWorker(f"client{i}") for i in range(scenario.clients)]
        shards = [(w, w.send_all(list(pair))) for w, pair in zip(workers, data, strict=True)]
        blocks = range(scenario.clients // scenario.cohort)
        self._cohorts = [
            FederatedAveraging(plan, FederatedDataset(dict(shards[i] for i in scenario.members(block))))
            for block in blocks
        ]
        self.state: State = self._cohorts[0].state_dict()
        self._rounds = 0

    def round(self) -> None:
        cohort = self._cohorts[self._rounds % len(self._cohorts)]
        self._rounds += 1
        cohort.state = self.state
        cohort.round()
        self.state = cohort.state


def difference(a: State, b: State) -> float:
    """The largest difference of any two parameters."""
    return max(float((a[path].double() - b[path].double()).abs().max()) for path in a)
