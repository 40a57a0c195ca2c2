"""Rounds at many clients in a process of their own, whose memory is the coordinator's. Run by `scaling`.

It is given one line of JSON (where workers are, and whether it is to be quick) and prints a line for each
`Point` that it measured, or one that says why there are none.
"""

from __future__ import annotations

import functools
import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import planc
from planc.errors import InputError
from runtime import RayCluster, VirtualWorker
from runtime.errors import ConnectionLost
from runtime.federated import Federation, Population, Uniform
from runtime.federated.events import RoundDone
from runtime.remote.handle import WorkerHandle

ROWS, BATCH = 8, 4
"""A client has few rows: two steps a round."""
CACHE = 2**23
"""Bytes of clients' data that a worker keeps where data is made on demand: next to nothing, so that every
round makes that of its cohort, whatever the number of clients."""
WIDTHS = (16, 64, 256, 1024)
"""Of the MLP's hidden layer; 64 is the one that everything else is measured with."""
MIB = 2**20
WARMUP = 2
"""Rounds that compile, and are not counted."""
Data = tuple[torch.Tensor, torch.Tensor]
DEMAND = "clients not in the cohort, data made on demand"
MEMORY = "memory against the model"
COHORT = "time against the cohort"
WORKERS = "time against the workers"
OTHERS = "time against the clients not in the cohort"
MODEL = "time against the model"
DRAW, EMPTY, BYTES = "a draw", "an empty message", "bytes"


@dataclass(frozen=True)
class Point:
    """What was measured of one setting. ``ms`` is the median over rounds.

    Attributes:
        work: what is measured, as readers see it.
        way: where the workers are.
        clients, cohort, elements, steps, workers: the setting; ``steps`` are those of one client.
        messages, bytes_out, bytes_in: of a round.
        ms: milliseconds a round, or once.
        peak: MiB of this process at most, within these rounds.
    """

    work: str
    way: str
    clients: int | None = None
    cohort: int | None = None
    elements: int | None = None
    steps: int | None = None
    workers: int | None = None
    messages: int | None = None
    bytes_out: int | None = None
    bytes_in: int | None = None
    ms: float | None = None
    peak: float | None = None


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        clients: the number whose data is at the workers.
        populations: the numbers where data is made on demand.
        cohort: of the headline, and where nothing else is said.
        cohorts: for the time against the cohort.
        several: for what is measured beside it.
        turns: rounds that a median is taken of.
        widths: of the models.
        large: of the models whose memory is measured.
    """

    clients: int = 10_000
    populations: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    cohort: int = 500
    cohorts: tuple[int, ...] = tuple(range(50, 501, 50))
    several: int = 100
    turns: int = 5
    widths: tuple[int, ...] = WIDTHS
    large: tuple[int, ...] = (1024, 4096)


FULL = Sizes()
QUICK = Sizes(1_000, (1_000, 100_000), 50, (20, 40, 60), 20, 3, (64, 256), (256,))


@dataclass(frozen=True)
class Bench:
    """Rounds by workers in one place: the engine "here" (this process) or "ray".

    Attributes:
        engine: its name.
        workers: their handles.
        sizes: how large everything is.
    """

    engine: str
    workers: Sequence[WorkerHandle]
    sizes: Sizes

    def points(self) -> Iterator[Point]:
        """All of them. Memory comes first, while little was allocated yet."""
        plan = mlp(64)
        yield from self.on_demand(plan)
        if self.engine != "here":  # where the worker is in this process, its memory would count, too
            yield from self.large_models()
        rows = self.sizes.clients * ROWS
        data = torch.randn(rows, 784), torch.randint(10, (rows,))
        yield from self.against_cohort(plan, data)
        yield from self.against_workers(plan, data)
        if self.engine == "here":
            yield from self.against_others(plan, data)
            yield from self.against_model(data)
            yield from self.draws()
        yield from self.messages()

    def on_demand(self, plan: planc.Plan) -> Iterator[Point]:
        """Time and memory against the clients that there are, their data made when they are drawn."""
        for clients in self.sizes.populations:
            reset_peak()
            weights = [float(ROWS)] * clients
            population = Population.from_source(made, weights, self.workers, cache_bytes=CACHE)
            yield from self.measured({self.case(DEMAND, plan, population, self.sizes.cohort)}, peaks=True)

    def large_models(self) -> Iterator[Point]:
        """Memory against the size of the model."""
        for width in self.sizes.large:
            plan = mlp(width)
            reset_peak()
            population = Population.from_source(made, [1.0] * 1000, self.workers, cache_bytes=CACHE)
            yield from self.measured({self.case(MEMORY, plan, population, 2 * len(self.workers))}, peaks=True)

    def against_cohort(self, plan: planc.Plan, data: Data) -> Iterator[Point]:
        """Time against the cohort."""
        population = split(data, self.sizes.clients, self.workers)
        yield from self.measured({self.case(COHORT, plan, population, c) for c in self.sizes.cohorts})

    def against_workers(self, plan: planc.Plan, data: Data) -> Iterator[Point]:
        """Time against the number of workers."""
        counts = (1, 2, 4) if self.engine == "here" else range(1, len(self.workers) + 1)
        here = [VirtualWorker(f"w{i}") for i in range(max(counts))]
        cases: set[Case] = set()
        for count in counts:
            workers = (here if self.engine == "here" else self.workers)[:count]
            population = split(data, 2 * self.sizes.several, workers)
            cases.add(self.case(WORKERS, plan, population, 2 * self.sizes.several))
        yield from self.measured(cases)

    def against_others(self, plan: planc.Plan, data: Data) -> Iterator[Point]:
        """Time against the clients that are not in the cohort, their data at the worker."""
        most = self.sizes.clients
        cases = {
            self.case(OTHERS, plan, split(data, clients, self.workers), self.sizes.several)
            for clients in (most // 10, most // 5, most // 2, most)
        }
        yield from self.measured(cases)

    def against_model(self, data: Data) -> Iterator[Point]:
        """Time against the model, for few clients and more, one step and more: what is part of what."""
        for width in self.sizes.widths:
            plan = mlp(width)
            yield from self.measured(
                {
                    self.case(MODEL, plan, split(data, 24, self.workers, steps), cohort, steps)
                    for cohort, steps in ((4, 1), (24, 1), (24, 5))
                }
            )

    def draws(self) -> Iterator[Point]:
        """Drawing a cohort."""
        for clients in self.sizes.populations:
            weights = [1.0] * clients
            draw = Uniform(self.sizes.cohort)
            took = median_ms(lambda: draw.sample(1, clients, weights, 0))  # noqa: B023  called at once
            yield Point(DRAW, self.engine, clients=clients, cohort=self.sizes.cohort, ms=took)

    def messages(self) -> Iterator[Point]:
        """A message that asks for next to nothing, and many bytes."""
        worker = self.workers[0]
        worker.search("#none")
        yield Point(EMPTY, self.engine, messages=1, ms=median_ms(lambda: worker.search("#none"), 50))
        large = torch.zeros(16 * MIB // 4)
        yield Point(BYTES, self.engine, bytes_out=16 * MIB, ms=median_ms(lambda: worker.send(large)))
        there = worker.send(large)
        yield Point(
            BYTES,
            self.engine,
            bytes_in=16 * MIB,
            ms=median_ms(lambda: worker.fetch([there.id], delete=False)),
        )

    # -- how it is measured --------------------------------------------------------------------------------

    def case(
        self, work: str, plan: planc.Plan, population: Population, cohort: int, steps: int = ROWS // BATCH
    ) -> Case:
        """A setting, and the federation for it."""
        federation = Federation(plan, population, sampling=Uniform(cohort))
        elements = sum(tensor.numel() for tensor in federation.model.values())
        point = Point(work, self.engine, len(population), cohort, elements, steps, len(population.workers))
        return Case(point, federation)

    def measured(self, cases: Iterable[Case], peaks: bool = False) -> Iterator[Point]:
        """Rounds of all cases in turn, so that drift hits all alike. ``peaks``: memory since the reset."""
        cases = sorted(cases, key=lambda case: case.order)
        done: list[list[RoundDone]] = [[] for _ in cases]
        for turn in range(WARMUP + self.sizes.turns):
            for case, rounds in zip(cases, done, strict=True):
                found = case.federation.round()
                if turn >= WARMUP:
                    rounds.append(found)
        for case, rounds in zip(cases, done, strict=True):
            last = rounds[-1]
            yield replace(
                case.point,
                messages=last.messages,
                bytes_out=last.bytes_out,
                bytes_in=last.bytes_in,
                ms=round(1e3 * statistics.median(found.seconds for found in rounds), 3),
                peak=round(peak(), 1) if peaks else None,
            )
            case.federation.close()


@dataclass(frozen=True, eq=False)
class Case:
    """A setting, and the federation that makes its rounds."""

    point: Point
    federation: Federation

    @property
    def order(self) -> tuple[int, ...]:
        point = self.point
        return (point.clients or 0, point.cohort or 0, point.steps or 0, point.workers or 0)


@functools.cache
def mlp(width: int) -> planc.Plan:
    """Training of the MLP 784-width-10 once over a client's data."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    example = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return planc.epoch(planc.train_step(module, F.cross_entropy, optimizer, *example), batch_size=BATCH)


def made(client: int) -> Data:
    """A client's data, where it is made on demand."""
    source = torch.Generator().manual_seed(client)
    return torch.randn(ROWS, 784, generator=source), torch.randint(10, (ROWS,), generator=source)


def split(
    data: Data, clients: int, workers: Sequence[WorkerHandle], steps: int = ROWS // BATCH
) -> Population:
    """So many clients whose data is at the workers."""
    x, y = data
    rows = clients * steps * BATCH
    return Population.split((x[:rows], y[:rows]), clients, workers)


def median_ms(run: Callable[[], object], times: int = 7) -> float:
    """Milliseconds of a call."""
    took: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(took), 4)


def reset_peak() -> None:
    """Let `peak` begin anew, where the system can."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> float:
    """MiB of this process that were in RAM at once, at most."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


@contextmanager
def opened(engine: str) -> Generator[Sequence[WorkerHandle]]:
    """Workers in this process or on a local Ray.

    Raises:
        InputError, ConnectionLost: there is no Ray.
    """
    if engine == "here":
        yield [VirtualWorker("worker1")]
        return
    with RayCluster(workers=2) as cluster:
        yield cluster.workers


def main() -> None:
    wanted = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    try:
        with opened(wanted["engine"]) as workers:
            for point in Bench(wanted["engine"], workers, QUICK if wanted["quick"] else FULL).points():
                print(json.dumps(asdict(point)), flush=True)
    except (InputError, ConnectionLost) as error:
        print(json.dumps({"why": str(error)}))


if __name__ == "__main__":
    main()
