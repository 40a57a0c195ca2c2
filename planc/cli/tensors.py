"""Tensors from and to files, for `planc run`: ``.safetensors``, ``.npy`` and ``.npz``. Nothing unpickles."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from planc.errors import DataError

KINDS = (".safetensors", ".npy", ".npz")


def read(path: str, name: str) -> torch.Tensor:
    """One tensor of a file: the one called ``name``, or the only one that it holds.

    Raises:
        DataError: the file is of another kind, damaged, or has several tensors and none of this name.
        OSError: it cannot be read.
    """
    found = _read_all(path)
    if name in found:
        return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    names = ", ".join(repr(key) for key in list(found)[:8]) or "none"
    raise DataError(f"{path}: expected a tensor called {name!r}, got {len(found)} tensors: {names}")


def write(path: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name; an ``.npy`` file takes exactly one.

    Raises:
        DataError: a file of another kind, or of one that cannot hold these tensors.
        OSError: it cannot be written.
    """
    check_kind(path)
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if path.endswith(".safetensors"):
        Path(path).write_bytes(safetensors.torch.save(own))
        return
    try:
        arrays = {name: tensor.numpy() for name, tensor in own.items()}
    except TypeError as error:
        raise DataError(f"{path}: numpy has no such type ({error}); write .safetensors") from None
    with open(path, "wb") as file:
        if path.endswith(".npz"):
            _save_npz(file, arrays)
        elif len(arrays) == 1:
            np.save(file, next(iter(arrays.values())), allow_pickle=False)
        else:
            raise DataError(f"{path}: an .npy file holds one tensor, got {len(arrays)}; write .npz")


def check_kind(path: str) -> None:
    """Check a file's suffix, before there is anything to lose.

    Raises:
        DataError: it is none of `KINDS`.
    """
    if not path.endswith(KINDS):
        raise DataError(f"{path}: expected a file of kind {', '.join(KINDS)}")


def _save_npz(file: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    # Not np.savez: it takes names as keyword arguments, and "file" is one of its own.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _read_all(path: str) -> dict[str, torch.Tensor]:
    check_kind(path)
    data = Path(path).read_bytes()  # first, so that a missing file is an OSError whatever its kind
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load(data)
        if path.endswith(".npy"):
            return {"": _array(data)}
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}
    except (
        safetensors.SafetensorError,
        zipfile.BadZipFile,
        ValueError,
        TypeError,
        EOFError,
        KeyError,
        RuntimeError,
    ) as error:
        raise DataError(f"{path}: cannot be read as {Path(path).suffix}: {error}") from None


def _array(data: bytes) -> torch.Tensor:
    # Not np.load: it tells of pickles when a file is no array, and would read them if asked.
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    # torch takes the machine's byte order only, and warns of memory that it may not write to.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


__all__ = ["KINDS", "check_kind", "read", "write"]
