"""What a handler works with: the parts of its worker, and one request with its tensors and its client.

The client's rights are asked for here. No message is handled here: see `runtime.handlers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from planc.errors import DecodeError, InputError
from planc.ir import DType, from_torch
from runtime.errors import ObjectExists, ObjectNotFound, PermissionDenied, WrongWorker
from runtime.executor import Executor
from runtime.identity import Identity
from runtime.messages import Body, Handle, Pointer, Slot
from runtime.policy import PUBLIC, Policy, Secrecy
from runtime.shelf import Shelf
from runtime.store import Store, Stored

_ALONE = 2**20
"""A tensor of this many bytes that is alone in its frame is kept as it came. Others are copied out:
each would hold the memory of its whole frame."""


@dataclass(slots=True)
class Site:
    """The parts of a worker that handlers use.

    ``send`` delivers one body to a peer; ``unlocked`` opens the worker to other requests meanwhile, and
    ``computing`` does so for a plan that is going to write to the objects with these ids.
    """

    worker: str
    device: torch.device
    store: Store
    shelf: Shelf
    policy: Policy
    executor: Executor
    approved: set[str]
    send: Callable[[str, Body, Sequence[torch.Tensor]], None]
    unlocked: Callable[[], AbstractContextManager[None]]
    computing: Callable[[Iterable[int]], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Given:
    """A tensor that a request names, its secrecy, and whether the client may change it."""

    tensor: torch.Tensor
    secrecy: Secrecy
    owned: bool


@dataclass(slots=True)
class Call:
    """One request: who asks, the tensors that came along, and those to go back."""

    site: Site
    identity: Identity
    tensors: Sequence[torch.Tensor]
    back: list[torch.Tensor] = field(default_factory=list[torch.Tensor])

    @property
    def client(self) -> str:
        """The name of who asks."""
        return self.identity.name

    def see(self, id: int) -> Stored:
        """An object that the client may see.

        Raises:
            ObjectNotFound: there is none, or it may not; the text is the same.
        """
        stored = self.site.store.get(id)
        if stored is None or not self.sees(stored):
            raise ObjectNotFound(f"there is no object {id}, or it is not yours")
        return stored

    def sees(self, stored: Stored) -> bool:
        """Whether the client may see an object."""
        return self.site.policy.may_see(
            self.client, stored.owner, self.site.worker, stored.secrecy, stored.tags
        )

    def change(self, id: int) -> Stored:
        """An object that the client may change.

        Raises:
            ObjectNotFound: as `see`.
            PermissionDenied: it belongs to another.
        """
        stored = self.see(id)
        if not self.owns(stored):
            raise PermissionDenied(f"object {id} belongs to another: {self.client!r} may not change it")
        return stored

    def owns(self, stored: Stored) -> bool:
        """Whether the client may change an object."""
        return self.site.policy.may_change(self.client, stored.owner)

    def require_having(self, whom: str, secrecy: Secrecy, what: str) -> None:
        """Check that a client or worker may have the elements of a value.

        Raises:
            PermissionDenied: they are private.
        """
        if not self.site.policy.may_have(whom, secrecy):
            raise PermissionDenied(
                f"{what} is private: {whom!r} may compute with it, but not have it; what may leave are "
                "the results of a plan that the owner of the data approved"
            )

    def tensor(self, id: int, stored: Stored) -> torch.Tensor:
        """The tensor of an object.

        Raises:
            WrongWorker: it is a pointer to an object elsewhere.
        """
        if isinstance(stored.value, Pointer):
            at = stored.value
            raise WrongWorker(
                f"object {id} at {self.site.worker!r} is a pointer to object {at.id} at {at.worker!r}: "
                f"use it there, or get it first"
            )
        return stored.value

    def given(self, argument: Handle | Slot) -> Given:
        """The tensor that a request names by handle, or brought along."""
        if isinstance(argument, Slot):
            return Given(self.slot(argument), PUBLIC, owned=True)
        stored = self.see(argument.id)
        return Given(self.tensor(argument.id, stored), stored.secrecy, self.owns(stored))

    def slot(self, slot: Slot) -> torch.Tensor:
        """A tensor that came along, on the worker's device.

        Raises:
            DecodeError: there is no such tensor.
        """
        if slot.index >= len(self.tensors):
            raise DecodeError(f"slot {slot.index}: {len(self.tensors)} tensors came along")
        return self.tensors[slot.index].to(self.site.device)

    def slot_to_keep(self, slot: Slot) -> torch.Tensor:
        """As `slot`, with memory of its own."""
        tensor = self.slot(slot)
        alone = len(self.tensors) == 1 and tensor.nbytes >= _ALONE
        moved = tensor is not self.tensors[slot.index]
        return tensor.detach() if alone or moved else tensor.detach().clone()

    def attach(self, tensor: torch.Tensor) -> Slot:
        """Send a tensor back with the reply."""
        self.back.append(tensor)
        return Slot(len(self.back) - 1)

    def require_new(self, ids: Iterable[int]) -> None:
        """Check that ids are free, and given once.

        Raises:
            ObjectExists: one is not.
        """
        for id in require_unique(ids):
            if self.site.store.get(id) is not None:
                raise ObjectExists(f"an object {id} is there already")

    def require_writable(self, ids: Iterable[int]) -> None:
        """As `require_new`, but a client may replace an object of its own."""
        for id in require_unique(ids):
            stored = self.site.store.get(id)
            if stored is not None and not self.owns(stored):
                raise ObjectExists(f"an object {id} is there already")

    def element_type(self, tensor: torch.Tensor) -> DType:
        """The dtype of a stored tensor."""
        dtype = from_torch(tensor.dtype)
        assert dtype is not None  # neither frames nor ops make others
        return dtype


def require_unique(ids: Iterable[int]) -> list[int]:
    """The ids as a list.

    Raises:
        InputError: one is given twice.
    """
    out = list(ids)
    if len(set(out)) != len(out):
        twice = next(id for i, id in enumerate(out) if id in out[:i])
        raise InputError(f"object {twice} is given twice: expected ids that differ")
    return out


def require_paired(ids: Sequence[int], new_ids: Sequence[int]) -> None:
    """Check that there is a new id for each.

    Raises:
        InputError: there is not.
    """
    if len(ids) != len(new_ids):
        raise InputError(f"expected a new id for each of {len(ids)} objects, got {len(new_ids)}")
