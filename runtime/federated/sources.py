"""Where the data of clients comes from before it is at a worker: tensors that are here, or a function.

Knows no workers; `runtime.federated.population` sends what is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from planc.errors import DataError
from planc.ir import TensorType
from runtime.federated.partition import Integers, Partition
from runtime.remote.handle import tensor_type

Data = tuple[torch.Tensor, ...]
"""One tensor for each of the plan's data arguments, rows first."""

_PIECE_BYTES = 64 * 2**20
"""Data made on demand that is put together before it is sent: few messages, and little held here."""


@dataclass(frozen=True)
class Piece:
    """Data of some clients, the rows of one after those of the other."""

    clients: Integers
    sizes: Integers
    tensors: Data

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


class Source(Protocol):
    """Gives the data of clients, as often as it is asked."""

    def pieces(self, clients: Sequence[int]) -> Iterator[Piece]:
        """The data of these clients, in pieces of a size to send."""
        ...


class Split:
    """Rows of tensors that are here."""

    def __init__(self, tensors: Data, partition: Partition) -> None:
        self._tensors = tensors
        self._partition = partition

    def pieces(self, clients: Sequence[int]) -> Iterator[Piece]:
        """All in one piece."""
        rows = self._partition.of(clients)
        chosen = np.asarray(clients, np.int64)
        yield Piece(chosen, self._partition.sizes[chosen], tuple(t[rows.to(t.device)] for t in self._tensors))


class Made:
    """Data that a function makes.

    Args:
        function: gives a client's tensors.
        cache_bytes: what a worker keeps: pieces are a fraction of it, so that some stay when others go.
    """

    def __init__(self, function: Callable[[int], Sequence[torch.Tensor]], cache_bytes: int) -> None:
        self._function = function
        self._limit = min(_PIECE_BYTES, cache_bytes // 8)

    def pieces(self, clients: Sequence[int]) -> Iterator[Piece]:
        """Pieces of bounded size, unless one client has more.

        Raises:
            DataError: what was made has no rows, or is of another kind than that of another client.
        """
        made: list[tuple[int, Data]] = []
        nbytes = 0
        for client in clients:
            data = checked(self._function(client), f"the data of client {client}")
            size = sum(tensor.nbytes for tensor in data)
            if made and (nbytes + size > self._limit):
                yield _joined(made)
                made, nbytes = [], 0
            made.append((client, data))
            nbytes += size
        if made:
            yield _joined(made)


def checked(tensors: Sequence[torch.Tensor], what: str) -> Data:
    """Tensors as the data of clients.

    Raises:
        DataError: none, one without rows, or leading sizes that differ.
        InputError: one is no tensor, or of a dtype that no plan has.
    """
    if isinstance(tensors, torch.Tensor):
        raise DataError(f"{what} must be a tuple of tensors, one for each argument, got one tensor: (x,)")
    if not isinstance(tensors, Sequence):  # what a user's function returned
        raise DataError(f"{what} must be a tuple of tensors, one for each argument, got {tensors!r}")
    for tensor in tensors:
        tensor_type(tensor)
    sizes = {tuple(tensor.shape[:1]) for tensor in tensors}
    if len(sizes) != 1 or () in sizes:
        raise DataError(
            f"{what} must be tensors of equal leading size, got {[list(tensor.shape) for tensor in tensors]}"
        )
    if sizes == {(0,)}:
        raise DataError(f"{what} has no rows: a client needs at least one")
    return tuple(tensor.detach() for tensor in tensors)


def row_types(tensors: Data) -> tuple[TensorType, ...]:
    """What each tensor of a row is: dtype, and dims without the rows."""
    types = [tensor_type(tensor) for tensor in tensors]
    return tuple(TensorType(type.dtype, type.shape[1:]) for type in types)


def _joined(made: Sequence[tuple[int, Data]]) -> Piece:
    first, types = made[0][0], row_types(made[0][1])
    for client, data in made:
        if row_types(data) != types:
            raise DataError(
                f"clients need data of one kind: that of client {first} has rows of "
                f"{[str(t) for t in types]}, that of client {client} of {[str(t) for t in row_types(data)]}"
            )
    sizes = np.array([len(data[0]) for _, data in made], np.int64)
    columns = zip(*(data for _, data in made), strict=True)
    return Piece(
        np.array([client for client, _ in made], np.int64), sizes, tuple(torch.cat(c) for c in columns)
    )


__all__ = ["Data", "Made", "Piece", "Source", "Split", "checked", "row_types"]
