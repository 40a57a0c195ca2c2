"""`Population`: the clients of a federated run: how many, what each weighs, and where each one's data is.

A client is a span of rows in a block of data at a worker, so that many of them are a few arrays here and a
few tensors there. Draws no cohorts and runs nothing.
"""

from __future__ import annotations

import heapq
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from planc.errors import DataError, PlancError
from planc.ir import TensorType
from planc.text.suggest import count_of
from runtime.data import FederatedDataset
from runtime.errors import WorkerError
from runtime.federated.arguments import checked_weights, checked_workers
from runtime.federated.blocks import Block, Blocks
from runtime.federated.kept import KeptStates
from runtime.federated.members import Member
from runtime.federated.partition import Partition, dirichlet, even, explicit
from runtime.federated.sending import of_worker, send_pieces
from runtime.federated.sources import Made, Piece, Source, Split, checked, row_types
from runtime.remote.handle import WorkerHandle
from runtime.remote.tensor import RemoteTensor

_PATIENCE = 600.0
"""Seconds that sending data may take, unless it is said otherwise."""


@dataclass(frozen=True)
class Lost:
    """What was lost with a worker.

    Attributes:
        clients: those whose data was only there: they cannot be drawn any more.
        states: those whose kept state was there: they start from a fresh one.
    """

    clients: tuple[int, ...]
    states: tuple[int, ...]


class Population:
    """The clients, numbered from 0. Made by `split`, `of` or `from_source`. Safe to use from many threads.

    Attributes:
        weights: by client, above 0: what its result counts in a mean. Rows, unless given otherwise.
    """

    def __init__(
        self,
        weights: Sequence[float],
        workers: Sequence[WorkerHandle],
        source: Source | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.weights = checked_weights(weights)
        self._workers = checked_workers(workers)
        self._source = source
        self._cache_bytes = cache_bytes
        self._blocks = Blocks(len(self.weights))
        self._lost: frozenset[int] = frozenset()
        self._kept = KeptStates()
        self._types: tuple[TensorType, ...] | None = None
        self._lock = threading.RLock()

    # -- how one is made -------------------------------------------------------------------------------------

    @classmethod
    def split(
        cls,
        tensors: Sequence[torch.Tensor],
        clients: int | None = None,
        workers: Sequence[WorkerHandle] = (),
        *,
        seed: int = 0,
        how: str = "even",
        labels: torch.Tensor | None = None,
        alpha: float = 0.5,
        parts: Sequence[Any] | None = None,
        seconds: float = _PATIENCE,
    ) -> Population:
        """Clients that share out the rows of tensors that are here. One message a worker, made at once.

        Each client gets a weight of its number of rows, and each worker clients of about as many rows. The
        tensors stay here too, so that clients of a lost worker can go to another.

        Args:
            tensors: one for each data argument of the plan, with equal leading sizes.
            clients: how many.
            workers: where they live.
            seed: of the draw of rows.
            how: ``"even"``: equally many rows, drawn without regard to what they are; ``"dirichlet"``: few
                labels each, see `runtime.federated.partition.dirichlet`.
            labels: for ``"dirichlet"``, whole numbers, one a row; by default the last of the tensors.
            alpha: for ``"dirichlet"``: the smaller, the more clients differ.
            parts: instead of ``clients`` and ``how``: for each client an index of its rows.
            seconds: how long to wait for the workers to take their parts.

        Raises:
            DataError: tensors that do not fit each other, more clients than rows, or options that do not fit.
            WorkerError: a worker did not take its part.
        """
        given = checked(tensors, "the tensors")
        rows = given[0].shape[0]
        if (clients is None) == (parts is None):
            raise DataError("give either clients (how many) or parts (an index of rows for each client)")
        if parts is not None:
            partition = explicit(parts, rows)
        elif how == "even":
            partition = even(rows, clients or 0, seed)
        elif how == "dirichlet":
            kinds = given[-1] if labels is None else labels
            if kinds.shape[:1] != (rows,):
                raise DataError(f"labels must be one a row: {rows} of them, got shape {list(kinds.shape)}")
            partition = dirichlet(kinds, clients or 0, alpha, seed)
        else:
            raise DataError(f'how is "even" or "dirichlet", got {how!r}')
        population = cls(partition.sizes.astype(float).tolist(), workers, Split(given, partition))
        population._place(range(len(partition)), seconds)
        return population

    @classmethod
    def of(
        cls, dataset: FederatedDataset, parts: Mapping[WorkerHandle, Sequence[Any]] | None = None
    ) -> Population:
        """Clients whose data is at workers already, and only there: they are lost with their worker.

        Args:
            dataset: where the data is.
            parts: by worker, an index of rows for each of its clients; without it, each shard is one client.
                One message a worker.

        Raises:
            DataError: parts for other workers than those of the data set, or that do not fit its rows.
        """
        shards = {shard.worker: shard for shard in dataset.shards}
        if parts is not None and parts.keys() != shards.keys():
            raise DataError(
                f"parts must be given for the workers of the data set, {[w.id for w in shards]}, got them "
                f"for {[w.id for w in parts]}"
            )
        partitions = [
            Partition(np.arange(len(shard), dtype=np.int64), np.array([0, len(shard)], np.int64))
            if parts is None
            else explicit(parts[worker], len(shard))
            for worker, shard in shards.items()
        ]
        sizes = np.concatenate([partition.sizes for partition in partitions])
        population = cls(sizes.astype(float).tolist(), list(shards))
        first = 0
        for (worker, shard), partition in zip(shards.items(), partitions, strict=True):
            clients = np.arange(first, first + len(partition))
            index = None if parts is None else worker.send(torch.from_numpy(partition.rows))
            population._blocks.put(Block(worker, clients, shard.tensors, index), partition.sizes)
            first += len(partition)
        first_types = [tensor.tensor_type for tensor in dataset.shards[0].tensors]
        population._types = tuple(TensorType(type.dtype, type.shape[1:]) for type in first_types)
        return population

    @classmethod
    def from_source(
        cls,
        source: Callable[[int], Sequence[torch.Tensor]],
        weights: Sequence[float],
        workers: Sequence[WorkerHandle],
        *,
        cache_bytes: int = 2**28,
    ) -> Population:
        """Clients whose data is made when it is needed: for more of them than fit into memory.

        What was made goes to the worker with least to do, and stays there until others need the room. Beside
        the cohort's own data no more than ``cache_bytes`` are held at a worker, and nothing here.

        Args:
            source: gives a client's tensors; must give the same ones whenever it is asked.
            weights: by client, above 0.
            workers: where they live.
            cache_bytes: the data that each worker keeps.

        Raises:
            DataError: no clients, or a weight that is not above 0.
        """
        if cache_bytes < 0:
            raise DataError(f"cache_bytes must be at least 0, got {cache_bytes}")
        return cls(weights, workers, Made(source, cache_bytes), cache_bytes)

    # -- who is where ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def workers(self) -> tuple[WorkerHandle, ...]:
        """The workers that are alive, as far as is known."""
        return self._workers

    @property
    def available(self) -> frozenset[int] | None:
        """The clients that can still be drawn; None: all."""
        return frozenset(range(len(self))) - self._lost if self._lost else None

    @property
    def types(self) -> tuple[TensorType, ...] | None:
        """What each tensor of a row is (dtype, and dims without the rows); None before any data was made."""
        return self._types

    @cached_property
    def digest(self) -> str:
        """Of the clients' weights: a run that is resumed with other clients is another run."""
        weights = sha256(np.array(self.weights).tobytes()).hexdigest()[:16]
        return f"{count_of(len(self), 'client')} of weights {weights}"

    def home(self, client: int) -> WorkerHandle | None:
        """The worker where a client's data is, or where it would be sent now; None: it is lost."""
        with self._lock:
            self._check_client(client)
            home = self._blocks.home(client)
            if home is not None or client in self._lost or not self._workers:
                return home
            return self._kept.home(client) or min(self._workers, key=lambda w: self._blocks.held[w])

    def members(
        self,
        clients: Sequence[int],
        *,
        keys: Mapping[int, torch.Tensor] | None = None,
        keep: bool = False,
        seconds: float = _PATIENCE,
    ) -> dict[WorkerHandle, list[Member]]:
        """Some clients as the members of cohorts, by worker, in the order given.

        Data that is at no worker is sent first: one message for each worker that gets some (more where it is
        made on demand and large), and one for kept states after `restore_states`. Clients that have no
        worker go to the one with least to do in this call, then with least data.

        Args:
            clients: each once.
            keys: by client, its random key.
            keep: let their own state stay at the worker: see `remember`.
            seconds: how long to wait for workers to take data.

        Raises:
            DataError: no such client, one twice, or one that is lost.
            WorkerError: data could not be sent; ``worker`` is the id of where. After `lose`, the same call
                sends what is left to others.
        """
        with self._lock:
            seen: set[int] = set()
            for client in clients:
                self._check_client(client)
                if client in seen:
                    raise DataError(f"client {client} is there twice")
                if client in self._lost:
                    raise DataError(f"client {client} is lost: its data was only at a worker that is lost")
                seen.add(client)
            self._place(clients, seconds)
            by_worker: dict[WorkerHandle, list[int]] = {}
            for client in clients:
                home = self._blocks.home(client)
                assert home is not None  # it was placed
                by_worker.setdefault(home, []).append(client)
            for worker, here in by_worker.items():
                try:
                    self._kept.send(worker, here)
                except PlancError as error:
                    raise of_worker(error, worker) from None
            return {
                worker: [self._member(client, keys, keep) for client in here]
                for worker, here in by_worker.items()
            }

    def lose(self, worker: WorkerHandle) -> Lost:
        """Count on a worker no more: it is dead. Its clients move where their data is known here.

        Their data is sent again when they are next used, see `members`. Losing a worker twice does nothing.
        """
        with self._lock:
            if worker not in self._workers:
                return Lost((), ())
            self._workers = tuple(other for other in self._workers if other is not worker)
            moved = self._blocks.lose(worker)
            gone = moved if self._source is None else []
            self._lost |= frozenset(gone)
            return Lost(tuple(gone), self._kept.lose(worker))

    def add(self, worker: WorkerHandle) -> None:
        """Let another worker take part: it gets clients that have none.

        Raises:
            DataError: it is one of the workers already, or has the id of one.
        """
        with self._lock:
            self._workers = checked_workers([*self._workers, worker])

    # -- what clients keep -----------------------------------------------------------------------------------

    def remember(self, states: Mapping[int, Mapping[str, RemoteTensor]]) -> None:
        """Take over what clients kept at their workers (`CohortResult.state`): `members` brings it back."""
        with self._lock:
            self._kept.remember(states)

    def kept_states(self) -> dict[int, dict[str, torch.Tensor]]:
        """What all clients keep, by client and path, here: one message a worker. For checkpoints."""
        with self._lock:
            return self._kept.fetch()

    def restore_states(self, states: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        """Let clients keep this, and others nothing, as after `kept_states`."""
        with self._lock:
            for client in states:
                self._check_client(client)
            self._kept.restore(states)

    # -- placing ---------------------------------------------------------------------------------------------

    def _place(self, clients: Sequence[int], seconds: float) -> None:
        """See to it that the data of each client is at some worker."""
        load: dict[WorkerHandle, float] = defaultdict(float)
        new: list[int] = []
        used: set[int] = set()
        for client in clients:
            number, home = self._blocks.number(client), self._blocks.home(client)
            if number is None or home is None:
                new.append(client)
                continue
            used.add(number)
            load[home] += self.weights[client]
        self._blocks.touch(sorted(used))
        if new:
            self._send(self._spread(new, load), used, seconds)

    def _spread(
        self, clients: Sequence[int], load: Mapping[WorkerHandle, float]
    ) -> dict[WorkerHandle, list[int]]:
        """A worker for each client: the heaviest first, each to whoever has least to do, then least data."""
        if not self._workers:
            raise WorkerError("no worker is left: every worker of the population was lost")
        heap = [(load.get(w, 0), self._blocks.held[w], i) for i, w in enumerate(self._workers)]
        heapq.heapify(heap)
        chosen: dict[int, WorkerHandle] = {}
        for client in sorted(clients, key=lambda client: -self.weights[client]):
            worker = self._kept.home(client)
            if worker is None:
                least, held, i = heap[0]
                heapq.heapreplace(heap, (least + self.weights[client], held, i))
                worker = self._workers[i]
            chosen[client] = worker
        out: dict[WorkerHandle, list[int]] = {}
        for client in clients:
            out.setdefault(chosen[client], []).append(client)
        return out

    def _send(self, clients: Mapping[WorkerHandle, list[int]], used: set[int], seconds: float) -> None:
        """Send data to workers; what came there is noted, also where another one failed."""
        assert self._source is not None  # without one, clients are somewhere or lost

        def before(worker: WorkerHandle, piece: Piece) -> None:
            self._check_kind(piece)
            if self._cache_bytes is not None:
                self._blocks.make_room(worker, piece.nbytes, self._cache_bytes, used)

        def after(worker: WorkerHandle, piece: Piece, tensors: tuple[RemoteTensor, ...]) -> None:
            used.add(self._blocks.put(Block(worker, piece.clients, tensors), piece.sizes))

        streams = {worker: self._source.pieces(here) for worker, here in clients.items()}
        send_pieces(streams, before, after, seconds)

    def _check_kind(self, piece: Piece) -> None:
        types = row_types(piece.tensors)
        if self._types is not None and types != self._types:
            raise DataError(
                f"clients need data of one kind: so far rows of {[str(t) for t in self._types]}, that of "
                f"client {piece.clients[0]} of {[str(t) for t in types]}"
            )
        self._types = types

    def _member(self, client: int, keys: Mapping[int, torch.Tensor] | None, keep: bool) -> Member:
        key = None if keys is None else keys[client]
        data = self._blocks.sources(client)
        return Member(client, self.weights[client], data, key, self._kept.of(client), keep)

    def _check_client(self, client: int) -> None:
        if not 0 <= client < len(self):
            raise DataError(f"there is no client {client}: the population has clients 0 to {len(self) - 1}")

    def __repr__(self) -> str:
        lost = f", {len(self._lost)} lost" if self._lost else ""
        return f"<Population {len(self)} clients at {[worker.id for worker in self.workers]}{lost}>"


__all__ = ["Lost", "Population"]
