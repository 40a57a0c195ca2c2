"""The sections of an experiment file that say how the federated run goes: who, when, what becomes of it.

Each is values, and makes what `runtime.federated` calls by that name: nothing here trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from runtime.federated import robust, sampling, servers, stopping
from runtime.federated.experiment.keys import (
    Count,
    Decay,
    Half,
    Makes,
    Natural,
    NonNegative,
    Positive,
    Section,
    Share,
    Text,
)


class Average(Makes, frozen=True, tag_field="strategy", tag="fedavg"):
    """The clients' mean is the new model: McMahan et al. (2017).

    Attributes:
        lr: how far to go from the model to the mean: 1 is to it.
    """

    makes = servers.FedAvg
    lr: Positive = 1.0


class Momentum(Makes, frozen=True, tag_field="strategy", tag="fedavgm"):
    """Averaging with momentum at the server: Hsu et al. (2019).

    Attributes:
        lr: the server's learning rate.
        momentum: how much of the last round's step stays in the next.
    """

    makes = servers.FedAvgM
    lr: Positive = 1.0
    momentum: Decay = 0.9


class ServerAdagrad(Makes, frozen=True, tag_field="strategy", tag="fedadagrad"):
    """Adagrad at the server: Reddi et al. (2021).

    Attributes:
        lr: the server's learning rate.
        beta1: decay of the first moment.
        tau: how adaptive: the smaller the more.
    """

    makes = servers.FedAdagrad
    lr: Positive = 0.1
    beta1: Decay = 0.0
    tau: Positive = 1e-3


class _Moments(Makes, frozen=True):
    """Keys that several forms have.

    Attributes:
        lr: the server's learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        tau: how adaptive: the smaller the more.
    """

    lr: Positive = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Positive = 1e-3


class ServerAdam(_Moments, frozen=True, tag_field="strategy", tag="fedadam"):
    """Adam at the server: Reddi et al. (2021)."""

    makes = servers.FedAdam


class ServerYogi(_Moments, frozen=True, tag_field="strategy", tag="fedyogi"):
    """Yogi at the server: Reddi et al. (2021)."""

    makes = servers.FedYogi


class DrawEveryone(Makes, frozen=True, tag_field="kind", tag="everyone"):
    """All clients, in every round."""

    makes = sampling.Everyone


class DrawUniform(Makes, frozen=True, tag_field="kind", tag="uniform"):
    """So many clients, each as likely as any other.

    Attributes:
        count: how many.
    """

    makes = sampling.Uniform
    count: Count


class DrawPoisson(Makes, frozen=True, tag_field="kind", tag="poisson"):
    """Each client by itself, with the same probability: cohorts differ in size.

    Attributes:
        rate: the probability.
    """

    makes = sampling.Poisson
    rate: Share


class DrawByWeight(Makes, frozen=True, tag_field="kind", tag="by-weight"):
    """So many clients, those with more rows more often.

    Attributes:
        count: how many.
    """

    makes = sampling.ByWeight
    count: Count


class MeanWeighted(Makes, frozen=True, tag_field="kind", tag="weighted"):
    """The mean, weighted by rows: exact sums, one a worker."""

    makes = robust.WeightedMean


class MeanUniform(Makes, frozen=True, tag_field="kind", tag="uniform"):
    """The mean in which every client counts as one, for cohorts drawn by weight: exact sums, one a worker."""

    makes = robust.UniformMean


class MeanMedian(Makes, frozen=True, tag_field="kind", tag="median"):
    """The median of each number. Every client's model comes here."""

    makes = robust.Median


class MeanTrimmed(Makes, frozen=True, tag_field="kind", tag="trimmed"):
    """The mean of each number without the largest and smallest. Every client's model comes here.

    Attributes:
        fraction: the part of the clients that is left out at each end.
    """

    makes = robust.TrimmedMean
    fraction: Half = 0.1


class Rounds(Section, frozen=True):
    """What a round does about time and faults.

    Attributes:
        quorum: the part of the cohort that has to contribute.
        deadline: seconds for the clients' work in a round; clients that are not done then are late.
        grace: seconds beyond the deadline in which replies are still waited for.
        patience: seconds without a reply after which a worker counts as hung; by default until the deadline.
        late: what becomes of a worker that has not answered at the end. drop: it is lost; use: it has one
            more round.
        on_failure: what becomes of the clients of a lost worker.
        retries: how often a client is given to another worker in a round.
        reduce: how the workers' sums become one. direct: each comes here; tree: workers that can send to each
            other add them up two by two, and one comes here.
    """

    quorum: Share = 0.8
    deadline: Positive = 600.0
    grace: NonNegative = 5.0
    patience: Positive | None = None
    late: Literal["drop", "use"] = "drop"
    on_failure: Literal["reschedule", "drop", "fail"] = "reschedule"
    retries: Natural = 1
    reduce: Literal["direct", "tree"] = "direct"


class Async(Section, frozen=True):
    """Without rounds that wait for the last client: FedBuff, Nguyen et al. (2022). Absent: rounds.

    Of `[rounds]` then only deadline, grace, patience, on_failure and retries count, for one client each;
    `[sampling]` and `[mean]` cannot be given.

    Attributes:
        buffer: how many clients' results make a new model; that counts as a round.
        concurrency: how many clients are at work at any time.
        staleness: the exponent with which results count less that began with an older model.
        order: dispatch: results are used in the order in which clients were started, so that a seed gives the
            same model; arrival: as they come, so that nobody is waited for.
        by_weight: whether clients with more rows count more.
        failures: how many clients may fail in a round; by default as many as can be at work and twice those
            of a round.
    """

    buffer: Count = 5
    concurrency: Count = 10
    staleness: NonNegative = 0.5
    order: Literal["dispatch", "arrival"] = "dispatch"
    by_weight: bool = False
    failures: Natural | None = None


class Evaluate(Section, frozen=True):
    """How the model is judged.

    Attributes:
        every: after every so many rounds; 0 for never.
        on: held-out: on the rows that are here; clients: on the data of clients; both.
        clients: how many clients are drawn for it; by default all.
        batch_size: rows at a time.
    """

    every: Natural = 1
    on: Literal["held-out", "clients", "both"] = "held-out"
    clients: Count | None = None
    batch_size: Count = 256


class Stop(Section, frozen=True):
    """What ends the run before its last round.

    Attributes:
        metric: which number of the evaluation, or else of training, is meant by the other keys.
        mode: whether more of it is better, or less.
        target: end when it is as good as this.
        patience: end when it has not become better for so many evaluations.
        least: how much better counts as better.
        seconds: end when the rounds took so long together.
        diverged: end when a number is not finite.
    """

    metric: Text = "accuracy"
    mode: Literal["max", "min"] = "max"
    target: float | None = None
    patience: Count | None = None
    least: NonNegative = 0.0
    seconds: Positive | None = None
    diverged: bool = True

    def rules(self) -> Iterator[stopping.Rule]:
        """What of this is asked for.

        Raises:
            InputError: a number is out of range.
        """
        if self.target is not None:
            yield stopping.Target(self.metric, self.target, self.mode)
        if self.patience is not None:
            yield stopping.Patience(self.metric, self.patience, self.mode, self.least)
        if self.seconds is not None:
            yield stopping.AfterSeconds(self.seconds)
        if self.diverged:
            yield stopping.Diverged()


class Keep(Section, frozen=True):
    """Checkpoints, in `checkpoints/` of the output folder: what `resume` goes on from.

    Attributes:
        every: after every so many rounds; 0 for never.
        keep: how many of the last ones stay.
    """

    every: Natural = 5
    keep: Count = 3


Server = Average | Momentum | ServerAdagrad | ServerAdam | ServerYogi
Sampling = DrawEveryone | DrawUniform | DrawPoisson | DrawByWeight
Mean = MeanWeighted | MeanUniform | MeanMedian | MeanTrimmed

__all__ = [
    "Async",
    "Average",
    "DrawByWeight",
    "DrawEveryone",
    "DrawPoisson",
    "DrawUniform",
    "Evaluate",
    "Keep",
    "Mean",
    "MeanMedian",
    "MeanTrimmed",
    "MeanUniform",
    "MeanWeighted",
    "Momentum",
    "Rounds",
    "Sampling",
    "Server",
    "ServerAdagrad",
    "ServerAdam",
    "ServerYogi",
    "Stop",
]
