"""Workers that die, hang, answer nonsense or refuse: the same model bit for bit, or a clear error."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from runtime import FederatedDataset, VirtualWorker, WorkerHandle, connect
from runtime.errors import RoundFailed, WorkerError
from runtime.federated import Checkpoints, Evaluation, Federation, Population, Uniform
from runtime.federated import events as E
from runtime.federated.federation import State
from runtime.worker import Worker
from tests.federated.training import (
    Faults,
    FaultyWorker,
    data,
    judge,
    of,
    plan,
    same,
    unchanged,
    watched,
    workers,
)
from tests.network.serving import STREAMS, anywhere, listening

ROUNDS, CLIENTS = 3, 9
MESSAGES = 2 + ROUNDS
"""To each worker of an undisturbed run: its data, the plan, and a cohort a round."""


def population(*these: WorkerHandle) -> Population:
    return Population.split(data(), clients=CLIENTS, workers=these, seed=4)


@cache
def undisturbed() -> State:
    federation = Federation(plan(), population(*workers(3)), sampling=Uniform(7), seed=5)
    return federation.run(ROUNDS).state_dict()


def weights_add_up(federation: Federation, seen: list[E.Event]) -> bool:
    """Whether each client counts once at most, and the weights are those of the clients that count."""
    for done in of(E.RoundDone, seen):
        answers = [e for e in of(E.ClientsDone, seen) if e.number == done.number]
        clients = [client for e in answers for client in e.done]
        if len(clients) != len(set(clients)) or len(clients) != done.contributions:
            return False
        if done.weight != math.fsum(federation.population.weights[client] for client in clients):
            return False
    return True


@pytest.fixture
def hanging() -> Iterator[Callable[..., FaultyWorker]]:
    """Makes workers that hang at a message, until the test is over."""
    made: list[Faults] = []

    def make(at: int, id: str = "hanging", how: str = "hang") -> FaultyWorker:
        made.append(Faults(at, how))
        return FaultyWorker(id, made[-1])

    yield make
    for faults in made:
        faults.release()


# -- every message of a run ----------------------------------------------------------------------------------


def test_an_undisturbed_run_has_so_many_messages() -> None:
    faults = Faults()
    population_ = population(FaultyWorker("f", faults), *workers(2))
    Federation(plan(), population_, sampling=Uniform(7), seed=5).run(ROUNDS)
    assert faults.count == MESSAGES


HOW = ["request", "reply", "kill", "nonsense"]


@pytest.mark.parametrize("how", HOW)
def test_data_that_does_not_come_is_a_clear_error(how: str) -> None:
    with pytest.raises(WorkerError, match=r"'f'"):
        population(FaultyWorker("f", Faults(0, how)), *workers(2))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("at", range(1, MESSAGES))
def test_a_fault_at_any_later_message_changes_no_bit(at: int, how: str) -> None:
    seen, callback = watched()
    people = population(FaultyWorker("f", Faults(at, how)), *workers(2))
    federation = Federation(
        plan(), people, sampling=Uniform(7), seed=5, deadline=60, quorum=1.0, callbacks=[callback]
    )
    start = time.monotonic()
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())
    assert time.monotonic() - start < 60
    (lost,) = of(E.WorkerLost, seen)
    assert (lost.worker, lost.dropped) == ("f", ())
    assert lost.rescheduled
    assert [worker.id for worker in people.workers] == ["w0", "w1"]
    assert weights_add_up(federation, seen)


@pytest.mark.parametrize("at", range(1, MESSAGES))
def test_two_workers_lost_at_once_change_no_bit(at: int) -> None:
    both = [FaultyWorker(f"f{i}", Faults(at, "kill")) for i in range(2)]
    seen, callback = watched()
    federation = Federation(
        plan(), population(*both, *workers(1)), sampling=Uniform(7), seed=5, retries=2, callbacks=[callback]
    )
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())
    assert {lost.worker for lost in of(E.WorkerLost, seen)} == {"f0", "f1"}
    assert weights_add_up(federation, seen)


def test_a_worker_that_gives_out_where_it_should_help_is_lost_too() -> None:
    """The first is lost in round 1; the second takes no data then: it was to take over its clients."""
    seen, callback = watched()
    first, second = FaultyWorker("f0", Faults(1, "kill")), FaultyWorker("f1", Faults(3, "kill"))
    people = population(first, second, *workers(1))
    federation = Federation(plan(), people, sampling=Uniform(7), seed=5, retries=2, callbacks=[callback])
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())
    assert [lost.worker for lost in of(E.WorkerLost, seen)] == ["f0", "f1"]
    assert weights_add_up(federation, seen)


def test_data_made_on_demand_goes_elsewhere_when_it_cannot_be_sent() -> None:
    x, y = data()

    def make(client: int) -> tuple[torch.Tensor, torch.Tensor]:
        return x[client * 5 : client * 5 + 5], y[client * 5 : client * 5 + 5]

    def final(*these: WorkerHandle) -> State:
        people = Population.from_source(make, [5.0] * CLIENTS, these)
        made = Federation(plan(), people, sampling=Uniform(7), seed=5, callbacks=[callback])
        return made.run(2).state_dict()

    seen, callback = watched()
    expected = final(*workers(2))
    for at in range(5):
        assert same(final(FaultyWorker("f", Faults(at, "kill")), *workers(1)), expected)
    assert {lost.worker for lost in of(E.WorkerLost, seen)} == {"f"}
    assert any("took no data" in lost.why for lost in of(E.WorkerLost, seen))


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("number", [1, 3])
def test_a_server_that_goes_away_changes_no_bit(number: int, kind: str) -> None:
    server = listening(Worker("gone"), anywhere(kind))
    gone = connect(str(server.address), patience=0.5)
    seen, callback = watched()

    def close(event: E.Event) -> None:
        if isinstance(event, E.RoundStarted) and event.number == number:
            server.close()

    federation = Federation(
        plan(), population(gone, *workers(2)), sampling=Uniform(7), seed=5, callbacks=[callback, close]
    )
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())
    (lost,) = of(E.WorkerLost, seen)
    assert (lost.number, lost.worker) == (number, "gone")
    assert weights_add_up(federation, seen)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_goes_wrong_where_one_worker_is_left_the_bits_are_the_same(seed: int) -> None:
    draw = random.Random(seed)
    faulty = [FaultyWorker(f"f{i}", Faults(draw.randrange(1, 9), draw.choice(HOW))) for i in range(4)]
    seen, callback = watched()
    people = population(*faulty, *workers(1))
    federation = Federation(plan(), people, sampling=Uniform(7), seed=5, retries=5, callbacks=[callback])
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())
    assert weights_add_up(federation, seen)
    lost = [event.worker for event in of(E.WorkerLost, seen)]
    assert len(lost) == len(set(lost)) == 5 - len(people.workers)


def test_a_source_that_never_gives_its_data_fails_the_round_each_time() -> None:
    stop = threading.Event()

    def make(client: int) -> tuple[torch.Tensor, ...]:
        stop.wait(60)
        return data()

    people = Population.from_source(make, [60.0] * 2, workers(1))
    federation = Federation(plan(), people, deadline=0.3, grace=0.1)
    for _ in range(2):
        with pytest.raises(RoundFailed, match="data could not be sent to the workers in time"):
            federation.round()
    stop.set()


# -- what else the settings say ------------------------------------------------------------------------------


def test_clients_of_a_lost_worker_are_dropped_if_asked() -> None:
    seen, callback = watched()
    people = population(FaultyWorker("f", Faults(2, "kill")), *workers(2))
    federation = Federation(plan(), people, on_failure="drop", quorum=0.5, callbacks=[callback])
    done = federation.round()
    (lost,) = of(E.WorkerLost, seen)
    assert lost.rescheduled == ()
    assert len(lost.dropped) == 3
    assert done.contributions == CLIENTS - 3
    assert weights_add_up(federation, seen)
    assert federation.round().contributions == CLIENTS  # they moved: the next round has them again


def test_a_quorum_that_is_not_reached_leaves_all_as_it_was() -> None:
    seen, callback = watched()
    people = population(FaultyWorker("f", Faults(3, "kill")), *workers(1))
    federation = Federation(plan(), people, on_failure="drop", quorum=0.9, callbacks=[callback])
    federation.round()
    before, server_state = federation.state_dict(), dict(federation.server_state)
    with pytest.raises(
        RoundFailed, match=r"round 2: \d of 9 clients contributed, 9 have to: worker 'f'"
    ) as info:
        federation.run(3)
    error = info.value
    assert (error.number, error.needed) == (2, 9)
    assert 0 < error.contributions < 9
    assert "ConnectionLost" in error.reasons["f"]
    assert unchanged(federation, before, 1)
    assert same(federation.server_state, server_state)
    assert len(federation.history) == 1
    (failed,) = of(E.RoundFailed, seen)
    assert (failed.number, failed.why) == (2, str(error))
    assert of(E.RunDone, seen)[-1].why.startswith("RoundFailed: round 2")
    assert federation.run(3).rounds[-1].number == 3  # the same rounds, at who is left


def test_a_failed_round_can_be_asked_for() -> None:
    people = population(FaultyWorker("f", Faults(2, "reply")), *workers(1))
    federation = Federation(plan(), people, on_failure="fail")
    before = federation.state_dict()
    with pytest.raises(RoundFailed, match="worker 'f' failed, and on_failure is 'fail': ConnectionLost"):
        federation.round()
    assert unchanged(federation, before, 0)
    assert same(
        federation.run(1).state_dict(), Federation(plan(), population(*workers(1))).run(1).state_dict()
    )


def test_no_worker_left_is_a_clear_error() -> None:
    federation = Federation(plan(), population(FaultyWorker("f", Faults(2, "kill"))))
    for _ in range(2):
        with pytest.raises(RoundFailed, match="0 of 9 clients contributed"):
            federation.round()


def test_clients_whose_data_was_only_there_are_lost_with_their_worker() -> None:
    x, y = data()
    faulty, bob = FaultyWorker("f", Faults(2, "kill")), VirtualWorker("bob")
    shards = {faulty: faulty.send_all([x[:20], y[:20]]), bob: bob.send_all([x[20:], y[20:]])}
    seen, callback = watched()
    people = Population.of(FederatedDataset(shards))
    federation = Federation(plan(), people, quorum=0.5, callbacks=[callback])
    assert (federation.round().contributions, federation.round().contributions) == (1, 1)
    (lost,) = of(E.WorkerLost, seen)
    assert (lost.rescheduled, lost.dropped) == ((), (0,))
    assert "the data of 1 clients was only there" in lost.why
    assert [e.cohort for e in of(E.RoundStarted, seen)] == [(0, 1), (1,)]


def test_no_client_left_is_a_clear_error() -> None:
    x, y = data()
    faulty = FaultyWorker("f", Faults(2, "kill"))
    people = Population.of(FederatedDataset({faulty: faulty.send_all([x, y])}))
    people.add(VirtualWorker("idle"))
    federation = Federation(plan(), people)
    with pytest.raises(RoundFailed, match="worker 'f': ConnectionLost"):
        federation.round()
    with pytest.raises(RoundFailed, match="no client is left"):
        federation.round()


def test_another_worker_can_take_the_place_of_one_that_is_lost() -> None:
    people = population(FaultyWorker("f", Faults(2, "kill")))
    asked: list[WorkerHandle] = []

    def replace(worker: WorkerHandle) -> WorkerHandle:
        asked.append(worker)
        return VirtualWorker("new")

    federation = Federation(plan(), people, sampling=Uniform(7), seed=5, on_worker_lost=replace)
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())
    assert [worker.id for worker in asked] == ["f"]
    assert [worker.id for worker in people.workers] == ["new"]


def test_kept_state_is_lost_with_its_worker_and_that_is_told() -> None:
    seen, callback = watched()
    people = population(FaultyWorker("f", Faults(3, "kill")), *workers(1))
    federation = Federation(plan(), people, client_state="kept", callbacks=[callback])
    federation.run(2)
    (lost,) = of(E.WorkerLost, seen)
    assert f"the kept state of {len(lost.rescheduled)} clients is lost" in lost.why
    fresh = Federation(plan(), population(*workers(2)), client_state="kept").run(2)
    assert not same(federation.state_dict(), fresh.state_dict())


def test_a_failed_round_leaves_kept_state_as_it_was() -> None:
    bob, faulty = VirtualWorker("bob"), FaultyWorker("f", Faults(4, "nonsense"))  # data, plan, cohort, get
    people = population(bob, faulty)
    federation = Federation(plan(), people, client_state="kept", on_failure="fail")
    federation.run(1)
    there = [client for client in range(CLIENTS) if people.home(client) is bob]
    kept = people.kept_states()
    with pytest.raises(RoundFailed):
        federation.round()
    after = people.kept_states()
    assert sorted(after) == there
    assert all(same(after[client], kept[client]) for client in there)
    federation.round()
    assert not any(same(state, kept[client]) for client, state in people.kept_states().items())


# -- hangs and lateness --------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_lost_after_the_patience_and_its_clients_done_elsewhere(
    hanging: Callable[[int], FaultyWorker],
) -> None:
    seen, callback = watched()
    people = population(hanging(3), *workers(2))
    federation = Federation(
        plan(), people, sampling=Uniform(7), seed=5, patience=3.0, deadline=60.0, callbacks=[callback]
    )
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())
    (lost,) = of(E.WorkerLost, seen)
    assert lost.worker == "hanging"
    assert "it hangs, or is gone" in lost.why
    assert weights_add_up(federation, seen)


def test_workers_that_hang_together_are_each_lost_once(hanging: Callable[..., FaultyWorker]) -> None:
    """The first one's clients were to go to the second, of which nobody knew yet that it hangs too."""
    stuck = [hanging(2, id, "stuck") for id in ("f0", "f1")]
    asked: list[str] = []

    def replace(worker: WorkerHandle) -> WorkerHandle:
        asked.append(worker.id)
        return VirtualWorker(f"instead-of-{worker.id}")

    def wait(event: E.Event) -> None:
        if isinstance(event, E.ClientsDone) and not asked:
            time.sleep(3.2)  # until the patience with both is over

    seen, callback = watched()
    federation = Federation(
        plan(),
        population(*stuck, *workers(1)),
        sampling=Uniform(7),
        seed=5,
        patience=3.0,
        retries=3,
        callbacks=[callback, wait],
        on_worker_lost=replace,
    )
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())
    assert sorted(asked) == sorted(lost.worker for lost in of(E.WorkerLost, seen)) == ["f0", "f1"]
    assert any("took no data" in lost.why for lost in of(E.WorkerLost, seen))
    assert weights_add_up(federation, seen)


def test_a_worker_that_hangs_as_it_is_sent_data_is_lost(hanging: Callable[[int], FaultyWorker]) -> None:
    x, y = data()

    def make(client: int) -> tuple[torch.Tensor, torch.Tensor]:
        return x[client * 5 : client * 5 + 5], y[client * 5 : client * 5 + 5]

    seen, callback = watched()
    people = Population.from_source(make, [5.0] * CLIENTS, [hanging(0), *workers(1)])
    federation = Federation(plan(), people, patience=3.0, deadline=60.0, callbacks=[callback])
    assert federation.round().contributions == CLIENTS
    (lost,) = of(E.WorkerLost, seen)
    assert lost.worker == "hanging"
    assert "took no data: DeadlineExceeded" in lost.why


def test_a_late_reply_of_an_attempt_that_was_given_up_is_thrown_away(
    hanging: Callable[[int], FaultyWorker],
) -> None:
    slow = hanging(2)
    people = population(slow, *workers(2))
    seen, callback = watched()

    def release(event: E.Event) -> None:
        if isinstance(event, E.WorkerLost):
            slow.faults.release()  # it answers after all, while its clients are done again

    federation = Federation(
        plan(), people, sampling=Uniform(7), seed=5, patience=3.0, callbacks=[callback, release]
    )
    assert same(federation.run(ROUNDS).state_dict(), undisturbed())
    assert weights_add_up(federation, seen)


def test_a_worker_that_hangs_until_the_deadline_costs_its_clients(
    hanging: Callable[[int], FaultyWorker],
) -> None:
    people = population(hanging(2), *workers(2))
    federation = Federation(plan(), people, quorum=0.5, deadline=3.0, grace=0.5)
    start = time.monotonic()
    assert federation.round().contributions == 6
    assert 3 < time.monotonic() - start < 30
    assert federation.round().contributions == CLIENTS


def test_clients_that_do_not_begin_before_the_deadline_are_late() -> None:
    federation = Federation(plan(), population(*workers(2)), deadline=1e-9)
    with pytest.raises(RoundFailed, match=r"0 of 9 clients contributed.*of its clients were late"):
        federation.round()
    assert [worker.id for worker in federation.population.workers] == ["w0", "w1"]  # late is not lost


def test_late_results_are_used_in_the_next_round_once(hanging: Callable[[int], FaultyWorker]) -> None:
    slow, quick = hanging(2), VirtualWorker("quick")
    seen, callback = watched()

    def release(event: E.Event) -> None:
        if isinstance(event, E.RoundStarted) and event.number == 2:
            slow.faults.release()

    people = population(slow, quick)
    federation = Federation(
        plan(), people, late="use", quorum=0.4, deadline=4.0, grace=0.5, callbacks=[callback, release]
    )
    there = [client for client in range(CLIENTS) if people.home(client) is slow]
    first = federation.round()
    assert first.contributions == CLIENTS - len(there)
    after_first = federation.state_dict()
    second = federation.round()
    assert second.contributions == CLIENTS + len(there)
    assert of(E.WorkerLost, seen) == []
    # By hand: what the late ones learned from the first model, added to the second round's mean.
    start = Federation(plan(), population(*workers(2)))
    begun = start.state_dict()
    weights = people.weights
    late_weight = math.fsum(weights[client] for client in there)
    late = _mean_of(begun, there, 1)
    usual = Federation(plan(), population(*workers(2)))
    usual.model = dict(after_first)
    usual.number = 1
    usual.round()
    total = late_weight + second.weight - late_weight
    for path, tensor in federation.state_dict().items():
        moved = after_first[path].double() + late[path].double() - begun[path].double()
        own = usual.state_dict()[path].double() * (second.weight - late_weight)
        torch.testing.assert_close(tensor.double(), (own + moved * late_weight) / total, rtol=1e-5, atol=1e-6)
    assert federation.round().contributions == CLIENTS


def _mean_of(model: State, clients: list[int], number: int) -> State:
    """The mean of some clients' models in a round, by a federation in which only they are drawn."""

    class Those:
        def sample(self, *_: object, **__: object) -> tuple[int, ...]:
            return tuple(clients)

        def expected_size(self, population_size: int) -> float:
            return float(len(clients))

    made = Federation(plan(), population(*workers(2)), sampling=Those())
    made.model = dict(model)
    made.number = number - 1
    made.round()
    return made.state_dict()


def test_a_worker_that_is_late_twice_is_lost(hanging: Callable[[int], FaultyWorker]) -> None:
    seen, callback = watched()
    people = population(hanging(2), *workers(2))
    federation = Federation(
        plan(), people, late="use", quorum=0.5, deadline=2.0, grace=0.5, callbacks=[callback]
    )
    contributions = [federation.round().contributions for _ in range(3)]
    assert contributions == [6, 6, 9]
    (lost,) = of(E.WorkerLost, seen)
    assert (lost.number, lost.worker, len(lost.dropped)) == (2, "hanging", 3)
    assert weights_add_up(federation, seen)


# -- who answers, but not with a model -----------------------------------------------------------------------


def test_a_client_whose_result_is_no_number_does_not_count() -> None:
    x, y = data()
    parts = [list(range(i * 5, i * 5 + 5)) for i in range(CLIENTS)]
    bad = x.clone()
    bad[parts[4]] = math.nan
    seen, callback = watched()
    people = Population.split((bad, y), workers=workers(2), parts=parts)
    federation = Federation(plan(), people, callbacks=[callback])
    done = federation.round()
    assert (done.contributions, done.weight) == (CLIENTS - 1, 5.0 * (CLIENTS - 1))
    failed = {client: why for e in of(E.ClientsDone, seen) for client, why in e.failed.items()}
    assert list(failed) == [4]
    assert failed[4].startswith("nonsense: ")
    assert of(E.WorkerLost, seen) == []
    assert all(torch.isfinite(tensor).all() for tensor in federation.state_dict().values())
    strict = Federation(plan(), people, quorum=1.0)
    with pytest.raises(RoundFailed, match="1 of its clients failed; client 4: nonsense"):
        strict.round()


def test_a_worker_that_refuses_is_left_out_of_the_round_and_says_why() -> None:
    """Rows of private data release nothing: the worker does not compute with them for others."""
    x, y = data()
    bob, owner = VirtualWorker("bob"), VirtualWorker("alice")
    alice = owner.as_client("stranger")
    private = alice.send_all([x[:20], y[:20]], private=True)
    shards = {bob: bob.send_all([x[20:], y[20:]]), alice: private}
    rows = {bob: [range(20), range(20, 40)], alice: [range(10), range(10, 20)]}
    seen, callback = watched()
    people = Population.of(FederatedDataset(shards), parts=rows)
    federation = Federation(plan(), people, quorum=0.5, callbacks=[callback])
    for number in (1, 2):
        assert federation.round().contributions == 2
        refused = of(E.WorkerRefused, seen)[-1]
        assert (refused.number, refused.worker, refused.dropped) == (number, "alice", (2, 3))
        assert refused.why.startswith("PermissionDenied: ")
    assert of(E.WorkerLost, seen) == []


def test_if_all_refuse_the_error_names_each() -> None:
    x, y = data()
    shards = {}
    for name in ("bob", "alice"):
        worker = VirtualWorker(name).as_client("stranger")
        shards[worker] = worker.send_all([x[:20], y[:20]], private=True)
    rows = {worker: [range(10), range(10, 20)] for worker in shards}
    federation = Federation(plan(), Population.of(FederatedDataset(shards), parts=rows))
    with pytest.raises(RoundFailed) as info:
        federation.round()
    for name in ("bob", "alice"):
        assert f"worker '{name}': PermissionDenied: " in str(info.value)
        assert name in info.value.reasons


# -- beside the rounds ---------------------------------------------------------------------------------------


def test_a_worker_lost_in_an_evaluation_is_lost_and_the_round_stands() -> None:
    seen, callback = watched()
    faulty = FaultyWorker("f", Faults(4, "kill"))  # data, plan, cohort, and the evaluation's plan and cohort
    evaluation = Evaluation(clients=judge())
    people = population(faulty, *workers(1))
    federation = Federation(plan(), people, evaluate=evaluation, on_failure="fail", callbacks=[callback])
    done = federation.round()
    assert done.contributions == CLIENTS
    assert done.evaluation.keys() == {"clients.accuracy", "clients.error"}
    assert of(E.WorkerLost, seen)[0].worker == "f"


def test_what_clients_kept_at_a_worker_that_was_lost_after_it_answered_is_lost() -> None:
    people = population(FaultyWorker("f", Faults(4, "kill")), *workers(1))
    evaluation = Evaluation(clients=judge())
    federation = Federation(plan(), people, evaluate=evaluation, client_state="kept")
    there = [client for client in range(CLIENTS) if federation.population.home(client) in people.workers[:1]]
    federation.round()
    assert [worker.id for worker in people.workers] == ["w0"]
    assert set(people.kept_states()) == set(range(CLIENTS)) - set(there)
    assert federation.round().contributions == CLIENTS


def test_a_worker_lost_as_a_checkpoint_fetches_its_state(tmp_path: Path) -> None:
    seen, callback = watched()
    people = population(FaultyWorker("f", Faults(3, "kill")), *workers(1))  # data, plan, cohort, get
    federation = Federation(
        plan(), people, client_state="kept", checkpoints=Checkpoints(tmp_path), callbacks=[callback]
    )
    federation.run(2)
    assert of(E.WorkerLost, seen)[0].worker == "f"
    assert [e.number for e in of(E.CheckpointSaved, seen)] == [1, 2]


def test_a_callback_that_raises_ends_the_run_between_rounds() -> None:
    def stop(event: E.Event) -> None:
        if isinstance(event, E.RoundDone):
            raise KeyboardInterrupt

    federation = Federation(plan(), population(*workers(1)), callbacks=[stop])
    with pytest.raises(KeyboardInterrupt):
        federation.run(3)
    assert (federation.number, len(federation.history)) == (1, 1)
