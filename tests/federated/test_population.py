"""Populations: who has which rows, where they are, what many cost, and what is lost with a worker."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planc.errors import DataError, InputError
from runtime import RemoteTensor, VirtualWorker, WorkerHandle, count_messages, federate
from runtime.channels.base import Connection
from runtime.errors import ConnectionLost, DeadlineExceeded, WorkerError
from runtime.federated.members import Member, Picked, Rows
from runtime.federated.partition import Partition, dirichlet, even, explicit
from runtime.federated.population import Population
from tests.federated import training


def workers(count: int = 2) -> list[VirtualWorker]:
    return [VirtualWorker(f"w{i}") for i in range(count)]


def table(rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that say which they are, and labels."""
    return torch.arange(rows * 2.0).reshape(rows, 2), torch.arange(rows) % 5


def column(source: Any) -> torch.Tensor:
    """What a source means, fetched."""
    if isinstance(source, RemoteTensor):
        return source.copy_here()
    whole = source.tensor.copy_here()
    if isinstance(source, Picked):
        return whole[source.index.copy_here()[source.start : source.stop]]
    return whole[source.start : source.stop]


def data_of(population: Population, clients: Sequence[int]) -> dict[int, tuple[torch.Tensor, ...]]:
    members = population.members(clients)
    return {m.client: tuple(map(column, m.data)) for here in members.values() for m in here}


def rows_of(population: Population, clients: Sequence[int]) -> dict[int, list[int]]:
    """By client, its rows of `table`, checked to be the same in all columns."""
    out: dict[int, list[int]] = {}
    for client, (x, y) in data_of(population, clients).items():
        rows = (x[:, 0] / 2).long()
        assert torch.equal(x[:, 1], x[:, 0] + 1)
        assert torch.equal(y, rows % 5)
        out[client] = rows.tolist()
    return out


class Broken:
    """A channel that fails, or does not answer, from when it is told to."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.dead = False
        self.hangs: threading.Event | None = None

    def call(self, frame: Any) -> Any:
        if self.hangs is not None:
            self.hangs.wait(20)
        if self.dead:
            raise ConnectionLost("gone")
        return self.channel.call(frame)

    def close(self) -> None:
        self.channel.close()


def breakable(id: str) -> tuple[WorkerHandle, Broken]:
    virtual = VirtualWorker(id)
    channel = Broken(virtual.connection._channel)
    handle = WorkerHandle(id, Connection(channel, "me"))
    handle.virtual = virtual  # type: ignore[attr-defined]  # the worker lives as long as its handle
    return handle, channel


# -- partitions ----------------------------------------------------------------------------------------------


def test_even_parts_are_all_rows_once_and_differ_by_one() -> None:
    partition = even(11, 4, seed=3)
    assert sorted(partition.rows.tolist()) == list(range(11))
    assert partition.sizes.tolist() == [3, 3, 3, 2]
    assert even(11, 4, seed=3).rows.tolist() == partition.rows.tolist()
    assert even(11, 4, seed=4).rows.tolist() != partition.rows.tolist()


@given(
    rows=st.integers(1, 300),
    share=st.floats(0, 1),
    kinds=st.integers(1, 12),
    alpha=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_dirichlet_parts_are_all_rows_once_and_never_empty(
    rows: int, share: float, kinds: int, alpha: float, seed: int
) -> None:
    clients = max(1, round(rows * share))
    partition = dirichlet(torch.arange(rows) % kinds, clients, alpha, seed)
    assert sorted(partition.rows.tolist()) == list(range(rows))
    assert len(partition) == clients
    assert partition.sizes.min() >= 1


def test_alpha_says_how_much_clients_differ() -> None:
    labels = torch.arange(4000) % 10

    def largest_share(alpha: float) -> float:
        partition = dirichlet(labels, 20, alpha, 0)
        shares = [
            np.bincount(labels[partition.of([c])], minlength=10) / partition.sizes[c] for c in range(20)
        ]
        return float(np.mean([s.max() for s in shares]))

    assert largest_share(0.05) > 0.6 > 0.2 > largest_share(100)


def test_partition_of_several_clients_keeps_their_order() -> None:
    partition = explicit([[4, 5], [1], [2, 0]], 6)
    assert partition.of([2, 0]).tolist() == [2, 0, 4, 5]
    assert partition.of([]).tolist() == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: even(3, 4), "3 rows cannot be spread over 4 clients"),
        (lambda: even(3, 0), "at least one client, got 0"),
        (lambda: even(3, 2, seed=-1), "a seed is a whole number of at least 0, got -1"),
        (lambda: dirichlet(torch.zeros(4), 2, 1.0), "labels as whole numbers, one a row; got torch.float32"),
        (lambda: dirichlet(torch.zeros(4, 2).long(), 2, 1.0), r"of shape \[4, 2\]"),
        (lambda: dirichlet(torch.zeros(4).long(), 2, 0.0), "above 0, got 0.0"),
        (lambda: dirichlet(torch.zeros(4).long(), 2, float("nan")), "above 0, got nan"),
        (lambda: explicit([], 4), "parts is empty"),
        (lambda: explicit([[0], []], 4), "part of client 1 must be an index of at least one row"),
        (lambda: explicit([[0], [1.5]], 4), "part of client 1 .* float64"),
        (lambda: explicit([[0], [4]], 4), "part of client 1 has row 4; there are rows 0 to 3"),
        (lambda: explicit([[-1]], 4), "part of client 0 has row -1"),
    ],
)
def test_partitions_that_cannot_be_are_refused(make: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()


# -- data that is here ---------------------------------------------------------------------------------------


def test_a_split_sends_each_worker_its_part_in_one_message() -> None:
    here = workers(3)
    with count_messages() as sent:
        population = Population.split(table(), 12, here, seed=1)
    assert dict(sent.by_kind) == {"Put": 3}
    assert [len(w.objects) for w in here] == [2, 2, 2]
    with count_messages() as sent:
        members = population.members(range(12))
    assert sent.messages == 0
    assert {w.id: len(m) for w, m in members.items()} == {"w0": 4, "w1": 4, "w2": 4}
    assert population.weights == (5.0,) * 12


def test_clients_have_the_rows_of_the_partition_wherever_they_are() -> None:
    partition = even(60, 7, 5)
    expected = {c: partition.of([c]).tolist() for c in range(7)}
    for count in (1, 2, 3):
        population = Population.split(table(), clients=7, workers=workers(count), seed=5)
        assert rows_of(population, range(7)) == expected


def test_members_come_by_worker_in_the_order_of_the_cohort() -> None:
    population = Population.split(table(), 6, workers(2))
    keys = {c: torch.tensor(c) for c in range(6)}
    found = population.members([5, 0, 3, 2], keys=keys, keep=True)
    for worker, members in found.items():
        clients = [m.client for m in members]
        assert clients == [c for c in (5, 0, 3, 2) if population.home(c) is worker]
        assert all(m.key is keys[m.client] and m.keep and m.weight == 10.0 for m in members)
    assert sum(map(len, found.values())) == 4


def test_workers_get_about_as_many_rows_however_clients_differ() -> None:
    parts = [list(range(40)), *([i] for i in range(40, 60))]
    population = Population.split(table(), parts=parts, workers=workers(2))
    rows = {w.id: sum(m.weight for m in here) for w, here in population.members(range(21)).items()}
    assert rows == {"w0": 40.0, "w1": 20.0}
    assert rows_of(population, [0, 20]) == {0: list(range(40)), 20: [59]}


def test_dirichlet_takes_the_last_tensor_for_labels_unless_told_otherwise() -> None:
    x, y = table()
    skewed = Population.split((x, y), 6, workers(), how="dirichlet", alpha=0.1, seed=2)
    named = Population.split((y, x), 6, workers(), how="dirichlet", labels=y, alpha=0.1, seed=2)
    assert skewed.weights == named.weights
    assert len(set(skewed.weights)) > 1
    assert sum(skewed.weights) == 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"clients": 61}, "60 rows cannot be spread over 61 clients"),
        ({"clients": 2, "workers": []}, "at least one worker"),
        ({}, "give either clients"),
        ({"clients": 2, "parts": [[1]]}, "give either clients"),
        ({"clients": 2, "how": "odd"}, '"even" or "dirichlet", got \'odd\''),
        ({"clients": 2, "tensors": ()}, "equal leading size, got \\[\\]"),
        ({"clients": 2, "tensors": (torch.zeros(3), torch.zeros(4))}, r"\[\[3\], \[4\]\]"),
        ({"clients": 2, "tensors": (torch.tensor(1.0),)}, "equal leading size"),
        ({"clients": 1, "tensors": (torch.zeros(0, 3),)}, "has no rows"),
        ({"clients": 1, "tensors": torch.zeros(3)}, "got one tensor"),
        ({"clients": 2, "how": "dirichlet", "labels": torch.zeros(3).long()}, "one a row: 60 of them"),
    ],
)
def test_splits_that_cannot_be_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Population.split(**{"tensors": table(), "workers": workers()} | arguments)


def test_dtypes_that_no_plan_has_are_refused() -> None:
    with pytest.raises(InputError, match="complex64"):
        Population.split((torch.zeros(4, dtype=torch.complex64),), 2, workers())


def test_workers_must_differ() -> None:
    one = VirtualWorker("one")
    with pytest.raises(DataError, match=r"each once, got \['one', 'one'\]"):
        Population.split(table(), 2, [one, one])


@pytest.mark.parametrize(
    ("clients", "words"),
    [([6], "clients 0 to 5"), ([-1], "no client -1"), ([1, 2, 1], "client 1 is there twice")],
)
def test_cohorts_that_cannot_be_are_refused(clients: list[int], words: str) -> None:
    population = Population.split(table(), 6, workers())
    with pytest.raises(DataError, match=words):
        population.members(clients)


# -- lost workers --------------------------------------------------------------------------------------------


def test_clients_of_a_lost_worker_move_when_they_are_used_in_one_message_a_worker() -> None:
    here = workers(3)
    population = Population.split(table(), 12, here, seed=1)
    before = rows_of(population, range(12))
    homeless = [c for c in range(12) if population.home(c) is here[0]]
    lost = population.lose(here[0])
    assert (lost.clients, lost.states) == ((), ())
    assert population.workers == (here[1], here[2])
    with count_messages() as sent:
        population.members([c for c in range(12) if c not in homeless])
    assert sent.messages == 0, "nothing is sent for clients that are not used"
    with count_messages() as sent:
        population.members(homeless[:3])
    assert dict(sent.by_kind) == {"Put": 2}
    with count_messages() as sent:
        population.members(homeless[:3])
    assert sent.messages == 0, "they stay where they went"
    assert rows_of(population, range(12)) == before
    assert {population.home(c) for c in range(12)} == {here[1], here[2]}
    assert population.available is None
    assert population.lose(here[0]).clients == ()


def test_a_new_worker_gets_the_clients_that_have_none() -> None:
    one, two = workers(2)
    population = Population.split(table(), 4, [one])
    population.lose(one)
    assert population.home(0) is None
    with pytest.raises(WorkerError, match="no worker is left"):
        population.members([0])
    population.add(two)
    assert {w.id for w in population.members(range(4))} == {"w1"}
    with pytest.raises(DataError, match="each once"):
        population.add(two)


def test_a_worker_that_dies_while_data_is_sent_is_named_and_the_rest_is_there() -> None:
    dying, channel = breakable("dying")
    first, fine = VirtualWorker("first"), VirtualWorker("fine")
    population = Population.split(table(), 6, [first, dying, fine], seed=1)
    before = even(60, 6, 1)
    population.lose(first)
    channel.dead = True
    with pytest.raises(WorkerError) as raised:
        population.members(range(6))
    assert raised.value.worker == "dying"
    population.lose(dying)
    assert rows_of(population, range(6)) == {c: before.of([c]).tolist() for c in range(6)}
    assert {w.id for w in population.members(range(6))} == {"fine"}


def test_a_worker_that_does_not_take_data_is_not_waited_for() -> None:
    hanging, channel = breakable("hanging")
    fine = VirtualWorker("fine")
    population = Population.from_source(lambda c: (torch.full((2, 1), float(c)),), [2.0] * 4, [hanging, fine])
    channel.hangs = threading.Event()
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"'hanging': did not take the data of its clients in 0\.2"):
        population.members(range(4), seconds=0.2)
    assert time.monotonic() - start < 5
    channel.hangs.set()
    population.lose(hanging)
    assert {c: x.unique().tolist() for c, (x,) in data_of(population, range(4)).items()} == {
        c: [float(c)] for c in range(4)
    }


@pytest.mark.parametrize("how", ["nonsense", "kill", "reply"])
@pytest.mark.parametrize("what", ["data", "kept states"])
def test_whatever_goes_wrong_while_something_is_sent_names_the_worker(how: str, what: str) -> None:
    faults = training.Faults()
    failing = training.FaultyWorker("failing", faults)
    population = Population.from_source(made, [1.0] * 4, [failing, VirtualWorker("fine")])
    if what == "kept states":
        population.members(range(4))
        population.restore_states({c: {"m": torch.tensor(float(c))} for c in range(4)})
    faults.at, faults.how = faults.count, how
    with pytest.raises(WorkerError) as raised:
        population.members(range(4))
    assert raised.value.worker == "failing"
    population.lose(failing)
    found = data_of(population, range(4))
    assert {c: y.tolist() for c, (_, y) in found.items()} == {c: [c] * 4 for c in range(4)}
    if what == "kept states":
        assert states(population, range(4)) == {c: {"m": float(c)} for c in range(4)}


# -- data that is at workers already -------------------------------------------------------------------------


def test_a_shard_is_a_client_whole() -> None:
    here = workers(2)
    dataset = federate(table(), here)
    with count_messages() as sent:
        population = Population.of(dataset)
        found = population.members([0, 1])
    assert sent.messages == 0
    assert population.weights == (30.0, 30.0)
    assert [found[w][0].data for w in here] == [dataset[w] for w in here]


def test_clients_may_be_parts_of_shards() -> None:
    here = workers(2)
    dataset = federate(table(), here)
    with count_messages() as sent:
        population = Population.of(dataset, {here[0]: [[3, 1], [2]], here[1]: [[0, 29]]})
    assert dict(sent.by_kind) == {"Put": 2}
    assert population.weights == (2.0, 1.0, 2.0)
    assert rows_of(population, range(3)) == {0: [3, 1], 1: [2], 2: [30, 59]}
    with pytest.raises(DataError, match="part of client 0 has row 30"):
        Population.of(dataset, {here[0]: [[30]], here[1]: [[0]]})
    with pytest.raises(DataError, match="workers of the data set"):
        Population.of(dataset, {here[0]: [[0]]})


def test_clients_whose_data_is_only_there_are_lost_with_their_worker() -> None:
    here = workers(2)
    population = Population.of(federate(table(), here))
    assert population.lose(here[1]).clients == (1,)
    assert population.home(1) is None
    assert population.home(0) is here[0]
    assert population.available == {0}
    with pytest.raises(DataError, match="client 1 is lost"):
        population.members([0, 1])


# -- data made on demand -------------------------------------------------------------------------------------


def made(client: int) -> tuple[torch.Tensor, ...]:
    return (torch.full((4, 8), float(client)), torch.full((4,), client))


def test_data_is_made_once_while_it_is_kept_and_again_after() -> None:
    asked: list[int] = []

    def source(client: int) -> tuple[torch.Tensor, ...]:
        asked.append(client)
        return made(client)

    one_client = sum(t.nbytes for t in made(0))
    here = workers(1)
    population = Population.from_source(source, [4.0] * 100, here, cache_bytes=4 * one_client)
    assert asked == []
    population.members([0, 1])
    population.members([1, 0])
    assert asked == [0, 1]
    for client in (2, 3, 4, 5, 6, 7):
        population.members([client])
    population.members([7, 6])
    assert asked == list(range(8))
    population.members([0])
    assert asked == [*range(8), 0]
    assert {c: y.tolist() for c, (_, y) in data_of(population, [9, 0]).items()} == {9: [9] * 4, 0: [0] * 4}


def test_new_clients_go_to_whoever_has_least_to_do() -> None:
    weights = [1.0, 1.0, 10.0, 1.0, 1.0, 6.0]
    population = Population.from_source(made, weights, workers(2))
    found = population.members(range(6))
    assert [[m.client for m in here] for here in found.values()] == [[0, 1, 3, 4, 5], [2]]
    population.members([2])
    assert population.members([2, 5]).keys() == {population.home(2), population.home(5)}


def test_placement_is_the_same_every_time() -> None:
    def homes() -> list[str]:
        population = Population.from_source(made, [1.0 + c % 3 for c in range(40)], workers(3))
        out: list[str] = []
        for start in range(0, 40, 8):
            for worker, members in population.members(range(start, start + 8)).items():
                out += [f"{worker.id}:{m.client}" for m in members]
        return out

    assert homes() == homes()


def test_memory_is_flat_in_clients_that_are_not_in_the_cohort() -> None:
    """3,000 clients of 4 KiB come by; nobody keeps more than the cache and a cohort."""
    here = workers(2)
    population = Population.from_source(
        lambda c: (torch.full((4, 256), float(c)),), [4.0] * 3_000, here, cache_bytes=2**17
    )
    population.members(range(100))
    tracemalloc.start()
    try:
        most = 0
        for start in range(100, 3_000, 100):
            members = population.members(range(start, start + 100))
            del members
            most = max(most, *(w.worker._site.store.nbytes for w in here))
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert most <= 2**17 + 60 * 4096 + 4096  # the cache, and what was let go by the message that brought more
    assert grown < 2**20


def test_ten_thousand_clients_cost_two_tensors_a_worker() -> None:
    here = workers(2)
    start = time.perf_counter()
    population = Population.split(table(20_000), 10_000, here)
    cohort = list(range(0, 10_000, 7))[:500]
    members = population.members(cohort)
    assert time.perf_counter() - start < 3
    assert sum(map(len, members.values())) == 500
    assert [len(w.objects) for w in here] == [2, 2]
    assert all(isinstance(m, Member) and isinstance(m.data[0], Rows) for ms in members.values() for m in ms)


@pytest.mark.parametrize(
    ("source", "weights", "words"),
    [
        (made, [], "at least one client"),
        (made, [1.0, 0.0], "client 1 has the weight 0.0"),
        (made, [1.0, float("nan")], "client 1 has the weight nan"),
        (made, [float("inf")], "client 0 has the weight inf"),
    ],
)
def test_weights_that_cannot_be_are_refused(source: Any, weights: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Population.from_source(source, weights, workers())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda c: (torch.zeros(3, 2), torch.zeros(4)), r"data of client 0 .* got \[\[3, 2\], \[4\]\]"),
        (lambda c: (torch.zeros(0, 2),), "data of client 0 has no rows"),
        (lambda c: (torch.zeros(1, 2 + c),), r"client 0 has rows of \['f32\[2\]'\], that of client 1"),
    ],
)
def test_data_that_cannot_be_is_refused_by_client(data: Any, words: str) -> None:
    population = Population.from_source(data, [1.0, 1.0], workers(1))
    with pytest.raises(DataError, match=words):
        population.members([0, 1])


def test_data_must_be_of_one_kind_from_cohort_to_cohort() -> None:
    population = Population.from_source(lambda c: (torch.zeros(1, 2 + c),), [1.0, 1.0], workers(1))
    population.members([0])
    assert [str(t) for t in population.types or ()] == ["f32[2]"]
    with pytest.raises(DataError, match=r"so far rows of \['f32\[2\]'\], that of client 1 of \['f32\[3\]'\]"):
        population.members([1])


# -- kept states ---------------------------------------------------------------------------------------------


def keep(population: Population, client: int, value: float) -> None:
    home = population.home(client)
    assert home is not None
    population.remember({client: {"m": home.send(torch.tensor(value)), "n": home.send(torch.tensor(-value))}})


def states(population: Population, clients: Sequence[int]) -> dict[int, dict[str, float]]:
    members = [m for here in population.members(clients).values() for m in here]
    return {m.client: {p: h.copy_here().item() for p, h in m.state.items()} for m in members if m.state}


def test_kept_states_come_back_with_their_clients() -> None:
    population = Population.split(table(), 4, workers(2))
    keep(population, 1, 1.0)
    keep(population, 2, 2.0)
    keep(population, 1, 3.0)
    assert states(population, range(4)) == {1: {"m": 3.0, "n": -3.0}, 2: {"m": 2.0, "n": -2.0}}


def test_kept_states_are_fetched_by_one_message_a_worker_and_put_back_by_one() -> None:
    population = Population.split(table(), 4, workers(2))
    for client in range(4):
        keep(population, client, float(client))
    with count_messages() as sent:
        fetched = population.kept_states()
    assert dict(sent.by_kind) == {"Get": 2}
    again = Population.split(table(), 4, workers(2))
    again.restore_states(fetched)
    assert {c: {p: t.item() for p, t in s.items()} for c, s in again.kept_states().items()} == {
        c: {"m": float(c), "n": -float(c)} for c in range(4)
    }
    with count_messages() as sent:
        again.members([0, 1, 2])
    assert dict(sent.by_kind) == {"Put": 2}
    assert states(again, range(4)) == {c: {"m": float(c), "n": -float(c)} for c in range(4)}


def test_kept_states_are_lost_with_their_worker_and_said_to_be() -> None:
    here = workers(2)
    population = Population.split(table(), 4, here)
    for client in range(4):
        keep(population, client, float(client))
    gone = tuple(c for c in range(4) if population.home(c) is here[0])
    assert population.lose(here[0]).states == gone
    assert states(population, range(4)).keys() == set(range(4)) - set(gone)


def test_a_client_whose_data_was_let_go_comes_back_to_its_state() -> None:
    population = Population.from_source(made, [1.0] * 20, workers(2), cache_bytes=0)
    population.members([0, 1])
    home = population.home(1)
    keep(population, 1, 5.0)
    for client in range(2, 20):
        population.members([client])
    assert population.home(1) is home
    assert states(population, [1, 3]) == {1: {"m": 5.0, "n": -5.0}}


def test_a_partition_is_two_arrays() -> None:
    partition = Partition(np.array([3, 1, 2]), np.array([0, 2, 3]))
    assert (len(partition), partition.sizes.tolist()) == (2, [2, 1])
