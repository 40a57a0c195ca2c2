"""What a federation and a population cannot use: refused at the start, with what was wanted and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from planc.errors import DataError, InputError
from runtime import VirtualWorker
from runtime.federated import (
    Buffered,
    Evaluation,
    FedAdam,
    Federation,
    Median,
    Population,
    Target,
    Uniform,
)
from tests.federated.training import data, judge, plan, workers

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"server": "fedadam"}, r"server takes .* 'plan', such as FedAdam\(lr=0.01\); got 'fedadam'"),
    ({"server": FedAdam}, r"server takes an object, such as FedAdam\(lr=0.01\); got the class FedAdam"),
    ({"sampling": 10}, r"sampling takes .* 'sample', such as Uniform\(50\); got 10"),
    ({"sampling": Uniform}, "got the class Uniform"),
    ({"sampling": Uniform(7)}, r"Uniform\(7\) needs a population of at least 7 clients, got 6"),
    ({"mean": "median"}, r"mean takes .* 'combine', such as Median\(\); got 'median'"),
    ({"mean": Median}, "got the class Median"),
    ({"client_lr": 0.1}, r"client_lr takes .* 'at', such as Constant\(0.1\); got 0.1"),
    ({"evaluate": judge()}, r"evaluate takes .* such as Evaluation\(centre=plan, data=\(x, y\)\); got <Plan"),
    ({"evaluate": Evaluation(clients=judge(), sampling=Uniform(7))}, "at least 7 clients, got 6"),
    ({"checkpoints": "runs/x"}, r'checkpoints takes .* such as Checkpoints\("runs/first"\); got \'runs/x\''),
    ({"stop": Target("loss", 1.0)}, r"stop takes a list of rules, as in \[Target"),
    ({"stop": [Target]}, r"stop takes rules, such as AfterRounds\(10\); got <class"),
    ({"stop": ["loss"]}, "stop takes rules, .* got 'loss'"),
    (
        {"callbacks": print},
        r"callbacks takes a list of functions of an event, as in \[print\]; got <built-in",
    ),
    ({"callbacks": ["progress"]}, "callbacks are called with each event; got 'progress', which cannot be"),
    ({"seed": -1}, r"a seed is a whole number from 0 to below 2\^64, got -1"),
    ({"seed": 0.5}, r"a seed is a whole number from 0 to below 2\^64, got 0.5"),
    ({"seed": 2**64}, r"a seed is a whole number from 0 to below 2\^64"),
]


def population() -> Population:
    return Population.split(data(), clients=6, workers=workers(1))


@pytest.mark.parametrize(
    ("given", "says"), WRONG, ids=[f"{i}-{next(iter(g))}" for i, (g, _) in enumerate(WRONG)]
)
def test_wrong_arguments_are_refused_before_a_round(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Federation(plan(), population(), **given)


@pytest.mark.parametrize("kind", [Federation, Buffered])
@pytest.mark.parametrize("given", [data(), None, Population])
def test_what_is_no_population_is_refused(kind: type[Federation], given: Any) -> None:
    with pytest.raises(InputError, match=r"population takes an object.* such as Population.split\("):
        kind(plan(), given)


def test_a_module_is_no_plan() -> None:
    with pytest.raises(InputError, match=r"expected a plan, as .*planc.train_step .* make one, got a Linear"):
        Federation(nn.Linear(4, 3), population())  # type: ignore[arg-type] # the mistake that is meant


@pytest.mark.parametrize("rounds", [2.5, -1, "3", True])
def test_rounds_is_a_whole_number(rounds: Any) -> None:
    with pytest.raises(InputError, match=r"rounds is a whole number from 0, .* got"):
        Federation(plan(), population()).run(rounds)


def test_numbers_may_be_numpys() -> None:
    federation = Federation(plan(), population(), seed=np.int64(3))  # type: ignore[arg-type] # is an index
    assert type(federation.seed) is int
    assert len(federation.run(np.int64(1)).rounds) == 1  # type: ignore[arg-type]


def test_a_result_is_shown_in_a_line() -> None:
    result = Federation(plan(), population(), evaluate=Evaluation(judge(), data=data())).run(2)
    text = repr(result)
    assert text.startswith("<Result of 2 rounds: 2 rounds are done, loss ")
    assert "accuracy 0." in text
    assert len(text) < 120


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            VirtualWorker("bob"),
            r"workers takes a list of workers, also of one: \[worker\]; got <VirtualWorker id:bob",
        ),
        ("bob", "workers takes a list of workers"),
        (["bob"], r"a worker is a handle, such as VirtualWorker\(\"bob\"\) or connect\(.*; got 'bob'"),
        ([], "a population needs at least one worker"),
        (workers(1) * 2, "workers of different ids, each once, got"),
    ],
)
def test_what_is_no_list_of_workers_is_refused(given: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Population.split(data(), clients=3, workers=given)


def test_weights_are_one_a_client() -> None:
    with pytest.raises(DataError, match="weights takes a list of numbers, one for each client; got 100"):
        Population.from_source(lambda _: data(), 100, workers(1))  # type: ignore[arg-type] # the mistake


def test_a_source_that_returns_nothing_is_said_to() -> None:
    def source(client: int) -> Any:
        torch.zeros(3)  # and no return

    with pytest.raises(DataError, match=r"the data of client 0 must be a tuple of tensors, .* got None"):
        Population.from_source(source, [1.0], workers(1)).members([0])
