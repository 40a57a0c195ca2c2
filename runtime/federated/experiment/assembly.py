"""An experiment put together: its plans, and the federation that trains. Trains nothing itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import asdict

import planc
from planc.errors import InputError
from runtime.federated import events
from runtime.federated.asynchronous import Buffered
from runtime.federated.checkpoints import Checkpoints
from runtime.federated.evaluation import Evaluation
from runtime.federated.experiment import models
from runtime.federated.experiment import sections as S
from runtime.federated.experiment.data import Data, Pair
from runtime.federated.experiment.engines import Engine
from runtime.federated.experiment.file import Loaded
from runtime.federated.experiment.held import HeldOut
from runtime.federated.experiment.keys import flat, plain
from runtime.federated.federation import Federation
from runtime.federated.sampling import Everyone, Uniform
from runtime.federated.schedules import Constant, Schedule

LoadPlan = Callable[[str], planc.Plan]
"""Reads the plan that a section names, which may run Python code of the user's."""

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints, in that of the run."""

_UNUSED = (
    "epochs",
    "batch_size",
    "optimizer",
    "weight_decay",
    "mu",
    "momentum",
    "nesterov",
    "beta1",
    "beta2",
)
"""Keys of a client that a plan of the user's own has decided already."""


@dataclass(frozen=True)
class Plans:
    """What runs at clients.

    Attributes:
        training: one client's round.
        judging: measures the model on some rows; None where nothing does.
        schedule: of the rate that the plan takes, if it takes one.
    """

    training: planc.Plan
    judging: planc.Plan | None
    schedule: Schedule | None = field(default=None)


def make_plans(loaded: Loaded, data: Data, load_plan: LoadPlan) -> Plans:
    """Capture the plans of an experiment, or read them; takes seconds.

    Raises:
        ExperimentError: keys that do not fit each other.
        InputError, CaptureError: the data does not fit the network.
        PlancError: a plan of the user's own cannot be read.
    """
    experiment = loaded.experiment
    client, rounds = experiment.client, experiment.run.rounds
    schedule = client.schedule.at(client.lr, rounds)
    if isinstance(experiment.model, S.Saved):
        return _saved(loaded, experiment.model, schedule, load_plan)
    network = models.make(experiment.model, data.kind, experiment.run.seed)
    measure = models.metrics(experiment.model, data.kind)
    return Plans(
        models.training(network, measure, client, data.kind, schedule),
        models.judging(network, measure, client, data.kind) if experiment.evaluation.every else None,
        schedule,
    )


def make_federation(
    loaded: Loaded, data: Data, plans: Plans, engine: Engine, callbacks: Sequence[events.Callback]
) -> Federation:
    """The federation of an experiment: sends the data to the workers.

    Raises:
        InputError, DataError: sections that do not fit each other or the data.
        WorkerError: a worker did not take its part.
    """
    experiment = loaded.experiment
    keep, rounds, run = experiment.checkpoints, experiment.rounds, experiment.run
    population = data.population(engine.workers)
    both: dict[str, Any] = {
        "server": experiment.server.make(),
        "seed": run.seed,
        "deadline": rounds.deadline,
        "grace": rounds.grace,
        "patience": rounds.patience,
        "on_failure": rounds.on_failure,
        "retries": rounds.retries,
        "client_state": experiment.client.state,
        "client_lr": plans.schedule,
        "evaluate": evaluation(loaded, data.test, plans),
        "stop": list(experiment.stop.rules()),
        "checkpoints": Checkpoints(loaded.output / CHECKPOINTS, keep.every, keep.keep)
        if keep.every
        else None,
        "callbacks": [_described(loaded, callback) for callback in callbacks],
        "on_worker_lost": engine.replace,
    }
    if experiment.asynchronous is not None:
        return Buffered(plans.training, population, **both, **asdict(experiment.asynchronous))
    return Federation(
        plans.training,
        population,
        **both,
        sampling=experiment.sampling.make(),
        mean=experiment.mean.make(),
        quorum=rounds.quorum,
        late=rounds.late,
        reduce=rounds.reduce,
    )


def check(loaded: Loaded) -> None:
    """Refuse keys that do not fit each other, before anything is read or started.

    Raises:
        ExperimentError: there are some.
    """
    experiment = loaded.experiment
    if experiment.asynchronous is not None:
        for key in sorted(loaded.given):
            if key.startswith(("sampling.", "mean.")) or key in ("rounds.quorum", "rounds.late"):
                raise loaded.error(key, "this is for rounds, and [async] trains without them")
    if isinstance(experiment.model, S.Saved):
        for key in _UNUSED:
            if f"client.{key}" in loaded.given:
                raise loaded.error(f"client.{key}", "a plan of your own has decided this: leave it out")
    client = experiment.client
    makes: dict[str, Callable[[], Any]] = {
        "stop": lambda: list(experiment.stop.rules()),
        "client.schedule": lambda: client.schedule.at(client.lr, experiment.run.rounds),
        "server": experiment.server.make,
        "sampling": experiment.sampling.make,
        "mean": experiment.mean.make,
    }
    for key, make in makes.items():
        try:
            make()
        except InputError as error:
            raise loaded.error(key, str(error)) from None


def evaluation(loaded: Loaded, test: Pair | None, plans: Plans) -> Evaluation | None:
    """What the file wants measured.

    Raises:
        ExperimentError: on rows that were not kept, or by a plan that is not given.
    """
    wanted = loaded.experiment.evaluation
    if not wanted.every:
        return None
    asked = any(key.startswith("evaluation.") for key in loaded.given)
    if plans.judging is None:
        if asked:
            raise loaded.error("evaluation", "a plan of your own is judged by a plan: give model.evaluation")
        return None
    here, there = wanted.on in ("held-out", "both"), wanted.on in ("clients", "both")
    if here and test is None:
        if asked:
            raise loaded.error(
                "evaluation.on",
                "no rows are kept for it: give data.held_out or data.test_x, or on = 'clients'",
            )
        return None
    return Evaluation(
        centre=HeldOut(plans.judging, *test, wanted.batch_size) if here and test is not None else None,
        clients=plans.judging if there else None,
        sampling=Everyone() if wanted.clients is None else Uniform(wanted.clients),
        every=wanted.every,
    )


def config_of(loaded: Loaded) -> dict[str, events.Setting]:
    """Every key of the experiment with its value, dotted, as events tell it."""
    values = flat(plain(loaded.experiment))
    return {key: str(list(v)) if isinstance(v, list | tuple) else v for key, v in values.items()}


def _described(loaded: Loaded, callback: events.Callback) -> events.Callback:
    """A callback that hears the settings as the file has them."""

    def tell(event: events.Event) -> None:
        if isinstance(event, events.RunStarted):
            event = dataclasses.replace(event, config=config_of(loaded))
        callback(event)

    return tell


def _saved(loaded: Loaded, model: S.Saved, schedule: Schedule | None, load_plan: LoadPlan) -> Plans:
    plan = load_plan(_source(loaded, model.plan))
    judging = None if model.evaluation is None else load_plan(_source(loaded, model.evaluation))
    takes_rate = any(port.path == "lr" for port in plan.graph.arguments())
    if takes_rate:
        return Plans(plan, judging, schedule or Constant(loaded.experiment.client.lr))
    if "client.lr" in loaded.given or schedule is not None:
        key = "client.schedule" if schedule is not None else "client.lr"
        raise loaded.error(
            key,
            f"plan {plan.name!r} takes no learning rate",
            "planc.train_step(..., lr_input=True) makes one",
        )
    return Plans(plan, judging)


def _source(loaded: Loaded, source: str) -> str:
    """What a plan is read from: files from the experiment's folder, modules as they are."""
    file, colon, name = source.rpartition(":")
    if colon and not file.endswith(".py"):
        return source
    path = loaded.beside(file if colon else source)
    if not path.is_file():
        raise InputError(f"model: there is no file {path}")
    return f"{path}{colon}{name}" if colon else str(path)


__all__ = [
    "CHECKPOINTS",
    "LoadPlan",
    "Plans",
    "check",
    "config_of",
    "evaluation",
    "make_federation",
    "make_plans",
]
