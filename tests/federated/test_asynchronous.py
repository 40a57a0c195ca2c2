"""FedBuff: against a plain simulation of algorithm 1, in both orders, and where workers fail."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from planc.errors import InputError
from runtime import VirtualWorker, count_messages, federate
from runtime.errors import RoundFailed
from runtime.federated import (
    Buffered,
    Checkpoints,
    Constant,
    FedAdam,
    FedAvg,
    Federation,
    Population,
    Uniform,
)
from runtime.federated.events import ClientsDone, RoundDone, RoundStarted, WorkerLost
from runtime.federated.events import RoundFailed as Failed
from runtime.federated.partition import even
from runtime.federated.servers import staleness_weight
from tests.federated import training as T
from tests.network.serving import over

State = dict[str, torch.Tensor]


def population(count: int = 2) -> Population:
    return Population.split(T.data(), T.CLIENTS, T.workers(count))


def buffered(at: Population | None = None, **options: Any) -> Buffered:
    options = {"concurrency": 6, "buffer": 3, "order": "dispatch"} | options
    return Buffered(options.pop("plan", None) or T.plan(), at or population(), **options)


def trained(start: State, rows: torch.Tensor) -> State:
    """One client in plain PyTorch: an epoch of batches of 3 in order, SGD with momentum."""
    x, y = (t[rows] for t in T.data())
    net = T.network()
    net.load_state_dict(start)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for i in range(0, len(rows), 3):
        optimizer.zero_grad()
        F.cross_entropy(net(x[i : i + 3]), y[i : i + 3]).backward()
        optimizer.step()
    return {path: tensor.clone() for path, tensor in net.state_dict().items()}


def algorithm_1(
    clients: Sequence[int], concurrency: int, buffer: int, rounds: int, lr: float, exponent: float
) -> tuple[State, list[float]]:
    """The paper's, for results that come in the order of their start: the model, and staleness by round."""
    partition = even(T.ROWS, T.CLIENTS)
    model: State = {path: t.clone() for path, t in T.network().state_dict().items()}
    version, coming = 0, iter(clients)
    at_work = [(next(coming), version, model) for _ in range(concurrency)]
    ages: list[float] = []
    for _ in range(rounds):
        total = {path: torch.zeros_like(t, dtype=torch.float64) for path, t in model.items()}
        age = 0.0
        for k in range(buffer):
            client, began, start = at_work.pop(0)
            new = trained(start, partition.of([client]))
            age += version - began
            for path in total:
                delta = new[path].double() - start[path].double()
                total[path] += delta / (1 + version - began) ** exponent
            if k < buffer - 1:
                at_work.append((next(coming), version, model))
        model = {path: (t.double() + lr * total[path] / buffer).float() for path, t in model.items()}
        version += 1
        at_work.append((next(coming), version, model))
        ages.append(age / buffer)
    return model, ages


# -- the algorithm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concurrency", "buffer", "exponent", "lr"), [(6, 3, 0.5, 0.7), (4, 4, 0.0, 1.0), (5, 1, 1.0, 1.0)]
)
def test_it_is_algorithm_1(concurrency: int, buffer: int, exponent: float, lr: float) -> None:
    events, tell = T.watched()
    run = buffered(
        plan=T.plan(shuffle=False),
        concurrency=concurrency,
        buffer=buffer,
        staleness=exponent,
        server=FedAvg(lr=lr),
        callbacks=[tell],
        seed=3,
    )
    result = run.run(7)
    taken = [event.done[0] for event in T.of(ClientsDone, events)]
    still = [flight.client for flight in run._flights.under_way]
    expected, ages = algorithm_1([*taken, *still, 0], concurrency, buffer, 7, lr, exponent)
    assert len(taken) == 7 * buffer
    for path, tensor in result.state_dict().items():
        torch.testing.assert_close(tensor, expected[path], rtol=1e-5, atol=1e-6)
    assert [done.metrics["staleness"] for done in result.rounds] == pytest.approx(ages)
    assert max(ages) > 0


def test_the_weight_of_a_result_falls_with_its_age() -> None:
    fresh = buffered(staleness=0.0).run(4).state_dict()
    old = buffered(staleness=2.0).run(4).state_dict()
    assert not T.same(fresh, old)
    assert staleness_weight(3, 0.5) == 0.5


def test_without_overlap_it_is_federated_averaging() -> None:
    """A round of all clients, each of the same model: what the synchronous mean is, equally weighted."""
    everyone = buffered(plan=T.plan(shuffle=False), concurrency=T.CLIENTS, buffer=T.CLIENTS, staleness=0.5)
    once = everyone.run(1).state_dict()
    mean = Federation(T.plan(shuffle=False), population()).run(1).state_dict()
    for path, tensor in once.items():
        torch.testing.assert_close(tensor, mean[path], rtol=1e-5, atol=1e-6)


def test_clients_weigh_what_the_population_says_if_asked() -> None:
    parts = [list(range(1)), list(range(1, 60))]
    x, y = T.data()

    def run(by_weight: bool) -> State:
        two = Population.split((x, y), parts=parts, workers=T.workers(1))
        plan = T.plan(shuffle=False)
        return Buffered(plan, two, concurrency=2, buffer=2, by_weight=by_weight).run(1).state_dict()

    start: State = dict(T.network().state_dict())
    moves = [trained(start, torch.tensor(part)) for part in parts]
    for by_weight, weights in ((False, (0.5, 0.5)), (True, (1 / 60, 59 / 60))):
        for path, tensor in run(by_weight).items():
            mean = sum(
                w * (m[path].double() - start[path].double()) for w, m in zip(weights, moves, strict=True)
            )
            torch.testing.assert_close(tensor, (start[path].double() + mean).float(), rtol=1e-5, atol=1e-6)


def test_each_client_is_at_work_once_at_a_time_and_all_come_by() -> None:
    events, tell = T.watched()
    buffered(concurrency=8, callbacks=[tell]).run(30)
    for started in T.of(RoundStarted, events):
        assert len(set(started.cohort)) == 8
    assert {event.done[0] for event in T.of(ClientsDone, events)} == set(range(T.CLIENTS))


# -- orders --------------------------------------------------------------------------------------------------


def test_in_the_order_of_dispatch_a_seed_gives_the_same_bits_wherever_clients_are() -> None:
    one, two, three = (buffered(population(n), seed=5).run(6).state_dict() for n in (1, 2, 3))
    assert T.same(one, two)
    assert T.same(one, three)
    assert not T.same(one, buffered(seed=6).run(6).state_dict())


def test_stopping_and_going_on_is_the_same_as_going_through() -> None:
    run = buffered(seed=5)
    run.run(2)
    run.run(4)
    assert T.same(run.run(6).state_dict(), buffered(seed=5).run(6).state_dict())


class Slow(VirtualWorker):
    """A worker that takes its time for each client."""

    def __init__(self, id: str, seconds: float) -> None:
        super().__init__(id)
        call = self.connection.call

        def slowly(body: Any, tensors: Any = ()) -> Any:
            if type(body).__name__ == "Cohort":
                time.sleep(seconds)
            return call(body, tensors)

        self.connection.call = slowly  # type: ignore[method-assign]


def test_in_the_order_of_arrival_nobody_waits_for_a_slow_worker_and_it_learns() -> None:
    events, tell = T.watched()
    at = Population.split(T.data(), T.CLIENTS, [VirtualWorker("quick"), Slow("slow", 0.05)])
    x, y = T.data()
    run = Buffered(T.plan(), at, concurrency=6, buffer=3, callbacks=[tell], seed=1)
    before = float(F.cross_entropy(T.network()(x), y).detach())
    start = time.monotonic()
    result = run.run(60)
    took = time.monotonic() - start
    of = [event.worker for event in T.of(ClientsDone, events)]
    assert of.count("quick") > 2 * of.count("slow") > 0
    assert took < 0.05 * 180 * 0.6, "180 clients, half of them slow, one after the other take 4.5 s"
    assert max(done.metrics["staleness"] for done in result.rounds) > 2
    net = T.network()
    net.load_state_dict(result.state_dict())
    assert float(F.cross_entropy(net(x), y).detach()) < 0.6 * before


# -- faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["request", "reply", "kill", "nonsense", "hang"])
@pytest.mark.parametrize("at", [0, 1, 2, 7])
def test_a_lost_worker_changes_nothing_in_the_order_of_dispatch(how: str, at: int) -> None:
    undisturbed = buffered(seed=2).run(4).state_dict()
    faults = T.Faults()
    events, tell = T.watched()
    failing = T.FaultyWorker("failing", faults)
    at_both = Population.split(T.data(), T.CLIENTS, [failing, VirtualWorker("fine")])
    faults.at, faults.how = faults.count + at, how
    run = buffered(at_both, seed=2, patience=0.3 if how == "hang" else None, callbacks=[tell])
    result = run.run(4)
    faults.release()
    assert T.same(result.state_dict(), undisturbed)
    (lost,) = T.of(WorkerLost, events)
    assert lost.worker == "failing"
    assert lost.dropped == ()
    numbers = [event.done for event in T.of(ClientsDone, events)]
    assert len(numbers) == 12, "no result counted twice"
    assert all(done.weight == 3.0 for done in T.of(RoundDone, events))


def test_clients_that_fail_are_replaced_and_told_of() -> None:
    x, y = T.data()
    bad = x.clone()
    parts = [torch.arange(5) + 5 * c for c in range(T.CLIENTS)]
    bad[parts[4]] = float("nan")
    events, tell = T.watched()
    run = Buffered(
        T.plan(),
        Population.split((bad, y), parts=parts, workers=T.workers(2)),
        callbacks=[tell],
        concurrency=8,
    )
    result = run.run(12)
    failed = [event for event in T.of(ClientsDone, events) if event.failed]
    assert failed
    assert all(event.failed.keys() == {4} and "nonsense" in event.failed[4] for event in failed)
    assert all(tensor.isfinite().all() for tensor in result.state_dict().values())
    assert all(done.contributions == 5 for done in result.rounds)


def test_it_ends_where_everybody_fails_and_says_why() -> None:
    x, y = T.data()
    events, tell = T.watched()
    at = Population.split((x * float("nan"), y), T.CLIENTS, T.workers(2))
    run = buffered(at, failures=7, callbacks=[tell])
    before = run.state_dict()
    with pytest.raises(
        RoundFailed, match=r"round 1: 8 clients failed while 0 of 3 came: worker 'w.': nonsense"
    ):
        run.run(3)
    assert T.unchanged(run, before, 0)
    assert len(T.of(Failed, events)) == 1


def test_it_ends_where_no_worker_is_left() -> None:
    faults = T.Faults()
    at = Population.split(T.data(), T.CLIENTS, [T.FaultyWorker("only", faults)])
    run = buffered(at)
    run.run(1)
    faults.dead = True
    with pytest.raises(RoundFailed, match="no worker is left that has its data"):
        run.run(2)


def test_clients_whose_data_is_lost_are_drawn_no_more() -> None:
    faults = T.Faults()
    failing, fine = T.FaultyWorker("failing", faults), VirtualWorker("fine")
    dataset = federate(T.data(), [failing, fine])
    parts = [list(range(5 * c, 5 * c + 5)) for c in range(6)]
    at = Population.of(dataset, {failing: parts, fine: parts})
    events, tell = T.watched()
    run = buffered(at, callbacks=[tell], concurrency=4)
    run.run(1)
    faults.dead = True
    run.run(5)
    assert T.of(WorkerLost, events)[0].why.endswith("the data of 6 clients was only there")
    for started in T.of(RoundStarted, events)[2:]:
        assert set(started.cohort) <= set(range(6, 12))


def test_another_worker_takes_the_place_of_a_lost_one() -> None:
    faults = T.Faults()
    other = VirtualWorker("other")
    at = Population.split(T.data(), T.CLIENTS, [T.FaultyWorker("only", faults)])
    events, tell = T.watched()
    run = buffered(at, callbacks=[tell], on_worker_lost=lambda _: other, seed=2)
    run.run(1)
    faults.dead = True
    assert T.same(run.run(4).state_dict(), buffered(seed=2).run(4).state_dict())
    assert T.of(WorkerLost, events)[0].why.endswith("other takes its place")


def test_fail_means_fail() -> None:
    faults = T.Faults()
    at = Population.split(T.data(), T.CLIENTS, [T.FaultyWorker("failing", faults), VirtualWorker("fine")])
    run = buffered(at, on_failure="fail")
    run.run(1)
    faults.dead = True
    before = {1: run.state_dict()}

    def more() -> None:
        for rounds in range(2, 10):
            run.run(rounds)
            before[rounds] = run.state_dict()

    # What was on its way may have come already, and make up a round or two.
    with pytest.raises(RoundFailed, match="worker 'failing' failed, and on_failure is 'fail'"):
        more()
    assert T.unchanged(run, before[max(before)], max(before))


# -- the rest ------------------------------------------------------------------------------------------------


def test_client_state_is_kept_from_one_time_to_the_next() -> None:
    kept = buffered(client_state="kept", seed=4).run(8).state_dict()
    assert T.same(kept, buffered(population(3), client_state="kept", seed=4).run(8).state_dict())
    assert not T.same(kept, buffered(seed=4).run(8).state_dict())


def test_learning_rates_and_server_optimizers_are_those_of_rounds() -> None:
    plan = T.plan(lr_input=True)
    still = buffered(plan=plan, client_lr=Constant(0.0)).run(2).state_dict()
    assert T.same(still, {path: t.detach() for path, t in T.network().state_dict().items()})
    run = buffered(server=FedAdam(lr=0.01))
    assert run.run(3).rounds[-1].number == 3
    assert all(tensor.abs().sum() > 0 for path, tensor in run.server_state.items())


def test_memory_holds_a_model_for_each_start_only() -> None:
    run = buffered(concurrency=4, buffer=2)
    run.run(20)
    assert len(run._models) <= 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "concurrency is a number of clients of at least 1, got 0"),
        ({"buffer": 1.5}, "buffer is a number of clients of at least 1, got 1.5"),
        ({"failures": -1}, "failures is a number of clients of at least 0"),
        ({"concurrency": 13}, "concurrency is 13, but the population has 12 clients"),
        ({"staleness": -1.0}, "an exponent of at least 0, got -1.0"),
        ({"order": "random"}, '"arrival" or "dispatch", got \'random\''),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        buffered(**options)


def test_sampling_has_no_place_here() -> None:
    with pytest.raises(TypeError):
        buffered(sampling=Uniform(3))


def test_grpc_changes_no_bit() -> None:
    here = buffered(seed=2).run(3).state_dict()
    with over("grpc"):
        run = buffered(seed=2)
        there = run.run(3).state_dict()
        run.close()
    assert T.same(here, there)


def test_data_that_is_made_on_demand_gives_the_same_bits_and_is_counted() -> None:
    x, y = T.data()
    partition = even(T.ROWS, T.CLIENTS)

    def source(client: int) -> tuple[torch.Tensor, ...]:
        rows = partition.of([client])
        return x[rows], y[rows]

    at = Population.from_source(source, [5.0] * T.CLIENTS, T.workers(2), cache_bytes=400)
    run = buffered(at, seed=2)
    with count_messages() as sent:
        result = run.run(3)
    assert T.same(result.state_dict(), buffered(seed=2).run(3).state_dict())
    assert sent.by_kind["Put"] > 4
    told = sum(done.messages for done in result.rounds)
    assert sent.messages - run.concurrency <= told <= sent.messages, "but for clients that did not land yet"


def test_clients_that_are_not_done_in_time_are_late_and_the_run_ends() -> None:
    events, tell = T.watched()
    run = buffered(deadline=1e-5, failures=5, callbacks=[tell])
    with pytest.raises(RoundFailed, match=r"6 clients failed while 0 of 3 came: .* it was not done in time"):
        run.run(1)
    told = T.of(ClientsDone, events)
    assert len(told) == 6
    assert all(len(event.late) == 1 and not event.done and not event.failed for event in told)


def test_a_run_in_the_order_of_arrival_goes_on_after_a_stop(tmp_path: Path) -> None:
    def run() -> Buffered:
        return buffered(order="arrival", checkpoints=Checkpoints(tmp_path))

    stopped = run()
    stopped.run(3)
    at_work = {flight.client for flight in stopped._flights.under_way}
    assert len(at_work) == stopped.concurrency - 1
    resumed = run()
    result = resumed.run(5, resume=True)
    assert [done.number for done in result.rounds] == [1, 2, 3, 4, 5]
    assert result.rounds[-1].metrics["staleness"] > 0


def test_an_interrupt_gives_up_at_once_and_the_run_can_go_on() -> None:
    def interrupt(event: Any) -> None:
        if isinstance(event, RoundDone) and event.number == 2 and not interrupted:
            interrupted.append(event)
            raise KeyboardInterrupt

    interrupted: list[RoundDone] = []
    run = buffered(seed=2, callbacks=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        run.run(4)
    assert T.same(run.run(4).state_dict(), buffered(seed=2).run(4).state_dict())
