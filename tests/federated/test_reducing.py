"""Sums added up between workers: the same bits as when each comes here, whatever breaks on the way."""

from __future__ import annotations

import time
from functools import cache
from typing import Any, cast

import pytest
import torch

import planc
from planc.errors import InputError
from runtime import VirtualWorker, WorkerHandle, count_messages
from runtime.channels.base import Channel, Connection
from runtime.channels.inprocess import InProcessChannel
from runtime.errors import ConnectionLost
from runtime.federated import Federation, Median, Population, Uniform
from runtime.federated import events as E
from runtime.federated.settings import Reduce
from runtime.policy import Policy, Rights
from runtime.worker import Worker
from tests.federated.training import Faults, FaultyChannel, State, data, of, plan, same, watched, workers

ROUNDS, CLIENTS = 3, 9


class Related(WorkerHandle):
    """A worker of this process that fails as asked, and reaches others of its family while they live."""

    in_process = True

    def __init__(self, id: str, family: dict[str, Related], faults: Faults) -> None:
        self.faults = faults
        self.worker = Worker(id, peers=lambda to: _way(family[to]))
        family[id] = self
        super().__init__(id, Connection(FaultyChannel(self.worker, faults), "me"))


def _way(to: Related) -> Channel:
    if to.faults.dead:
        raise ConnectionLost("it is dead", worker=to.id)
    return InProcessChannel(to.worker)


def family(*faults: Faults) -> list[Related]:
    known: dict[str, Related] = {}
    return [Related(f"w{i}", known, each) for i, each in enumerate(faults)]


def population(*these: WorkerHandle) -> Population:
    return Population.split(data(), clients=CLIENTS, workers=these, seed=4)


@cache
def undisturbed() -> State:
    return trained(population(*workers(1)), reduce="direct")


def trained(people: Population, **how: Any) -> State:
    federation = Federation(plan(), people, sampling=Uniform(7), seed=5, quorum=1.0, deadline=60, **how)
    try:
        return federation.run(ROUNDS).state_dict()
    finally:
        federation.close()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_tree_changes_no_bit_and_brings_one_sum(count: int) -> None:
    people = population(*workers(count))
    federation = Federation(plan(), people, sampling=Uniform(7), seed=5, reduce="tree")
    federation.run(1)
    with count_messages() as sent:
        done = federation.round()
    there = sent.by_kind["Cohort"]
    assert sent.by_kind["Get"] == 1
    assert (sent.by_kind["Transfer"], sent.by_kind["Run"]) == (there - 1, there - 1)
    assert sent.by_kind["Put"] == sent.peer_messages == there - 1
    assert sent.messages == done.messages
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())


def test_what_workers_held_is_let_go_of() -> None:
    people = population(*workers(3))
    federation = Federation(plan(), people, seed=5, reduce="tree")
    federation.run(1)
    held = [len(worker.objects) for worker in people.workers]
    federation.run(4)
    assert [len(worker.objects) for worker in people.workers] == held


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("how", ["request", "reply", "kill"])
def test_a_fault_at_any_message_changes_no_bit(how: str, which: int) -> None:
    """Every message of a run, but for the first: without its data a worker is an error at once."""
    counted = Faults()
    trained(population(*family(*[counted if i == which else Faults() for i in range(3)])), reduce="tree")
    assert counted.count >= 2 + 2 * ROUNDS
    for at in range(1, counted.count):
        seen, callback = watched()
        faults = [Faults(at, how) if i == which else Faults() for i in range(3)]
        start = time.monotonic()
        final = trained(population(*family(*faults)), reduce="tree", callbacks=[callback])
        assert same(final, undisturbed()), at
        assert time.monotonic() - start < 60
        told = [*of(E.WorkerLost, seen), *of(E.WorkerRefused, seen)]
        assert told, at
        for done in of(E.RoundDone, seen):
            assert done.contributions == 7
            assert all(event.dropped == () for event in told)


def test_a_part_that_is_lost_can_be_left_out() -> None:
    """The worker dies behind its cohort, as its sum is to go on."""
    seen, callback = watched()
    faults = [Faults(), Faults(3, "kill"), Faults()]
    people = population(*family(*faults))
    federation = Federation(
        plan(), people, seed=5, quorum=0.5, on_failure="drop", reduce="tree", callbacks=[callback]
    )
    done = federation.round()
    (cohort,) = [e.done for e in of(E.ClientsDone, seen) if e.worker == "w1"]
    assert done.contributions == CLIENTS - len(cohort)
    assert done.weight == sum(people.weights[c] for c in range(CLIENTS) if c not in cohort)


def test_where_workers_may_not_send_to_each_other_sums_come_one_by_one() -> None:
    seen, callback = watched()
    alone = Policy(default=Rights(move=frozenset()))
    people = population(*(VirtualWorker(f"alone{i}", policy=alone) for i in range(3)))
    assert same(trained(people, reduce="tree", callbacks=[callback]), undisturbed())
    refused = of(E.WorkerRefused, seen)
    assert len(refused) == ROUNDS
    assert all("one by one" in e.why or "instead" in e.why for e in refused)
    assert {e.dropped for e in refused} == {()}
    assert not of(E.WorkerLost, seen)


def test_what_does_not_go_together_says_so() -> None:
    people = population(*workers(1))
    with pytest.raises(InputError, match="late='drop'"):
        Federation(plan(), people, reduce="tree", late="use")
    with pytest.raises(InputError, match="Median needs every client's"):
        Federation(plan(), people, reduce="tree", mean=Median())
    with pytest.raises(InputError, match="reduce is one of 'direct', 'tree'"):
        Federation(plan(), people, reduce=cast(Any, "star"))


def test_sums_larger_than_one_tensor_of_a_kind_arrive_whole() -> None:
    """A model of several tensors of one shape: none may be taken for another."""
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    net = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(4)])

    step = planc.train_step(net, torch.nn.functional.mse_loss, torch.optim.SGD(net.parameters(), 0.1), x, x)
    epoch = planc.epoch(step, batch_size=4)

    def final(count: int, reduce: Reduce) -> State:
        people = Population.split((x, x), clients=8, workers=workers(count))
        return Federation(epoch, people, seed=1, reduce=reduce).run(2).state_dict()

    assert same(final(3, "tree"), final(1, "direct"))
