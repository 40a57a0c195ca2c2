"""`Buffered`: training without rounds that wait for the last client. FedBuff.

Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation (2022), algorithm 1. What becomes of
workers that fail is `flights`'.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Literal, get_args

import torch

from planc.errors import InputError
from planc.plans import Buildable, Plan
from runtime.errors import RoundFailed
from runtime.federated import events
from runtime.federated.arguments import check_kinds
from runtime.federated.checkpoints import Checkpoints, Snapshot
from runtime.federated.cohort import run_cohort
from runtime.federated.collecting import Replace
from runtime.federated.combining import mean_metrics
from runtime.federated.draws import client_key, stream
from runtime.federated.evaluation import Evaluation
from runtime.federated.events import Callback, RoundDone
from runtime.federated.federation import Federation
from runtime.federated.flights import Flight, Flights, Landing
from runtime.federated.members import CohortResult, Member
from runtime.federated.partition import generator
from runtime.federated.population import Population
from runtime.federated.result import Result
from runtime.federated.schedules import Schedule
from runtime.federated.servers import Server, staleness_weight
from runtime.federated.settings import ClientState, OnFailure
from runtime.federated.stopping import Rule
from runtime.federated.work import Collected
from runtime.remote.handle import WorkerHandle

Order = Literal["arrival", "dispatch"]
_NAMED = 8
"""Workers that the text of a failed round names; the error has all."""
_DRAWS = 64
"""Draws of a client before those that are free are listed."""


class Buffered(Federation):
    """Trains one model at the clients of a population, as many of them at work at any time.

    Each client starts from the model of that moment, and what comes back is how far it moved the model. When
    ``buffer`` of these have come, the server makes the next model of their mean, and that is a round. A
    client that began ``s`` models ago counts ``(1 + s) ** -staleness`` of its move:
    ``mean = model + sum(weight * (1 + s) ** -staleness * move) / sum(weight)``.

    In the order ``"arrival"``, results are used as they come: nobody is waited for, and no two runs are the
    same. In the order ``"dispatch"`` they are used in the order in which clients were started, so that a
    seed gives the same parameters, bit for bit, also where workers are lost or a run is resumed; a slow
    client then holds up the others' results (not their work).

    >>> Buffered(plan, population, concurrency=20, buffer=10, server=FedAvg(lr=0.5)).run(rounds=100)

    Args:
        plan, population, server, seed, client_lr, evaluate, stop, checkpoints, callbacks, on_worker_lost: as
            of `Federation`. The learning rate is that of the round that the client's model is for.
        concurrency: how many clients are at work at any time; each worker has one at a time.
        buffer: how many clients make a round.
        staleness: the exponent above; 0 for results that count the same however old. The paper's is 0.5.
        order: see above.
        by_weight: whether clients weigh what the population says; else all the same, as in the paper.
        failures: how many clients may fail in a round before it does; by default as many as can be at work
            and twice those of a round.
        deadline, grace, patience, on_failure, retries, client_state: see `Settings`; a deadline is one
            client's.

    Raises:
        InputError: plan, population and settings do not fit each other.
    """

    _decisive = (
        *("server", "client_lr", "client_state", "concurrency", "buffer", "staleness", "order"),
        "by_weight",
    )

    def __init__(
        self,
        plan: Plan | Buildable,
        population: Population,
        *,
        concurrency: int = 10,
        buffer: int = 5,
        staleness: float = 0.5,
        order: Order = "arrival",
        by_weight: bool = False,
        failures: int | None = None,
        server: Server | None = None,
        seed: int = 0,
        deadline: float = 600.0,
        grace: float = 5.0,
        patience: float | None = None,
        on_failure: OnFailure = "reschedule",
        retries: int = 1,
        client_state: ClientState = "fresh",
        client_lr: Schedule | None = None,
        evaluate: Evaluation | None = None,
        stop: Sequence[Rule] = (),
        checkpoints: Checkpoints | None = None,
        callbacks: Sequence[Callback] = (),
        on_worker_lost: Replace | None = None,
    ) -> None:
        check_kinds(population=population)
        for name, value, least in (
            ("concurrency", concurrency, 1),
            ("buffer", buffer, 1),
            ("failures", failures, 0),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise InputError(f"{name} is a number of clients of at least {least}, got {value!r}")
        if concurrency > len(population):
            raise InputError(
                f"concurrency is {concurrency}, but the population has {len(population)} clients, each of "
                "which is at work once at a time"
            )
        if not 0 <= staleness < math.inf:
            raise InputError(f"staleness is an exponent of at least 0, got {staleness}")
        if order not in get_args(Order):
            raise InputError(f'order is "arrival" or "dispatch", got {order!r}')
        super().__init__(
            plan,
            population,
            server=server,
            seed=seed,
            deadline=deadline,
            grace=grace,
            patience=patience,
            on_failure=on_failure,
            retries=retries,
            client_state=client_state,
            client_lr=client_lr,
            evaluate=evaluate,
            stop=stop,
            checkpoints=checkpoints,
            callbacks=callbacks,
            on_worker_lost=on_worker_lost,
        )
        self.concurrency = concurrency
        self.buffer = buffer
        self.staleness = staleness
        self.order = order
        self.by_weight = by_weight
        self.failures = concurrency + 2 * buffer if failures is None else failures
        self._started_ones = 0
        self._models: dict[int, dict[str, torch.Tensor]] = {}  # by version, those that clients started from
        self._taken: list[Landing] = []
        self._flights = Flights(
            population, self.settings, order == "dispatch", self._place, self._one, self._tell, on_worker_lost
        )

    def run(self, rounds: int, *, resume: bool = False) -> Result:
        """As `Federation.run`. When it returns nobody is at work; who was counts when it goes on."""
        try:
            result = super().run(rounds, resume=resume)
        except BaseException:
            self._flights.rest(wait=False)
            raise
        self._flights.rest()
        return result

    def round(self) -> RoundDone:
        """Take results until the buffer is full, and make the next model of them.

        Where it raises, the model and the number of rounds are as before, and what came counts in the next.

        Raises:
            RoundFailed: too many clients failed, or nobody is left.
        """
        start = time.monotonic()
        number = self._flights.round = self.number + 1
        counted: Collected[None] = Collected()
        try:
            self._fill()
            self._tell(events.RoundStarted(number, tuple(f.client for f in self._flights.under_way)))
            self._gather(number, counted)
        except RoundFailed as error:
            self._tell(events.RoundFailed(number, str(error)))
            raise
        for sent in self._flights.sent_data():
            counted.count(sent)
        landings = self._taken
        mean, weight = self._mean_of(landings)
        new, server_state = self._update.step(self._part(), mean, self.server_state)
        model = {**self.model, **new}
        evaluation, measured = self._evaluated(number, model)
        metrics = self._metrics(landings)
        self.model, self.server_state, self.number, self._taken = model, server_state, number, []
        self._forget_models()
        done = RoundDone(
            number,
            time.monotonic() - start,
            len(landings),
            weight,
            metrics,
            evaluation,
            counted.messages + measured.messages,
            counted.bytes_out + measured.bytes_out,
            counted.bytes_in + measured.bytes_in,
            counted.slowest,
        )
        self.history.append(done)
        self._tell(done)
        return done

    def close(self) -> None:
        """Give up the clients that are at work, and let go of the threads. The model stays."""
        self._flights.close()
        super().close()

    def config(self) -> dict[str, events.Setting]:
        """The settings, each as a short text or number."""
        unused = ("sampling", "mean", "quorum", "late")
        return {name: value for name, value in super().config().items() if name not in unused} | {
            "concurrency": self.concurrency,
            "buffer": self.buffer,
            "staleness": float(self.staleness),
            "order": self.order,
            "by_weight": self.by_weight,
            "failures": self.failures,
        }

    # -- clients ---------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start clients until as many are at work as there shall be, or no other is free."""
        new: list[Flight] = []
        busy = {flight.client for flight in self._flights.under_way}
        while len(busy) < self.concurrency:
            client = self._free(busy)
            if client is None:
                break
            busy.add(client)
            new.append(Flight(self._started_ones, client, self.number))
            self._started_ones += 1
        if new:
            self._models[self.number] = self.model
            self._flights.start(new)

    def _free(self, busy: set[int]) -> int | None:
        """A client that is not at work, each as likely as the other; drawn by the seed and a count."""
        count = len(self.population)
        draw = generator(stream(self.seed, f"start/{self._started_ones}"))
        available = self.population.available
        for _ in range(_DRAWS):
            client = int(draw.integers(count))
            if client not in busy and (available is None or client in available):
                return client
        free = [c for c in (range(count) if available is None else sorted(available)) if c not in busy]
        return free[int(draw.integers(len(free)))] if free else None

    def _gather(self, number: int, counted: Collected[None]) -> None:
        """Take results until the buffer is full.

        Raises:
            RoundFailed: too many failed.
        """
        failed: dict[str, str] = {}
        failures = 0
        while len(self._taken) < self.buffer:
            self._fill()
            landing = self._flights.take()
            counted.count(landing.sent)
            if landing.result is not None:
                self._taken.append(landing)
                self.population.remember(landing.result.state)
                slowest = counted.slowest.get(landing.worker, 0.0)
                counted.slowest[landing.worker] = max(slowest, landing.seconds)
                continue
            failures += 1
            failed[landing.worker] = landing.why
            if failures > self.failures:
                told = [f"worker {id!r}: {why}" if id else why for id, why in failed.items()]
                raise RoundFailed(
                    f"round {number}: {failures} clients failed while {len(self._taken)} of {self.buffer} "
                    f"came: {'; '.join(told[:_NAMED])}",
                    number=number,
                    contributions=len(self._taken),
                    needed=self.buffer,
                    reasons=failed,
                )

    def _place(self, flights: Sequence[Flight], seconds: float) -> Mapping[WorkerHandle, Sequence[Member]]:
        keys = {f.client: client_key(self.seed, f.number, f.client) for f in flights}
        return self.population.members(
            [flight.client for flight in flights],
            keys=keys if self._client.has_key else None,
            keep=self.settings.client_state == "kept",
            seconds=seconds,
        )

    def _one(self, worker: WorkerHandle, member: Member, flight: Flight, seconds: float) -> CohortResult:
        """Have one client trained; it sends its model, as nobody else's is of the same start."""
        model = self._models[flight.version]
        arguments = self._client.arguments(flight.version + 1)
        return run_cohort(
            worker, self.plan, model, [member], None, arguments=arguments, each=True, seconds=seconds
        )

    # -- what they learned -----------------------------------------------------------------------------------

    def _mean_of(self, landings: Sequence[Landing]) -> tuple[dict[str, torch.Tensor], float]:
        """The model moved by the mean of what clients learned, and what they weigh together."""
        part = self._part()
        moved = {path: torch.zeros(tensor.shape, dtype=torch.float64) for path, tensor in part.items()}
        weights = [self.population.weights[x.flight.client] if self.by_weight else 1.0 for x in landings]
        total = math.fsum(weights)
        for landing, weight in zip(landings, weights, strict=True):
            assert landing.result is not None
            share = weight / total * staleness_weight(self._age(landing), self.staleness)
            before = self._models[landing.flight.version]
            after = landing.result.each[landing.flight.client]
            for path, sum in moved.items():
                sum.add_(after[path].to(torch.float64) - before[path].to(torch.float64), alpha=share)
        return {path: _moved(tensor, moved[path]) for path, tensor in part.items()}, total

    def _metrics(self, landings: Sequence[Landing]) -> dict[str, float]:
        results = [landing.result for landing in landings if landing.result is not None]
        found = self._client.named(mean_metrics(results, self.population.weights))
        return found | {"staleness": sum(map(self._age, landings)) / len(landings)}

    def _age(self, landing: Landing) -> int:
        """How many models were made since a client got its own."""
        return self.number - landing.flight.version

    def _forget_models(self) -> None:
        """Keep the models only that clients at work started from."""
        used = {flight.version for flight in self._flights.under_way}
        self._models = {version: model for version, model in self._models.items() if version in used}

    # -- checkpoints -----------------------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        """As of `Federation`, and the clients at work with the models that they started from.

        They are trained again: in the order of dispatch the results are the same.
        """
        snapshot = super()._snapshot()
        models = {f"{v}/{path}": t for v, model in self._models.items() for path, t in model.items()}
        flights = [asdict(replace(flight, attempt=0)) for flight in self._flights.under_way]
        notes = {**snapshot.notes, "started": self._started_ones, "flights": flights}
        return replace(snapshot, more=models, notes=notes)

    def _restore(self, snapshot: Snapshot) -> None:
        super()._restore(snapshot)
        self._flights.close()
        self._taken = []
        self._models = {}
        for name, tensor in snapshot.more.items():
            version, _, path = name.partition("/")
            self._models.setdefault(int(version), {})[path] = tensor
        self._started_ones = snapshot.notes["started"]
        self._flights.start(Flight(**flight) for flight in snapshot.notes["flights"])


def _moved(tensor: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    value = tensor.to(torch.float64) + by
    return (value if tensor.is_floating_point() else value.round()).to(tensor.dtype)


__all__ = ["Buffered"]
