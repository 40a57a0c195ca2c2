"""Which rows each client gets, where one data set is spread over many. Knows no workers, sends nothing.

A partition is two arrays, however many clients there are: the rows, client after client, and where each
client's rows begin.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from planc.errors import DataError

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """The rows of each client.

    Attributes:
        rows: i64, the rows of client 0, then those of client 1, and so on. A row may come twice, or never.
        offsets: i64[clients + 1]: client ``c`` has ``rows[offsets[c]:offsets[c + 1]]``.
    """

    rows: Integers
    offsets: Integers

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Integers:
        """How many rows each client has."""
        return np.diff(self.offsets)

    def of(self, clients: Sequence[int]) -> torch.Tensor:
        """The rows of some clients, one client after the other: an index of i64."""
        parts = [self.rows[self.offsets[c] : self.offsets[c + 1]] for c in clients]
        return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.int64))


def even(rows: int, clients: int, seed: int = 0) -> Partition:
    """Rows in an order drawn by the seed, in parts whose sizes differ by one at most.

    Raises:
        DataError: no clients, or more clients than rows.
    """
    _check_counts(rows, clients)
    size, more = divmod(rows, clients)
    sizes = np.full(clients, size, np.int64)
    sizes[:more] += 1
    return Partition(generator(seed).permutation(rows).astype(np.int64), _offsets(sizes))


def dirichlet(labels: torch.Tensor, clients: int, alpha: float, seed: int = 0) -> Partition:
    """Clients with labels of their own: the rows of each label are spread by shares drawn from Dir(alpha).

    As in Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks (2019), section 4;
    a small ``alpha`` (0.1) gives clients with one label or two, a large one (100) nearly even ones. Every
    client gets a row: one that was drawn none gets it from the client with the most.

    Args:
        labels: whole numbers, one a row.
        clients: how many.
        alpha: above 0.
        seed: of all that is drawn.

    Raises:
        DataError: labels that are not whole numbers of one dim, an ``alpha`` that is not above 0, no clients,
            or more clients than rows.
    """
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"dirichlet needs the labels as whole numbers, one a row; got {labels.dtype} of shape "
            f"{list(labels.shape)}: name the tensor with labels=, as in labels=y"
        )
    if not 0 < alpha < float("inf"):
        raise DataError(f"alpha of a Dirichlet distribution is above 0, got {alpha}")
    rows = len(labels)
    _check_counts(rows, clients)
    draw = generator(seed)
    kinds: Integers = labels.detach().cpu().numpy()
    owner = np.empty(rows, np.int64)
    for kind in np.unique(kinds):
        here = draw.permutation(np.flatnonzero(kinds == kind))
        cuts = (np.cumsum(draw.dirichlet(np.full(clients, alpha))) * len(here)).astype(np.int64)[:-1]
        owner[here] = np.searchsorted(cuts, np.arange(len(here)), side="right")
    sizes = np.bincount(owner, minlength=clients)
    _feed_the_empty(owner, sizes)
    order = np.argsort(owner, kind="stable").astype(np.int64)
    return Partition(order, _offsets(sizes))


def explicit(parts: Sequence[Any], rows: int) -> Partition:
    """The rows as the caller says, an index (a tensor, an array or a list) for each client.

    Raises:
        DataError: no parts, an empty one, one that is no index of whole numbers, or a row that is not there.
    """
    if not len(parts):
        raise DataError("parts is empty: a population needs at least one client")
    arrays = [_index(part, client, rows) for client, part in enumerate(parts)]
    return Partition(np.concatenate(arrays), _offsets(np.array([len(a) for a in arrays], np.int64)))


def generator(seed: int) -> np.random.Generator:
    """A counter-based generator of its own: nothing here touches a global one.

    Raises:
        DataError: the seed is below 0 or no whole number.
    """
    if not isinstance(seed, int) or seed < 0:
        raise DataError(f"a seed is a whole number of at least 0, got {seed!r}")
    return np.random.Generator(np.random.Philox(seed))


def _feed_the_empty(owner: Integers, sizes: Integers) -> None:
    """Give each client without a row one of the client that has most then; changes both in place."""
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return
    order = np.argsort(owner, kind="stable")
    starts = _offsets(sizes)
    # By size, then by number; of a client's rows those that it still has are the first ones.
    most = [(-int(size), client) for client, size in enumerate(sizes) if size > 1]
    heapq.heapify(most)
    for client in empty:
        size, giver = most[0]
        owner[order[starts[giver] - size - 1]] = client
        heapq.heapreplace(most, (size + 1, giver))
        sizes[giver] -= 1
        sizes[client] += 1


def _index(part: Any, client: int, rows: int) -> Integers:
    array = np.asarray(part.detach().cpu() if isinstance(part, torch.Tensor) else part)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise DataError(
            f"the part of client {client} must be an index of at least one row (whole numbers, one dim), got "
            f"{array.dtype} of shape {list(array.shape)}"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= rows:
        raise DataError(
            f"the part of client {client} has row {low if low < 0 else high}; there are rows 0 to {rows - 1}"
        )
    return array.astype(np.int64)


def _check_counts(rows: int, clients: int) -> None:
    if clients < 1:
        raise DataError(f"a population needs at least one client, got {clients}")
    if clients > rows:
        raise DataError(f"{rows} rows cannot be spread over {clients} clients: each needs one at least")


def _offsets(sizes: Integers) -> Integers:
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


__all__ = ["Partition", "dirichlet", "even", "explicit", "generator"]
