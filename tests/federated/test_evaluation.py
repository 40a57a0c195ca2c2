"""Evaluation here and at clients, and the rules that end a run by what it finds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import planc
from planc.errors import InputError
from runtime import FederatedDataset, VirtualWorker, count_messages
from runtime.federated import (
    AfterRounds,
    AfterSeconds,
    Diverged,
    Evaluation,
    Federation,
    Patience,
    Population,
    Target,
    Uniform,
    fedprox,
    unwrapped,
)
from runtime.federated.events import RoundDone
from runtime.federated.stopping import Rule, check_metrics
from tests.federated.training import data, judge, network, plan, workers

CLIENTS = 6


def population(count: int = 2) -> Population:
    return Population.split(data(), clients=CLIENTS, workers=workers(count))


def accuracy(model: dict[str, torch.Tensor]) -> dict[str, float]:
    net = network()
    net.load_state_dict(model)
    x, y = data()
    with torch.no_grad():
        out = net(x)
    return {"accuracy": float((out.argmax(1) == y).double().mean()), "error": float(F.cross_entropy(out, y))}


# -- evaluation ----------------------------------------------------------------------------------------------


def test_a_function_here() -> None:
    federation = Federation(plan(), population(), evaluate=Evaluation(accuracy))
    done = federation.round()
    assert done.evaluation == accuracy(federation.state_dict())


def test_a_plan_here_and_at_clients_measures_the_same() -> None:
    """Clients share out the rows that the centre has, so that the weighted means are those of all rows."""
    judged = Evaluation(judge(), data=data(), clients=judge())
    federation = Federation(plan(), population(), evaluate=judged)
    done = federation.round()
    expected = accuracy(federation.state_dict())
    assert done.evaluation.keys() == {"accuracy", "error", "clients.accuracy", "clients.error"}
    for name, value in expected.items():
        assert done.evaluation[name] == pytest.approx(value, rel=1e-5)
        assert done.evaluation["clients." + name] == pytest.approx(value, rel=1e-5)


def test_an_evaluation_is_one_message_a_worker_and_trains_nothing() -> None:
    federation = Federation(plan(), population(), evaluate=Evaluation(clients=judge()))
    plain = Federation(plan(), population())
    federation.round()
    plain.round()
    with count_messages() as sent:
        done = federation.round()
    assert sent.by_kind == {"Cohort": 4}
    assert done.messages == 4
    plain.round()
    torch.testing.assert_close(federation.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_clients_are_sampled_for_it_by_draws_of_their_own() -> None:
    asked = Evaluation(clients=judge(), sampling=Uniform(2))
    first = [Federation(plan(), population(n), evaluate=asked, seed=1).round().evaluation for n in (1, 2)]
    assert first[0] == first[1]
    everyone = Federation(plan(), population(), evaluate=Evaluation(clients=judge()), seed=1).round()
    assert first[0] != everyone.evaluation


def test_it_comes_every_so_many_rounds_or_when_asked() -> None:
    federation = Federation(plan(), population(), evaluate=Evaluation(accuracy, every=2))
    rounds = federation.run(5).rounds
    assert [bool(done.evaluation) for done in rounds] == [False, True, False, True, False]
    assert federation.evaluate() == accuracy(federation.state_dict())


def test_clients_that_refuse_are_left_out_of_it() -> None:
    x, y = data()
    bob, stranger = VirtualWorker("bob"), VirtualWorker("alice").as_client("stranger")
    shards = {
        bob: bob.send_all([x[:30], y[:30]]),
        stranger: stranger.send_all([x[30:], y[30:]], private=True),
    }
    rows = {bob: [range(15), range(15, 30)], stranger: [range(15), range(15, 30)]}
    people = Population.of(FederatedDataset(shards), parts=rows)
    federation = Federation(plan(), people, quorum=0.5, evaluate=Evaluation(clients=judge()))
    done = federation.round()
    part = federation.state_dict()
    net = network()
    net.load_state_dict(part)
    with torch.no_grad():
        expected = float(F.cross_entropy(net(x[:30]), y[:30]))
    assert done.evaluation["clients.error"] == pytest.approx(expected, rel=1e-5)


def test_a_function_that_fails_leaves_the_round_undone() -> None:
    def broken(model: dict[str, torch.Tensor]) -> dict[str, float]:
        raise RuntimeError("the disk with the test set is gone")

    federation = Federation(plan(), population(), evaluate=Evaluation(broken))
    before = federation.state_dict()
    with pytest.raises(RuntimeError, match="test set"):
        federation.run(1)
    assert (federation.number, federation.history) == (0, [])
    torch.testing.assert_close(federation.state_dict(), before, rtol=0, atol=0)


def test_evaluations_that_do_not_fit_are_refused() -> None:
    x, _ = data()
    with pytest.raises(InputError, match="measures something"):
        Evaluation()
    with pytest.raises(InputError, match="every, got 0"):
        Evaluation(accuracy, every=0)
    with pytest.raises(InputError, match="brings its own"):
        Evaluation(accuracy, data=(x,))
    with pytest.raises(InputError, match="takes 2 arguments"):
        Evaluation(judge(), data=(x,))
    other = planc.trace(torch.nn.Sequential(network()), x[:3])  # its paths are 0.0.weight, ...
    for measured in (Evaluation(clients=other), Evaluation(other, data=(x,))):
        with pytest.raises(InputError, match=r"needs the state '0.0.weight'.* it has 0.weight, 0.bias"):
            Federation(plan(), population(1), evaluate=measured).evaluate()
    numberless = Federation(plan(), population(1), evaluate=Evaluation(lambda model: {"accuracy": "high"}))
    with pytest.raises(InputError, match="returns numbers by name"):
        numberless.evaluate()


def test_a_model_held_near_is_evaluated_as_the_module_itself() -> None:
    x, y = data()
    near, loss = fedprox(network(), F.cross_entropy, 0.1)
    step = planc.train_step(near, loss, torch.optim.SGD(near.parameters(), lr=0.1), x[:3], y[:3])
    federation = Federation(step, population(1), evaluate=Evaluation(judge(), data=(x, y)))
    done = federation.round()
    expected = accuracy(unwrapped(federation.state_dict()))
    assert done.evaluation == pytest.approx(expected, rel=1e-5)


# -- stopping ------------------------------------------------------------------------------------------------


def rounds(*values: float | None, seconds: float = 1.0, metric: str = "loss") -> list[RoundDone]:
    """Rounds with these values of a metric; None: not evaluated."""
    return [
        RoundDone(i, seconds, 1, 1.0, {}, {} if v is None else {metric: v}, 1, 1, 1, {})
        for i, v in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("rule", "values", "ends"),
    [
        (AfterRounds(3), [1, 1, 1, 1], 3),
        (AfterSeconds(2.5), [1, 1, 1, 1], 3),
        (Target("loss", 0.5, "min"), [0.9, 0.6, 0.5, 0.1], 3),
        (Target("loss", 0.5), [0.1, 0.4, 0.6], 3),
        (Target("loss", 0.5, "min"), [0.9, None, 0.8], None),
        (Target("loss", 0.5, "min"), [math.nan, 0.4], 2),
        (Patience("loss", 2), [3, 2, 2, 2, 1], 4),
        (Patience("loss", 2), [3, 2, None, 2, None, 2], 6),
        (Patience("loss", 2, "max"), [1, 2, 3, 4, 3, 4], 6),
        (Patience("loss", 2, least=0.5), [3, 2.8, 2.6, 2.4], 3),
        (Patience("loss", 2), [3, math.nan, math.nan], 3),
        (Patience("loss", 2), [3, 2, 1], None),
        (Diverged(), [1, 2, math.nan], 3),
        (Diverged(), [1, math.inf], 2),
        (Diverged("loss", beyond=10.0), [1, -11.0], 2),
        (Diverged("other"), [1, math.nan], None),
        (Diverged(beyond=10.0), [1, 10.0], None),
    ],
    ids=str,
)
def test_rules_end_a_run_where_they_should(rule: Rule, values: list[float | None], ends: int | None) -> None:
    history = rounds(*values)
    found = [i for i in range(1, len(history) + 1) if rule.why(history[:i]) is not None]
    assert (found[0] if found else None) == ends


def test_a_run_ends_by_the_first_rule_and_says_why() -> None:
    federation = Federation(plan(), population(1), stop=[AfterRounds(2), Target("loss", 0.0, "min")])
    result = federation.run(10)
    assert len(result.rounds) == 2
    assert result.why == "2 rounds are done"
    assert len(federation.run(10).rounds) == 2  # it is over, also when asked again


def test_a_target_of_the_evaluation_ends_a_run() -> None:
    federation = Federation(
        plan(), population(1), evaluate=Evaluation(accuracy, every=2), stop=[Target("accuracy", 0.0)]
    )
    result = federation.run(10)
    assert len(result.rounds) == 2
    assert result.why.startswith("accuracy is 0.")


def test_a_rule_for_a_metric_that_there_is_not_is_refused() -> None:
    rules = [Target("acuracy", 0.9)]
    federation = Federation(plan(), population(1), stop=rules, evaluate=Evaluation(accuracy))
    with pytest.raises(InputError, match=r"Target wants the metric 'acuracy'.* accuracy, error, loss"):
        federation.run(2)
    (not_due,) = rounds(None)
    check_metrics(rules, not_due, evaluates=True)
    with pytest.raises(InputError, match="there are none"):
        check_metrics(rules, not_due, evaluates=False)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: AfterRounds(0), "count of rounds from 1"),
        (lambda: AfterSeconds(0), "seconds above 0"),
        (lambda: Target("loss", 1, "most"), "mode 'max' or 'min'"),
        (lambda: Patience("loss", 0), "count of rounds from 1"),
        (lambda: Patience("loss", 1, least=-1.0), "least improvement"),
    ],
)
def test_rules_that_make_no_sense_are_refused(make: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()
