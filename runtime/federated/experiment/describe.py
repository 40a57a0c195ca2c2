"""What an experiment would do, before it does: settings, the cost of a client's plan, a round's messages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from planc.cost import Cost
from planc.draw.figures import decimal, size
from planc.ir import Role
from planc.text.suggest import count_of
from runtime.federated.experiment.assembly import Plans
from runtime.federated.experiment.data import Data
from runtime.federated.experiment.engines import names
from runtime.federated.experiment.file import Loaded
from runtime.federated.experiment.keys import plain
from runtime.federated.experiment.toml import dumps

_SUM_BYTES = 8
"""Of a number in a worker's sum: an i64."""


@dataclass(frozen=True)
class Outline:
    """A run before it begins.

    Attributes:
        settings: every key of it, as TOML.
        rows: how many rows each client has.
        cohort: how many clients a round has, on average.
        workers: how many there are.
        model_bytes: of what is trained and sent.
        numbers: how many numbers that is.
        each: whether every client's model comes here.
        cost: of one round at the client of middle size.
        plans: what runs.
    """

    settings: str
    rows: tuple[int, ...]
    cohort: float
    workers: int
    model_bytes: int
    numbers: int
    each: bool
    cost: Cost
    plans: Plans

    @property
    def messages(self) -> int:
        """Those of a round at most: one a worker that has a client of the cohort."""
        return min(self.workers, math.ceil(self.cohort))

    @property
    def bytes_out(self) -> int:
        """Of a round's models on their way to the workers."""
        return self.messages * self.model_bytes

    @property
    def bytes_in(self) -> int:
        """Of what comes back: a sum a worker, or every client's model."""
        return (
            round(self.cohort * self.model_bytes) if self.each else self.messages * self.numbers * _SUM_BYTES
        )

    def lines(self) -> Iterator[str]:
        """All of it, for people: TOML, and figures in comments."""
        graph = self.plans.training.graph
        yield from self.settings.splitlines()
        yield ""
        yield f"# plan {graph.name}: {count_of(graph.count_nodes(), 'node')}, id {self.plans.training.id}"
        yield f"# model: {decimal(self.numbers)} numbers, {size(self.model_bytes)}"
        low, middle, high = min(self.rows), round(median(self.rows)), max(self.rows)
        yield f"# clients: {len(self.rows):,}, with {low:,} to {high:,} rows, {middle:,} in the middle"
        yield (
            f"# a client of {middle:,} rows, a round: {decimal(self.cost.flops)} FLOPs, "
            f"peak memory {size(self.cost.peak_bytes)}"
        )
        yield (
            f"# a round: {self.cohort:,.4g} clients on average, {count_of(self.messages, 'message')} "
            f"for training, {size(self.bytes_out)} to workers, {size(self.bytes_in)} back"
        )
        yield "# nothing was trained"


def outline(loaded: Loaded, data: Data, plans: Plans) -> Outline:
    """What an experiment would do.

    Raises:
        InputError, DataError: sections that do not fit each other or the data.
    """
    experiment = loaded.experiment
    rows = data.rows()
    graph = plans.training.graph
    model = [p.value.type for p in graph.updates() if p.role in (Role.PARAMETER, Role.BUFFER)]
    numbers = [math.prod(dim for dim in type.shape if isinstance(dim, int)) for type in model]
    nbytes = sum(n * type.dtype.torch.itemsize for n, type in zip(numbers, model, strict=True))
    return Outline(
        dumps(plain(experiment)),
        tuple(rows),
        experiment.sampling.make().expected_size(len(rows)),
        len(names(experiment.workers)),
        nbytes,
        sum(numbers),
        experiment.mean.make().needs_each,
        plans.training.cost(**{var.name: round(median(rows)) for var in plans.training.dims}),
        plans,
    )


__all__ = ["Outline", "outline"]
