"""Rounds: equal to a plain PyTorch loop, the same bits at any number of workers, one message a worker."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import planc
from planc.errors import InputError
from runtime import FederatedDataset, VirtualWorker, count_messages
from runtime.errors import RoundFailed
from runtime.federated import (
    Constant,
    FedAdam,
    FedAvgM,
    Federation,
    Median,
    Poisson,
    Population,
    StepDecay,
    TrimmedMean,
    Uniform,
    UniformMean,
    fedprox,
    unwrapped,
)
from runtime.federated.draws import client_key, stream
from runtime.federated.events import (
    ClientsDone,
    RoundDone,
    RoundStarted,
    RunDone,
    RunStarted,
    from_json,
    to_json,
)
from runtime.federated.mean import weighted_mean
from tests.federated.training import CLIENTS, ROWS, data, network, of, plan, same, watched, workers
from tests.network.serving import over

State = dict[str, torch.Tensor]
PARTS = [list(range(i, ROWS, CLIENTS + 1)) for i in range(CLIENTS)]  # 4 or 5 rows each: weights differ


def population(count: int = 2) -> Population:
    return Population.split(data(), workers=workers(count), parts=PARTS)


def trained_alone(model: State, client: int, lr: float = 0.1) -> State:
    """What plain PyTorch makes of a model on one client's rows, in order."""
    net = network()
    net.load_state_dict(model)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    x, y = (tensor[PARTS[client]] for tensor in data())
    for start in range(0, len(x), 3):
        optimizer.zero_grad()
        F.cross_entropy(net(x[start : start + 3]), y[start : start + 3]).backward()
        optimizer.step()
    return copy.deepcopy(net.state_dict())


def test_federated_averaging_is_the_plain_loop() -> None:
    federation = Federation(plan(shuffle=False), population(), sampling=Uniform(5), seed=3)
    model = copy.deepcopy(network().state_dict())
    for number in (1, 2, 3):
        done = federation.round()
        cohort = Uniform(5).sample(number, CLIENTS, [1.0] * CLIENTS, 3)
        weights = [len(PARTS[client]) for client in cohort]
        model = weighted_mean([trained_alone(model, client) for client in cohort], weights)
        torch.testing.assert_close(federation.state_dict(), model, rtol=1e-5, atol=1e-6)
        assert (done.number, done.contributions, done.weight) == (number, 5, sum(weights))


def test_a_schedule_gives_each_round_its_rate() -> None:
    schedule = StepDecay(0.1, factor=0.5, every=1)
    federation = Federation(plan(shuffle=False, lr_input=True), population(), client_lr=schedule)
    model = copy.deepcopy(network().state_dict())
    for lr in (0.1, 0.05):
        federation.round()
        states = [trained_alone(model, client, lr) for client in range(CLIENTS)]
        model = weighted_mean(states, [len(part) for part in PARTS])
    torch.testing.assert_close(federation.state_dict(), model, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("server", [None, FedAdam(lr=0.05), FedAvgM(lr=1.0, momentum=0.5)], ids=str)
def test_the_number_of_workers_changes_no_bit(server: FedAdam | FedAvgM | None) -> None:
    def final(count: int) -> State:
        made = Federation(plan(), population(count), server=server, sampling=Uniform(7), seed=1)
        return made.run(3).state_dict()

    one = final(1)
    assert not same(one, network().state_dict())
    for count in (2, 3):
        assert same(final(count), one)


def test_weights_of_any_size_change_no_bit_either() -> None:
    x, y = data()
    weights = [10.0 ** (client - 6) / 3 for client in range(CLIENTS)]

    def make(client: int) -> tuple[torch.Tensor, torch.Tensor]:
        return x[PARTS[client]], y[PARTS[client]]

    finals = []
    for count in (1, 2, 3):
        people = Population.from_source(make, weights, workers(count))
        federation = Federation(plan(), people, sampling=Uniform(9), seed=2)
        rounds = federation.run(2).rounds
        finals.append((federation.state_dict(), [(done.weight, done.metrics) for done in rounds]))
    assert all(same(state, finals[0][0]) and told == finals[0][1] for state, told in finals)


def test_grpc_changes_no_bit() -> None:
    def final() -> State:
        return Federation(plan(), population(), sampling=Uniform(7), seed=1).run(2).state_dict()

    here = final()
    with over("grpc"):
        assert same(final(), here)


def test_another_seed_gives_another_model() -> None:
    models = [Federation(plan(), population(), seed=seed).run(1).state_dict() for seed in (0, 1, 0)]
    assert same(models[0], models[2])
    assert not same(models[0], models[1])


def test_keys_differ_between_seeds_rounds_and_clients() -> None:
    keys = {int(client_key(s, r, c)) for s in (0, 1, 11) for r in (1, 11) for c in (0, 1, 10)}
    assert len(keys) == 18
    assert stream(0, "evaluation") != stream(1, "evaluation")


def test_a_round_is_one_message_a_worker() -> None:
    federation = Federation(plan(), population(3))
    with count_messages() as sent:
        first = federation.round()
    assert sent.by_kind == {"Install": 3, "Cohort": 3}
    with count_messages() as sent:
        second = federation.round()
    assert sent.by_kind == {"Cohort": 3}
    assert (first.messages, second.messages) == (6, 3)
    assert (second.bytes_out, second.bytes_in) == (sent.bytes_out, sent.bytes_in)


def test_events_tell_all_of_a_run() -> None:
    seen, callback = watched()
    federation = Federation(plan(), population(), sampling=Uniform(5), callbacks=[callback], seed=2)
    result = federation.run(2)
    assert [type(event).__name__ for event in seen] == [
        "RunStarted",
        *(["RoundStarted", "ClientsDone", "ClientsDone", "RoundDone"] * 2),
        "RunDone",
    ]
    (started,) = of(RunStarted, seen)
    assert (started.clients, started.workers, started.rounds, started.first) == (CLIENTS, ("w0", "w1"), 2, 1)
    assert (started.seed, started.plan_id) == (2, federation.plan.id)
    assert started.config["quorum"] == 0.8
    for number in (1, 2):
        cohort = next(e.cohort for e in of(RoundStarted, seen) if e.number == number)
        done = [client for e in of(ClientsDone, seen) if e.number == number for client in e.done]
        assert sorted(done) == list(cohort)
        (over,) = (e for e in of(RoundDone, seen) if e.number == number)
        # Weights of contributions sum exactly to the cohort's.
        assert over.weight == math.fsum(federation.population.weights[client] for client in cohort)
        assert over.slowest.keys() == {"w0", "w1"}
        assert over.messages == sum(e.messages for e in of(ClientsDone, seen) if e.number == number)
    assert of(RunDone, seen)[0].why == "2 rounds are done" == result.why
    assert result.rounds == tuple(of(RoundDone, seen))
    assert [from_json(to_json(event)) for event in seen] == seen


def test_events_are_refused_where_they_are_none() -> None:
    with pytest.raises(InputError, match="expected an event, one of RunStarted"):
        from_json({"event": "Exploded"})
    with pytest.raises(InputError, match="not the fields of RunDone"):
        from_json({"event": "RunDone", "rounds": 1, "while": "x", "seconds": 0.0})


def test_the_loss_is_the_weighted_mean_of_the_clients() -> None:
    federation = Federation(plan(shuffle=False), population())
    own = planc.Plan(plan(shuffle=False).program, plan(shuffle=False).state)
    losses = []
    for part in PARTS:
        own.state = dict(plan(shuffle=False).state)
        losses.append(float(own(*(tensor[part] for tensor in data())).double().mean()))
    expected = sum(loss * len(part) for loss, part in zip(losses, PARTS, strict=True))
    assert federation.round().metrics == {"loss": pytest.approx(expected / sum(map(len, PARTS)))}


@pytest.mark.parametrize("mean", [Median(), TrimmedMean(0.2)], ids=str)
def test_robust_means_are_those_of_the_clients_models(mean: Median | TrimmedMean) -> None:
    before = copy.deepcopy(network().state_dict())
    states = [trained_alone(before, client) for client in range(CLIENTS)]
    expected = mean.combine(states, [1.0] * CLIENTS)
    results = []
    for count in (1, 2):
        federation = Federation(plan(shuffle=False), population(count), mean=mean)
        federation.round()
        results.append(federation.state_dict())
        torch.testing.assert_close(results[-1], expected, rtol=1e-5, atol=1e-6)
    assert same(*results)


def test_in_the_uniform_mean_clients_count_alike() -> None:
    before = copy.deepcopy(network().state_dict())
    states = [trained_alone(before, client) for client in range(CLIENTS)]
    expected = UniformMean().combine(states, [1.0] * CLIENTS)
    results = []
    for count in (1, 3):
        federation = Federation(plan(shuffle=False), population(count), mean=UniformMean())
        assert federation.round().weight == CLIENTS
        results.append(federation.state_dict())
        torch.testing.assert_close(results[-1], expected, rtol=1e-5, atol=1e-6)
    assert same(*results)
    weighted = Federation(plan(shuffle=False), population(1))
    weighted.round()
    assert not same(weighted.state_dict(), results[0])


def test_kept_state_goes_on_where_it_was_and_fresh_state_does_not() -> None:
    """One client, whose rounds are epochs of one training: with its momentum kept they are the plain loop."""
    x, y = data()

    def final(client_state: str) -> State:
        alone = Population.split((x, y), clients=1, workers=workers(1), how="even")
        made = Federation(plan(), alone, client_state=client_state)
        return made.run(3).state_dict()

    order = Population.split((x, y), clients=1, workers=workers(1))
    local = planc.Plan(plan().program, plan().state)
    (member,) = next(iter(order.members([0]).values()))
    rows = [source.get() if not hasattr(source, "tensor") else source.tensor.get() for source in member.data]
    for number in (1, 2, 3):
        local.state = {**local.state, "rng": client_key(0, number, 0)}
        local(*rows)
    kept = final("kept")
    torch.testing.assert_close(kept, local.state_dict(), rtol=1e-5, atol=1e-6)
    assert not same(kept, final("fresh"))


def test_the_proximal_term_holds_clients_near_the_rounds_model() -> None:
    x, y = data()

    def moved(mu: float) -> float:
        near, loss = fedprox(network(), F.cross_entropy, mu)
        step = planc.train_step(near, loss, torch.optim.SGD(near.parameters(), lr=0.1), x[:3], y[:3])
        federation = Federation(planc.epoch(step, batch_size=3, shuffle=False), population())
        model = unwrapped(federation.run(2).state_dict())
        first = network().state_dict()
        assert model.keys() == first.keys()
        return math.sqrt(sum(float((model[path] - first[path]).square().sum()) for path in first))

    free, held = moved(0.0), moved(8.0)
    assert 0 < held < 0.7 * free


def test_running_statistics_are_averaged_and_frozen_parameters_stay() -> None:
    x, y = data()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    net[3].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    step = planc.train_step(net, F.cross_entropy, optimizer, x[:3], y[:3])
    federation = Federation(planc.epoch(step, batch_size=5), population(), server=FedAdam(lr=0.05))
    model = federation.run(1).state_dict()
    assert torch.equal(model["3.weight"], net[3].weight)
    assert not torch.equal(model["0.weight"], net[0].weight)
    assert model["1.num_batches_tracked"].dtype is torch.int64
    assert model["1.num_batches_tracked"].item() == 1  # of each client's one batch: the mean, not Adam's step


def test_a_draw_of_nobody_leaves_the_model() -> None:
    sampling = Poisson(1e-9)
    federation = Federation(plan(), population(), sampling=sampling)
    done = federation.round()
    assert (done.contributions, done.weight, done.metrics, done.messages) == (0, 0.0, {}, 0)
    assert federation.number == 1
    assert same(federation.state_dict(), network().state_dict())


def test_clients_whose_data_is_at_workers_already() -> None:
    x, y = data()
    bob, alice = workers(2)
    dataset = FederatedDataset({bob: bob.send_all([x[:40], y[:40]]), alice: alice.send_all([x[40:], y[40:]])})
    done = Federation(plan(), Population.of(dataset)).round()
    assert (done.contributions, done.weight) == (2, 60.0)


def test_run_counts_rounds_in_all() -> None:
    federation = Federation(plan(), population(1), sampling=Uniform(2))
    assert len(federation.run(2).rounds) == 2
    assert [done.number for done in federation.run(3).rounds] == [1, 2, 3]
    assert len(federation.run(3).rounds) == 3


def test_the_result_is_a_plan_that_runs_and_the_first_plan_is_as_it_was() -> None:
    before = plan().state_dict()
    result = Federation(plan(), population(1)).run(1)
    assert same(plan().state_dict(), before)
    net = network()
    result.plan.load_into(net)
    assert same(net.state_dict(), result.state_dict())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"quorum": 0.0}, "quorum is the part"),
        ({"quorum": 1.1}, "quorum is the part"),
        ({"deadline": math.inf}, "deadline is a number of seconds above 0"),
        ({"deadline": 0.0}, "deadline is a number of seconds above 0"),
        ({"patience": -1.0}, "patience is a number of seconds above 0"),
        ({"grace": -1.0}, "grace is a number"),
        ({"retries": -1}, "retries is a count"),
        ({"late": "keep"}, "late is one of 'drop', 'use'"),
        ({"on_failure": "retry"}, "on_failure is one of"),
        ({"client_state": "old"}, "client_state is one of"),
        ({"client_lr": Constant(0.1)}, "lr_input=True"),
        ({"late": "use", "mean": Median()}, "Median needs every client's"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Federation(plan(), population(1), **options)


def test_plans_that_do_not_fit_are_refused() -> None:
    x, _ = data()
    with pytest.raises(InputError, match="takes a learning rate: give a schedule"):
        Federation(plan(lr_input=True), population(1))
    with pytest.raises(InputError, match=r"takes 2 tensors of data \(input, target\)"):
        Federation(plan(), Population.split((x,), clients=2, workers=workers(1)))
    predict = planc.trace(network(), x[:3])
    with pytest.raises(InputError, match="trains nothing"):
        Federation(predict, population(1))
    with pytest.raises(InputError, match="was given no value for its state"):
        Federation(planc.Plan(plan().program), population(1))


def test_resume_needs_checkpoints() -> None:
    with pytest.raises(InputError, match="nothing to resume from"):
        Federation(plan(), population(1)).run(1, resume=True)


def test_data_that_does_not_fit_is_refused_before_a_round() -> None:
    x, y = data()
    for tensors, wants in [
        (
            (torch.cat([x, x], 1), y),
            r"wants rows of f32\[4\] for 'input', those of the population are f32\[8\]",
        ),
        ((x.double(), y), r"wants rows of f32\[4\] for 'input', those of the population are f64\[4\]"),
        ((x, y[:, None]), r"wants rows of i64\[\] for 'target', those of the population are i64\[1\]"),
        ((x,), r"takes 2 tensors of data \(input, target\), a client of the population has 1"),
    ]:
        with pytest.raises(InputError, match=wants):
            Federation(plan(), Population.split(tensors, clients=3, workers=workers(1)))


def test_made_data_that_does_not_fit_fails_the_round_and_says_why() -> None:
    x, y = data()
    wide = Population.from_source(lambda _: (torch.cat([x, x], 1), y), [60.0] * 3, workers(1))
    federation = Federation(plan(), wide)
    with pytest.raises(RoundFailed, match=r"worker 'w0'.* wants f32"):
        federation.round()
    assert federation.number == 0


def test_what_clients_keep_is_at_their_workers_once() -> None:
    bob = VirtualWorker("bob")
    people = Population.split(data(), clients=4, workers=[bob])
    before = len(bob.objects)
    Federation(plan(), people, client_state="kept").run(3)
    assert len(bob.objects) - before == 4 * 4  # each client's momentum of four parameters
