"""`Federation`: rounds of training at many clients. Draws cohorts, has them train, makes the next model.

How work gets to workers is `collecting`'s, how results become one model `combining`'s, and what a server
makes of that the strategy's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from planc.errors import InputError
from planc.plans import Buildable, Plan, plan_of
from runtime.errors import RoundFailed
from runtime.federated import events
from runtime.federated.arguments import check_kinds, check_lists, check_rounds, checked_seed
from runtime.federated.checkpoints import Checkpoints, RunIdentity, Snapshot
from runtime.federated.client_plan import ClientPlan
from runtime.federated.cohort import run_cohort
from runtime.federated.collecting import Collector, Replace
from runtime.federated.combining import Asked, Combined, check_mean, combine, mean_metrics
from runtime.federated.draws import client_key
from runtime.federated.evaluation import CLIENTS, Evaluation, client_work
from runtime.federated.events import Callback, Event, RoundDone, from_json, to_json
from runtime.federated.members import CohortResult, Member
from runtime.federated.population import Population
from runtime.federated.reducing import Tree
from runtime.federated.result import Result
from runtime.federated.robust import Mean, WeightedMean
from runtime.federated.sampling import Everyone, Sampling
from runtime.federated.schedules import Schedule
from runtime.federated.servers import FedAvg, Server
from runtime.federated.settings import ClientState, Late, OnFailure, Reduce, Settings
from runtime.federated.stopping import Rule, check_metrics
from runtime.federated.work import Collected, Work, too_few
from runtime.remote.handle import WorkerHandle
from runtime.sums import Grid

State = Mapping[str, torch.Tensor]
_DECISIVE = ("server", "sampling", "mean", "client_lr", "client_state")
"""The settings that a run's parameters depend on, beside plan, seed and clients."""


class Federation:
    """Trains one model at the clients of a population, round after round.

    A round: a cohort is drawn; each worker gets one message for all of its members, trains each from the
    same model, and answers with one sum; the mean of all is what the server's optimizer makes the next model
    of. What is drawn depends on seed, round and client alone, and sums are exact. So the same seed gives the
    same parameters, bit for bit, whatever the workers, and also where some are lost on the way.

    >>> plan = planc.epoch(planc.train_step(net, loss, optimizer, x, y), batch_size=32)
    >>> population = Population.split((x, y), clients=1000, workers=workers)
    >>> result = Federation(plan, population, sampling=Uniform(50), seed=1).run(rounds=20)
    >>> net.load_state_dict(result.state_dict())

    Args:
        plan: takes one client's data (and, with ``client_lr``, a learning rate ``lr``), and has the model as
            its state. One of `fedprox` is held near the model that each round begins with.
        population: the clients.
        server: makes the next model of the clients' mean.
        sampling: draws the cohorts.
        mean: how the clients' models become one.
        seed: of all draws: cohorts and clients' keys.
        quorum, deadline, grace, patience, late, on_failure, retries, client_state, reduce: see `Settings`.
        client_lr: the clients' learning rate by round; for a plan that takes one.
        evaluate: what to measure of the model.
        stop: rules that end a run.
        checkpoints: where the run's state is kept, to go on after a stop.
        callbacks: are told all events, in this thread.
        on_worker_lost: asked for another worker when one is lost; None for none.

    Attributes:
        plan: as it is run at clients.
        model: parameters and buffers by path.
        server_state: what the server keeps, by path.
        number: how many rounds the model has behind it.
        history: those rounds.

    Raises:
        InputError: plan, population and settings do not fit each other.
    """

    _decisive: tuple[str, ...] = _DECISIVE

    def __init__(
        self,
        plan: Plan | Buildable,
        population: Population,
        *,
        server: Server | None = None,
        sampling: Sampling | None = None,
        mean: Mean | None = None,
        seed: int = 0,
        quorum: float = 0.8,
        deadline: float = 600.0,
        grace: float = 5.0,
        patience: float | None = None,
        late: Late = "drop",
        on_failure: OnFailure = "reschedule",
        retries: int = 1,
        client_state: ClientState = "fresh",
        reduce: Reduce = "direct",
        client_lr: Schedule | None = None,
        evaluate: Evaluation | None = None,
        stop: Sequence[Rule] = (),
        checkpoints: Checkpoints | None = None,
        callbacks: Sequence[Callback] = (),
        on_worker_lost: Replace | None = None,
    ) -> None:
        self.settings = Settings(
            quorum, deadline, grace, patience, late, on_failure, retries, client_state, reduce
        )
        check_kinds(population=population, server=server, sampling=sampling, mean=mean)
        check_kinds(client_lr=client_lr, evaluate=evaluate, checkpoints=checkpoints)
        check_lists(stop, callbacks)
        self._client = ClientPlan(plan, client_lr)
        self._client.check(population)
        self.plan = self._client.plan
        self.population = population
        self.seed = checked_seed(seed)
        self.number = 0
        self.history: list[RoundDone] = []
        self._server = server or FedAvg()
        self._sampling = sampling or Everyone()
        self._sampling.expected_size(len(population))  # refuses a population that is too small
        self._mean = mean or WeightedMean()
        self._client_lr = client_lr
        self._evaluate = evaluate
        if evaluate is not None and evaluate.clients is not None:
            evaluate.sampling.expected_size(len(population))
        self._stop = tuple(stop)
        self._checkpoints = checkpoints
        self._callbacks = tuple(callbacks)
        check_mean(self._mean, self.settings)
        self._weights = [1.0] * len(population) if self._mean.alike else population.weights
        self.model = self._client.initial_model()
        self._update = self._server.plan(self._part(), self._client.parameters)
        self.server_state = self._update.initial(self._part())
        self._collector: Collector[Asked] = Collector(population, self.settings, self._tell, on_worker_lost)
        tree = Tree(self._collector, self.settings, self._tell)
        self._trained = tree if reduce == "tree" else self._collector

    # -- running ---------------------------------------------------------------------------------------------

    def run(self, rounds: int, *, resume: bool = False) -> Result:
        """Train until so many rounds are done in all, or a rule ends it.

        Args:
            rounds: their number, those before a stop included.
            resume: go on from the newest checkpoint that is not damaged, from the start where there is none.
                The parameters come out as those of a run that was not interrupted, bit for bit.

        Raises:
            RoundFailed: too few clients contributed to a round; the model is as it was before it.
            InputError: a rule for a metric that there is not, or nothing to resume from.
            StorageError: a checkpoint cannot be written or read, or is of another run.
        """
        check_rounds(rounds)
        start = time.monotonic()
        skipped = self._begin(resume)
        self._tell(self._started(rounds))
        for path, why in skipped:
            self._tell(events.CheckpointSkipped(str(path), why))
        try:
            ended = self._over()
            while ended is None and self.number < rounds:
                done = self.round()
                self._save()
                check_metrics(self._stop, done, self._evaluate is not None)
                ended = self._over()
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"
            self._tell(events.RunDone(self.number, why, time.monotonic() - start))
            raise
        why = ended or f"{self.number} rounds are done"
        seconds = time.monotonic() - start
        self._tell(events.RunDone(self.number, why, seconds))
        return Result(self.plan.with_state(self.model), tuple(self.history), why, seconds)

    def round(self) -> RoundDone:
        """One round more. Where it raises, the model and the number of rounds are as before.

        What a callback raises at the round's end, it raises after a round that is done.

        Raises:
            RoundFailed: too few clients contributed.
        """
        start = time.monotonic()
        number = self.number + 1
        cohort = self._draw(number)
        self._tell(events.RoundStarted(number, cohort))
        try:
            asked, collected = self._train(number, cohort)
        except RoundFailed as error:
            self._tell(events.RoundFailed(number, str(error)))
            raise
        model, server_state, combined = self.model, self.server_state, None
        if collected.done:
            combined = combine(collected, asked, self._mean, self._weights)
            new, server_state = self._update.step(self._part(), combined.mean, server_state)
            model = {**model, **new}
        evaluation, measured = self._evaluated(number, model)
        self.model, self.server_state, self.number = model, server_state, number
        self._remember(collected.results)
        done = self._done(number, start, collected, combined, evaluation, measured)
        self.history.append(done)
        self._tell(done)
        return done

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The model: parameters and buffers by path (copies)."""
        return {path: tensor.detach().clone() for path, tensor in self.model.items()}

    def evaluate(self) -> dict[str, float]:
        """What the evaluation gives for the model as it is."""
        return self._evaluated(self.number, self.model, always=True)[0]

    def close(self) -> None:
        """Let go of the threads; workers are left as they are. The model stays."""
        self._collector.close()

    # -- a round ---------------------------------------------------------------------------------------------

    def _draw(self, number: int) -> tuple[int, ...]:
        population = self.population
        return self._sampling.sample(
            number, len(population), population.weights, self.seed, population.available
        )

    def _train(self, number: int, cohort: tuple[int, ...]) -> tuple[Asked, Collected[Asked]]:
        """Have the cohort trained.

        Raises:
            RoundFailed: too few of it contributed.
        """
        weights, alike = self._weights, self._mean.alike
        part = self._part()
        # The weight of the whole cohort, whoever of it contributes: the grid does not depend on faults.
        asked = Asked(part, Grid.of(part, math.fsum(weights[client] for client in cohort) or 1.0))
        arguments = self._client.arguments(number)
        model = self.model

        def send(
            worker: WorkerHandle, members: Sequence[Member], seconds: float, *, hold: bool = False
        ) -> CohortResult:
            return run_cohort(
                worker,
                self.plan,
                model,
                members,
                asked.grid,
                arguments=arguments,
                each=self._mean.needs_each,
                hold=hold,
                seconds=seconds,
            )

        def place(clients: Sequence[int], seconds: float) -> dict[WorkerHandle, list[Member]]:
            keys = {c: client_key(self.seed, number, c) for c in clients} if self._client.has_key else None
            keep = self.settings.client_state == "kept"
            placed = self.population.members(clients, keys=keys, keep=keep, seconds=seconds)
            if not alike:
                return placed
            return {worker: [replace(one, weight=1.0) for one in ones] for worker, ones in placed.items()}

        if not cohort and (self.population.available == frozenset() or not self.population.workers):
            raise RoundFailed(f"round {number}: no client is left, all were lost with workers", number=number)
        collected = self._trained.collect(Work(number, cohort, place, send, asked))
        needed = self.settings.needed(len(cohort))
        if len(collected.done) < needed:
            raise too_few(number, cohort, collected, needed)
        return asked, collected

    def _remember(self, results: Sequence[CohortResult]) -> None:
        """Take over what clients kept, but for workers that answered first and were lost then."""
        alive = self.population.workers
        for result in results:
            for client, state in result.state.items():
                if all(tensor.location in alive for tensor in state.values()):
                    self.population.remember({client: state})

    def _evaluated(
        self, number: int, model: State, always: bool = False
    ) -> tuple[dict[str, float], Collected[Asked]]:
        """The metrics of an evaluation, if one is due, and what was asked for it."""
        evaluation = self._evaluate
        if evaluation is None or not (always or evaluation.due(number)):
            return {}, Collected()
        metrics = evaluation.at_centre(model)
        if evaluation.clients is None:
            return metrics, Collected()
        plan, nothing = plan_of(evaluation.clients), Asked({}, Grid({}, 1.0))
        work = client_work(evaluation, plan, number, model, self.population, self.seed, nothing)
        collected = self._collector.collect(work)
        found = mean_metrics(collected.results, self.population.weights)
        return {**metrics, **{CLIENTS + name: value for name, value in found.items()}}, collected

    def _done(
        self,
        number: int,
        start: float,
        collected: Collected[Asked],
        combined: Combined | None,
        evaluation: Mapping[str, float],
        measured: Collected[Asked],
    ) -> RoundDone:
        return RoundDone(
            number,
            time.monotonic() - start,
            combined.contributions if combined else 0,
            combined.weight if combined else 0.0,
            self._client.named(mean_metrics(collected.results, self.population.weights)),
            evaluation,
            collected.messages + measured.messages,
            collected.bytes_out + measured.bytes_out,
            collected.bytes_in + measured.bytes_in,
            collected.slowest,
        )

    # -- the rest --------------------------------------------------------------------------------------------

    def _part(self) -> dict[str, torch.Tensor]:
        """What of the model is trained. The rest, frozen parameters, is sent, but does not come back."""
        return {path: self.model[path] for path in self._client.trained}

    def _begin(self, resume: bool) -> Sequence[tuple[Path, str]]:
        """Open the checkpoints, and go on from one if asked to. Those that are damaged."""
        if self._checkpoints is None:
            if resume:
                raise InputError("there is nothing to resume from: give checkpoints=Checkpoints(folder)")
            return ()
        config = self.config()
        decisive = {name: config[name] for name in self._decisive}
        run = RunIdentity(self.plan.id, self.seed, {**decisive, "population": self.population.digest})
        restored = self._checkpoints.begin(run, self.model, resume)
        if restored is None:
            return ()
        self._restore(restored.snapshot)
        return restored.skipped

    def _restore(self, snapshot: Snapshot) -> None:
        """Be as the run was after a round."""
        self.number = snapshot.round
        self.model, self.server_state = dict(snapshot.model), dict(snapshot.server)
        self.history = [
            done for e in snapshot.notes["history"] if isinstance(done := from_json(e), RoundDone)
        ]
        self.population.restore_states(snapshot.clients)

    def _snapshot(self) -> Snapshot:
        """The run as it is, between two rounds."""
        kept = self.settings.client_state == "kept"
        clients = self._collector.kept_states(self.number) if kept else {}
        history = [to_json(done) for done in self.history]
        return Snapshot(self.number, self.model, self.server_state, clients, notes={"history": history})

    def _save(self) -> None:
        """Write a checkpoint, if one is due."""
        checkpoints = self._checkpoints
        if checkpoints is None or not checkpoints.due(self.number):
            return
        path = checkpoints.save(self._snapshot())
        self._tell(events.CheckpointSaved(self.number, str(path)))

    def _over(self) -> str | None:
        if not self.history:
            return None
        return next((why for rule in self._stop if (why := rule.why(self.history)) is not None), None)

    def _started(self, rounds: int) -> events.RunStarted:
        return events.RunStarted(
            len(self.population),
            tuple(worker.id for worker in self.population.workers),
            rounds,
            self.seed,
            self.plan.id,
            self.config(),
            self.number + 1,
        )

    def config(self) -> dict[str, events.Setting]:
        """The settings, each as a short text or number."""
        return {
            "server": repr(self._server),
            "sampling": repr(self._sampling),
            "mean": repr(self._mean),
            "client_lr": None if self._client_lr is None else repr(self._client_lr),
            "stop": ", ".join(map(repr, self._stop)) or None,
            **self.settings.config(),
        }

    def _tell(self, event: Event) -> None:
        for callback in self._callbacks:
            callback(event)


__all__ = ["Federation"]
