"""What many clients cost: memory of those in the cohort alone, and messages by worker, not by client."""

from __future__ import annotations

import contextlib
import gc

import torch

from runtime import RemoteTensor, VirtualWorker, count_messages
from runtime.federated import Federation, Population, Uniform
from runtime.federated.members import CohortResult
from runtime.federated.work import Collected
from tests.federated import training as T

COHORT = 40
CLIENT = 8 * 24
"""Bytes of a client's data."""


def population(clients: int) -> Population:
    """Clients of 8 rows each, all different, made when they are needed."""
    draws = torch.Generator()

    def source(client: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(8, 4, generator=draws.manual_seed(client))
        return x, x[:, :3].argmax(1)

    workers = [VirtualWorker("a"), VirtualWorker("b")]
    return Population.from_source(source, [8.0] * clients, workers, cache_bytes=COHORT * CLIENT)


def alive() -> int:
    """Bytes of all tensors of this process, its workers' too, with a thousand for each handle."""
    gc.collect()
    found: dict[int, int] = {}
    for tensor in gc.get_objects():
        if type(tensor) is torch.Tensor:
            with contextlib.suppress(RuntimeError):  # what captures leave behind has no memory
                found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
    handles = sum(type(o) is RemoteTensor for o in gc.get_objects())
    return sum(found.values()) + 1000 * handles


def test_memory_is_flat_in_clients_that_are_not_in_the_cohort() -> None:
    at = population(20_000)
    federation = Federation(T.plan(), at, sampling=Uniform(COHORT))
    federation.run(3)
    before = alive()
    seen: set[int] = set()
    for _ in range(12):
        seen |= set(federation._draw(federation.number + 1))
        federation.round()
    assert len(seen) > 10 * COHORT
    assert alive() - before < 2 * COHORT * CLIENT, "what 12 cohorts had is not kept"
    for worker in at.workers:
        assert worker.worker._site.store.nbytes <= 2 * COHORT * CLIENT + 2**15  # type: ignore[attr-defined]


def test_messages_are_as_many_as_workers_however_many_clients() -> None:
    x, y = torch.randn(20_000, 4), torch.zeros(20_000, dtype=torch.long)
    at = Population.split((x, y), 10_000, [VirtualWorker("a"), VirtualWorker("b")])
    federation = Federation(T.plan(), at, sampling=Uniform(200))
    federation.run(1)
    with count_messages() as sent:
        done = federation.run(3).rounds[-1]
    assert dict(sent.by_kind) == {"Cohort": 4}
    assert done.contributions == 200
    assert done.messages == 2


def test_sums_are_added_up_as_they_come() -> None:
    """However many workers there are, the coordinator does not hold the sums of each until the last is in."""
    collected: Collected[None] = Collected()
    for client in range(3):
        sums = {"w": torch.full((5,), 10**client)}
        nothing = torch.zeros(1, dtype=torch.float64)
        collected.add(CohortResult((client,), {}, (), 1.0, sums, {}, {}, {}, nothing))
    assert collected.sums["w"].tolist() == [111] * 5
    assert collected.done == [0, 1, 2]
    assert not any(result.sums for result in collected.results)
