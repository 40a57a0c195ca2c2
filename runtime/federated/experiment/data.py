"""The data of an experiment: tensors that are here, for clients to share, or what workers have already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from planc.errors import DataError
from planc.ir import TensorType
from runtime.data import FederatedDataset
from runtime.federated.experiment import sections as S
from runtime.federated.experiment.models import Kind
from runtime.federated.partition import dirichlet, even
from runtime.federated.population import Population
from runtime.remote.handle import WorkerHandle
from runtime.remote.tensor import RemoteTensor

Pair = tuple[Tensor, Tensor]
"""Inputs and targets, one row an example."""


@dataclass(frozen=True)
class Here:
    """Data that is here.

    Attributes:
        train: what the clients share.
        test: what was kept from them, if anything was.
    """

    section: S.Mnist | S.File
    train: Pair
    test: Pair | None
    seed: int

    @property
    def kind(self) -> Kind:
        """What an example is. Classes are counted in both parts."""
        x, y = self.train
        return Kind.of(x, y if self.test is None else torch.cat([y, self.test[1]]))

    def rows(self) -> list[int]:
        """How many rows each client gets."""
        section, (_, y) = self.section, self.train
        if section.partition == "even":
            return even(len(y), section.clients, self.seed).sizes.tolist()
        return dirichlet(y, section.clients, section.alpha, self.seed).sizes.tolist()

    def population(self, workers: Sequence[WorkerHandle]) -> Population:
        """The clients: sends each worker its part.

        Raises:
            DataError: more clients than rows, or labels that cannot be spread.
            WorkerError: a worker did not take its part.
        """
        section = self.section
        return Population.split(
            self.train,
            section.clients,
            workers,
            seed=self.seed,
            how=section.partition,
            alpha=section.alpha,
        )


@dataclass(frozen=True)
class There:
    """Data that is at workers: each is a client."""

    shards: Mapping[WorkerHandle, tuple[RemoteTensor, RemoteTensor]]
    test: Pair | None = None

    @property
    def kind(self) -> Kind:
        """What an example is; how many classes there are is not known here."""
        x, y = (tensor.tensor_type for tensor in next(iter(self.shards.values())))
        return Kind(_row(x), _row(y), None if y.dtype.is_floating else 0, (x.dtype.torch, y.dtype.torch))

    def rows(self) -> list[int]:
        """How many rows each client has."""
        return [x.shape[0] for x, _ in self.shards.values()]

    def population(self, workers: Sequence[WorkerHandle]) -> Population:
        """The clients. Nothing is sent.

        Raises:
            DataError: workers have data of different kinds.
        """
        return Population.of(FederatedDataset(self.shards))


Data = Here | There


def read_here(section: S.Mnist | S.File, folder: Path, seed: int) -> Here:
    """The data that a section of the file names.

    Args:
        folder: what relative paths begin at.

    Raises:
        DataError: a file is missing or damaged, has no such tensors, or they do not fit each other.
    """
    if isinstance(section, S.Mnist):
        from runtime.demo.mnist import load_embedded  # needs an extra

        split = load_embedded(section.held_out, seed)
        return Here(section, (split.train_x, split.train_y), (split.test_x, split.test_y), seed)
    path = folder / section.path
    tensors = _read(path)
    train = _pair(path, tensors, section.x, section.y)
    if (section.test_x is None) != (section.test_y is None):
        raise DataError("test_x and test_y are given together, and only one of them is")
    if section.test_x is not None and section.test_y is not None:
        return Here(section, train, _pair(path, tensors, section.test_x, section.test_y), seed)
    rows = len(train[1])
    if not section.held_out:
        return Here(section, train, None, seed)
    if section.held_out >= rows:
        raise DataError(f"{path} has {rows} rows, and held_out takes {section.held_out}: none would be left")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    kept, held = order[section.held_out :], order[: section.held_out]
    x, y = train
    return Here(section, (x[kept], y[kept]), (x[held], y[held]), seed)


def find_there(section: S.AtWorkers, workers: Sequence[WorkerHandle]) -> There:
    """The data that workers have, by its tags. Two messages a worker.

    Raises:
        DataError: a worker has none of a tag, or several.
        WorkerError: a worker does not answer.
    """
    return There({worker: (_find(worker, section.x), _find(worker, section.y)) for worker in workers})


def _find(worker: WorkerHandle, tag: str) -> RemoteTensor:
    found = worker.search(tag)
    if len(found) != 1:
        raise DataError(f"worker {worker.id!r}: expected one tensor with the tag {tag!r}, got {len(found)}")
    return found[0]


def _row(type: TensorType) -> tuple[int, ...]:
    return tuple(int(dim) for dim in type.shape[1:])  # pyright: ignore[reportArgumentType] -- of stored tensors


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Runs nothing that a file brings along."""
    if path.suffix not in (".npz", ".safetensors"):
        raise DataError(f"{path}: expected a file .npz or .safetensors")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # Opened here: numpy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except Exception as error:  # those of two libraries, for bytes that may be anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as {path.suffix}: {said[:300]}") from None


def _pair(path: Path, tensors: Mapping[str, Tensor], x: str, y: str) -> Pair:
    for name in (x, y):
        if name not in tensors:
            raise DataError(f"{path}: there is no tensor {name!r}; it has {', '.join(tensors) or 'none'}")
    inputs, targets = tensors[x], tensors[y]
    if not inputs.dim() or inputs.shape[:1] != targets.shape[:1] or not len(inputs):
        raise DataError(
            f"{path}: {x!r} and {y!r} must have as many rows, at least one: they are "
            f"{list(inputs.shape)} and {list(targets.shape)}"
        )
    if not inputs.is_floating_point():
        raise DataError(
            f"{path}: {x!r} is {inputs.dtype}, and networks take floating point: convert it first"
        )
    # Losses take classes as int64 and numbers as the network's own type.
    return inputs, targets.to(inputs.dtype if targets.is_floating_point() else torch.int64)


__all__ = ["Data", "Here", "Pair", "There", "find_there", "read_here"]
