"""Where the data of clients is: blocks of data at workers, and each client's span of rows in one.

A few arrays, however many clients there are. Sends nothing. Not thread-safe by itself: the population has
the lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np

from runtime.federated.members import Picked, Rows, Source
from runtime.federated.partition import Integers
from runtime.remote.handle import WorkerHandle
from runtime.remote.tensor import RemoteTensor

_NOWHERE = -1


@dataclass(frozen=True, eq=False)
class Block:
    """Data of some clients at a worker; with an index, a client's span is one of the index."""

    worker: WorkerHandle
    clients: Integers
    tensors: tuple[RemoteTensor, ...]
    index: RemoteTensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


class Blocks:
    """The blocks of a population, least recently used first.

    Args:
        clients: how many there are.

    Attributes:
        held: bytes of data by worker.
    """

    def __init__(self, clients: int) -> None:
        self.held: Counter[WorkerHandle] = Counter()
        self._where = np.full(clients, _NOWHERE, np.int64)
        self._start, self._stop = np.zeros(clients, np.int64), np.zeros(clients, np.int64)
        self._blocks: dict[int, Block] = {}
        self._made = 0

    def put(self, block: Block, sizes: Integers) -> int:
        """Note that clients are in a block now, one after the other, with so many rows; its number."""
        number = self._made
        self._made += 1
        self._blocks[number] = block
        self.held[block.worker] += block.nbytes
        self._where[block.clients] = number
        self._stop[block.clients] = np.cumsum(sizes)
        self._start[block.clients] = self._stop[block.clients] - sizes
        return number

    def number(self, client: int) -> int | None:
        """The block that a client is in, if it is in any."""
        number = int(self._where[client])
        return None if number == _NOWHERE else number

    def home(self, client: int) -> WorkerHandle | None:
        """The worker where a client's data is, if it is at any."""
        number = self.number(client)
        return None if number is None else self._blocks[number].worker

    def sources(self, client: int) -> tuple[Source, ...]:
        """A client's data: its span of each tensor of its block."""
        block = self._blocks[int(self._where[client])]
        start, stop = int(self._start[client]), int(self._stop[client])
        if block.index is not None:
            return tuple(Picked(tensor, block.index, start, stop) for tensor in block.tensors)
        # A whole tensor is named as such: of one that is private no part could be released.
        return tuple(
            tensor if stop - start == tensor.shape[0] else Rows(tensor, start, stop)
            for tensor in block.tensors
        )

    def touch(self, numbers: Iterable[int]) -> None:
        """Say that blocks are used now."""
        for number in numbers:
            self._blocks[number] = self._blocks.pop(number)

    def make_room(self, worker: WorkerHandle, nbytes: int, limit: int, used: Container[int]) -> None:
        """Let go of what was used least recently at a worker, until so many bytes more fit into a limit.

        Blocks in ``used`` stay. What goes is freed at the worker once no member of a cohort has it.
        """
        for number, block in list(self._blocks.items()):
            if self.held[worker] + nbytes <= limit:
                return
            if block.worker is worker and number not in used:
                self._drop(number)

    def lose(self, worker: WorkerHandle) -> list[int]:
        """Forget the blocks at a worker; the clients whose data was there."""
        lost = [number for number, block in self._blocks.items() if block.worker is worker]
        return sorted(client for number in lost for client in self._drop(number))

    def _drop(self, number: int) -> list[int]:
        block = self._blocks.pop(number)
        self.held[block.worker] -= block.nbytes
        self._where[block.clients] = _NOWHERE
        return block.clients.tolist()


__all__ = ["Block", "Blocks"]
