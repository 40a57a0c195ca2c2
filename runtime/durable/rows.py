"""What is written down of an object, a plan and a session: typed rows, and back. No files, no tables."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch

from planc.ir import DType, from_torch
from runtime.messages import Pointer
from runtime.policy import Secrecy
from runtime.store import Stored


class TensorRow(msgspec.Struct, frozen=True, tag="tensor", forbid_unknown_fields=True):
    """A tensor as a view of a piece of memory, with strides and offset in elements. Piece 0 has no bytes."""

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    piece: int


class PointerRow(msgspec.Struct, frozen=True, tag="pointer", forbid_unknown_fields=True):
    """A pointer to an object elsewhere."""

    worker: str
    id: int


class SecrecyRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See `runtime.policy.Secrecy`."""

    private: bool = False
    derived: bool = False
    allowed: tuple[str, ...] = ()

    @classmethod
    def of(cls, secrecy: Secrecy) -> SecrecyRow:
        """The row of a secrecy."""
        return cls(secrecy.private, secrecy.derived, tuple(sorted(secrecy.allowed)))

    def secrecy(self) -> Secrecy:
        """The secrecy of a row."""
        return Secrecy(self.private, self.derived, frozenset(self.allowed))


class ObjectRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See `runtime.store.Stored`. What autograd knows of a computed tensor is not written down."""

    value: TensorRow | PointerRow
    owner: str
    tags: tuple[str, ...] = ()
    description: str = ""
    secrecy: SecrecyRow = SecrecyRow()
    requires_grad: bool = False
    grad: TensorRow | None = None
    grad_secrecy: SecrecyRow = SecrecyRow()


class PlanRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See `runtime.shelf.Installed`; its bytes stand beside."""

    constants: dict[str, TensorRow]
    clients: tuple[str, ...]
    tags: tuple[str, ...]
    description: str


def tensor_row(tensor: torch.Tensor, piece: int, offset: int | None = None) -> TensorRow:
    """The row of a tensor that is a view of a piece; ``offset`` is its storage's where not given."""
    dtype = from_torch(tensor.dtype)
    assert dtype is not None  # neither frames nor ops make others
    at = int(tensor.storage_offset()) if offset is None else offset
    return TensorRow(dtype, tuple(tensor.shape), tuple(tensor.stride()), at, piece)


def tensor_of(row: TensorRow, storage: torch.UntypedStorage | None, device: torch.device) -> torch.Tensor:
    """The tensor of a row, on its piece's memory.

    Raises:
        ValueError: the memory is not what the row says.
    """
    if storage is None:
        return torch.empty(row.shape, dtype=row.dtype.torch, device=device)
    steps = [(size - 1) * step for size, step in zip(row.shape, row.strides, strict=True)]
    if row.offset < 0 or any(step < 0 for step in steps) or 0 in row.shape:
        raise ValueError("its shape and strides are not those of a tensor")
    if (row.offset + sum(steps) + 1) * row.dtype.itemsize > storage.nbytes():
        raise ValueError("it is larger than what is kept of it")
    tensor = torch.empty(0, dtype=row.dtype.torch, device=device)
    return tensor.set_(storage, row.offset, row.shape, row.strides)


def object_row(stored: Stored, refer: Callable[[torch.Tensor], TensorRow]) -> ObjectRow:
    """The row of an object; ``refer`` makes those of its tensors."""
    value, secrecy = stored.value, SecrecyRow.of(stored.secrecy)
    if isinstance(value, Pointer):
        pointer = PointerRow(value.worker, value.id)
        return ObjectRow(pointer, stored.owner, stored.tags, stored.description, secrecy)
    grad = value.grad if value.is_leaf else None
    return ObjectRow(
        refer(value),
        stored.owner,
        stored.tags,
        stored.description,
        secrecy,
        value.is_leaf and value.requires_grad,
        None if grad is None else refer(grad),
        SecrecyRow.of(stored.grad_secrecy),
    )


def object_of(row: ObjectRow, recall: Callable[[TensorRow], torch.Tensor]) -> Stored:
    """The object of a row; ``recall`` makes its tensors."""
    secrecy, grad_secrecy = row.secrecy.secrecy(), row.grad_secrecy.secrecy()
    if isinstance(row.value, PointerRow):
        pointer = Pointer(row.value.worker, row.value.id)
        return Stored(pointer, row.owner, row.tags, row.description, secrecy, grad_secrecy)
    value = recall(row.value)
    value.requires_grad_(row.requires_grad)
    if row.grad is not None:
        value.grad = recall(row.grad)
    return Stored(value, row.owner, row.tags, row.description, secrecy, grad_secrecy)
