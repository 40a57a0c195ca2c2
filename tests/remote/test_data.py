"""Federated data: who gets which rows, in what order they come, and what a batch costs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import planc
import runtime
from planc.errors import DataError
from runtime import FederatedDataLoader, FederatedDataset, VirtualWorker, count_messages, federate
from runtime.errors import PermissionDenied, WrongWorker

ROWS = torch.arange(10)
X, Y = ROWS.float()[:, None].repeat(1, 3), ROWS % 3


def held(data: FederatedDataset) -> list[list[int]]:
    return [shard.tensors[0].copy_here()[:, 0].int().tolist() for shard in data.shards]


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return X[index], int(Y[index])


@pytest.mark.parametrize("source", [TensorDataset(X, Y), (X, Y), Items()])
def test_federate_splits_evenly_and_says_who_has_what(
    source: Any, bob: VirtualWorker, alice: VirtualWorker
) -> None:
    workers = (bob, alice, VirtualWorker("carol"))
    with count_messages() as sent:
        data = federate(source, workers)
    assert sent.by_kind == {"Put": 3}
    assert repr(data) == "<FederatedDataset 10 rows (bob: 4, alice: 3, carol: 3)>"
    assert held(data) == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert data["alice"][1].copy_here().tolist() == [1, 2, 0]
    assert data[bob] is data.shards[0].tensors
    assert (len(data), data.workers) == (10, list(workers))
    with pytest.raises(KeyError, match="nobody"):
        data["nobody"]


def test_unequal_shares(bob: VirtualWorker, alice: VirtualWorker) -> None:
    assert held(federate((X, Y), (bob, alice), shares=[4, 1])) == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]
    assert held(federate((X, Y), (bob, alice), shares=[1e9, 1])) == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [9]]


def test_splits_by_label_and_seed(bob: VirtualWorker, alice: VirtualWorker) -> None:
    assert held(federate((X, Y), (bob, alice), by_label=True)) == [[0, 3, 6, 9, 1], [4, 7, 2, 5, 8]]
    shuffled = held(federate((X, Y), (bob, alice), seed=1))
    assert shuffled == held(federate((X, Y), (bob, alice), seed=1))
    assert shuffled != held(federate((X, Y), (bob, alice), seed=2))
    assert sorted(itertools.chain(*shuffled)) == list(range(10))
    both = federate((X, Y), (bob, alice), by_label=True, seed=1)
    assert [Y[torch.tensor(rows)].unique().tolist() for rows in held(both)] == [[0, 1], [1, 2]]


def test_what_federate_refuses(bob: VirtualWorker, alice: VirtualWorker) -> None:
    for call in (
        lambda: federate((X, Y), ()),
        lambda: federate((X, Y), (bob, bob)),
        lambda: federate((X[:1], Y[:1]), (bob, alice)),
        lambda: federate((X, Y[:3]), (bob,)),
        lambda: federate((X[:0], Y[:0]), (bob,)),
        lambda: federate((X, Y), (bob, alice), shares=[1]),
        lambda: federate((X, Y), (bob, alice), shares=[1, 0]),
        lambda: federate((Y, X), (bob, alice), by_label=True),
        lambda: federate(iter([1]), (bob,)),
    ):
        with pytest.raises(DataError):
            call()
    assert len(bob.worker) == 0


def test_data_that_is_at_workers_already(bob: VirtualWorker, alice: VirtualWorker) -> None:
    data = FederatedDataset({bob: (bob.send(X[:4]),), alice: (alice.send(X[4:]),)})
    batches = [b[0].copy_here()[:, 0].int().tolist() for b in FederatedDataLoader(data, batch_size=3)]
    assert batches == [[0, 1, 2], [3], [4, 5, 6], [7, 8, 9]]
    with pytest.raises(WrongWorker, match=r"'bob'.*'alice'"):
        FederatedDataset({bob: (alice.send(X),)})
    with pytest.raises(DataError):
        FederatedDataset({bob: (bob.send(X), bob.send(Y[:2]))})
    with pytest.raises(DataError):
        FederatedDataset({bob: (bob.send(X),), alice: (alice.send(Y),)})
    with pytest.raises(DataError):
        FederatedDataset({})


def rows_of(loader: FederatedDataLoader) -> list[tuple[str, list[int]]]:
    return [(x.location.id, x.copy_here()[:, 0].int().tolist()) for x, _ in loader]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_is_one_message(prefetch: int, bob: VirtualWorker, alice: VirtualWorker) -> None:
    data = federate((X, Y), (bob, alice))
    loader = FederatedDataLoader(data, batch_size=2, prefetch=prefetch)
    assert len(list(loader)) == len(loader) == 6
    with count_messages() as sent:
        for x, y in loader:
            assert len(x) == len(y)
    assert sent.by_kind == ({"Run": 6} if prefetch else {})  # without, a batch that is not used costs nothing
    with count_messages() as sent:
        for x, y in loader:
            _ = (x + 1, y + 1, x * 2)
    assert sent.by_kind == {"Run": 6, "Apply": 18}
    assert rows_of(loader) == [
        ("bob", [0, 1]),
        ("bob", [2, 3]),
        ("bob", [4]),
        ("alice", [5, 6]),
        ("alice", [7, 8]),
        ("alice", [9]),
    ]


def test_a_plan_takes_the_rows_of_its_batch_itself(bob: VirtualWorker) -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 3)
    loss = torch.nn.functional.cross_entropy
    step = planc.train_step(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), X[:3], Y[:3])
    twin, remote = step.with_state({}), step.send(bob)
    loader = FederatedDataLoader(federate((X, Y), (bob,)), 4)
    counts = []
    for number, (x, y) in enumerate(loader):
        with count_messages() as sent:
            got = remote(x, y)
        counts.append(sent.messages)
        rows = slice(4 * number, 4 * number + 4)
        assert torch.equal(got.get(), twin(X[rows], Y[rows]))
    assert counts == [2, 1, 1]  # the first sends the plan
    with count_messages() as sent:
        total = x.sum()
        assert remote.fetch(x, y).shape == remote.evaluate(x, y).shape == ()
    assert sent.by_kind == {"Run": 3, "Apply": 1}  # the batch was taken for the sum, and is there now
    assert total.get() == X[8:].sum()
    with runtime.record():
        sums = [x.sum() + y.sum() for x, y in loader]
    assert [s.get().item() for s in sums] == [X[i : i + 4].sum() + Y[i : i + 4].sum() for i in (0, 4, 8)]


def test_orders_of_the_loader(bob: VirtualWorker, alice: VirtualWorker) -> None:
    data = federate((X, Y), (bob, alice))
    assert [r for _, r in rows_of(FederatedDataLoader(data, 2, drop_last=True))] == [
        [0, 1],
        [2, 3],
        [5, 6],
        [7, 8],
    ]
    assert len(FederatedDataLoader(data, 2, drop_last=True)) == 4
    in_turn = FederatedDataLoader(data, 3, num_iterators=2)
    assert rows_of(in_turn) == [("bob", [0, 1, 2]), ("alice", [5, 6, 7]), ("bob", [3, 4]), ("alice", [8, 9])]
    together = FederatedDataLoader(data, 3, iter_per_worker=True)
    assert len(together) == 2
    for batch in together:
        assert {worker.id: b[0].location.id for worker, b in batch.items()} == {
            "bob": "bob",
            "alice": "alice",
        }


def test_shuffling_keeps_rows_together_and_follows_torchs_seed(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    loader = FederatedDataLoader(federate((X, Y), (bob, alice)), 3, shuffle=True, prefetch=1)
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seen = [(x.copy_here()[:, 0], y.copy_here()) for x, y in loader]
        assert all(torch.equal(x.long() % 3, y) for x, y in seen)
        orders.append(torch.cat([x for x, _ in seen]).tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(10))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_iterators": 0}, {"prefetch": -1}])
def test_numbers_out_of_range(options: Any, bob: VirtualWorker) -> None:
    with pytest.raises(DataError, match=next(iter(options))):
        FederatedDataLoader(federate((X, Y), (bob,)), **options)


def test_private_data_stays(bob: VirtualWorker) -> None:
    data = federate((X, Y), (bob,), private=True)
    for x, _ in FederatedDataLoader(data, 5):
        with pytest.raises(PermissionDenied):
            x.get()
