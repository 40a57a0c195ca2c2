"""The digest that names a constant: what a plan's bytes hold in place of the tensor. Holds no data itself."""

from __future__ import annotations

import hashlib
import sys

import torch

from planc.errors import TypeCheckError
from planc.ir.types import type_of


def digest(tensor: torch.Tensor) -> str:
    """The SHA-256 (hex) of a tensor's type and contents.

    It covers the text of the type, a newline, and the elements in row-major order, little-endian: a view, a
    copy and a transfer from another device all have the digest of the original.

    Raises:
        TypeCheckError: the tensor's dtype is not one that plans have.
    """
    type = type_of(tensor)
    if type is None:
        raise TypeCheckError(f"a constant of dtype {tensor.dtype} cannot be part of a plan")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy()
    if sys.byteorder == "big":
        raw = raw.reshape(-1, type.dtype.itemsize)[:, ::-1]
    return hashlib.sha256(f"{type}\n".encode() + raw.tobytes()).hexdigest()
