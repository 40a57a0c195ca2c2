"""Data that lives at workers: `federate`, `FederatedDataset`, `FederatedDataLoader`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import planc
from planc.errors import DataError
from planc.ir import DType, TensorType
from planc.ir.builder import GraphBuilder
from planc.ir.dims import sym
from planc.ir.graph import DimVar
from planc.ir.program import Program
from planc.ops import node
from runtime.errors import WrongWorker
from runtime.remote.handle import WorkerHandle
from runtime.remote.plan import RemotePlan
from runtime.remote.rows import Rows
from runtime.remote.tensor import RemoteTensor


@dataclass(frozen=True)
class Shard:
    """One worker's part of a data set: tensors of equal leading size, its rows."""

    worker: WorkerHandle
    tensors: tuple[RemoteTensor, ...]

    def __len__(self) -> int:
        return self.tensors[0].shape[0]


class FederatedDataset:
    """Data spread over workers, one shard each.

    Made by `federate`, or from data that is at workers already:
    ``FederatedDataset({bob: (images, labels), alice: (...)})``.

    Args:
        shards: by worker, the tensors of its rows (inputs, targets, ...).

    Raises:
        DataError: no workers, no tensors, leading sizes that differ, or shards of different kinds.
        WrongWorker: a tensor is not at the worker that it is given for.
    """

    def __init__(self, shards: Mapping[WorkerHandle, Sequence[RemoteTensor]]) -> None:
        self.shards = tuple(Shard(worker, tuple(tensors)) for worker, tensors in shards.items())
        if not self.shards:
            raise DataError("a federated data set needs at least one worker")
        first = self.shards[0]
        for shard in self.shards:
            _check(shard, first)

    @property
    def workers(self) -> list[WorkerHandle]:
        return [shard.worker for shard in self.shards]

    def __len__(self) -> int:
        """Rows at all workers."""
        return sum(len(shard) for shard in self.shards)

    def __getitem__(self, worker: WorkerHandle | str) -> tuple[RemoteTensor, ...]:
        """The tensors at a worker.

        Raises:
            KeyError: the worker has no part of the data.
        """
        for shard in self.shards:
            if shard.worker is worker or shard.worker.id == worker:
                return shard.tensors
        raise KeyError(f"no data at {worker!r}; there is some at {[w.id for w in self.workers]}")

    def __repr__(self) -> str:
        parts = ", ".join(f"{shard.worker.id}: {len(shard)}" for shard in self.shards)
        return f"<FederatedDataset {len(self)} rows ({parts})>"


def federate(
    dataset: Dataset[Any] | Sequence[torch.Tensor],
    workers: Sequence[WorkerHandle],
    private: bool = False,
    *,
    shares: Sequence[float] | None = None,
    by_label: bool = False,
    seed: int | None = None,
) -> FederatedDataset:
    """Send a data set to workers, by default in equal parts and in order; one message a worker.

    The first workers get one row more where the rows do not divide evenly.

    Args:
        dataset: a map-style data set whose items are tuples of tensors or numbers (an image and its label,
            say), or the tensors themselves, rows first.
        workers: at least one, and no more than there are rows.
        private: see `WorkerHandle.send`.
        shares: how much each worker gets, relative to the others; everyone gets a row at least.
        by_label: sort the rows by the last tensor, their labels, first: each worker then has few labels.
        seed: shuffle the rows first, by this seed (within a label, with ``by_label``).

    Raises:
        DataError: an empty data set, items that are no tensors, more workers than rows, shares that do not
        fit,
            or no whole numbers to sort by.
    """
    tensors = _stacked(dataset)
    rows = tensors[0].shape[0]
    if not workers:
        raise DataError("federate needs at least one worker")
    if len({id(worker) for worker in workers}) != len(workers):
        raise DataError("federate got one worker twice")
    if rows < len(workers):
        raise DataError(f"{rows} rows cannot be spread over {len(workers)} workers")
    sizes = _sizes(rows, [1.0] * len(workers) if shares is None else shares, len(workers))
    order = _order(tensors, by_label, seed)
    shards: dict[WorkerHandle, Sequence[RemoteTensor]] = {}
    start = 0
    for worker, size in zip(workers, sizes, strict=True):
        rows_here = slice(start, start + size) if order is None else order[start : start + size]
        shards[worker] = worker.send_all([tensor[rows_here] for tensor in tensors], private=private)
        start += size
    return FederatedDataset(shards)


def _sizes(rows: int, shares: Sequence[float], workers: int) -> list[int]:
    """How many rows each gets: in proportion, at least one; what rounding leaves goes to the first."""
    if len(shares) != workers or not all(0 < share < float("inf") for share in shares):
        raise DataError(f"expected a positive share for each of {workers} workers, got {list(shares)}")
    total, free = sum(shares), rows - workers
    sizes = [1 + int(free * share / total) for share in shares]
    for i in range(rows - sum(sizes)):
        sizes[i % workers] += 1
    return sizes


def _order(tensors: Sequence[torch.Tensor], by_label: bool, seed: int | None) -> torch.Tensor | None:
    """The rows in the order in which they are dealt out; None as they are."""
    if seed is None and not by_label:
        return None
    rows = tensors[0].shape[0]
    order = torch.arange(rows)
    if seed is not None:
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    if by_label:
        labels = tensors[-1]
        if labels.dim() != 1 or labels.is_floating_point():
            raise DataError(
                f"by_label wants a whole number a row in the last tensor, got {labels.dtype} "
                f"{list(labels.shape)}"
            )
        order = order[torch.sort(labels[order], stable=True).indices]
    return order


class FederatedDataLoader:
    """Batches of a `FederatedDataset`, each where its rows are; a batch is at most one message.

    Rows are taken when a batch is first used; a plan that is called with a batch takes them itself, so that a
    step is one message in all. With ``prefetch`` they are taken ahead, by messages of their own.

    Iterating gives ``(data, target)`` as remote tensors, worker after worker; ``data.location`` says where.

    Args:
        dataset: the data.
        batch_size: rows a batch; a worker's last batch has what is left.
        shuffle: a new order of each worker's rows every time, from torch's own generator.
        drop_last: leave out a worker's last batch if it is not whole.
        num_iterators: how many workers to take batches from in turn; one worker is finished before the next
            with 1.
        iter_per_worker: give a dict of one batch for every worker instead, until the first has no more.
        prefetch: how many batches of a worker are asked for ahead, in the background.

    Raises:
        DataError: a number is out of range.
    """

    def __init__(
        self,
        dataset: FederatedDataset,
        batch_size: int = 8,
        shuffle: bool = False,
        drop_last: bool = False,
        num_iterators: int = 1,
        iter_per_worker: bool = False,
        prefetch: int = 0,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        if num_iterators < 1:
            raise DataError(f"num_iterators must be at least 1, got {num_iterators}")
        if prefetch < 0:
            raise DataError(f"prefetch must be at least 0, got {prefetch}")
        self.dataset = dataset
        self.prefetch = prefetch
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_iterators = num_iterators
        self.iter_per_worker = iter_per_worker
        self._take = _take_rows(dataset.shards[0].tensors)

    def __len__(self) -> int:
        """How many batches (dicts of them, with ``iter_per_worker``) there are."""
        counts = [self._batches(shard) for shard in self.dataset.shards]
        return min(counts) if self.iter_per_worker else sum(counts)

    def __iter__(self) -> Iterator[Any]:
        sources = [self._of(shard) for shard in self.dataset.shards]
        if self.iter_per_worker:
            return self._together(sources)
        return self._in_turn(sources)

    def _batches(self, shard: Shard) -> int:
        return (len(shard) if self.drop_last else len(shard) + self.batch_size - 1) // self.batch_size

    def _of(self, shard: Shard) -> Iterator[tuple[RemoteTensor, ...]]:
        rows = len(shard)
        order = torch.randperm(rows) if self.shuffle else torch.arange(rows)
        shard.worker.install(self._take)
        remote = RemotePlan(self._take, shard.worker, {})
        indices = iter(order.split(self.batch_size)[: self._batches(shard)])
        if not self.prefetch:
            for index in indices:
                yield Rows(shard.tensors, index, remote).tensors
            return
        ahead = deque(remote.submit(*shard.tensors, index) for index in islice(indices, self.prefetch))
        while ahead:
            taken = ahead.popleft().result()
            ahead.extend(remote.submit(*shard.tensors, index) for index in islice(indices, 1))
            yield _as_tuple(taken)

    def _together(self, sources: list[Iterator[tuple[RemoteTensor, ...]]]) -> Iterator[Any]:
        for batches in zip(*sources, strict=False):
            yield {shard.worker: b for shard, b in zip(self.dataset.shards, batches, strict=True)}

    def _in_turn(self, sources: list[Iterator[tuple[RemoteTensor, ...]]]) -> Iterator[Any]:
        waiting = list(sources)
        active = [waiting.pop(0) for _ in range(min(self.num_iterators, len(waiting)))]
        while active:
            for source in list(active):
                batch = next(source, None)
                if batch is not None:
                    yield batch
                    continue
                active.remove(source)
                if waiting:
                    active.append(waiting.pop(0))


def _as_tuple(taken: Any) -> tuple[RemoteTensor, ...]:
    return taken if isinstance(taken, tuple) else (taken,)


def _take_rows(tensors: Sequence[RemoteTensor]) -> planc.Plan:
    """A plan that takes the rows of an index out of tensors like these: one message for a whole batch."""
    rows, batch = sym("n"), sym("b")
    builder = GraphBuilder("take_rows", [DimVar("n"), DimVar("b")])
    whole = [
        builder.input(f"x{i}", TensorType(t.tensor_type.dtype, (rows, *t.tensor_type.shape[1:])))
        for i, t in enumerate(tensors)
    ]
    index = builder.input("rows", TensorType(DType.I64, (batch,)))
    for i, value in enumerate(whole):
        (taken,) = builder.add(node("aten.index_select", (value, index), {"dim": 0}, builder.next_index))
        builder.output(taken, f"r{i}")
    return planc.Plan(Program(builder.build()))


def _stacked(dataset: Any) -> list[torch.Tensor]:
    """The tensors of a data set, rows first."""
    if isinstance(dataset, (tuple, list)) and dataset and all(isinstance(x, torch.Tensor) for x in dataset):
        tensors = list(dataset)
    elif isinstance(dataset, TensorDataset):
        tensors = list(dataset.tensors)
    else:
        tensors = _collated(dataset)
    sizes = {tuple(t.shape[:1]) for t in tensors}
    if len(sizes) != 1 or () in sizes:
        raise DataError(
            f"the tensors of a data set need equal leading sizes, got {[list(t.shape) for t in tensors]}"
        )
    if not tensors[0].shape[0]:
        raise DataError("the data set is empty")
    return tensors


def _collated(dataset: Any) -> list[torch.Tensor]:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"federate takes a map-style data set (with __len__ and __getitem__) or tensors, got "
            f"{type(dataset).__name__}"
        )
    if not len(dataset):
        raise DataError("the data set is empty")
    parts: list[list[torch.Tensor]] = []
    for batch in DataLoader(dataset, batch_size=1024):
        items = batch if isinstance(batch, (tuple, list)) else [batch]
        if not all(isinstance(item, torch.Tensor) for item in items):
            raise DataError(
                "an item of the data set is no tensor or number; give the data set a transform such as "
                "ToTensor()"
            )
        parts.append(list(items))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _check(shard: Shard, first: Shard) -> None:
    if not shard.tensors:
        raise DataError(f"worker {shard.worker.id!r} has no tensors in the data set")
    for tensor in shard.tensors:
        if tensor.location is not shard.worker:
            raise WrongWorker(f"a tensor given for {shard.worker.id!r} is at {tensor.location.id!r}")
        if not tensor.tensor_type.rank or tensor.shape[0] != shard.tensors[0].shape[0]:
            raise DataError(
                f"the tensors at {shard.worker.id!r} need equal leading sizes, got "
                f"{[str(t.tensor_type) for t in shard.tensors]}"
            )
    kinds = [[(t.tensor_type.dtype, t.tensor_type.shape[1:]) for t in s.tensors] for s in (shard, first)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"the shards differ: {[str(t.tensor_type) for t in first.tensors]} at {first.worker.id!r}, "
            f"{[str(t.tensor_type) for t in shard.tensors]} at {shard.worker.id!r}"
        )


__all__ = ["FederatedDataLoader", "FederatedDataset", "Shard", "federate"]
